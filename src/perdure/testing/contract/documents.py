"""Documents: written together or not at all, guarded by revisions and fences, read in the order of their keys."""

import asyncio
from collections.abc import Sequence

from perdure.errors import Fenced, RevisionConflict, StoreClosed
from perdure.stores.documents import (
    SCAN_LIMIT,
    Check,
    Delete,
    Document,
    DocumentKey,
    DocumentStore,
    Fence,
    Put,
    Scan,
    Write,
    whole,
)
from perdure.testing.contract.shared import MIB, StoreCase, raised_by

NOTES = "notes"
KEYS = [
    ("a",),
    ("a", "1"),
    ("a", "1", "x"),
    ("a", "10"),
    ("a", "2"),
    ("a!",),
    ("a.b", "*", ">"),
    ("b", " "),
    ("b", "%2F"),
    ("b", "/"),
    ("b", "Z"),
    ("b", "z" * 300),
    ("b", "é"),
    ("b", "漢字", "🎈" * 50),
    ("b", "🎈"),
]
"""Keys in their order."""


class Documents(StoreCase):
    """Documents: written together or not at all, guarded by revisions and fences, read in the order of their keys."""

    async def test_document_is_read_as_it_was_written_last(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            assert await documents.read(NOTES, [("a",)]) == [None]
            (first,) = await documents.write(NOTES, [Put(("a",), b"one")])
            assert await documents.read(NOTES, [("a",)]) == [Document(("a",), b"one", first)]
            (second,) = await documents.write(NOTES, [Put(("a",), b"two")])
            assert 0 < first < second
            assert await documents.read(NOTES, [("b",), ("a",)]) == [None, Document(("a",), b"two", second)]
            assert await documents.read("others", [("a",)]) == [None]
            assert await documents.read(NOTES, []) == []

    async def test_documents_outlive_the_process(self) -> None:
        async with self.opened() as store:
            revisions = await store.documents.write(NOTES, [Put(("a", "1"), b"one"), Put(("a", "2"), b"two")])
            await store.documents.write(NOTES, [Delete(("a", "2"))])
            store = await self.reopened()
            found = await store.documents.read(NOTES, [("a", "1"), ("a", "2")])
            assert found == [Document(("a", "1"), b"one", revisions[0]), None]
            (after,) = await store.documents.write(NOTES, [Put(("a", "2"), b"again")])
            assert after > max(revisions)

    async def test_writes_that_name_another_revision_change_nothing(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            (revision,) = await documents.write(NOTES, [Put(("a", "1"), b"one", if_revision=0)])
            wrong: list[tuple[Write, int]] = [
                (Put(("a", "1"), b"no", if_revision=0), revision),
                (Put(("a", "1"), b"no", if_revision=revision + 1), revision),
                (Delete(("a", "1"), if_revision=0), revision),
                (Check(("a", "1"), if_revision=0), revision),
                (Put(("a", "2"), b"no", if_revision=revision), 0),
                (Delete(("a", "2"), if_revision=revision), 0),
                (Check(("a", "2"), if_revision=revision), 0),
            ]
            for write, found in wrong:
                for writes in ([write], [Put(("a", "3"), b"no"), write], [write, Put(("a", "3"), b"no")]):
                    error = await raised_by(documents.write(NOTES, writes), RevisionConflict)
                    assert isinstance(error, RevisionConflict)
                    assert (error.key, error.revision) == ("/".join(write.key), found)
            assert await documents.scan(NOTES, Scan()) == [Document(("a", "1"), b"one", revision)]

    async def test_writes_are_made_together(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            one, two = await documents.write(NOTES, [Put(("a", "1"), b"1"), Put(("a", "2"), b"2")])
            writes = [
                Put(("a", "1"), b"11", if_revision=one),
                Delete(("a", "2"), if_revision=two),
                Check(("a", "3"), if_revision=0),
                Put(("a", "4"), b"4", if_revision=0),
                Delete(("a", "5")),
            ]
            first, deleted, checked, fourth, none = await documents.write(NOTES, writes)
            assert (deleted, checked, none) == (two, 0, 0)
            assert await documents.scan(NOTES, Scan()) == [
                Document(("a", "1"), b"11", first),
                Document(("a", "4"), b"4", fourth),
            ]
            (seen,) = await documents.write(NOTES, [Check(("a", "1"), if_revision=first)])
            assert seen == first
            many: Sequence[Write] = [Put(("many", f"{n:03}"), b"%d" % n, if_revision=0) for n in range(300)]
            revisions = await documents.write(NOTES, many)
            found = await documents.scan(NOTES, Scan("many\0", limit=1_000))
            assert found == [Document(each.key, b"%d" % n, revisions[n]) for n, each in enumerate(many)]

    async def test_document_that_was_deleted_may_be_made_again(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            (first,) = await documents.write(NOTES, [Put(("a",), b"one", if_revision=0)])
            assert await documents.write(NOTES, [Delete(("a",), if_revision=first)]) == [first]
            assert await documents.write(NOTES, [Delete(("a",))]) == [0]
            assert await documents.read(NOTES, [("a",)]) == [None]
            assert await documents.scan(NOTES, Scan()) == []
            (second,) = await documents.write(NOTES, [Put(("a",), b"two", if_revision=0)])
            assert second > first
            await raised_by(documents.write(NOTES, [Put(("a",), b"no", if_revision=first)]), RevisionConflict)

    async def test_scans_are_in_the_order_of_keys(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            for key in reversed(KEYS):
                await documents.write(NOTES, [Put(key, repr(key).encode())])
            await documents.write("other", [Put(("a", "11"), b"another collection")])
            await self._expect(documents, Scan(), KEYS)
            await self._expect(documents, Scan(reverse=True), KEYS[::-1])
            await self._expect(documents, Scan("a"), KEYS[:7])
            await self._expect(documents, Scan("a\0"), KEYS[1:5])
            await self._expect(documents, Scan("a\x001"), KEYS[1:4])
            await self._expect(documents, Scan("b\0", reverse=True), KEYS[:6:-1])
            await self._expect(documents, Scan("b\0z"), [KEYS[11]])
            await self._expect(documents, Scan("c"), [])
            await self._expect(documents, Scan(after=("a", "10")), KEYS[4:])
            await self._expect(documents, Scan(after=("a", "11")), KEYS[4:])
            await self._expect(documents, Scan("a", after=("a", "10"), reverse=True), KEYS[2::-1])
            await self._expect(documents, Scan("a", after=("a", "1"), limit=2), KEYS[2:4])
            await self._expect(documents, Scan(reverse=True, limit=1), KEYS[-1:])
            revisions = {each.key: each.revision for each in await documents.scan(NOTES, Scan())}
            names = await documents.scan(NOTES, Scan("b\0", values=False))
            assert names == [Document(key, b"", revisions[key]) for key in KEYS[7:]]

    async def _expect(self, documents: DocumentStore, which: Scan, keys: Sequence[tuple[str, ...]]) -> None:
        found = await documents.scan(NOTES, which)
        assert [each.key for each in found] == [*keys], which
        assert [each.value for each in found] == [repr(key).encode() for key in keys]

    async def test_fence_refuses_the_writes_of_former_owners(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            old, new = Fence("thread", (1, 1)), Fence("thread", (2, 1))
            await documents.write(NOTES, [Put(("a", "1"), b"old")], fence=old)
            await documents.write(NOTES, [Put(("a", "1"), b"old again")], fence=old)
            (revision,) = await documents.write(NOTES, [Put(("a", "2"), b"new")], fence=new)
            for writes in (
                [Put(("a", "1"), b"late")],
                [Delete(("a", "1"))],
                [Put(("a", "3"), b"late", if_revision=0)],
                [Put(("a", "2"), b"late", if_revision=revision), Put(("a", "3"), b"late")],
                [Check(("a", "2"), if_revision=revision)],
            ):
                await raised_by(documents.write(NOTES, writes, fence=old), Fenced)
            found = await documents.scan(NOTES, Scan())
            assert [(each.key, each.value) for each in found] == [(("a", "1"), b"old again"), (("a", "2"), b"new")]
            await documents.write(NOTES, [Put(("b", "1"), b"other part")], fence=old)
            await documents.write(NOTES, [Put(("a", "1"), b"other name")], fence=Fence("other", (0,)))
            await documents.write(NOTES, [Put(("a", "1"), b"no fence")])
            store = await self.reopened()
            await raised_by(store.documents.write(NOTES, [Put(("a", "1"), b"late")], fence=old), Fenced)
            await raised_by(
                store.documents.write(NOTES, [Put(("a", "2"), b"late", if_revision=0)], fence=new), RevisionConflict
            )
            await store.documents.write(NOTES, [Put(("a", "2"), b"newer", if_revision=revision)], fence=new)

    async def test_one_of_two_writes_of_a_revision_is_made(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            await documents.write(NOTES, [Put(("a", "n"), b"0"), Put(("a", "log"), b"")])

            async def count(batch: bool, times: int) -> int:
                made = 0
                while made < times:
                    (found,) = await documents.read(NOTES, [("a", "n")])
                    assert found is not None
                    writes: list[Write] = [Put(found.key, b"%d" % (int(found.value) + 1), if_revision=found.revision)]
                    if batch:
                        writes.append(Put(("a", "log"), found.value))
                    try:
                        await documents.write(NOTES, writes)
                    except RevisionConflict:
                        continue
                    made += 1
                return made

            made = await asyncio.gather(*(count(bool(n % 2), 5) for n in range(6)))
            (found,) = await documents.read(NOTES, [("a", "n")])
            assert found is not None
            assert int(found.value) == sum(made) == 30

    async def test_values_of_every_size_come_back_unchanged(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            for size in (0, 1, MIB - 1, MIB, 5 * MIB + 1, 3):
                value = (bytes(range(256)) * (size // 256 + 1))[:size]
                writes = [Put(("a", "same"), value), Put(("a", str(size)), value, if_revision=0)]
                revisions = await documents.write(NOTES, writes)
                assert await documents.read(NOTES, [("a", "same"), ("a", str(size))]) == [
                    Document(("a", "same"), value, revisions[0]),
                    Document(("a", str(size)), value, revisions[1]),
                ]
            store = await self.reopened()
            found = await store.documents.scan(NOTES, Scan())
            assert sorted(len(each.value) for each in found) == [0, 1, 3, 3, MIB - 1, MIB, 5 * MIB + 1]

    async def test_scan_of_limited_size_ends_early_and_goes_on_where_it_ended(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            keys = [("a", f"{n:02}") for n in range(24)]
            for key in keys:
                await documents.write(NOTES, [Put(key, key[1].encode() * (MIB // 8))])
            for reverse in (False, True):
                read: list[DocumentKey] = []
                pages = 0
                while True:
                    which = Scan("a\0", read[-1] if read else None, reverse, bytes=MIB)
                    found = await documents.scan(NOTES, which)
                    assert sum(len(each.value) for each in found) <= 2 * MIB
                    read += [each.key for each in found]
                    pages += 1
                    if not which.is_full(found):
                        break
                assert read == (keys[::-1] if reverse else keys)
                assert pages > 3
            (found,) = await documents.scan(NOTES, Scan("a\0", bytes=1, limit=1))
            assert found.key == keys[0]
            assert len(await documents.scan(NOTES, Scan("a\0", bytes=1))) < len(keys)
            assert len(await documents.scan(NOTES, Scan("a\0", values=False, bytes=1))) == len(keys)

    async def test_whole_collection_is_read_in_pieces(self) -> None:
        async with self.opened() as store:
            documents = store.documents
            assert [each async for each in whole(documents.scan, NOTES)] == []
            keys = [("a", f"{n:03d}") for n in range(2 * SCAN_LIMIT + 1)]
            for last in (2 * SCAN_LIMIT, 2 * SCAN_LIMIT + 1):  # a whole number of pieces, and one more
                await documents.write(NOTES, [Put(key, b"") for key in keys[:last]])
                assert [each.key async for each in whole(documents.scan, NOTES)] == keys[:last]

    async def test_documents_of_a_closed_store_are_refused(self) -> None:
        async with self.opened() as store:
            documents = store.documents
        await raised_by(documents.write(NOTES, [Put(("a",), b"")]), StoreClosed)
        await raised_by(documents.read(NOTES, [("a",)]), StoreClosed)
        await raised_by(documents.scan(NOTES, Scan()), StoreClosed)
