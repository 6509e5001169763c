"""Issues the commands of a body: numbered in order, and checked against the journal on replay.

Called from inside a drain only, by the body or by its loop. It starts and ends nothing: commands wait in `pending` for
the next frame. The turn delivers facts to the body.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from random import Random
from typing import Any, NoReturn, cast

from msgspec.structs import replace

from perdure.core.context import BodyContext
from perdure.core.ids import awakeable_id, derived_id
from perdure.core.journal import (
    NOT_ASKED,
    Answering,
    Arguments,
    Asked,
    CallChild,
    CallStep,
    Command,
    Keep,
    MarkPatch,
    OpenAwakeable,
    Parent,
    SendStart,
    SetTimer,
    Start,
    changed_arguments,
    describe,
    key_number,
    repeats,
)
from perdure.core.loop import Future, Loop
from perdure.core.pending import Pending, Ready
from perdure.core.recorded import Divergence
from perdure.core.retry import DURATION_LIMIT_SECONDS
from perdure.core.streams import STREAM_LIMIT_BYTES, check_item, stream_full
from perdure.errors import AwakeableExpired, CalledOutsideWorkflow, InvalidOption, LimitExceeded, TurnClosed, too_large

COMMANDS_PER_DRAIN_LIMIT = 100_000
"""Commands that a body may issue between two waits; more are most likely an endless loop."""


class CommandFuture(Future[Any]):
    """The future of a step or child. As with a Task, `cancel` is a request; the journal says when and how it ends.

    `answer` is the end of a cancelled one: a child may have completed all the same.
    """

    __slots__ = ("answer", "n")
    n: int
    answer: Answering | None
    message: Any = None  # of the first cancellation: libraries recognize their own by it

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        if cast("Issuer", cast("Loop", self.get_loop()).host).cancel_command(self.n):
            self.message = msg
        return True

    def end(self) -> None:
        """End as cancelled, with the message of the cancellation."""
        super().cancel(self.message)


StubMaker = Callable[[Any, Any, Any, Any], Any]
"""Makes a gRPC stub for a turn, with a retry policy and a timeout."""


class Issuer:
    """Issues the commands of one body. `secret` signs ids of awakeables; `stubs` and `context` are factories."""

    __slots__ = (
        "_ahead",
        "_awakeables",
        "_boundaries",
        "_context",
        "_expiries",
        "_issued",
        "_issued_in_drain",
        "_open_ended",
        "_patches",
        "_payload_limit",
        "_random",
        "_ready",
        "_recorded",
        "_recorded_state",
        "_recorded_written",
        "_secret",
        "_stubs",
        "_timers",
        "_written_bytes",
        "begun",
        "divergence",
        "generation",
        "loop",
        "pending",
        "start",
        "state",
        "undoing",
        "unseen",
    )

    def __init__(
        self,
        start: Start,
        *,
        secret: bytes,
        generation: int,
        stubs: StubMaker | None,
        context: Callable[[Any], BodyContext] | None,
        payload_limit: int | None,
    ) -> None:
        self.start = start
        self.generation = generation
        self.begun = False
        self.loop = Loop(self, start.due, salt=start.seed & 0xFFFF_FFFF)
        self.pending: dict[int, Pending] = {}
        self.state: dict[str, bytes] = {}
        self.divergence: Divergence | None = None
        self.unseen: list[dict[str, Any]] = []
        self.undoing: int | None = None
        """The step or child that is issued next is a compensation, which this command tried first."""
        self._secret = secret
        self._stubs = stubs
        self._context = context
        self._payload_limit = payload_limit
        self._ahead: list[tuple[int, float]] = []  # times that the body has once it has issued so many commands
        self._boundaries: list[tuple[int, int]] = []  # for each generation, the first command that it issues
        self._open_ended = False  # the replay ends where its recorded commands end, and the body may go on
        self._issued = 0
        self._issued_in_drain = 0
        self._ready = Ready()
        self._recorded: deque[Command] | None = None
        self._recorded_state: dict[str, bytes | None] = {}
        self._recorded_written: dict[str, int] = {}  # items that a retry has from the frame that it cuts
        self._written_bytes: dict[str, int] = {}  # by stream
        self._awakeables: set[int] = set()  # those that may be open
        self._expiries: dict[int, asyncio.TimerHandle] = {}  # of awakeables, by their numbers
        self._timers: dict[int, int] = {}  # id of a TimerHandle -> command
        self._patches: dict[str, bool] = {}
        self._random: Random | None = None

    @property
    def context(self) -> BodyContext:
        """The body's context, made by the factory of the runtime."""
        assert self._context is not None, "this turn was made without contexts"
        return self._context(self)

    # --- what the body asks for (called from inside the drain) --------------------------------------------------------
    def call_step(
        self,
        name: str,
        digest: bytes,
        decode: Callable[[bytes], Any],
        work: object,
        checks: bytes = b"",
        given: Arguments | None = None,
    ) -> asyncio.Future[Any]:
        """Issue a step; its future ends as the journal says."""
        undo, self.undoing = self.undoing, None
        if self.loop.closed or self.loop.stopped:
            return self._nothing()
        command = CallStep(self._next(), name, digest, checks, undo)
        self._issue(command, given)
        return self._await_answer(command, decode, work, copy_context())

    @property
    def keys_held(self) -> tuple[str, ...]:
        """The keys that this invocation and its ancestors hold: a child that needs one of them would wait for ever."""
        start = self.start
        return start.held if start.key is None else (*start.held, start.key)

    def call_child(
        self, start: Callable[[str, Parent], Start], decode: Callable[[bytes], Any], given: Arguments | None = None
    ) -> asyncio.Future[Any]:
        """Issue a child; `start` makes its start from the derived id and the parent that waits for it."""
        undo, self.undoing = self.undoing, None
        if self.loop.closed or self.loop.stopped:
            return self._nothing()
        n = self._next()
        generation = self.generation_of(n)
        parent = Parent(self.start.id, generation, n)
        command = CallChild(n, start(derived_id(self.start.id, generation, n), parent), undo)
        self._check_size(f"the input of child {command.start.handler!r}", command.start.input)
        self._issue(command, given)
        return self._await_answer(command, decode, None)

    def send(self, start: Callable[[str], Start], given: Arguments | None = None) -> str:
        """Issue a one-way start, and return its id."""
        n = self._next()
        sent = start(derived_id(self.start.id, self.generation_of(n), n))
        command = SendStart(n, replace(sent, sender=self.start.id))
        self._check_size(f"the input of what is sent to {command.start.handler!r}", command.start.input)
        self._issue(command, given)
        return command.start.id

    def open_awakeable(
        self, decode: Callable[[bytes], Any], asked: Asked = NOT_ASKED
    ) -> tuple[str, asyncio.Future[Any]]:
        """Issue an awakeable, and return its id and its future."""
        n = self._next()
        command = self._issue(OpenAwakeable(n, asked))
        assert isinstance(command, OpenAwakeable)
        future = Future[Any](loop=self.loop)
        generation = self.generation_of(n)
        self.pending[n] = Pending(command, future, decode, generation=generation, since=self.loop.now)
        self._awakeables.add(n)
        id = self.name_awakeable(generation, n)
        if (expires_at := command.asked.expires_at) is not None:
            timer = self._expiries[n] = self.loop.call_at(expires_at, self._expire, n, id)
            future.add_done_callback(lambda _: timer.cancel())
        return id, future

    def open_awakeables(self) -> list[int]:
        """Return the commands of the awakeables whose answers the body still waits for or may await later, in order."""
        for n in [*self._awakeables]:
            pending = self.pending.get(n)
            if pending is None or pending.future is None or pending.future.done():
                self._awakeables.discard(n)
        return sorted(self._awakeables)

    def expiry_of(self, n: int) -> float | None:
        """Return when awakeable `n`, which waits, expires: by its timer, since a retry sets it anew."""
        timer = self._expiries.get(n)
        number = None if timer is None else self._timers.get(id(timer))
        command = None if number is None else self.pending[number].command
        return command.due if isinstance(command, SetTimer) else None

    def _expire(self, n: int, id: str) -> None:
        """End an awakeable whose time is over."""
        pending = self.pending.pop(n)  # an answer cancels the timer
        assert isinstance(pending.command, OpenAwakeable)
        assert pending.future is not None
        title = pending.command.asked.title
        text = f"awakeable {id if title is None else f'{title!r} ({id})'} expired: nobody answered it in time"
        pending.future.set_exception(AwakeableExpired(text, awakeable_id=id))
        pending.future.exception()  # nobody may wait for it

    def name_awakeable(self, generation: int, n: int) -> str:
        """Return the id of an awakeable. A replay outside its store has no secret, and is given the ids."""
        return awakeable_id(self.start.id, generation, n, self._secret)

    def keep(self, value: bytes) -> bytes:
        """Record a value, and return it: on a replay, the recorded one."""
        self._check_size("what the body keeps", value)
        command = self._issue(Keep(self._next(), value))
        assert isinstance(command, Keep)
        return command.value

    def misfit(self, recorded: str, now: str) -> NoReturn:
        """End the body, as code that does not fit its journal: the invocation is paused."""
        self._diverge(Divergence(recorded, now))
        raise TurnClosed(self.start.id)

    def patched(self, name: str) -> bool:
        """Report whether the code had the change `name` when this invocation first passed this point."""
        known = self._patches.get(name)
        if known is None:
            recorded = self._recorded
            if recorded is None or (self._open_ended and not recorded):
                known = True
            else:
                known = bool(recorded) and recorded[0] == MarkPatch(self._issued, name)
            if known:
                self._issue(MarkPatch(self._next(), name))
            self._patches[name] = known
        return known

    def set_state(self, name: str, value: bytes | None, repeats: Callable[[bytes], bool] | None = None) -> None:
        """Change a value of the invocation's state, or delete it.

        `repeats` tells whether the value is a recorded one whose bytes differ.
        """
        self._check_open()
        recorded = self._recorded_state.get(name)
        if recorded is not None and value != recorded and repeats is not None and repeats(recorded):
            value = recorded
        if value is not None:
            self._check_size(f"the state {name!r}", value)
        self._ready.state[name] = value
        if value is None:
            self.state.pop(name, None)
        else:
            self.state[name] = value

    def write(self, name: str, item: bytes) -> None:
        """Write an encoded item to a stream.

        What is replayed was written before, and is not compared: like a log, it changes nothing that the body does.
        """
        self._check_open()
        check_item(name, len(item))
        size = self._written_bytes.get(name, 0) + len(item)
        if size > STREAM_LIMIT_BYTES:
            raise stream_full(name, size)
        self._written_bytes[name] = size
        if self._recorded is not None and not self._open_ended:
            return
        if left := self._recorded_written.get(name, 0):
            self._recorded_written[name] = left - 1
            return
        self._ready.written.setdefault(name, []).append(item)

    def make_stub(self, stub: Any, retry: Any, timeout: Any) -> Any:
        """Return a stub whose calls are steps of this turn, made by the factory of the runtime."""
        if self._stubs is None:
            raise CalledOutsideWorkflow("ctx.stub() needs a worker made by client.worker(...)")
        return self._stubs(stub, self, retry, timeout)

    @property
    def random(self) -> Random:
        """A generator seeded by the start."""
        if self._random is None:
            self._random = Random(self.start.seed)  # noqa: S311  repeatable on purpose
        return self._random

    def cancel_command(self, n: int) -> bool:
        """Note that the body wants command `n` to end; return false if it was known."""
        pending = self.pending.get(n)
        if pending is None or pending.cancel_requested or self.loop.closed:
            return False
        pending.cancel_requested = True
        self._ready.cancels.append(n)
        return True

    # --- what the loop tells ------------------------------------------------------------------------------------------
    def timer_set(self, timer: asyncio.TimerHandle, /) -> None:
        due = float(timer.when())
        self.loop.looked = True  # at the time below
        if not -DURATION_LIMIT_SECONDS <= due - self.loop.now <= DURATION_LIMIT_SECONDS:
            if (bounded := self._bounded(due)) is None:
                return
            due = bounded
        n = self._next()
        command = SetTimer(n, due)
        self._issue(command)
        self._timers[id(timer)] = n
        self.pending[n] = Pending(command, None, bytes, timer=timer, since=self.loop.now)

    def timer_cancelled(self, timer: asyncio.TimerHandle, /) -> None:
        n = self._timers.pop(id(timer), None)
        if n is not None and self.pending.pop(n, None) is not None:
            self._ready.cancels.append(n)

    def task_failed_unseen(self, context: dict[str, Any], /) -> None:
        if not self.loop.closed:
            self.unseen.append(context)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _nothing(self) -> asyncio.Future[Any]:
        """Refuse, or return a future that never ends, for a dropped body that swallows every refusal."""
        self._check_inside()
        self.loop.refuse()
        return Future[Any](loop=self.loop)

    def _next(self) -> int:
        loop = self.loop
        if loop.closed or loop.stopped or events._get_running_loop() is not loop:  # noqa: SLF001
            self._check_open()
        n = self._issued
        self._issued = n + 1
        return n

    def _check_open(self) -> None:
        self._check_inside()
        if self.loop.closed or self.loop.stopped:
            raise TurnClosed(self.start.id)

    def _check_inside(self) -> None:
        if events._get_running_loop() is not self.loop:  # noqa: SLF001
            raise CalledOutsideWorkflow(
                f"the context of invocation {self.start.id!r} is for its body, not for other code"
            )

    @property
    def next_number(self) -> int:
        """The number that the next command will have."""
        return self._issued

    def generation_of(self, n: int) -> int:
        """Return the generation that issues command `n` first."""
        for issued, generation in reversed(self._boundaries):
            if n >= issued:
                return generation
        return self.generation

    def _bounded(self, due: float) -> float | None:
        """Return the due time of a timer that is beyond the limit; None for a timer that never fires."""
        recorded = self._recorded[0] if self._recorded else None
        if isinstance(recorded, SetTimer) and recorded.due == due:
            return due  # of a release that checked nothing
        if due == inf:
            return None
        if due < self.loop.now:
            return self.loop.now
        seconds = due - self.loop.now
        raise InvalidOption(
            f"a wait of {seconds} seconds in the body of invocation {self.start.id!r}: give at most "
            f"{DURATION_LIMIT_SECONDS:.0f}, or math.inf where asyncio takes it for no limit"
        )

    def _check_size(self, what: str, data: bytes) -> None:
        # On replay too: a refusal must repeat.
        if self._payload_limit is not None and len(data) > self._payload_limit:
            raise too_large(what, len(data), self._payload_limit)

    def _issue(self, command: Command, given: Arguments | None = None) -> Command:
        """Issue a command, and return it, or the recorded one that it repeats."""
        self._issued_in_drain += 1
        if self._issued_in_drain > COMMANDS_PER_DRAIN_LIMIT:
            text = (
                f"invocation {self.start.id!r} issued more than {COMMANDS_PER_DRAIN_LIMIT:,} commands without waiting"
            )
            raise LimitExceeded(
                f"{text}: await some of them first", size=self._issued_in_drain, limit=COMMANDS_PER_DRAIN_LIMIT
            )
        if self._recorded is None or (self._open_ended and not self._recorded):
            self._ready.commands.append(command)
            return command
        recorded = self._recorded.popleft() if self._recorded else None
        if recorded is None or not repeats(command, recorded, given):
            asked = describe(command) + changed_arguments(command, recorded, given)
            self._diverge(Divergence(describe(recorded), asked))
            raise TurnClosed(self.start.id)
        if self._ahead:
            self._catch_up()
        return recorded

    def _catch_up(self) -> None:
        """Give the body the time that a replay has for it, once it has issued what was issued before."""
        while self._ahead and self._issued >= self._ahead[0][0]:
            self._pass_time(self._ahead.pop(0)[1])

    def _pass_time(self, at: float) -> None:
        """Let it be `at`, at least; before the body begins, it has seen no other time."""
        if at > self.loop.now or not self.begun:
            self.loop.now = at

    def _await_answer(
        self,
        command: CallStep | CallChild,
        decode: Callable[[bytes], Any],
        work: object,
        variables: Context | None = None,
    ) -> asyncio.Future[Any]:
        future = CommandFuture(loop=self.loop)
        future.n = command.n
        future.answer = None
        generation = self.generation
        if self._boundaries:
            generation = self.generation_of(key_number(command))
        self.pending[command.n] = Pending(
            command, future, decode, work, None, generation, variables=variables, since=self.loop.now
        )
        return future

    def _diverge(self, divergence: Divergence) -> None:
        if self.divergence is None:
            self.divergence = divergence
            self.loop.stopped = True
