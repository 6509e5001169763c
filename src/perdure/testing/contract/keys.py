"""A key has one holder at a time, and starts get it in the order accepted."""

import asyncio
from functools import partial

from msgspec.structs import replace

from perdure.core.effects import Effects, Enlist, Release
from perdure.core.failures import failure_of, rebuild
from perdure.core.journal import (
    Accepted,
    CallStep,
    Cancel,
    Cancelled,
    Completed,
    Failed,
    Frame,
    Granted,
    Outcome,
    Pause,
    Released,
    Returned,
    SendStart,
    Start,
)
from perdure.errors import KeyBusy, LimitExceeded
from perdure.stores.port import Key, Wake
from perdure.testing.contract.shared import (
    STATUS_OF,
    Inbox,
    StoreCase,
    raised_by,
)


class Keys(StoreCase):
    """A key has one holder at a time, and starts get it in the order accepted."""

    async def granted(self, inbox: Inbox, id: str) -> tuple[Start, int]:
        """Take the next start, which must be this one and hold its key; commit its first frame, with the grant."""
        delivery = await inbox.next_start()
        start = delivery.item
        assert isinstance(start, Start)
        assert start.id == id
        assert start.key is not None
        key = await self.store.key(start.key)
        assert key.granted_to(id, 0)
        grant = Granted(self.store.clock.now(), 0, key.state)
        first = self.frame(Accepted(start), self.claim(), grant, commands=[CallStep(0, "s", b"d")])
        return start, await self.commit(start, 0, first, "running", delivery)

    async def key(self, name: str) -> Key:
        """Read a key, without the number of its grant, which is the store's own."""
        return replace(await self.store.key(name), grant=0)

    async def settled(self, start: Start, revision: int, outcome: Outcome | None = None, **state: bytes | None) -> int:
        """End an invocation, with changes of its key's state."""
        outcome = outcome or Completed(self.store.clock.now(), b"\xc0")
        frame = Frame("w", self.store.clock.now(), [outcome], [], state)
        return await self.commit(start, revision, frame, STATUS_OF[type(outcome)])

    async def test_key_that_nobody_used_has_no_holder_and_no_state(self) -> None:
        async with self.opened() as store:
            assert await store.key("unused") == Key()

    async def test_number_of_a_grant_is_greater_than_all_before_it(self) -> None:
        async with self.opened() as store:
            assert (await store.key("k")).grant == 0
            inbox = self.inbox(room=100)
            grants: list[int] = []
            for n in range(3):  # nothing is held or queued in between
                await store.submit([self.start(f"a{n}", key="k")])
                start, revision = await self.granted(inbox, f"a{n}")
                grants.append((await store.key("k")).grant)
                await self.settled(start, revision)
                store = await self.reopened()
                inbox = self.inbox(room=100)
            await store.submit([self.start(f"b{n}", key="k") for n in range(2)])
            start, revision = await self.granted(inbox, "b0")
            grants.append((await store.key("k")).grant)
            failed = Failed(store.clock.now(), failure_of(ValueError("no")))
            revision = await self.settled(start, revision, failed)
            again = Effects(enlist=Enlist("k", 1))
            await self.commit(start, revision, None, "failed", effects=again)
            start, revision = await self.granted(inbox, "b1")
            grants.append((await store.key("k")).grant)
            await self.settled(start, revision)
            for _ in range(int(self.patience / 0.01)):
                if (await store.key("k")).granted_to("b0", 1):
                    break
                await asyncio.sleep(0.01)
            assert (await store.key("k")).granted_to("b0", 1)
            grants.append((await store.key("k")).grant)
            assert grants == sorted({*grants})
            assert grants[0] > 0

    async def test_starts_of_a_key_come_one_at_a_time_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            await store.submit([self.start("a3", key="k"), self.start("other", key="l"), self.start("plain")])
            first = [await inbox.next_start() for _ in range(3)]
            assert {each.id for each in first} == {"a0", "other", "plain"}
            start, head = first[[each.id for each in first].index("a0")].item, "a0"
            assert isinstance(start, Start)
            frame = self.frame(Accepted(start), self.claim(), Granted(start.at, 0))
            revision = await self.commit(start, 0, frame, "running", *(d for d in first if d.id == head))
            for following in ("a1", "a2", "a3"):
                await inbox.stays_empty(self.calm)
                await self.settled(start, revision)
                start, revision = await self.granted(inbox, following)
            await self.settled(start, revision)
            assert (await store.key("k")).holder is None

    async def test_state_of_a_key_goes_from_holder_to_holder(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(4)])
            start, revision = await self.granted(inbox, "a0")
            await self.settled(start, revision, x=b"1", y=b"2")
            start, revision = await self.granted(inbox, "a1")
            assert await self.key("k") == Key("a1", 0, {"x": b"1", "y": b"2"})
            failed = Failed(start.at, failure_of(ValueError("no")))
            await self.settled(start, revision, failed, x=None, y=b"3")
            start, revision = await self.granted(inbox, "a2")
            assert (await store.key("k")).state == {"y": b"3"}
            await self.settled(start, revision)
            store = await self.reopened()
            assert await self.key("k") == Key("a3", 0, {"y": b"3"})
            start, revision = await self.granted(self.inbox(room=1), "a3")
            await self.settled(start, revision, y=None)
            assert await self.key("k") == Key()

    async def test_line_and_holder_survive_reopening(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.commit(start, revision, self.frame(Released(start.at)), "suspended")
            store = await self.reopened()
            inbox = self.inbox(room=100)
            await store.submit([self.start("a3", key="k")])
            await inbox.stays_empty(self.calm)
            await self.settled(start, revision)
            for following in ("a1", "a2", "a3"):
                start, revision = await self.granted(inbox, following)
                await self.settled(start, revision)

    async def test_holder_that_was_never_taken_comes_after_reopening(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k")])
            await self.reopened()
            inbox = self.inbox(room=5)
            start, revision = await self.granted(inbox, "a0")
            await inbox.stays_empty(self.calm)
            await self.settled(start, revision)
            await self.granted(inbox, "a1")

    async def test_delayed_start_takes_its_place_in_the_line_when_it_is_due(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            due = store.clock.now() + 1  # so that a slow machine has accepted the others first
            await store.submit([self.start("late", key="k", due=due)])
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k")])
            start, revision = await self.granted(inbox, "a0")
            await asyncio.sleep(max(0.0, due - store.clock.now()) + 0.05)
            for following in ("a1", "late"):
                await self.settled(start, revision)
                start, revision = await self.granted(inbox, following)

    async def test_who_waits_for_its_key_can_be_cancelled_and_leaves_the_line(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            await store.post(self.message("a1", Pause()))
            await inbox.stays_empty(self.calm)
            await store.post(self.message("a1", Cancel()))
            delivery, message = await inbox.next_message()
            waiting = await store.start("a1")
            assert waiting is not None
            ended = self.frame(Accepted(waiting), Cancelled(waiting.at, message=message.id))
            await self.commit(waiting, 0, ended, "cancelled", delivery)
            _, late = await inbox.next_message()  # it waited for a start that does not come now
            assert isinstance(late.request, Pause)
            assert await self.key("k") == Key("a0")
            await self.settled(start, revision)
            await self.granted(inbox, "a2")

    async def turned_away(self, id: str, holder: str) -> None:
        """Wait until a start, whose handler nobody serves, has failed since `holder` has its key."""
        watch = self.store.watch(id)
        outcome = await self.store.outcome(id) or await asyncio.wait_for(watch, self.patience)
        watch.cancel()
        assert isinstance(outcome, Failed), (id, outcome)
        error = rebuild(outcome.failure)
        assert isinstance(error, KeyBusy)
        assert (error.key, error.holder) == ("k", holder)

    async def test_start_that_is_not_to_wait_fails_while_its_key_is_held_or_awaited(self) -> None:
        async with self.opened() as store:
            inbox, no_wait = self.inbox(room=100), partial(self.start, key="k", when_busy="reject")
            await store.submit([no_wait("a0"), no_wait("a1", handler="unserved")])
            start, revision = await self.granted(inbox, "a0")
            await self.turned_away("a1", "a0")
            await store.submit([self.start("b0", key="k")])
            revision = await self.commit(start, revision, self.frame(Released(start.at)), "suspended")
            await store.submit([no_wait("c0", handler="unserved")])
            await self.turned_away("c0", "a0")
            row = await store.row("c0")
            assert row is not None
            assert row.status == "failed"
            await self.settled(start, revision)
            start, revision = await self.granted(inbox, "b0")
            await self.settled(start, revision)
            await store.submit([no_wait("d0")])
            start, revision = await self.granted(inbox, "d0")
            assert await store.submit([start]) == [False]
            store = await self.reopened()
            assert await self.key("k") == Key("d0")

    async def test_delayed_start_that_is_not_to_wait_is_judged_when_it_is_due(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k")])
            start, revision = await self.granted(inbox, "a0")
            due = store.clock.now() + 1
            await store.submit([self.start("late", key="k", when_busy="reject", handler="unserved", due=due)])
            await store.submit([self.start("later", key="k", when_busy="reject", due=due + 2)])
            assert await store.outcome("late") is None
            await self.turned_away("late", "a0")
            assert store.clock.now() >= due
            await self.settled(start, revision)
            await self.granted(inbox, "later")

    async def test_release_by_who_does_not_hold_the_key_changes_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            await self.settled(start, revision, x=b"1")
            await self.granted(inbox, "a1")
            for generation in (0, 1):
                again = Effects(release=Release("k", generation, {"x": b"lost"}))
                await self.commit(start, revision, None, "completed", effects=again)
            assert await self.key("k") == Key("a1", 0, {"x": b"1"})
            await inbox.stays_empty(self.calm)

    async def test_redone_release_grants_the_key_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.settled(start, revision, x=b"1")
            redo = Effects(release=Release("k", 0, {"x": b"1"}))
            await self.commit(start, revision, None, "completed", effects=redo)
            await self.granted(inbox, "a1")
            await inbox.stays_empty(self.calm)

    async def test_who_enlists_is_woken_when_the_key_is_its_own(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            first, revision = await self.granted(inbox, "a0")
            failed = Failed(first.at, failure_of(ValueError("no")))
            revision = await self.settled(first, revision, failed, x=b"1")
            second, second_revision = await self.granted(inbox, "a1")
            for _ in range(2):  # a redo takes no second position
                await self.commit(first, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            await inbox.stays_empty(self.calm)
            await self.settled(second, second_revision, x=b"2")
            third, third_revision = await self.granted(inbox, "a2")
            await store.submit([self.start("a3", key="k")])
            await self.settled(third, third_revision)
            woken = await inbox.next()
            assert (woken.id, woken.item) == ("a0", Wake())
            assert await self.key("k") == Key("a0", 1, {"x": b"2"})
            await self.commit(first, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            await self.commit(first, revision, None, "failed", effects=Effects(release=Release("k", 0, {"x": b"lost"})))
            assert await self.key("k") == Key("a0", 1, {"x": b"2"})
            await self.commit(first, revision, None, "failed", woken, effects=Effects(release=Release("k", 1)))
            await self.granted(inbox, "a3")

    async def test_who_enlists_for_a_free_key_is_woken_at_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k")])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.settled(start, revision, Failed(start.at, failure_of(ValueError("no"))))
            await self.commit(start, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            assert (await inbox.next()).id == "a0"
            assert await self.key("k") == Key("a0", 1)
            assert isinstance(await store.outcome("a0"), Failed), "it has the key, and is not retried yet"

    async def test_who_waits_for_its_key_is_woken_at_its_time_limit(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k", timeout=0.1)])
            await self.granted(inbox, "a0")
            woken = await inbox.next()
            assert (woken.id, woken.item) == ("a1", Wake())
            start = await store.start("a1")
            assert start is not None
            assert store.clock.now() >= start.due + 0.1

    async def test_who_waits_for_its_key_is_woken_if_its_time_limit_has_passed_when_it_is_accepted(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k")])
            await self.granted(inbox, "a0")
            past = store.clock.now() - 5
            await store.submit([self.start("a1", key="k", at=past, due=past, timeout=0.1)])
            woken = await inbox.next()
            assert (woken.id, woken.item) == ("a1", Wake())

    async def test_line_that_is_full_refuses_a_client_and_takes_what_workflows_send(self) -> None:
        async with self.opened(key_queue_limit=2) as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            refused = self.start("refused", key="k")
            error = await raised_by(store.submit([self.start("with", key="l"), refused]), LimitExceeded)
            assert "'k'" in str(error)
            assert await store.row("refused") is None
            assert await store.row("with") is None
            sent = self.start("sent", key="k")
            frame = self.frame(Returned(0, start.at, b"\xc0"), commands=[SendStart(1, sent)])
            revision = await self.commit(start, revision, frame)
            assert await store.row("sent") is not None
            await self.settled(start, revision)
            start, revision = await self.granted(inbox, "a1")
            await self.settled(start, revision)
            assert await store.submit([refused]) == [True]
            for following in ("a2", "sent", "refused"):
                start, revision = await self.granted(inbox, following)
                await self.settled(start, revision)

    async def test_keys_granted_while_thousands_of_others_wait_all_come(self) -> None:
        async with self.opened() as store:
            ids = [f"a{n:04d}" for n in range(600)]
            await store.submit([self.start(id, key=f"k{int(id[1:]) % 200}") for id in ids])
            inbox = self.inbox(room=50)
            came: list[str] = []
            while len(came) < len(ids):
                delivery = await inbox.next_start()
                start = delivery.item
                assert isinstance(start, Start)
                came.append(start.id)
                ended = self.frame(Accepted(start), Granted(start.at, 0), Completed(start.at, b"\xc0"))
                await self.commit(start, 0, ended, "completed", delivery)
                inbox.subscription.request(1)
            assert sorted(came) == ids
            for key in range(200):
                assert [id for id in came if int(id[1:]) % 200 == key] == ids[key::200]
