"""Rekeying: seals all that a store keeps under the key that seals now, so that the keys before it can be dropped.

There is one job for a store, a document. The process in which it began works on it, and any worker that has the same
key first, if that process is gone. It goes through the store in passes, part by part, and writes down where it is about
once a second. To do a part again changes nothing, so a job that was interrupted goes on from what was written last.

Where processes share a store, a job belongs to one of them for a while. This saves work, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.background import RateLimitedLog, Tasks, log_error
from perdure.errors import InvalidOption, RevisionConflict, StoreClosed, StoreError
from perdure.operations.rekey import LeftSealed, RekeyProgress, RekeyState, SealedPart
from perdure.stores.documents import Put
from perdure.stores.port import SealsValues, Store
from perdure.stores.rewriting import Part, Reseals

COLLECTION = "perdure.rekey"
"""The collection of the job. It is not sealed, and holds no values."""
LOOK_SECONDS = 2.0
"""How often a worker looks for a job that began elsewhere."""
SAVE_SECONDS = 1.0
"""How often a job is written down while it goes on."""
HELD_SECONDS = 60.0
"""How long a job belongs to a process that says nothing of it: longer than a part takes."""
SHARE = 0.5
"""The fraction of its time for which a job keeps the store busy."""
WAIT_SECONDS, WAIT_LIMIT_SECONDS = 2.0, 300.0
"""How long a job rests until it looks again at what is in queues: first so long, then twice as long each time."""
PASSES_LIMIT = 20
"""Passes that change something, after which a job gives up."""
LEFT_LIMIT = 50
"""Things that stay as they are of which a job keeps the reasons."""

_KEY = ("rekey",)

log = logging.getLogger("perdure.rekey")


class Job(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The job, and where it stands. Times are in seconds since the Unix epoch.

    A pass begins with an empty `position`. `seen`, `changed`, `waiting`, `under` and `left` are of this pass, and
    `rewritten` is of those before. After one that found nothing but what waits, the next begins at `again_at`. `rests`
    counts such passes.
    Until the time `until`, the job belongs to the process that calls itself `owner`.
    """

    key: str
    started_at: float
    position: str = ""
    passes: int = 0
    rewritten: int = 0
    seen: int = 0
    changed: int = 0
    waiting: int = 0
    under: dict[str, int] = {}
    left: dict[str, str] = {}
    rests: int = 0
    again_at: float = 0.0
    owner: str = ""
    until: float = 0.0
    ended_at: float | None = None

    @property
    def is_clean(self) -> bool:
        """Report whether a pass has found nothing that stays as it is."""
        return not self.left and not self.waiting and self.under.keys() <= {self.key}

    @property
    def state(self) -> RekeyState:
        if self.ended_at is not None:
            return "done" if self.is_clean else "incomplete"
        return "waiting" if self.again_at else "running"

    @property
    def progress(self) -> RekeyProgress:
        """What is shown of it."""
        return RekeyProgress(
            *(self.key, self.state, datetime.fromtimestamp(self.started_at, UTC)),
            ended_at=None if self.ended_at is None else datetime.fromtimestamp(self.ended_at, UTC),
            passes=self.passes,
            seen=self.seen,
            changed=self.rewritten + self.changed,
            waiting=self.waiting,
            under=self.under,
            left=tuple(LeftSealed(*each) for each in self.left.items()),
        )

    def begun(self) -> Job:
        """Return it at the beginning of a pass."""
        rewritten = self.rewritten + self.changed
        return replace(self, rewritten=rewritten, seen=0, changed=0, waiting=0, under={}, left={}, again_at=0.0)

    def after(self, part: Part, resealing: Reseals) -> Job:
        """Return it after a part."""
        left = dict(self.left)
        for each in (*resealing.left.values(), *part.left):
            if len(left) < LEFT_LIMIT or each.what in left:
                left.setdefault(each.what, each.why)
        return replace(
            self,
            position=part.next or "",
            passes=self.passes + (part.next is None),
            seen=self.seen + part.seen,
            changed=self.changed + part.changed,
            waiting=self.waiting + sum(each.waits for each in part.left),
            under=dict(Counter(self.under) + Counter(resealing.under)),
            left=left,
        )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Job).decode


class _Kept(Struct, frozen=True):
    """The job as it was read, None if there is none, and the revision of its document."""

    job: Job | None
    revision: int


class Rekeying:
    """The job of a store, and what works on it in this process. `run` is a duty of each worker."""

    def __init__(self, opened: Callable[[], Awaitable[Store]]) -> None:
        self._opened = opened
        self._begun = asyncio.Event()
        self._owners: set[str] = set()  # the names under which it runs now
        self._tasks = Tasks(log)
        self._log = RateLimitedLog(log)

    # --- what callers ask ---------------------------------------------------------------------------------------------
    async def count(self, after: str) -> SealedPart:
        """Count values by their keys, in one part of the store. It needs no keys."""
        store = await self._sealed()
        counting = store.counting()
        part = await store.rewrite(counting, after)
        return SealedPart(dict(counting.under), part.next)

    async def begin(self) -> RekeyProgress:
        """Begin to seal everything under the key that seals in this process, or go on with that."""
        store = await self._sealed()
        store.resealing()  # raises without keys
        key = store.sealed_under
        assert key is not None
        while True:
            kept = await _read(store)
            job = kept.job
            if job is None or job.ended_at is not None or job.key != key:
                job = Job(key, store.clock.now())
            elif job.again_at:
                job = replace(job, again_at=0.0)
            else:
                break
            try:
                await _write(store, job, kept.revision)
            except RevisionConflict:
                continue
            break
        if not self._owners:
            self._tasks.spawn(self.run())
        self._begun.set()
        return job.progress

    async def look(self) -> RekeyProgress | None:
        """Return how far the job is, or how the last one ended; None if there was none."""
        job = (await _read(await self._sealed())).job
        return None if job is None else job.progress

    async def aclose(self) -> None:
        """End what works on it here."""
        await self._tasks.cancel()

    async def _sealed(self) -> _SealedStore:
        store = await self._opened()
        if not isinstance(store, SealsValues):
            raise InvalidOption("this store is not sealed: there are no keys to count or to change")
        return store

    # --- the work -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Work on the job of the store, whenever there is one, until it is cancelled."""
        store, owner = await self._opened(), secrets.token_hex(8)
        if not isinstance(store, SealsValues) or store.sealed_under is None:
            await asyncio.Event().wait()  # there is nothing to do here
        store = await self._sealed()
        self._owners.add(owner)
        try:
            while True:
                try:
                    kept = await _read(store)
                    if kept.job is not None and self._is_free(store, kept.job, owner):
                        await self._carry_out(store, kept.job, kept.revision, owner)
                except RevisionConflict:
                    log.info("rekey: another process goes on with it")
                except StoreClosed:
                    raise
                except StoreError as error:
                    self._log("rekey", "rekey rests: %s; it goes on", error, level=logging.WARNING)
                except Exception as error:  # noqa: BLE001  it begins anew from where it was written last
                    log_error(log, "rekey: unexpected exception, it goes on in %g s", LOOK_SECONDS, error=error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._begun.wait()
                self._begun.clear()
        finally:
            self._owners.discard(owner)

    def _is_free(self, store: _SealedStore, job: Job, owner: str) -> bool:
        """Report whether this process may work on a job now."""
        if job.ended_at is not None or job.again_at > store.clock.now():
            return False
        if job.key != store.sealed_under:
            text = "rekey waits for a process in which key %r is the first: here it is %r"
            self._log(("key", job.key), text, job.key, store.sealed_under, level=logging.WARNING)
            return False
        if job.owner in ("", owner):
            return True
        if store.clocks_apart == 0.0:  # one process has this store, so whoever is not in it is dead
            return job.owner not in self._owners
        return store.clock.now() > job.until

    async def _carry_out(self, store: _SealedStore, job: Job, revision: int, owner: str) -> None:
        """Work on the job until it ends or rests. `RevisionConflict` if another process has it."""
        clock = asyncio.get_running_loop().time
        job = replace(job, owner=owner, until=store.clock.now() + HELD_SECONDS)
        revision, saved_at = await _write(store, job, revision), clock()
        text = "rekey: sealing all values under key %r, pass %d"
        while job.owner:
            if not job.position:
                log.info(text, job.key, job.passes + 1)
                job = job.begun()
            resealing, began = store.resealing(), clock()
            job = job.after(await store.rewrite(resealing, job.position), resealing)
            if not job.position:
                job = await _passed(store, job)
            if not job.owner or not job.position or clock() > saved_at + SAVE_SECONDS:
                job = replace(job, until=store.clock.now() + HELD_SECONDS)
                revision, saved_at = await _write(store, job, revision), clock()
            await asyncio.sleep((clock() - began) * (1 / SHARE - 1))
        log.info("rekey: %s after %d passes: %s", job.state, job.passes, job.under)


class _SealedStore(SealsValues, Store, Protocol):
    """A store that seals."""


async def _passed(store: _SealedStore, job: Job) -> Job:
    """Return the job after a pass: another one follows, at once or later, or it has ended."""
    now = store.clock.now()
    if job.changed and job.passes < PASSES_LIMIT:
        return replace(job, rests=0)
    if job.changed:
        text = "values are still sealed under other keys: put this key first in every process, and begin again"
        job = replace(job, left={**job.left, "what is written now": text})
    elif job.waiting:
        wait = min(WAIT_SECONDS * 2**job.rests, WAIT_LIMIT_SECONDS)
        return replace(job, rests=job.rests + 1, again_at=now + wait, owner="", until=0.0)
    if job.is_clean:
        await store.retire()
    return replace(job, owner="", until=0.0, ended_at=now)


async def _read(store: Store) -> _Kept:
    (found,) = await store.documents.read(COLLECTION, [_KEY])
    if found is None:
        return _Kept(None, 0)
    try:
        return _Kept(_decode(found.value), found.revision)
    except msgspec.DecodeError as error:
        raise StoreError(f"the rekey job of this store cannot be read: a newer release wrote it ({error})") from error


async def _write(store: Store, job: Job, revision: int) -> int:
    (written,) = await store.documents.write(COLLECTION, [Put(_KEY, _encode(job), if_revision=revision)])
    return written
