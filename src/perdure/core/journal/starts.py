"""The start: the request that an invocation exist."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from perdure.core.tags import Tags


class Parent(Struct, frozen=True, array_like=True, gc=False):
    """The parent that waits for an invocation: command `n` of generation `generation` of invocation `id`."""

    id: str
    generation: int
    n: int


class Start(Struct, frozen=True, array_like=True, gc=False):
    """The request that an invocation exist.

    `input` is the msgpack map of the arguments by parameter name. `seed` makes randomness and derived ids a function
    of the start, so that a rerun before the first frame gets the same. `due` is the earliest time to begin:
    `at` for a start without a delay. `chosen`: the caller chose the id, so it may exist already. `digest` identifies
    the input: it is the same for equal arguments, whatever the order of their sets and mappings; empty if the start was
    made without one. `tags` are to find it by. `interface` is the hash of what the handler takes and returns, as the
    caller knows it (`core.interface`); empty if it does not. `flow` is how a flow is to be executed
    (`authoring.flows`). `trace` is the `traceparent` of what made the start (`perdure.tracing`); empty if that has
    none. Nothing depends on it but spans. `when_busy` is what it does if its key is held (`core.busy`).
    """

    id: str
    handler: str
    input: bytes
    at: float
    due: float
    seed: int
    key: str | None = None
    timeout: float | None = None
    parent: Parent | None = None
    chosen: bool = False
    held: tuple[str, ...] = ()  # keys held by the ancestors
    digest: bytes = b""
    sender: str | None = None  # the invocation that sent it, and does not wait for it
    tags: Tags = ()
    interface: bytes = b""
    flow: bytes = b""
    trace: str = ""
    when_busy: str = "enqueue"

    def is_due(self, now: float, /) -> bool:
        """Report whether it is time to begin. Without a delay it always is: its author's clock may be ahead."""
        return self.due <= self.at or self.due <= now

    def begins(self, at: float, /) -> float:
        """Return the time of a body that a worker begins at `at`: never before the time until which it was delayed."""
        return at if self.due <= self.at else max(self.due, at)


encode_start = msgspec.msgpack.Encoder().encode
