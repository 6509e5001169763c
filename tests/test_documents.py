"""Documents as users see them: typed values, keys, guards, ranges, and what is refused."""

from __future__ import annotations

import asyncio
import enum
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure import (
    Check,
    Client,
    Context,
    Delete,
    Document,
    Documents,
    Put,
    RevisionConflict,
    connect,
    step,
    step_info,
    workflow,
)
from perdure.authoring.step import StepInfo
from perdure.errors import (
    Fenced,
    InvalidOption,
    IoInWorkflow,
    LimitExceeded,
    PayloadTooLarge,
    StoreClosed,
    StoreDamaged,
    StoreReadOnly,
    Undecodable,
    Unencodable,
)


class Color(enum.Enum):
    RED = "red"


@dataclass
class Note:
    text: str
    at: datetime | None = None
    color: Color = Color.RED
    tags: tuple[str, ...] = field(default=())


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with connect("memory:" if request.param == "memory" else f"sqlite:{tmp_path}/app.db") as made:
        yield made


@pytest.fixture
def notes(client: Client) -> Documents[Note]:
    return client.documents("notes", Note)


async def keys_of(documents: Documents[Any], *prefix: str, **options: Any) -> list[str]:
    return [each.key async for each in documents.range(*prefix, **options)]


async def test_documents_are_typed_values(notes: Documents[Note]) -> None:
    assert await notes.get("ada/1") is None
    note = Note("x", datetime(2026, 11, 30, tzinfo=UTC), Color.RED, ("a", "b"))
    revision = await notes.put("ada/1", note)
    assert await notes.get("ada/1") == Document("ada/1", note, revision, ("ada", "1"))
    assert await notes.get_many(["ada/2", ("ada", "1")]) == [None, Document("ada/1", note, revision, ("ada", "1"))]


async def test_collections_without_a_type_hold_builtin_ones(client: Client) -> None:
    anything = client.documents("anything")
    await anything.put("a", {"n": [1, None, "x"]})
    await anything.put("b", Note("y"))
    values = [each.value async for each in anything.range()]
    assert values == [{"n": [1, None, "x"]}, {"text": "y", "at": None, "color": "red", "tags": []}]


async def test_collections_do_not_see_each_other(client: Client) -> None:
    one, two = client.documents("one", int), client.documents("two", int)
    await one.put("a", 1)
    await two.put("a", 2)
    assert await one.delete("a")
    assert [each.value async for each in two.range()] == [2]
    assert await one.get("a") is None


async def test_guards(notes: Documents[Note]) -> None:
    first = await notes.put("ada/1", Note("x"), if_revision=0)
    with pytest.raises(RevisionConflict, match="there must be none, and it is at revision") as caught:
        await notes.put("ada/1", Note("y"), if_revision=0)
    assert (caught.value.key, caught.value.revision) == ("ada/1", first)
    second = await notes.put("ada/1", Note("y"), if_revision=first)
    with pytest.raises(RevisionConflict, match=f"must be at revision {first}, and it is at revision {second}"):
        await notes.delete("ada/1", if_revision=first)
    with pytest.raises(RevisionConflict, match="and there is none"):
        await notes.put_all([Put("ada/2", Note("z")), Check("ada/3", if_revision=1)])
    assert await keys_of(notes) == ["ada/1"]
    revisions = await notes.put_all(
        [Put("ada/2", Note("z"), if_revision=0), Delete("ada/1", if_revision=second), Check("ada/3", if_revision=0)]
    )
    assert revisions[1:] == [second, 0]
    assert await keys_of(notes) == ["ada/2"]
    assert not await notes.delete("ada/1")


async def test_ranges(client: Client) -> None:
    numbers = client.documents("numbers", int)
    for n, key in enumerate(["ada", "ada/1", "ada/10", "ada/2", "adam", ("bob", "x/y"), ("bob", "z")]):
        await numbers.put(key, n)
    assert await keys_of(numbers) == ["ada", "ada/1", "ada/10", "ada/2", "adam", "bob/x/y", "bob/z"]
    assert await keys_of(numbers, "ada/") == ["ada/1", "ada/10", "ada/2"]
    assert await keys_of(numbers, "ada/1") == ["ada/1", "ada/10"]
    assert await keys_of(numbers, "ada") == ["ada", "ada/1", "ada/10", "ada/2", "adam"]
    assert await keys_of(numbers, reverse=True, limit=2) == ["bob/z", "bob/x/y"]
    assert await keys_of(numbers, after="ada/10", limit=2) == ["ada/2", "adam"]
    assert await keys_of(numbers, after=("bob", "x/y")) == ["bob/z"]
    assert await keys_of(numbers, limit=0) == []
    assert [each.parts async for each in numbers.range(("bob",))] == [("bob", "x/y"), ("bob", "z")]
    assert await numbers.delete_range("ada/") == 3
    assert await numbers.delete_range("nobody/") == 0
    assert await keys_of(numbers) == ["ada", "adam", "bob/x/y", "bob/z"]
    assert await numbers.delete_range("") == 4


async def test_long_ranges_are_read_and_deleted_in_pieces(client: Client) -> None:
    numbers = client.documents("numbers", int)
    for part in ("a", "b"):
        for begin in range(0, 450, 150):
            await numbers.put_all([Put(f"{part}/{n:04}", n) for n in range(begin, begin + 150)])
    assert [each.value async for each in numbers.range("a/")] == [*range(450)]
    assert [each.value async for each in numbers.range("", limit=451, reverse=True)] == [*range(449, -1, -1), 449]
    assert await numbers.delete_range("") == 900
    assert await keys_of(numbers) == []


async def test_prefix_that_is_no_text_is_refused(notes: Documents[Note]) -> None:
    for prefix in ("\ud800", "ada/\ud800"):
        with pytest.raises(InvalidOption, match="cannot be encoded as UTF-8"):
            await keys_of(notes, prefix)
        with pytest.raises(InvalidOption, match="cannot be encoded as UTF-8"):
            await notes.delete_range(prefix)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "no part may be empty"),
        ("/a", "no part may be empty"),
        ("a//b", "no part may be empty"),
        ("a/", "no part may be empty"),
        ((), "at least one part"),
        (("a", 1), "its parts must be str, and 1 is not"),
        ("a\0b", "NUL"),
        ("\ud800", "cannot be encoded as UTF-8"),
        (7, "give a str such as 'ada/1', or a tuple of str"),
        (["a"], "give a str"),
        (None, "give a str"),
    ],
)
async def test_wrong_keys_are_refused(client: Client, key: Any, why: str) -> None:
    numbers = client.documents("numbers", int)
    for use in (numbers.get(key), numbers.put(key, 1), numbers.delete(key), keys_of(numbers, after=key or ())):
        with pytest.raises(InvalidOption, match=why) if key else pytest.raises(InvalidOption):
            await use
    assert await keys_of(numbers) == []


async def test_what_cannot_be_written_together_is_refused(client: Client) -> None:
    numbers = client.documents("numbers", int)
    wrong: list[tuple[list[Any], str]] = [
        ([], "give at least one"),
        ([Put("a/1", 1), Put("b/1", 1)], "under 'a' and 'b' cannot be written together"),
        ([Put("a/1", 1), Delete("a/1")], "written or checked twice"),
        ([Put("a/1", 1, if_revision=-1)], "if_revision=-1"),
        ([Put("a/1", 1, if_revision=True)], "if_revision=True"),
        ([("a", 1)], "give Put, Delete and Check"),
    ]
    for writes, why in wrong:
        with pytest.raises(InvalidOption, match=why):
            await numbers.put_all(writes)
    with pytest.raises(LimitExceeded, match="501 writes together: the limit is 500"):
        await numbers.put_all([Put(f"a/{n}", n) for n in range(501)])
    with pytest.raises(LimitExceeded, match="it has 1,001 bytes, and the limit is 1,000"):
        await numbers.put("x" * 1_001, 1)
    with pytest.raises(InvalidOption, match="limit"):
        await keys_of(numbers, limit=-1)
    assert await keys_of(numbers) == []
    await numbers.put("x" * 1_000, 1)


@pytest.mark.parametrize("name", ["", "a=b", "a\nb", 7, None])
def test_wrong_names_of_collections_are_refused(client: Client, name: Any) -> None:
    with pytest.raises(InvalidOption, match="name the collection"):
        client.documents(name)


async def test_value_of_another_type_is_refused_before_it_is_written(client: Client) -> None:
    numbers: Documents[Any] = client.documents("numbers", int)
    with pytest.raises(Unencodable, match=r"document 'a/1' of collection 'numbers' .* would not be read as its type"):
        await numbers.put("a/1", "one")
    with pytest.raises(Unencodable):
        await client.documents("things").put("a", object())
    assert await keys_of(numbers) == []


async def test_document_of_another_type_is_an_error_for_its_reader(client: Client) -> None:
    await client.documents("numbers", str).put("a", "one")
    with pytest.raises(Undecodable):
        await client.documents("numbers", int).get("a")


async def test_value_above_the_payload_limit_is_refused(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path}/app.db", payload_limit=1_000) as client:
        blobs = client.documents("blobs", bytes)
        with pytest.raises(PayloadTooLarge, match="document 'a/1'"):
            await blobs.put("a/1", b"x" * 1_001)
        assert await blobs.get("a/1") is None


async def test_documents_are_refused_in_the_body_of_a_workflow(client: Client) -> None:
    @workflow
    async def writes(ctx: Context) -> None:
        await client.documents("notes", int).put("a", 1)

    async with client.worker(writes):
        with pytest.raises(IoInWorkflow, match=r"documents\.put\(\)"):
            await client.run(writes)


async def test_read_only_clients_read_documents_and_write_none(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client:
        revision = await client.documents("notes", str).put("a/1", "x")
        async with connect(url, read_only=True) as looker:
            notes = looker.documents("notes", str)
            assert await notes.get("a/1") == Document("a/1", "x", revision, ("a", "1"))
            assert await keys_of(notes) == ["a/1"]
            with pytest.raises(StoreReadOnly, match="no document can be written"):
                await notes.put("a/1", "y")


async def test_closed_client_refuses_documents(client: Client) -> None:
    notes = client.documents("notes", str)
    await client.aclose()
    with pytest.raises(StoreClosed):
        await notes.get("a")
    with pytest.raises(StoreClosed):
        await notes.put("a", "x")


def test_documents_through_the_blocking_client(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/app.db")
    notes = client.documents("notes", str)
    with client.blocking() as run:
        revision = run(notes.put("a", "x"))
        assert run(notes.get("a")) == Document("a", "x", revision, ("a",))
        assert [each.value for each in run.each(notes.range())] == ["x"]


async def test_changed_row_is_damage_to_one_document(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client:
        notes = client.documents("notes", str)
        await notes.put("a/1", "x")
        await notes.put("a/2", "y")
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("UPDATE document SET value = x'a178' WHERE revision = 2")
    db.close()
    async with connect(url) as client:
        notes = client.documents("notes", str)
        found = await notes.get("a/1")
        assert found is not None
        assert found.value == "x"
        with pytest.raises(StoreDamaged, match="document 'a/2' of collection 'notes' was changed"):
            await notes.get("a/2")
        with pytest.raises(StoreDamaged, match="document 'a/2'"):
            await notes.put("a/2", "z", if_revision=2)
        await notes.put("a/2", "z")
        assert [each.value async for each in notes.range()] == ["x", "z"]


async def test_file_of_an_earlier_release_has_no_documents_until_it_is_served(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url):
        pass
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("DROP TABLE document")
    db.close()
    async with connect(url, read_only=True) as looker:
        assert await looker.documents("notes", str).get("a") is None
        assert await keys_of(looker.documents("notes", str)) == []
    async with connect(url) as client:
        await client.documents("notes", str).put("a", "x")


# --- fences -----------------------------------------------------------------------------------------------------------
infos: list[StepInfo] = []


@step
async def notes_its_claim(of: str) -> str:
    infos.append(step_info())
    return of


@workflow
async def claims(of: str) -> str:
    await asyncio.sleep(0.01)  # so that its steps begin after the first frame
    return await notes_its_claim(of)


async def claim_of(client: Client, workflow: Any, of: str) -> StepInfo:
    await client.run(workflow, of)
    return infos.pop()


async def test_write_of_an_earlier_holder_of_a_key_is_refused_once_a_later_one_has_written(client: Client) -> None:
    numbers = client.documents("numbers", int)
    async with client.worker(claims):
        keyed = claims.using(key="k")
        first, second = await claim_of(client, keyed, "first"), await claim_of(client, keyed, "second")
        assert (first.key, second.key) == ("k", "k")
        assert 0 < (first.grant or 0) < (second.grant or 0)
        await numbers.put_all([Put("a/1", 1)], fence=first)
        await numbers.put_all([Put("a/1", 2)], fence=second)
        with pytest.raises(Fenced):
            await numbers.put_all([Put("a/1", 3), Put("a/2", 3)], fence=first)
        assert [each.value async for each in numbers.range("a/")] == [2]
        await numbers.put_all([Put("b/1", 1)], fence=first)  # nothing was written there in the name of the key
        other = await claim_of(client, claims.using(key="other"), "other")
        await numbers.put_all([Put("a/1", 4)], fence=other)
        await numbers.put_all([Put("a/1", 5)], fence=second)


async def test_write_of_an_earlier_claim_of_an_invocation_is_refused_once_a_later_one_has_written(
    client: Client,
) -> None:
    numbers = client.documents("numbers", int)
    async with client.worker(claims):
        info = await claim_of(client, claims, "it")
    assert (info.key, info.grant) == (None, None)
    assert info.epoch > 0
    later = replace(info, epoch=info.epoch + 1)
    await numbers.put_all([Put("a", 1)], fence=info)
    await numbers.put_all([Put("a", 2)], fence=later)
    with pytest.raises(Fenced, match="documents under 'a': this write is made for 'invocation"):
        await numbers.put_all([Delete("a")], fence=info)


async def test_a_fence_is_what_step_info_tells(client: Client) -> None:
    with pytest.raises(InvalidOption, match=r"put_all\(fence='me'\): give step_info\(\)"):
        await client.documents("n", int).put_all([Put("a", 1)], fence="me")  # type: ignore[arg-type]
