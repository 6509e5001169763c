"""Frames extend a journal at the revision they name."""

import asyncio
from typing import Any

from perdure.core.effects import Effects
from perdure.core.journal import (
    Accepted,
    Answer,
    CallChild,
    Cancelled,
    Completed,
    Failed,
    Fired,
    Frame,
    Join,
    Message,
    Parent,
    Paused,
    Refused,
    Released,
    Returned,
    SendStart,
    Start,
    Status,
)
from perdure.core.values import encode
from perdure.errors import Conflict
from perdure.stores.port import Wake
from perdure.testing.contract.shared import (
    StoreCase,
    raised_by,
    samples,
)


class Commits(StoreCase):
    """Frames extend a journal at the revision they name."""

    async def test_revision_grows_with_every_frame_and_the_journal_tells_the_last(self) -> None:
        async with self.opened() as store:
            start, first = await self.begun(self.inbox())
            second = await self.commit(start, first, self.frame(Returned(0, 1.0, encode(1))))
            third = await self.commit(start, second, self.frame(Fired(1, 1.0)))
            assert 0 < first < second < third
            journal = await store.journal(start.id)
            assert journal.revision == third
            assert len(journal.frames) == 3

    async def test_conflicting_commit_does_nothing_at_all(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            other, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id))
            delivery, message = await inbox.next_message()
            now = await self.commit(start, revision, self.frame(Returned(0, 1.0, encode(1))))
            before = await store.row(start.id)
            late = self.frame(Paused(1.0, "r", message.id), Released(1.0, 1.0), writer="zombie")
            effects = Effects((self.start("child"),), (self.message(other.id),), (Answer(message.id),), 1.0)
            for expected in (0, revision, now + 1_000_000):
                error = await raised_by(
                    self.commit(start, expected, late, "suspended", delivery, effects=effects), Conflict
                )
                assert start.id in str(error)
            assert (await store.journal(start.id)).revision == now
            assert await store.row(start.id) == before
            assert await store.row("child") is None
            await inbox.stays_empty(self.calm)
            await self.reopened()
            inbox = self.inbox(room=5)  # a store may keep a claim by the start that was never acknowledged
            came: set[type] = set()
            for _ in range(2):
                delivery = await inbox.next()
                came.add(type(delivery.item))
                inbox.subscription.acknowledge(delivery)
            assert came == {Wake, Message}, "the claim and its message are still there"

    async def test_commit_that_cannot_be_encoded_does_nothing_and_is_no_failure_of_the_store(self) -> None:
        """A failure of the store would be tried again for ever."""
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            before = await store.row(start.id)
            good, bad = self.frame(Returned(0, 1.0, encode(1))), self.frame(Paused(1.0, "\ud800"))
            no_text = self.start(key="\ud800")
            cases: list[tuple[Frame | None, Effects]] = [
                (bad, Effects((self.start("child"),))),
                (good, Effects((self.start("child"), no_text))),
                (good, Effects((self.start("child"),), (self.message(start.id, id="\ud800"),))),
                (None, Effects((self.start("child"), no_text))),
            ]
            for frame, effects in cases:
                results = await asyncio.gather(
                    self.commit(start, revision, frame, "paused", effects=effects), return_exceptions=True
                )
                assert isinstance(results[0], UnicodeEncodeError), results
            assert (await store.journal(start.id)).revision == revision
            assert await store.row(start.id) == before
            assert await store.row("child") is None
            assert await self.commit(start, revision, good) > revision

    async def test_conflict_of_one_commit_does_not_fail_others_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(3)]
            again = self.frame(Returned(0, 1.0, encode(1)))
            await self.commit(*begun[1], again)
            results = await asyncio.gather(
                *(self.commit(start, revision, again) for start, revision in begun),
                store.submit([self.start("same moment")]),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [int, Conflict, int, list]
            for start, _ in begun:
                assert len(await self.frames_of(start.id)) == 2

    async def test_of_two_commits_at_one_revision_in_the_same_moment_one_wins(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            for rivals in (2, 5):
                start, revision = await self.begun(inbox)
                frames = [self.frame(Returned(0, 1.0, encode(n)), writer=str(n)) for n in range(rivals)]
                results = await asyncio.gather(
                    *(self.commit(start, revision, frame) for frame in frames), return_exceptions=True
                )
                assert sum(isinstance(result, int) for result in results) == 1
                assert sum(isinstance(result, Conflict) for result in results) == rivals - 1
                winner = next(frame for frame, result in zip(frames, results, strict=True) if isinstance(result, int))
                assert (await self.frames_of(start.id))[-1] == winner

    async def test_first_frame_needs_an_empty_journal(self) -> None:
        async with self.opened():
            start, revision = await self.begun(self.inbox())
            await raised_by(self.commit(start, 0, self.frame(Accepted(start), writer="other")), Conflict)
            assert (await self.store.journal(start.id)).revision == revision

    async def test_effects_of_a_commit_happen(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            parent, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="asked"))
            delivery, _ = await inbox.next_message()
            child = self.start(parent=Parent(start.id, 0, 1), chosen=False)
            told = self.message(parent.id)
            effects = Effects((child,), (told,), (Answer("asked", "no"),))
            frame = self.frame(Refused(1.0, "asked", "no"), commands=[CallChild(1, child)])
            await self.commit(start, revision, frame, None, delivery, effects=effects)
            inbox.subscription.request(1)
            came = {type(each.item): each for each in (await inbox.next(), await inbox.next())}
            assert came[Start].item == child
            assert came[Message].item == told
            assert await store.answer("asked") == Answer("asked", "no")

    async def test_message_for_what_the_same_commit_starts_is_delivered_after_it(self) -> None:
        async with self.opened():
            inbox = self.inbox(room=10)
            start, revision = await self.begun(inbox)
            for n, key in enumerate((None, "k")):
                child = self.start(f"child{n}", key=key, parent=Parent(start.id, 0, n))
                told = self.message(child.id, Join(child))
                effects = Effects((child,), (told,))
                frame = self.frame(commands=[CallChild(n, child)])
                revision = await self.commit(start, revision, frame, effects=effects)
                assert [(await inbox.next()).item for _ in range(2)] == [child, told]

    async def test_redo_of_effects_changes_nothing_that_was_done(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            parent, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            child, told = self.start(chosen=False), self.message(parent.id)
            effects = Effects((child,), (told,), (Answer("m", None),), None)
            frame = self.frame(Returned(0, 1.0, encode(1)), commands=[SendStart(1, child)])
            revision = await self.commit(start, revision, frame, effects=effects)
            for _ in range(2):
                assert await self.commit(start, revision, None, effects=effects) == revision
            inbox.subscription.request(9)
            came = [await inbox.next(), await inbox.next()]
            assert {type(each.item) for each in came} == {Start, Message}
            await inbox.stays_empty(self.calm)
            assert (await store.journal(start.id)).revision == revision

    async def test_redo_does_what_was_not_done(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            frame = self.frame(Returned(0, 1.0, encode(1)))
            revision = await self.commit(start, revision, frame, effects=Effects())
            await store.post(self.message(start.id, id="m"))
            await inbox.next_message()
            child = self.start(chosen=False)
            await self.commit(start, revision, None, effects=Effects((child,), (), (Answer("m"),)))
            inbox.subscription.request(1)
            assert (await inbox.next_start()).item == child
            assert await store.answer("m") == Answer("m")

    async def test_deliveries_acknowledged_by_a_commit_do_not_come_again(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="m"))
            delivery, _ = await inbox.next_message()
            frame = self.frame(Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)

    async def test_start_of_an_existing_id_among_the_effects_is_dropped(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            existing = await self.completed(inbox, self.start("mine", input=encode({"x": 1})))
            start, revision = await self.begun(inbox)
            other = self.start("mine", input=encode({"x": 2}))
            effects = Effects((other, self.start("new")))
            await self.commit(start, revision, self.frame(Fired(1, 1.0)), effects=effects)
            assert await store.start("mine") == existing
            assert await store.row("new") is not None

    async def test_settling_ends_the_claim(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            await self.completed(inbox)
            inbox.subscription.close()
            await self.inbox(room=1).stays_empty(self.calm)

    async def test_journal_gives_back_every_entry_and_command(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            entries, commands = samples(start)
            frames = [self.frame(entry) for entry in entries if not isinstance(entry, (Completed, Failed, Cancelled))]
            frames += [self.frame(commands=[command]) for command in commands]
            everything = Frame("wörker", 1.5, [*entries[:8]], commands, {"a": encode([1]), "b": None}, [3, 4])
            frames.append(everything)
            for frame in frames:
                revision = await self.commit(start, revision, frame, effects=Effects())
            assert (await self.frames_of(start.id))[1:] == frames
            store = await self.reopened()
            journal = await store.journal(start.id)
            assert [*journal.frames[1:]] == frames
            assert journal.revision == revision

    async def test_journal_gives_back_every_outcome(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            outcomes = [
                entry for entry in samples(self.start())[0] if isinstance(entry, (Completed, Failed, Cancelled))
            ]
            statuses: dict[type, Status] = {Completed: "completed", Failed: "failed", Cancelled: "cancelled"}
            settled: dict[str, Any] = {}
            for outcome in outcomes:
                start, revision = await self.begun(inbox)
                await self.commit(start, revision, self.frame(outcome), statuses[type(outcome)], effects=Effects())
                settled[start.id] = outcome
            for _ in range(2):
                for id, outcome in settled.items():
                    assert await store.outcome(id) == outcome
                    row = await store.row(id)
                    assert row is not None
                    assert row.status == statuses[type(outcome)]
                store = await self.reopened()

    async def test_unknown_id_has_no_journal_start_row_or_outcome(self) -> None:
        async with self.opened() as store:
            journal = await store.journal("nobody")
            assert (journal.frames, journal.revision) == ((), 0)
            assert await store.start("nobody") is None
            assert await store.row("nobody") is None
            assert await store.outcome("nobody") is None

    async def test_journal_read_later_does_not_change_what_was_read(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            before = await store.journal(start.id)
            await self.commit(start, revision, self.frame(Fired(1, 1.0)))
            assert len(before.frames) == 1
