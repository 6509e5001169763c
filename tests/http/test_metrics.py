"""`GET /metrics`: what is there, what the numbers are after a known program, and what a scrape does without a store."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics

from perdure import connect, http
from perdure.client import Client
from perdure.connect import client_from
from perdure.counters import HANDLERS_LIMIT, OTHER, STEPS_LIMIT, Counts, Histogram, Histograms
from perdure.http import metrics
from perdure.http.metrics import METRICS
from perdure.http.server import Server, address_of
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Counts as StoreCounts
from tests.http import watched
from tests.http.conftest import Site, site_on
from tests.http.processes import Process
from tests.http.watched import WATCHED

ROOT = Path(__file__).parents[2]
PROGRAMS = str(Path(watched.__file__))
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ODD = ["", "*/*", "ü", ";;,,=", "application/openmetrics-texts;version=abc", "text/plain;version=x;q=0.x;escaping=y"]
"""What `Accept` may hold, and does not ask for OpenMetrics."""

Numbers = dict[str, dict[frozenset[tuple[str, str]], float]]
"""By the name of the sample, then by its labels."""


def read(text: str) -> Numbers:
    found: Numbers = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


async def scrape(http: httpx.AsyncClient) -> Numbers:
    response = await http.get("/metrics")
    assert response.status_code == 200, response.text
    return read(response.text)


def one(numbers: Numbers, name: str, **labels: str) -> float:
    """Return one number; 0 for one that was never counted."""
    return numbers.get(name, {}).get(frozenset(labels.items()), 0.0)


async def until(site: Site, holds: Callable[[Numbers], bool]) -> Numbers:
    while not holds(numbers := await scrape(site.http)):
        await asyncio.sleep(0.01)
    return numbers


# --- what is there ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("accept", [OPENMETRICS, f"text/plain;q=0.3,{OPENMETRICS[:-5]}abc;q=0.5", *ODD])
async def test_each_metric_of_the_table_is_there_with_its_type_and_help(memory_site: Site, accept: str) -> None:
    response = await memory_site.get("/metrics", headers=[(b"Accept", accept.encode())])
    is_open = accept not in ODD
    media = f"{OPENMETRICS}; charset=utf-8" if is_open else "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["content-type"] == media
    reader: Any = openmetrics if is_open else parser
    families: Iterable[Metric] = reader.text_string_to_metric_families(response.text)
    found = {each.name: each for each in families}
    assert {name for name in found if name.startswith("perdure_")} == {each.name for each in METRICS}
    for each in METRICS:
        assert (found[each.name].type, found[each.name].documentation) == (each.kind, each.help)
        for sample in found[each.name].samples:
            assert {*sample.labels} - {"le"} == {*each.labels}
    assert found["process_resident_memory_bytes"].samples[0].value > 1_000_000


def test_names_follow_the_conventions() -> None:
    assert len({each.name for each in METRICS}) == len(METRICS)
    for each in METRICS:
        assert re.fullmatch(r"perdure_[a-z_]+", each.name)
        assert not each.name.endswith("_total")
        assert each.help.endswith(".")
        assert not {*each.labels} & {"id", "invocation", "key", "tag", "le"}
        if each.kind == "histogram":
            assert each.name.endswith(("_seconds", "_writes"))


async def test_head_is_answered(memory_site: Site) -> None:
    response = await memory_site.http.head("/metrics")
    assert (response.status_code, response.content) == (200, b"")


# --- a known program --------------------------------------------------------------------------------------------------
async def run_known_program(site: Site) -> None:
    """Complete two, fail one after three attempts, and cancel one that waits."""
    waiting = await site.invoke("waits", {})
    for order in ("a", "b"):
        assert (await site.post("/api/workflows/ships/invoke?wait=30", order)).json()["status"] == "completed"
    assert (await site.post("/api/workflows/fails/invoke?wait=30", "c")).json()["status"] == "failed"
    await site.until(waiting, "suspended")
    await site.post(f"/api/workflows/{waiting}/cancel")
    await site.until(waiting, "cancelled")


def check_known_program(numbers: Numbers) -> None:
    assert numbers["perdure_invocations_started_total"] == {
        frozenset({("handler", "ships")}): 2,
        frozenset({("handler", "fails")}): 1,
        frozenset({("handler", "waits")}): 1,
    }
    assert numbers["perdure_invocations_ended_total"] == {
        frozenset({("handler", "ships"), ("outcome", "completed")}): 2,
        frozenset({("handler", "fails"), ("outcome", "failed")}): 1,
        frozenset({("handler", "waits"), ("outcome", "cancelled")}): 1,
    }
    by_status = {dict(labels)["status"]: value for labels, value in numbers["perdure_invocations"].items()}
    assert {status: value for status, value in by_status.items() if value} == {
        "completed": 2,
        "failed": 1,
        "cancelled": 1,
    }
    assert numbers["perdure_step_attempts_failed_total"] == {frozenset({("handler", "fails"), ("step", "breaks")}): 3}
    assert one(numbers, "perdure_step_seconds_count", handler="fails", step="breaks") == 3
    assert one(numbers, "perdure_step_seconds_count", handler="ships", step="pack") == 2
    assert one(numbers, "perdure_step_seconds_count", handler="ships", step="count") == 2
    assert one(numbers, "perdure_schedule_to_start_seconds_count", handler="ships") == 2
    assert one(numbers, "perdure_commit_seconds_count") >= 4
    assert one(numbers, "perdure_written_bytes_total") > 100
    for name in ("perdure_invocations_recovered_total", "perdure_commits_failed_total", "perdure_slots_used"):
        assert one(numbers, name) == 0
    for name in ("perdure_store_up", "perdure_index_current", "perdure_workers"):
        assert one(numbers, name) == 1
    assert one(numbers, "perdure_slots_free") == 100


@pytest.mark.parametrize("url", ["memory:", "sqlite:{}/store.db"])
async def test_counts_after_a_known_program_are_exact(url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, url.format(tmp_path), *WATCHED)
        await run_known_program(site)
        numbers = await scrape(site.http)
        check_known_program(numbers)
        written = one(numbers, "perdure_transaction_writes_sum"), one(numbers, "perdure_transaction_writes_count")
        assert (written[0] >= written[1] > 4) if url.startswith("sqlite") else written == (0, 0)


@pytest.mark.slow
async def test_recovery_after_a_kill_is_counted_once(tmp_path: Path) -> None:
    first = Process(tmp_path, "worker", PROGRAMS)
    try:
        async with httpx.AsyncClient(base_url=first.base, timeout=60) as http:
            while len((await http.get("/api/handlers")).json()["handlers"]) < len(WATCHED):
                await asyncio.sleep(0.02)
            started = await http.post("/api/workflows/holds/invoke", json="x")
            id = started.json()["invocation_id"]
            while (await http.get(f"/api/workflows/{id}")).json()["status"] != "running":
                await asyncio.sleep(0.02)
            numbers = await scrape(http)
            assert one(numbers, "perdure_invocations_started_total", handler="holds") == 1
            assert one(numbers, "perdure_slots_used") == 1
            assert one(numbers, "perdure_invocations_held") == 1
    finally:
        first.stop(signal.SIGKILL)
    (tmp_path / "go").touch()
    second = Process(tmp_path, "worker", PROGRAMS)
    try:
        async with httpx.AsyncClient(base_url=second.base, timeout=60) as http:
            assert (await http.get(f"/api/workflows/{id}/result?wait=60")).json()["result"] == "x"
            numbers = await scrape(http)
        assert one(numbers, "perdure_invocations_recovered_total") == 1
        assert one(numbers, "perdure_replay_seconds_count") == 1
        assert one(numbers, "perdure_invocations_ended_total", handler="holds", outcome="completed") == 1
        assert one(numbers, "perdure_invocations_started_total", handler="holds") == 0  # it had begun before
    finally:
        second.stop(signal.SIGTERM)


async def test_handover_is_no_recovery(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with connect(url) as client, client.worker(*WATCHED):
        handle = await client.start(watched.waits)
        while (await handle.describe()).status != "suspended":
            await asyncio.sleep(0.005)
    async with AsyncExitStack() as parts:
        site = await site_on(parts, url, *WATCHED)
        await site.post(f"/api/workflows/{handle.id}/cancel")
        await site.until(handle.id, "cancelled")
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_invocations_recovered_total") == 0
        assert one(numbers, "perdure_replay_seconds_count") == 1


async def test_queued_starts_of_an_earlier_process_are_no_recoveries(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with connect(url) as client:
        handle = await client.start(watched.ships, "a")
    async with AsyncExitStack() as parts:
        site = await site_on(parts, url, *WATCHED)
        await site.until(handle.id, "completed")
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_invocations_recovered_total") == 0
        assert one(numbers, "perdure_invocations_started_total", handler="ships") == 1


async def test_sum_and_buckets_of_a_histogram_are_plausible() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WATCHED)
        began = time.monotonic()
        for _ in range(2):
            await site.post("/api/workflows/rests/invoke?wait=30", 0.06)
        elapsed = time.monotonic() - began
        numbers = await scrape(site.http)
        assert 0.12 <= one(numbers, "perdure_step_seconds_sum", handler="rests", step="rest") <= elapsed
        buckets = {
            float(dict(labels)["le"]): value
            for labels, value in numbers["perdure_step_seconds_bucket"].items()
            if ("step", "rest") in labels
        }
        assert buckets[0.05] == 0
        assert buckets[float("inf")] == 2
        assert [*buckets.values()] == sorted(buckets.values())


async def test_steps_that_are_interrupted_are_counted() -> None:
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(connect("memory:"))
        worker = await parts.enter_async_context(client.worker(*WATCHED))
        site = await site_served(parts, client)
        cancelled = await client.start(watched.rests, 1000.0)
        await until(site, lambda numbers: one(numbers, "perdure_slots_used") == 1)
        await cancelled.cancel()
        await until(site, lambda numbers: one(numbers, "perdure_steps_interrupted_total") == 1)
        await client.start(watched.rests, 1000.0)
        await until(site, lambda numbers: one(numbers, "perdure_slots_used") == 1)
        await worker.stop(grace=0)
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_steps_interrupted_total") == 2
        assert one(numbers, "perdure_workers") == 0
        assert one(numbers, "perdure_slots_free") == 0


async def test_two_workers_of_one_client_are_counted_together() -> None:
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(connect("memory:"))
        await parts.enter_async_context(client.worker(watched.ships, max_concurrent=3))
        other = await parts.enter_async_context(client.worker(watched.fails, max_concurrent=4))
        site = await site_served(parts, client)
        await client.run(watched.ships, "a")
        with pytest.raises(ValueError, match="left"):
            await client.run(watched.fails, "b")
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_workers") == 2
        assert one(numbers, "perdure_slots_free") == 7
        assert sum(numbers["perdure_invocations_ended_total"].values()) == 2
        await other.stop()
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_slots_free") == 3
        assert sum(numbers["perdure_invocations_ended_total"].values()) == 2  # a counter never goes back


async def test_starts_that_no_worker_takes_grow_old(tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path}/store.db")
        assert one(await scrape(site.http), "perdure_oldest_pending_seconds", handler="ships") == 0
        await site.client.start(watched.ships, "a")
        await site.client.start(watched.ships.using(delay=1000), "b")  # is not due
        await asyncio.sleep(0.1)
        numbers = await scrape(site.http)
        assert 0.1 <= one(numbers, "perdure_oldest_pending_seconds", handler="ships") < 900
        cancelled = await site.client.start(watched.waits)
        await cancelled.cancel()
        numbers = await until(site, lambda numbers: "perdure_invocations_ended_total" in numbers)
        assert one(numbers, "perdure_invocations_ended_total", handler="waits", outcome="cancelled") == 1
        assert len(numbers["perdure_oldest_pending_seconds"]) == 1


# --- bounds -----------------------------------------------------------------------------------------------------------
def test_labels_beyond_the_limit_are_counted_as_other() -> None:
    counts, histograms = Counts(3), Histograms((1.0, 2.0), 3)
    for number in range(100):
        for handler in (f"handler-{number}", "ours"):
            counts.add((handler, f"step-{number}"))
            histograms.observe((handler, f"step-{number}"), 1.5)
    found = dict(counts.items())
    assert found["ours", OTHER] > 1
    assert found[OTHER, OTHER] > 50
    assert len(found) == 2 * 3 + 1
    assert sum(found.values()) == 200
    assert {labels: sum(each.counts) for labels, each in histograms.items()} == found


def test_value_at_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    copied = histogram.copy()
    histogram.observe(100.0)
    assert (copied.counts, copied.sum) == ([2, 2, 1], 7.5)


async def test_step_with_many_names_makes_a_bounded_number_of_series() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WATCHED)
        await site.client.run(watched.names_many, STEPS_LIMIT + 50)
        numbers = await scrape(site.http)
        assert len(numbers["perdure_step_seconds_count"]) == STEPS_LIMIT + 1
        assert one(numbers, "perdure_step_seconds_count", handler="names_many", step=OTHER) == 50


async def test_handlers_that_clients_invent_make_a_bounded_number_of_series(memory_site: Site) -> None:
    for number in range(HANDLERS_LIMIT + 5):
        ref = watched.ships.using(id=f"i-{number}")
        ref.name = f"invented-{number}"
        await memory_site.client.start(ref, "a")
    numbers = await scrape(memory_site.http)
    assert len(numbers["perdure_oldest_pending_seconds"]) == HANDLERS_LIMIT


# --- requests ---------------------------------------------------------------------------------------------------------
async def test_requests_are_counted_by_the_template_of_their_route(memory_site: Site) -> None:
    await memory_site.get("/api/workflows/secret-id")
    await memory_site.get("/api/workflows/other-id")
    await memory_site.get("/nowhere/secret")
    await memory_site.http.request("MKCOL", "/health")
    await memory_site.http.request("DELETE", "/health")
    await memory_site.get("/health", headers={"Host": "evil.example"})
    text = (await memory_site.get("/metrics")).text
    numbers = read(text)
    counted = {
        tuple(dict(labels)[name] for name in ("method", "route", "status")): value
        for labels, value in numbers["perdure_http_requests_total"].items()
    }
    assert counted == {
        ("GET", "/api/workflows/{id}", "404"): 2,
        ("GET", "none", "404"): 1,
        ("GET", "/health", "421"): 1,
        ("other", "none", "405"): 1,
        ("DELETE", "none", "405"): 1,
    }
    assert one(numbers, "perdure_http_request_seconds_count", method="GET", route="/api/workflows/{id}") == 2
    assert "secret" not in text
    assert "MKCOL" not in text


def test_scrape_leaves_no_thread_behind() -> None:
    """A thread of its own would be waited for when the process ends."""
    before = threading.enumerate()

    async def scraped() -> None:
        async with AsyncExitStack() as parts:
            await scrape((await site_on(parts, "memory:")).http)

    asyncio.run(scraped())
    assert threading.enumerate() == before


async def test_open_waits_and_streams_are_shown(memory_site: Site) -> None:
    waiting = asyncio.create_task(memory_site.post("/api/workflows/sleeping/invoke?wait=60", 60))
    async with memory_site.http.stream("GET", "/api/events"):
        numbers = await until(memory_site, lambda numbers: one(numbers, "perdure_http_waits") == 1)
        assert one(numbers, "perdure_http_streams") == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(memory_site, lambda numbers: not one(numbers, "perdure_http_waits"))
    await until(memory_site, lambda numbers: not one(numbers, "perdure_http_streams"))


async def test_access_log_has_the_template_and_no_ids(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "perdure.http.access")
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WATCHED, access_log=True)
        await site.get("/api/workflows/secret-id?wait=secret")
        await site.get("/approve/secret-capability")
        silent = await site_served(parts, site.client)
        await silent.get("/api/workflows/secret-id")
    lines = [each for each in caplog.records if each.name == "perdure.http.access"]
    shown = [re.sub(r"[\d.]+ ms", "N ms", each.getMessage()) for each in lines]
    assert shown == ["GET /api/workflows/{id} 400 N ms", "GET /approve/{capability} 404 N ms"]
    assert (vars(lines[0])["route"], vars(lines[0])["status"]) == ("/api/workflows/{id}", 400)
    assert "secret" not in caplog.text


# --- without a store --------------------------------------------------------------------------------------------------
async def test_scrape_of_a_closed_store_gives_what_is_known_without_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path}/store.db")
        await site.client.start(watched.ships, "a")
        before = one(await scrape(site.http), "perdure_written_bytes_total")
        await site.client.aclose()
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_store_up") == 0
        assert "perdure_invocations" not in numbers
        assert "perdure_oldest_pending_seconds" not in numbers
        assert one(numbers, "perdure_written_bytes_total") == before > 0


class Silent(MemoryStore):
    """Does not answer what it counts until it is let."""

    asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def counts(self) -> StoreCounts:
        self.asked += 1
        await self.may_answer.wait()
        return await super().counts()


async def test_scrape_waits_for_a_slow_store_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STORE_SECONDS", 0.05)
    store = Silent()
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(client_from(lambda: store))
        site = await site_served(parts, client)
        for numbers in await asyncio.gather(*(scrape(site.http) for _ in range(5))):
            assert one(numbers, "perdure_store_up") == 0
        assert one(await scrape(site.http), "perdure_store_up") == 0
        assert store.asked == 1
        store.may_answer.set()
        await until(site, lambda numbers: one(numbers, "perdure_store_up") == 1)
        store.may_answer.clear()
        unanswered = asyncio.create_task(site.get("/metrics"))
        while store.asked < 3:
            await asyncio.sleep(0.001)
        await site.server.stop()
        assert (await unanswered).status_code == 200


class Unforeseen(MemoryStore):
    async def counts(self) -> StoreCounts:
        raise RuntimeError("a bug")


async def test_unforeseen_error_of_the_store_is_logged_and_the_rest_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(client_from(Unforeseen))
        site = await site_served(parts, client)
        for _ in range(3):
            assert one(await scrape(site.http), "perdure_store_up") == 0
    (record,) = [each for each in caplog.records if "a bug" in each.getMessage()]
    assert record.exc_info is not None


async def test_server_in_front_of_a_server_shows_what_the_other_one_has(
    memory_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory_site.post("/api/workflows/add/invoke?wait=30", 3)
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(connect(str(memory_site.server.address)))
        site = await site_served(parts, client)
        numbers = await scrape(site.http)
        assert one(numbers, "perdure_invocations", status="completed") == 1
        assert one(numbers, "perdure_workers") == 0
        assert "perdure_invocations_ended_total" not in numbers
        assert one(numbers, "perdure_store_up") == 1
        monkeypatch.setattr(metrics, "STORE_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
            away = connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
            parts.push_async_callback(away.aclose)
            site = await site_served(parts, away, open=True)  # or else it asks the other one for tokens first
            assert one(await scrape(site.http), "perdure_store_up") == 0


async def site_served(parts: AsyncExitStack, client: Client, *, open: bool = False) -> Site:
    """Enter a site over a client that is there."""
    service = http.app(client, open=open)
    server = await parts.enter_async_context(Server(service, address_of("0")))
    requests = await parts.enter_async_context(httpx.AsyncClient(base_url=str(server.address), timeout=60))
    return Site(client, service, server, requests)


# --- dashboard and alerts ---------------------------------------------------------------------------------------------
def shown_names() -> set[str]:
    """The names of all samples that there can be."""
    found: set[str] = set()
    for each in METRICS:
        ends = ("_bucket", "_sum", "_count") if each.kind == "histogram" else ("",)
        found.update(each.shown_name + end for end in ends)
    return found | {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"}


def expressions_in(name: str) -> list[str]:
    text = (ROOT / "ops" / name).read_text()
    if name.endswith(".json"):
        panels = json.loads(text)["panels"]
        return [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yaml"])
def test_dashboard_and_alerts_use_metrics_and_labels_that_there_are(name: str) -> None:
    labels = {label for each in METRICS for label in each.labels} | {"le", "job", "instance"}
    expressions = expressions_in(name)
    assert len(expressions) > 5
    for each in expressions:
        used = {*re.findall(r"\b(?:perdure|process)_\w+", each)}
        assert used, each
        assert used <= shown_names(), each
        for found in re.findall(r"\bby \(([^)]*)\)", each):
            assert {*map(str.strip, found.split(","))} <= labels, each


def test_each_alert_says_what_to_do() -> None:
    (group,) = yaml.safe_load((ROOT / "ops" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert re.fullmatch(r"Perdure[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {*rule["annotations"]} == {"summary", "description"}
        assert "for" in rule
