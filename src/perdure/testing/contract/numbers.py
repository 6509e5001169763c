"""A number that is not finite is refused, in whichever field it comes, and nothing of what held it is kept."""

import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from msgspec import Struct

from perdure.core.effects import Effects
from perdure.core.failures import Failure
from perdure.core.journal import (
    Accepted,
    CallChild,
    CallStep,
    Entry,
    Frame,
    Message,
    OpenAwakeable,
    Returned,
    SendStart,
    SetTimer,
    Start,
)
from perdure.core.values import encode
from perdure.errors import InvalidOption, PerdureError
from perdure.stores.port import Filter, Transition, committed
from perdure.testing.contract.shared import StoreCase, called, raised_by

S = TypeVar("S", bound=Struct)

NUMBERS = (math.nan, math.inf, -math.inf)
PLAIN: dict[Any, Any] = {str: "s", int: 1, float: 1.0, bytes: b"\xc0", bool: False, NoneType: None}


class Numbers(StoreCase):
    """Numbers that are not finite are refused."""

    def test_every_type_with_a_time_is_tried(self) -> None:
        frames = [each for _, each in everywhere(Frame, math.nan)]
        assert {type(entry) for frame in frames for entry in frame.entries} == {*get_args(Entry)}
        tried = {type(command) for frame in frames for command in frame.commands}
        assert tried == {SetTimer, CallChild, SendStart, OpenAwakeable}
        assert {path for path, _ in everywhere(Start, math.nan)} == {"Start.at", "Start.due", "Start.timeout"}
        paths = {path for path, _ in everywhere(Message, math.nan)}
        assert {"Message.at", "Message.request.outcome.at", "Message.request.start.due"} <= paths

    async def test_start_with_a_number_that_is_not_finite_is_refused_with_those_beside_it(self) -> None:
        async with self.opened() as store:
            for number in NUMBERS:
                for path, bad in everywhere(Start, number, digest=b"digest"):
                    for starts in ([bad], [self.start("good"), bad, self.start("other")]):
                        error = await raised_by(called(lambda starts=starts: store.submit(starts)), InvalidOption)
                        assert_names(path, number, error)
            assert await store.row("good") is None
            assert await store.search(Filter()) == []

    async def test_message_with_a_number_that_is_not_finite_is_refused(self) -> None:
        async with self.opened() as store:
            start, _ = await self.suspended(self.inbox())
            for number in NUMBERS:
                for path, bad in everywhere(Message, number, to=start.id):
                    error = await raised_by(called(lambda bad=bad: store.post(bad)), InvalidOption)
                    assert_names(path, number, error)
            assert await store.mail(start.id) == []

    async def test_commit_with_a_number_that_is_not_finite_does_nothing_at_all(self) -> None:
        async with self.opened() as store:
            other, _ = await self.suspended(self.inbox())
            start, revision = await self.begun(self.inbox())
            before = await store.row(start.id)
            good = self.frame(Returned(0, 1.0, encode(1)))
            good_effects = Effects((self.start("child"),), (self.message(other.id),))
            tried: list[tuple[str, float, Frame | None, Effects]] = []
            for number in NUMBERS:
                tried += [(path, number, bad, good_effects) for path, bad in everywhere(Frame, number)]
                follows = [(path, Effects((bad,))) for path, bad in everywhere(Start, number, id="child")]
                follows += [
                    (path, Effects((self.start("child"),), (bad,)))
                    for path, bad in everywhere(Message, number, to=other.id)
                ]
                follows += [("wake", Effects((self.start("child"),), wake=number))]
                tried += [(path, number, frame, effects) for path, effects in follows for frame in (good, None)]
            for path, number, frame, effects in tried:
                transition = Transition(start.id, revision, frame, effects, "suspended", released=True)
                error = await raised_by(committed(store, transition), InvalidOption)
                assert_names(path, number, error)
            first = Transition("child", 0, Frame("w", math.nan, [Accepted(self.start("child"))]), Effects())
            await raised_by(committed(store, first), InvalidOption)
            assert (await store.journal(start.id)).revision == revision
            assert await store.row(start.id) == before
            assert await store.row("child") is None
            assert await store.mail(other.id) == []
            assert await self.commit(start, revision, good) > revision, "what is right goes on"

    async def test_number_of_a_user_that_is_not_finite_comes_back(self) -> None:
        async with self.opened():
            input = encode({"x": math.inf})
            start, revision = await self.begun(self.inbox(), self.start(input=input))
            failure = Failure("builtins", "ValueError", "no", [math.inf, [-math.inf]], {"at": math.inf})
            bad_value = Returned(0, 1.0, encode(math.inf))
            frame = Frame("w", 1.0, [bad_value, sample(Entry, "Raised", failure=failure)], [CallStep(1, "s", b"d")])
            await self.commit(start, revision, frame)
            found = await self.frames_of(start.id)
            assert (found[-1], found[0].entries[0]) == (frame, Accepted(start))


def assert_names(path: str, number: float, error: PerdureError) -> None:
    """Check that an error says which field holds which number."""
    assert f"{number}, not a finite number" in str(error) or f"{number} is not a finite number" in str(error), error
    assert path in str(error), (path, error)


# --- journal types by their annotations -------------------------------------------------------------------------------
def everywhere(kind: type[S], number: float, **fields: Any) -> Iterator[tuple[str, S]]:
    """Yield samples of a struct with `number` in each float of it in turn, however deep, and the path to that float."""
    for path, made in _holding(kind, number, ()):
        yield kind.__name__ + path, made if not fields else type(made)(**{**_fields_of(made), **fields})


def sample(kind: Any, name: str = "", **fields: Any) -> Any:
    """Return a value of an annotation, with its defaults; of a union the arm of this name, or the first."""
    if isinstance(kind, UnionType):
        arms = get_args(kind)
        return sample(next((each for each in arms if each.__name__ == name), arms[0]), **fields)
    if isinstance(kind, type) and issubclass(kind, Struct):
        hints = get_type_hints(kind)
        required = kind.__struct_fields__[: len(kind.__struct_fields__) - len(kind.__struct_defaults__)]
        return kind(**{field: sample(hints[field]) for field in required if field not in fields}, **fields)
    return PLAIN[kind] if kind in PLAIN else (get_origin(kind) or kind)()


def _holding(kind: Any, number: float, above: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    if kind is float:
        yield "", number
    elif isinstance(kind, UnionType):
        for arm in get_args(kind):
            yield from _holding(arm, number, above)
    elif get_origin(kind) in (list, tuple):
        for path, inner in _holding(get_args(kind)[0], number, above):
            yield f"[0]{path}", get_origin(kind)([inner])
    elif isinstance(kind, type) and issubclass(kind, Struct) and kind not in above:
        for field, inner_kind in get_type_hints(kind).items():
            for path, inner in _holding(inner_kind, number, (*above, kind)):
                yield f".{field}{path}", sample(kind, **{field: inner})


def _fields_of(value: Struct) -> dict[str, Any]:
    return {field: getattr(value, field) for field in value.__struct_fields__}
