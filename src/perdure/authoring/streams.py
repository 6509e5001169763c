"""Writers to streams: what an invocation writes while it runs, for readers that follow it.

A step writes to its worker, which stores batches; a body writes to its turn, and the items are in the next frame.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from msgspec import Struct

from perdure.core.recording import encode_as
from perdure.core.streams import check_stream
from perdure.core.turn import current_turn
from perdure.errors import CalledOutsideWorkflow

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Sink(Protocol):
    """What takes the encoded items of a body or of an attempt of a step."""

    def write(self, name: str, item: bytes, /) -> None:
        """Take an item. In a thread of its own, a step waits here for room."""
        ...

    def offer(self, name: str, item: bytes, /) -> bool:
        """Take an item if there is room, and report whether there was."""
        ...

    async def drain(self) -> None:
        """Wait for room."""
        ...


class StreamWriter(Generic[T_contra]):
    """Writes to one stream of one invocation. `name` is the stream's name."""

    def __init__(self, name: str, type: Any, sink: Sink | None) -> None:
        self.name = check_stream(name)
        self._type = type
        self._what = f"an item of stream {name!r}"
        self._sink = sink
        self._dropped = 0

    def __repr__(self) -> str:
        return f"StreamWriter({self.name!r})"

    @property
    def dropped(self) -> int:
        """How many items `write_nowait` of this writer found no room for."""
        return self._dropped

    def write(self, item: T_contra, /) -> None:
        """Append an item. It is not awaited: it is stored with others, within 20 ms as a rule.

        In a sync step this waits until there is room; in an async step `drain` does. What a step writes after it has
        ended, or after another worker has taken over its invocation, is dropped. Raises `Unencodable` for an item that
        does not match the type, and `LimitExceeded` for one of more than 1,000,000 bytes or beyond the stream's 64 MiB.
        """
        data = encode_as(item, self._type, self._what)
        if self._sink is not None:
            self._sink.write(self.name, data)

    def write_nowait(self, item: T_contra, /) -> None:
        """Append an item if there is room, else drop it and count it in `dropped`. For callbacks, from any thread."""
        data = encode_as(item, self._type, self._what)
        if self._sink is not None and not self._sink.offer(self.name, data):
            self._dropped += 1

    async def drain(self) -> None:
        """Wait until there is room, as with `asyncio.StreamWriter`: an async step that writes much awaits it.

        In a body there is always room.
        """
        if self._sink is not None:
            await self._sink.drain()


class StreamItem(Struct, Generic[T_co], frozen=True):
    """One item of a stream, as readers get it. To continue after it, read from `offset + 1`.

    `step` is the number of the step that wrote it, as in the journal; None if the body did. `attempt` says in which
    attempt, from 1, and grows after a crash too: what earlier attempts of the step wrote is superseded. For a body, it
    grows when the invocation is retried.
    """

    offset: int
    value: T_co
    step: int | None
    attempt: int


class Attempt(Protocol):
    """An attempt of a step in progress."""

    def sink(self) -> Sink:
        """Return what takes the items that this attempt writes."""
        ...


current_attempt: ContextVar[Attempt | None] = ContextVar("perdure_attempt", default=None)


def stream(name: str, type: TypeForm[T], /) -> StreamWriter[T]:
    """Return a writer to the stream `name` of the invocation whose step runs. In a body, use `ctx.stream`.

    Outside a workflow what is written is dropped: unit tests need no engine.
    """
    attempt = current_attempt.get()
    if attempt is None and (turn := current_turn()) is not None:
        text = f"stream({name!r}, …) is for steps: in the body of workflow {turn.start.handler!r}, call ctx.stream"
        raise CalledOutsideWorkflow(text)
    return StreamWriter(name, type, None if attempt is None else attempt.sink())
