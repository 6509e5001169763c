"""Values are rewritten where they are, and nothing else changes: neither revisions, nor what others write meanwhile."""

import asyncio
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from perdure.core.effects import Effects, Release
from perdure.core.journal import (
    Accepted,
    Answer,
    Asked,
    CallStep,
    Completed,
    Frame,
    Granted,
    Message,
    OpenAwakeable,
    Refused,
    Released,
    Resolve,
    Returned,
    Start,
)
from perdure.core.streams import Batch, batches, encode_items, items_of
from perdure.core.values import encode
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.documents import Document, Put
from perdure.stores.port import Filter, Key
from perdure.stores.rewriting import Left, Rewriting
from perdure.testing.contract.shared import MIB, Inbox, StoreCase

T = TypeVar("T")

OLD, NEW = "the old one", "the new one, which is longer"


class Replacing:
    """A `Rewriting` that puts one text in the place of another, wherever it is."""

    def start(self, start: Start, /) -> Start:
        return _replaced(start)

    def message(self, message: Message, /) -> Message:
        return _replaced(message)

    def answer(self, answer: Answer, /) -> Answer:
        return _replaced(answer)

    def frame(self, _id: str, frame: Frame, /) -> Frame:
        return _replaced(frame)

    def key(self, _name: str, key: Key, /) -> Key:
        return _replaced(key)

    def awakeable(self, awakeable: Awakeable, /) -> Awakeable:
        return _replaced(awakeable)

    def document(self, _collection: str, document: Document, /) -> Document:
        return _replaced(document)

    def batch(self, _id: str, batch: Batch, /) -> Batch:
        return replace(batch, data=encode_items([_within(each) for each in items_of(batch)]))


def _replaced(value: T) -> T:
    data = msgspec.msgpack.encode(value)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(_within(msgspec.msgpack.decode(data))), type=type(value))


def _within(value: Any) -> Any:
    match value:
        case bytes():
            return value.replace(encode(OLD), encode(NEW))
        case str():
            return value.replace(OLD, NEW)
        case list():
            return [_within(each) for each in cast("list[Any]", value)]
        case dict():
            return {name: _within(each) for name, each in cast("dict[str, Any]", value).items()}
        case _:
            return value


class RewritesValues(StoreCase):
    """Values are rewritten where they are, and nothing else changes."""

    def rewriting(self) -> Rewriting:
        """Return what puts `NEW` in the place of `OLD`."""
        return Replacing()

    async def passed(self) -> tuple[int, list[Left]]:
        """Go through everything once; return how much was changed, and what is left."""
        rewriting, after, changed, left = self.rewriting(), "", 0, list[Left]()
        while True:
            part = await self.store.rewrite(rewriting, after)
            changed += part.changed
            left += part.left
            if part.next is None:
                return changed, left
            after = part.next

    async def rewritten(self) -> list[Left]:
        """Go through everything until nothing changes any more; return what waits in queues, and so is left."""
        while True:
            changed, left = await self.passed()
            if not changed:
                assert all(each.waits for each in left), left
                return left

    def old_start(self, id: str, **changes: Any) -> Start:
        """Make a start that holds the old text, and a digest: it tells starts apart."""
        return self.start(id, input=encode({"text": OLD}), digest=id.encode()[:8].ljust(8, b"d"), **changes)

    async def begun_with_old(self, inbox: Inbox, id: str, *, commands: int = 1) -> tuple[Start, int]:
        start = self.old_start(id)
        await self.store.submit([start])
        inbox.subscription.request(1)
        delivery = await inbox.next_start()
        steps = [CallStep(n, "s", encode(OLD)) for n in range(commands)]
        first = self.frame(Accepted(start), self.claim(), commands=steps)
        return start, await self.commit(start, 0, first, "running", delivery, effects=Effects())

    def in_new(self, frames: list[Frame], id: str) -> list[Frame]:
        return [Replacing().frame(id, each) for each in frames]

    async def test_all_that_is_kept_is_rewritten_and_all_else_stays(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            await store.submit([self.old_start("later", due=store.clock.now() + 900.0)])
            await store.submit([self.old_start("keyed-later", key="later", due=store.clock.now() + 900.0)])
            done, revision = await self.begun_with_old(inbox, "done")
            await self.commit(
                *(done, revision, self.frame(Returned(0, 1.0, encode(OLD)), Completed(2.0, encode(OLD))), "completed")
            )
            asks, revision = await self.begun_with_old(inbox, "asks")
            asked = Asked(OLD, f"it is {OLD}", ("ada",))
            frame = self.frame(Released(store.clock.now()), commands=[OpenAwakeable(1, asked)])
            made = [Awakeable("asks", asks.handler, 0, 1, frame.at, asked)]
            at_rest = await self.commit(asks, revision, frame, "suspended", awakeables=made)
            message = self.message("asks", Resolve(9, encode(1)), id="refused")
            await store.post(message)
            delivery, _ = await inbox.next_message()
            frame = self.frame(self.claim(2), Refused(3.0, "refused", OLD), Released(store.clock.now()))
            effects = Effects(answers=(Answer("refused", OLD),))
            at_rest = await self.commit(
                *(asks, at_rest, frame, "suspended", delivery), effects=effects, awakeables=made
            )
            [document] = await store.documents.write("notes", [Put(("a", "b"), encode(OLD))])
            rows = await store.search(Filter())
            before = {id: await self.frames_of(id) for id in ("done", "asks")}

            await self.rewritten()
            for _ in range(2):
                for id, frames in before.items():
                    found = await store.journal(id)
                    assert [*found.frames] == self.in_new(frames, id)
                assert (await store.journal("asks")).revision == await store.revision("asks") == at_rest
                for id in ("later", "keyed-later", "done"):
                    start = await store.start(id)
                    assert start is not None
                    assert start.input == encode({"text": NEW})
                assert await store.outcome("done") == Completed(2.0, encode(NEW))
                assert await store.answer("refused") == Answer("refused", NEW)
                [listed] = await store.awakeables(AwakeableFilter(store.clock.now()))
                assert listed == Replacing().awakeable(made[0])
                assert await store.documents.read("notes", [("a", "b")]) == [
                    Document(("a", "b"), encode(NEW), document)
                ]
                assert await store.search(Filter()) == rows
                store = await self.reopened()
            assert (await self.passed())[0] == 0
            await store.documents.write("notes", [Put(("a", "b"), b"\xc0", if_revision=document)])

    async def test_state_of_a_key_is_rewritten_while_others_wait_for_it(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=3)
            starts = [self.old_start(f"k{n}", key="k") for n in range(3)]
            await store.submit(starts)
            state: dict[str, bytes] = {}
            for n, start in enumerate(starts):
                delivery = await inbox.next_start()
                assert delivery.id == f"k{n}"
                key = await store.key("k")
                assert key.granted_to(start.id, 0)
                assert key.state == state
                item = delivery.item
                assert isinstance(item, Start)
                granted = Granted(store.clock.now(), 0, key.state)
                first = self.frame(Accepted(item), self.claim(), granted)
                revision = await self.commit(item, 0, first, "running", delivery)
                end = Frame("w", store.clock.now(), [Completed(2.0, encode(OLD))], [], {"s": encode(OLD)})
                release = Effects(release=Release("k", 0, {"s": encode(OLD)}))
                await self.commit(item, revision, end, "completed", effects=release)
                await self.rewritten()
                state = {"s": encode(NEW)}
            assert (await store.key("k")).state == state
            await self.rewritten()

    async def test_owner_goes_on_from_the_revision_that_it_knows(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun_with_old(inbox, "x", commands=3)
            for n in range(3):
                await self.rewritten()
                if n == 1:
                    await self.rewritten()
                assert await store.revision("x") == revision
                revision = await self.commit(start, revision, self.frame(Returned(n, 2.0, encode(OLD))))
            await self.rewritten()
            await self.commit(start, revision, self.frame(Completed(3.0, encode(OLD))), "completed")
            await self.rewritten()
            frames = await self.frames_of("x")
            assert [type(each) for frame in frames for each in frame.entries][2:] == [*[Returned] * 3, Completed]
            assert self.in_new(frames, "x") == frames
            assert [row.status for row in await store.search(Filter())] == ["completed"]

    async def test_commits_and_posts_meanwhile_are_never_undone(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun_with_old(inbox, f"c{n}", commands=60) for n in range(4)]

            async def work(start: Start, revision: int) -> None:
                for n in range(60):
                    revision = await self.commit(
                        *(start, revision, self.frame(Returned(n, 2.0, encode(f"{OLD} {n}")))), effects=Effects()
                    )
                    await store.documents.write("counts", [Put((start.id,), encode(n))])
                await self.commit(start, revision, self.frame(Completed(3.0, encode(OLD))), "completed")

            working = asyncio.gather(*(work(*each) for each in begun))
            while not working.done():
                await self.passed()
            await working
            await self.rewritten()
            for start, _ in begun:
                entries = [each for frame in await self.frames_of(start.id) for each in frame.entries]
                assert [each.n for each in entries if isinstance(each, Returned)] == [*range(60)]
                assert await store.outcome(start.id) == Completed(3.0, encode(NEW))
            found = await store.documents.read("counts", [(start.id,) for start, _ in begun])
            assert [each and each.value for each in found] == [encode(59)] * 4

    async def test_long_and_large_journals_are_rewritten(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun_with_old(inbox, "long", commands=600)
            large = encode(OLD) + bytes(MIB + MIB // 2)
            for n in range(300):
                value = large if n in (5, 290) else encode(OLD)
                revision = await self.commit(*(start, revision, self.frame(Returned(n, 2.0, value))), effects=Effects())
            before = await self.frames_of("long")
            await self.rewritten()
            assert await self.frames_of("long") == self.in_new(before, "long")
            for n in range(300, 600):
                revision = await self.commit(
                    *(start, revision, self.frame(Returned(n, 2.0, encode(OLD)))), effects=Effects()
                )
            await self.commit(start, revision, self.frame(Completed(3.0, large)), "completed")
            before = await self.frames_of("long")
            await self.rewritten()
            store = await self.reopened()
            assert await self.frames_of("long") == self.in_new(before, "long")
            assert len(before) == 602
            assert await store.purge(store.clock.now(), limit=1) == 1

    async def test_items_of_streams_are_rewritten_or_named(self) -> None:
        async with self.opened() as store:
            start, _ = await self.begun_with_old(self.inbox(), "writes")
            for n in range(3):
                await store.streams.append(start.id, 1, *batches("s", [encode(OLD)] * 2, first=n, attempt=1, step=0))
            left = await self.rewritten()
            assert {each.what for each in left} <= {"invocation 'writes'"}
            await store.streams.append(start.id, 1, *batches("s", [encode(NEW)], first=6, attempt=1, step=0))
            store = await self.reopened()
            items = [item for chunk in await store.streams.read(start.id, "s", 0) for item in items_of(chunk.batch)]
            assert items == [*[encode(OLD if left else NEW)] * 6, encode(NEW)]

    async def test_what_is_purged_meanwhile_stays_gone(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for n in range(30):
                start, revision = await self.begun_with_old(inbox, f"p{n}")
                await self.commit(start, revision, self.frame(Completed(2.0, encode(OLD))), "completed")

            async def purge() -> None:
                for n in range(30):
                    while not await store.purge(store.clock.now(), limit=1, id=f"p{n}"):  # noqa: ASYNC110
                        await asyncio.sleep(0.001)

            purging = asyncio.ensure_future(purge())
            while not purging.done():
                await self.passed()
            await purging
            await self.rewritten()
            assert await store.search(Filter()) == []
            for n in range(30):
                assert not await self.frames_of(f"p{n}")

    async def test_a_part_may_be_done_again(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for n in range(5):
                await self.begun_with_old(inbox, f"a{n}")
            rewriting, after, parts = self.rewriting(), "", 0
            while (part := await store.rewrite(rewriting, after)).next is not None:
                again = await store.rewrite(rewriting, after)
                assert again.changed == 0
                after, parts = part.next, parts + 1
            assert parts > 1
            assert (await self.passed())[0] == 0

    async def test_messages_that_wait_are_rewritten_or_named(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun_with_old(inbox, "waits")
            await self.commit(start, revision, self.frame(Released(store.clock.now())), "suspended")
            inbox.subscription.close()
            await store.post(self.message("waits", Resolve(1, encode(OLD)), id="m"))
            await store.submit([self.old_start("queued")])
            left = await self.rewritten()
            await self.reopened()  # what a process has in memory is as it was
            inbox = self.inbox(room=1)
            found = {"waits": await inbox.next(), "queued": await inbox.next()}
            found = {each.id: each for each in found.values()}
            queued, told = found["queued"].item, found["waits"].item
            assert isinstance(queued, Start)
            assert isinstance(told, Message)
            text = OLD if left else NEW
            assert queued.input == encode({"text": text})
            assert told.request == Resolve(1, encode(text))
