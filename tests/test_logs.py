"""Log records as lines of JSON, with what they are about; and records that cannot be shown."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import logging.handlers
import queue
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perdure import Context, connect, step, step_info, workflow
from perdure.errors import MessageRefused
from perdure.logs import InvocationFilter, JsonFormatter, TextFormatter
from tests.http import watched

Line = dict[str, Any]


class Lines(io.StringIO):
    def __iter__(self) -> Iterator[Line]:  # type: ignore[override]
        return iter([json.loads(line) for line in self.getvalue().splitlines()])

    def of(self, logger: str) -> list[Line]:
        return [line for line in self if line["logger"] == logger]


@contextmanager
def logging_to(formatter: logging.Formatter, logger: str | None = None) -> Generator[Lines]:
    """Log with a formatter, all or one logger alone: pytest's own handlers fail where a message cannot be shown."""
    log, lines = logging.getLogger(logger), Lines()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(formatter)
    before, log.propagate = log.level, logger is None
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = True


@pytest.fixture
def lines() -> Generator[Lines]:
    with logging_to(JsonFormatter()) as lines:
        yield lines


def shown(message: object, *values: object, **fields: Any) -> Line:
    """Return the line for one record."""
    record = logging.LogRecord("shop", logging.INFO, "x.py", 1, message, values, None)
    vars(record).update(fields)
    return json.loads(JsonFormatter().format(record))


# --- what records are about -------------------------------------------------------------------------------------------
async def test_records_of_steps_and_bodies_say_what_they_are_about(lines: Lines) -> None:
    async with connect("memory:") as client, client.worker(*watched.WATCHED):
        await client.run(watched.ships.using(id="s-1"), "book")
    by_message = {line["message"]: line for line in lines}
    about = {"invocation": "s-1", "handler": "ships"}
    body = by_message["a body"]
    assert {name: body[name] for name in about} == about
    assert "step" not in body
    said = by_message["shipping"]
    assert {name: said[name] for name in (*about, "colour", "logger")} == {
        **about,
        "colour": "red",
        "logger": "perdure.workflow.ships",
    }
    packing = by_message["packing book"]
    assert {*packing} == {"time", "level", "logger", "message", "invocation", "handler", "step", "attempt", "weight"}
    assert (packing["step"], packing["attempt"], packing["weight"], packing["level"]) == ("pack", 1, 3, "INFO")
    assert {name: packing[name] for name in about} == about
    assert by_message["counting in a thread"]["step"] == "count"


async def test_records_of_the_worker_say_what_they_are_about(lines: Lines) -> None:
    async with connect("memory:") as client, client.worker(*watched.WATCHED):
        with pytest.raises(ValueError, match="no book left"):
            await client.run(watched.fails.using(id="f-1"), "book")
    found = lines.of("perdure.worker")
    fields = ("invocation", "handler", "step", "attempt", "level")
    assert [tuple(line[name] for name in fields) for line in found] == [
        ("f-1", "fails", "breaks", attempt, "WARNING") for attempt in (1, 2, 3)
    ]
    first = lines.of("shop")[0]
    assert first["exception"].startswith("Traceback (most recent call last):\n")
    assert first["exception"].endswith("ValueError: no book left")
    assert [line["attempt"] for line in lines.of("shop")] == [1, 2, 3]


@workflow
async def sleeps() -> None:
    logging.getLogger("shop").info("again")
    await asyncio.sleep(0.02)
    await watched.pack("x")


async def test_record_of_a_body_that_replays_says_so(lines: Lines) -> None:
    async with connect("memory:") as client, client.worker(sleeps, cache=0):
        await client.run(sleeps.using(id="r"))
    assert [line.get("replaying") for line in lines.of("shop") if line["message"] == "again"] == [None, True]
    assert {line["invocation"] for line in lines.of("shop")} == {"r"}


async def test_record_of_a_body_that_cannot_go_on_says_what_it_is_about(tmp_path: Path, lines: Lines) -> None:
    @workflow(name="changing")
    async def first(ctx: Context) -> None:
        await ctx.awakeable(str)

    @workflow(name="changing")
    async def second() -> None:
        await watched.pack("x")

    async with connect(f"sqlite:{tmp_path}/x.db") as client, client.worker(first):
        handle = await client.start(first.using(id="c"))
        while (await handle.describe()).status != "suspended":
            await asyncio.sleep(0.005)
        (asked,) = (await handle.describe()).awakeables
    async with connect(f"sqlite:{tmp_path}/x.db") as client, client.worker(second):
        with suppress(MessageRefused):  # it is paused
            await client.resolve(asked.id, "go on")
        while (await client.handle("c").describe()).status != "paused":
            await asyncio.sleep(0.005)
    (line,) = [line for line in lines.of("perdure.worker") if "paused" in line["message"]]
    assert (line["invocation"], line["handler"], line["level"]) == ("c", "changing", "ERROR")


@step
async def tells() -> tuple[str, str, str, int]:
    info = step_info()
    return info.invocation_id, info.handler, info.step, info.attempt


@workflow
async def asks() -> tuple[str, str, str, int]:
    return await tells()


async def test_step_info_names_the_workflow_and_the_step() -> None:
    async with connect("memory:") as client, client.worker(asks):
        assert await client.run(asks.using(id="i")) == ("i", "asks", "tells", 1)


async def test_filter_is_for_other_formatters_and_for_queues() -> None:
    records: queue.Queue[Any] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(InvocationFilter())
    log = logging.getLogger("shop")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        async with connect("memory:") as client, client.worker(*watched.WATCHED):
            await client.run(watched.ships.using(id="q-1"), "book")
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    found = [records.get_nowait() for _ in range(records.qsize())]
    assert {each.invocation_id for each in found} == {"q-1"}
    (packing,) = [each for each in found if "packing" in each.getMessage()]
    assert logging.Formatter("%(handler)s %(step)s %(attempt)d").format(packing) == "ships pack 1"


async def test_own_records_are_not_about_the_step_in_which_they_happen_to_be_made() -> None:
    seen: list[Line] = []

    @step
    async def calls() -> None:
        record = logging.LogRecord("perdure.sqlite", logging.INFO, "x.py", 1, "said", (), None)
        await asyncio.to_thread(lambda: seen.append(json.loads(JsonFormatter().format(record))))

    @workflow
    async def runs(_: Context) -> None:
        await calls()

    async with connect("memory:") as client, client.worker(runs):
        await client.run(runs)
    assert {*seen[0]} == {"time", "level", "logger", "message"}


# --- what cannot be shown ---------------------------------------------------------------------------------------------
class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class Fine:
    def __repr__(self) -> str:
        return "<fine>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        ('ü\n"\ud800\u2028', 'ü\n"\ud800\u2028'),
        ({"a": [1, None, True]}, {"a": [1, None, True]}),
        (2**200, 2**200),
        (Fine(), "<fine>"),
        ([Fine()], ["<fine>"]),
        (b"x", "b'x'"),
        (float("nan"), "nan"),
        ([float("inf")], "[inf]"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (Odd(), "<Odd that cannot be shown>"),
        ([Odd()], "<list that cannot be shown>"),
        ({"x": {Odd}}, {"x": repr({Odd})}),
    ],
)
def test_value_that_json_cannot_hold_becomes_its_repr(value: object, expected: object) -> None:
    line = shown("text", weight=value, other=1)
    assert (line["weight"], line["other"], line["message"]) == (expected, 1, "text")


def test_value_that_holds_itself_or_is_deep_is_shown_somehow() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    line = shown("text", loop=loop, deep=deep)
    assert line["loop"] == "[[...]]"
    assert isinstance(line["deep"], str)


@pytest.mark.parametrize(
    ("message", "values", "expected"),
    [
        ("%d boxes", ("three",), "'%d boxes' with ('three',), which cannot be formatted: TypeError(...)"),
        ("no place", (1,), "'no place' with (1,), which cannot be formatted: TypeError(...)"),
        ("%(a)s", ({"b": 1},), "'%(a)s' with {'b': 1}, which cannot be formatted: KeyError('a')"),
        ("%s", (Odd(),), "'%s' with <tuple that cannot be shown>, which cannot be formatted: RuntimeError('no')"),
        (Odd(), (), "<Odd that cannot be shown> with (), which cannot be formatted: RuntimeError('no')"),
    ],
)
@pytest.mark.parametrize("kind", [JsonFormatter, TextFormatter])
def test_message_that_cannot_be_formatted_is_shown_as_it_is(
    kind: type[logging.Formatter],
    message: Any,
    values: tuple[Any, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logging_to(kind(), "shop") as lines:
        logging.getLogger("shop").info(message, *values)
    text = lines.getvalue().strip()
    said = json.loads(text)["message"] if kind is JsonFormatter else text
    assert re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), said), said
    assert capsys.readouterr().err == ""  # logging itself has nothing to complain of


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_exception_that_cannot_be_shown_is_named_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(JsonFormatter(), "shop") as lines:
        try:
            raise Unprintable
        except Unprintable:
            logging.getLogger("shop").exception("failed")
    (line,) = lines
    assert "Unprintable" in line["exception"]
    assert "test_logs.py" in line["exception"]
    assert capsys.readouterr().err == ""


def test_extra_with_the_name_of_a_field_gets_an_underscore() -> None:
    line = shown("text", time="noon", level=3, exception="e", logger="x")
    assert (line["time_"], line["level_"], line["logger_"]) == ("noon", 3, "x")
    assert line["logger"] == "shop"
    assert line["exception"] == "e"  # there is no other


def test_time_is_in_utc_by_rfc_3339() -> None:
    line = shown("text", created=1_700_000_000.25)
    assert line["time"] == "2023-11-14T22:13:20.250000Z"
    assert datetime.fromisoformat(line["time"]) == datetime.fromtimestamp(1_700_000_000.25, UTC)


def test_empty_exception_and_stack() -> None:
    assert "exception" not in shown("text", exc_info=(None, None, None))
    assert shown("text", stack_info="Stack (most recent call last):")["stack"].startswith("Stack")


def test_line_is_ascii_on_one_line() -> None:
    record = logging.LogRecord("shop", logging.INFO, "x.py", 1, "zürich\nbern\u2028", (), None)
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert len(text.splitlines()) == 1


def test_thread_of_a_program_is_about_nothing() -> None:
    found: list[Line] = []
    thread = threading.Thread(target=lambda: found.append(shown("text")))
    contextvars.Context().run(thread.start)
    thread.join()
    assert {*found[0]} == {"time", "level", "logger", "message"}
