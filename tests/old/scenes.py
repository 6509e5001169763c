"""What an old store holds, scene by scene: how an invocation got where it was left, how it goes on, and how it ends.

`make` plays the beginnings with the release of the day; the test plays the rest with the code of today. Both use the
public names only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from perdure import Call, Client, Handle, WaitTimeout
from perdure.errors import PerdureError
from tests.old import programs
from tests.old.programs import (
    CUSTOMER,
    FAILURES,
    FAR_SECONDS,
    ORDER,
    PARCEL,
    TAGS,
    broken,
    hanging,
)

WAIT_SECONDS = 30.0
PATIENCE_SECONDS = 0.3
"""How long a message waits for an answer that does not come."""
BIG = "b" * 1_500_000
"""More than a message of NATS takes."""
LONG = 300
"""Steps one after another: more frames than JetStream keeps apart."""

Deal = Callable[[Client, Handle[Any]], Awaitable[object]]


@dataclass(frozen=True)
class Scene:
    """`was` is the status in which it was left, `ends` that of its end, `value` its result, if that is known."""

    id: str
    call: Call[Any]
    begin: Deal
    was: str
    go_on: Deal
    ends: str
    value: Any = None


# --- deals ------------------------------------------------------------------------------------------------------------
async def is_now(handle: Handle[Any], *wanted: str) -> None:
    """Wait for a status."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (await handle.describe()).status not in wanted:
            await asyncio.sleep(0.02)


def until(*wanted: str) -> Deal:
    async def deal(_: Client, handle: Handle[Any]) -> None:
        await is_now(handle, *wanted)

    return deal


settled = until("completed", "failed", "cancelled")
suspended = until("suspended")


async def nothing(_: Client, __: Handle[Any]) -> None:
    """It is left as it is."""


async def open_awakeable(handle: Handle[Any]) -> str:
    """Wait until it has an awakeable that is open, and return the id of the last."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            for each in reversed((await handle.describe()).awakeables):
                if not each.resolved:
                    return each.id
            await asyncio.sleep(0.02)


async def asked(_: Client, handle: Handle[Any]) -> None:
    await open_awakeable(handle)
    await is_now(handle, "suspended")


def resolved(value: object, of: str | None = None) -> Deal:
    """Resolve its awakeable, or that of the child whose id is its own and `of`."""

    async def deal(client: Client, handle: Handle[Any]) -> None:
        target = handle if of is None else client.handle(await child_of(handle))
        await client.resolve(await open_awakeable(target), value)

    return deal


async def child_of(handle: Handle[Any]) -> str:
    """Return the id of the last child that it waits for."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            for each in reversed((await handle.describe()).journal):
                if each.step_type.startswith("CHILD") and each.invocation_id and each.status == "pending":
                    return each.invocation_id
            await asyncio.sleep(0.02)


def then(*deals: Deal) -> Deal:
    async def deal(client: Client, handle: Handle[Any]) -> None:
        for each in deals:
            await each(client, handle)

    return deal


async def rejected(client: Client, handle: Handle[Any]) -> None:
    await client.reject(await open_awakeable(handle), "not today")


async def cancelled(_: Client, handle: Handle[Any]) -> None:
    await handle.cancel()
    await is_now(handle, "cancelled")


async def forced(_: Client, handle: Handle[Any]) -> None:
    await handle.cancel(force=True)
    await is_now(handle, "cancelled")


async def paused(_: Client, handle: Handle[Any]) -> None:
    await handle.pause()
    await is_now(handle, "paused")


async def resumed(_: Client, handle: Handle[Any]) -> None:
    await handle.resume()


def breaks(*labels: str) -> None:
    broken.update(labels)


def mended(label: str) -> Deal:
    async def deal(_: Client, handle: Handle[Any]) -> None:
        broken.discard(label)
        await handle.retry()

    return deal


async def retried(_: Client, handle: Handle[Any]) -> None:
    await handle.retry()


def unanswered(verb: Callable[[Client, Handle[Any]], Awaitable[object]]) -> Deal:
    """Send a message that no worker is there to apply: it lies in the store."""

    async def deal(client: Client, handle: Handle[Any]) -> None:
        with contextlib.suppress(WaitTimeout):
            await verb(client, handle)

    return deal


async def _resolve(client: Client, handle: Handle[Any]) -> None:
    await client.resolve(await open_awakeable(handle), "by mail", timeout=PATIENCE_SECONDS)


async def _reject(client: Client, handle: Handle[Any]) -> None:
    await client.reject(await open_awakeable(handle), "by mail", timeout=PATIENCE_SECONDS)


async def _cancel(_: Client, handle: Handle[Any]) -> None:
    await handle.cancel(timeout=PATIENCE_SECONDS)


async def _force(_: Client, handle: Handle[Any]) -> None:
    await handle.cancel(force=True, timeout=PATIENCE_SECONDS)


async def _pause(_: Client, handle: Handle[Any]) -> None:
    await handle.pause(timeout=PATIENCE_SECONDS)


async def _resume(_: Client, handle: Handle[Any]) -> None:
    await handle.resume(timeout=PATIENCE_SECONDS)


async def _retry(_: Client, handle: Handle[Any]) -> None:
    await handle.retry(timeout=PATIENCE_SECONDS)


# --- the scenes -------------------------------------------------------------------------------------------------------
def _ended() -> list[Scene]:
    """Those that were settled."""
    p = programs
    found = [
        Scene("hello", p.hello.bind("World"), settled, "completed", nothing, "completed", "Hello World"),
        Scene("typed", p.typed.bind(ORDER, CUSTOMER, PARCEL, TAGS, False), settled, "completed", nothing, "completed"),
        Scene("everything", p.everything.bind("e", False), settled, "completed", nothing, "completed"),
        Scene("long", p.long.bind("long", LONG, False), settled, "completed", nothing, "completed", LONG),
        Scene(
            "big",
            p.big.bind("big", BIG, False),
            settled,
            "completed",
            nothing,
            "completed",
            (len(BIG), BIG.encode()),
        ),
        Scene("sends", p.sends.bind("s"), settled, "completed", nothing, "completed"),
        Scene(
            "crowd",
            p.crowd.bind("quota", 3),
            settled,
            "completed",
            nothing,
            "completed",
            ["completed"] * 3 + ["cancelled"] * 2,
        ),
        Scene(
            "short",
            p.short_of_time.bind("short"),
            settled,
            "completed",
            nothing,
            "completed",
            ["completed", "cancelled"],
        ),
        Scene(
            "flow",
            p.daily.bind({"day": "mon"}),
            settled,
            "completed",
            nothing,
            "completed",
            "daily ['mon', 'ada'] {'mon': 3}",
        ),
        Scene("transfer", p.transfers.bind("t", "other"), settled, "completed", nothing, "completed", 5),
        Scene("tidied", p.tidies.bind("c1"), then(asked, cancelled), "cancelled", nothing, "cancelled"),
        Scene("forced", p.tidies.bind("c2"), then(asked, forced), "cancelled", nothing, "cancelled"),
        Scene(
            "both tidied", p.stops_everything.bind("c3"), then(suspended, cancelled), "cancelled", nothing, "cancelled"
        ),
        Scene(
            "never begun",
            p.hello.using(delay=FAR_SECONDS).bind("never"),
            cancelled,
            "cancelled",
            nothing,
            "cancelled",
        ),
        Scene("out of time", p.tidies.using(timeout=0.2).bind("c4"), settled, "failed", retried, "failed"),
        Scene("rejected", p.asks.bind("r1"), then(asked, rejected, settled), "failed", nothing, "failed"),
        Scene("gave up", p.gives_up.bind("g"), settled, "failed", nothing, "failed"),
        Scene("child failed", p.fails_by_child.bind("fc", "own"), settled, "failed", nothing, "failed"),
        Scene("deadlock", p.locks_itself.using(key="lock").bind("l"), settled, "failed", nothing, "failed"),
    ]
    kinds = {f"failed {kind}": p.fails.bind(f"f {kind}", kind) for kind in FAILURES}
    found += [Scene(id, call, settled, "failed", nothing, "failed") for id, call in kinds.items()]
    return found


def _failed_and_retried() -> list[Scene]:
    p = programs
    once = ["before", "fragile", "sturdy", "second"]
    done, waits, again = (
        then(settled, mended(f"{label} fragile"), settled, mended(f"{label} second")) for label in ("m1", "m2", "m3")
    )
    again = then(settled, mended("m3 fragile"), settled)
    return [
        Scene(
            "mended", p.mends.bind("m1", False), then(done, settled), "completed", nothing, "completed",
            [f"m1 {each}" for each in once],
        ),
        Scene(
            "mended and waits", p.mends.bind("m2", True), then(waits, asked), "suspended", resolved("given"),
            "completed", [*(f"m2 {each}" for each in once), "given", "m2 last"],
        ),
        Scene(
            "failed again", p.mends.bind("m3", False), again, "failed", retried, "completed",
            [f"m3 {each}" for each in once],
        ),
        Scene("to mend", p.mends.bind("m4", False), settled, "failed", retried, "completed",
              [f"m4 {each}" for each in once]),
        Scene("raised itself", p.raises.bind("m5", "own"), settled, "failed", retried, "completed"),
        Scene("two failures", p.fails_twice.bind("m6"), settled, "failed", retried, "completed"),
        Scene("fails with key", p.deposit.using(key="fragile").bind("m7", 7, False), settled, "failed", retried,
              "completed", 7),
    ]  # fmt: skip


def _waiting() -> list[Scene]:
    p = programs
    told = "{0} given {0} told"
    return [
        Scene("typed waits", p.typed.bind(ORDER, CUSTOMER, PARCEL, TAGS, True), asked, "suspended",
              resolved(CUSTOMER), "completed"),
        Scene("everything waits", p.everything.bind("w", True), asked, "suspended", resolved("given"), "completed"),
        Scene("long waits", p.long.bind("lw", LONG, True), asked, "suspended", resolved(None), "completed", LONG),
        Scene("big waits", p.big.bind("wb", BIG, True), asked, "suspended", resolved(BIG.encode()), "completed",
              (len(BIG), b"w" * len(BIG) + BIG.encode())),
        Scene("asks", p.asks.bind("a1"), asked, "suspended", resolved("given"), "completed", told.format("a1")),
        Scene("asks and is refused", p.asks.bind("a2"), asked, "suspended", rejected, "failed"),
        Scene("asks and is cancelled", p.tidies.bind("a3"), asked, "suspended", cancelled, "cancelled"),
        Scene("has a deadline", p.asks.using(timeout=FAR_SECONDS).bind("a4"), asked, "suspended", resolved("given"),
              "completed", told.format("a4")),
        Scene("child", p.waits_for_child.bind("p1"), suspended, "suspended", resolved("given", "child"), "completed",
              "parent of " + told.format("p1 child")),
        Scene("shared", p.asks.bind("shared"), asked, "suspended", resolved("given"), "completed",
              told.format("shared")),
        Scene("shares one", p.waits_for_shared.bind("s1"), suspended, "suspended", nothing, "completed",
              "s1 of " + told.format("shared")),
        Scene("shares two", p.waits_for_shared.bind("s2"), suspended, "suspended", nothing, "completed",
              "s2 of " + told.format("shared")),
        Scene("sleeps long", p.sleeps.bind("z1", FAR_SECONDS), suspended, "suspended", cancelled, "cancelled"),
        Scene("begins long from now", p.hello.using(delay=FAR_SECONDS).bind("z2"), until("scheduled"), "scheduled",
              cancelled, "cancelled"),
        Scene("group", p.crowd.bind("group", 0), suspended, "suspended", cancelled, "cancelled"),
        Scene("paused", p.asks.bind("h1"), then(asked, paused), "paused", then(resumed, resolved("given")),
              "completed", told.format("h1")),
        Scene("paused and cancelled", p.tidies.bind("h2"), then(asked, paused), "paused", then(resumed, cancelled),
              "cancelled"),
        Scene("got an answer while paused", p.asks.bind("h3"), then(asked, paused, resolved("given")), "paused",
              resumed, "completed", told.format("h3")),
        Scene("first", p.deposit.using(key="account").bind("k1", 10, False), settled, "completed", nothing,
              "completed", 10),
        Scene("holder", p.deposit.using(key="account").bind("k2", 20, True), asked, "suspended", resolved(None),
              "completed", 30),
        Scene("second in the queue", p.deposit.using(key="account").bind("k3", 30, False), until("pending"), "pending",
              nothing, "completed", 60),
        Scene("third in the queue", p.deposit.using(key="account").bind("k4", 40, True), until("pending"), "pending",
              resolved(None), "completed", 100),
        Scene("fourth in the queue", p.deposit.using(key="account").bind("k5", 50, False), until("pending"), "pending",
              cancelled, "cancelled"),
    ]  # fmt: skip


def _deployed() -> list[Scene]:
    """Begun by code that was another than that of today; `changes` diverged, and is paused."""
    p = programs
    return [
        Scene("grew", p.grows.bind("d1"), asked, "suspended", resolved("given"), "completed", "given"),
        Scene("changed", p.changes.bind("d2"), asked, "paused", then(resumed, resolved("given")), "completed", "given"),
    ]


def _mail() -> list[Scene]:
    """A message lies there for each, since no worker was there to apply it."""
    p = programs
    told = "{0} by mail {0} told"
    return [
        Scene("mail: resolve", p.asks.bind("e1"), asked, "suspended", nothing, "completed", told.format("e1")),
        Scene("mail: reject", p.asks.bind("e2"), asked, "suspended", nothing, "failed"),
        Scene("mail: cancel", p.tidies.bind("e3"), asked, "suspended", nothing, "cancelled"),
        Scene("mail: force", p.tidies.bind("e4"), asked, "suspended", nothing, "cancelled"),
        Scene("mail: pause", p.asks.bind("e5"), asked, "suspended", until("paused"), "paused"),
        Scene("mail: resume", p.asks.bind("e6"), then(asked, paused), "paused", resolved("given"), "completed",
              "e6 given e6 told"),
        Scene("mail: retry", p.mends.bind("e7", False), settled, "failed", nothing, "completed"),
    ]  # fmt: skip


MAIL: dict[str, Deal] = {
    "mail: resolve": unanswered(_resolve),
    "mail: reject": unanswered(_reject),
    "mail: cancel": unanswered(_cancel),
    "mail: force": unanswered(_force),
    "mail: pause": unanswered(_pause),
    "mail: resume": unanswered(_resume),
    "mail: retry": unanswered(_retry),
}


def _cut_short() -> list[Scene]:
    """In the middle of something when their worker was killed: steps ran, timers were about to fire."""
    p = programs
    return [
        Scene("sleeps", p.sleeps.bind("x1", 4), suspended, "suspended", settled, "completed", "x1 woke"),
        Scene("tries later", p.tries_later.bind("x2"), suspended, "suspended", settled, "completed",
              "x2 before x2 late"),
        Scene("runs out of time", p.tidies.using(timeout=4).bind("x3"), asked, "suspended", settled, "failed"),
        Scene("begins soon", p.hello.using(delay=4).bind("x4"), until("scheduled"), "scheduled", settled, "completed",
              "Hello x4"),
        Scene("flow hangs", p.daily.bind({"day": "tue"}), until("running"), "running", settled, "completed",
              "daily ['nobody'] {'tue': 3}"),
        Scene("hangs", p.hangs.bind("x5"), until("running"), "running", settled, "completed",
              "x5 before x5 hung x5 after"),
        Scene("hangs too", p.hangs.bind("x6"), until("running"), "running", settled, "completed",
              "x6 before x6 hung x6 after"),
        Scene("waits for a slot", p.hello.bind("x7"), until("pending"), "pending", settled, "completed", "Hello x7"),
    ]  # fmt: skip


def _unserved() -> list[Scene]:
    p = programs
    return [
        Scene("unserved", p.later.bind("u1"), until("pending"), "pending", settled, "completed", "u1 at last"),
        Scene("unserved with a key", p.later.using(key="u").bind("u2"), until("pending"), "pending", settled,
              "completed", "u2 at last"),
    ]  # fmt: skip


ENDED = _ended()
RETRIED = _failed_and_retried()
WAITING = _waiting()
DEPLOYED = _deployed()
MAILED = _mail()
CUT_SHORT = _cut_short()
UNSERVED = _unserved()
ALL = {each.id: each for part in (ENDED, RETRIED, WAITING, DEPLOYED, MAILED, CUT_SHORT, UNSERVED) for each in part}
SLOTS = 3
"""As many as hang in the end."""

BROKEN_THEN = (
    "m1 fragile", "m1 second", "m2 fragile", "m2 second", "m3 fragile", "m3 second", "m4 fragile", "m4 second",
    "m5", "m6 1", "m6 2", "m7 7", "e7 fragile", "x2 late", "users tue", "tue",
)  # fmt: skip
"""Steps that fail while the store is made."""
SUPERSEDED = {"c4 tidied"}
"""The step whose result a retry of the rest supersedes: its invocation ran out of time before it."""
HANGING_THEN = ("x5 hung", "x6 hung")


def break_as_then() -> None:
    broken.update(BROKEN_THEN)
    hanging.update(HANGING_THEN)
    hanging.add("orders tue")


async def begin(client: Client, scene: Scene) -> None:
    """Play the beginning of a scene."""
    called = scene.call.workflow.using(id=scene.id)
    handle = await client.start(called, *scene.call.args, **scene.call.kwargs)
    try:
        await scene.begin(client, handle)
    except (TimeoutError, PerdureError) as error:
        raise RuntimeError(f"scene {scene.id!r}: {error!r}; {await handle.describe()}") from error
