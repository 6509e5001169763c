"""Tags: names and values by which invocations are found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, Context, connect, workflow
from perdure.errors import BadId, InvalidOption


@workflow
async def child(name: str) -> str:
    return name


@workflow
async def parent(ctx: Context, name: str) -> str:
    await child.using(tags={"part": "of it"})(name)
    return name


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/app.db"
    async with connect(url) as made, made.worker(child, parent):
        yield made


async def ids(client: Client, **filters: Any) -> set[str]:
    return {each.id async for each in client.list(**filters)}


async def test_invocations_are_found_by_all_of_their_tags(client: Client) -> None:
    acme = child.using(tags={"tenant": "acme"})
    await client.run(acme.using(id="a"), "a")
    await client.run(acme.using(id="b", tags={"tenant": "acme", "plan": "gold/é"}), "b")
    await client.run(child.using(id="c"), "c")
    assert await ids(client, tags={"tenant": "acme"}) == {"a", "b"}
    assert await ids(client, tags={"plan": "gold/é", "tenant": "acme"}) == {"b"}
    assert await ids(client, tags={"tenant": "acm"}) == set()
    assert await ids(client, tags={}) == {"a", "b", "c"}
    [listed] = [each async for each in client.list(id_prefix="b")]
    assert listed.tags == {"plan": "gold/é", "tenant": "acme"}
    assert (await client.handle("c").describe()).tags == {}


async def test_child_has_the_tags_of_its_call_and_a_restart_those_of_before(client: Client) -> None:
    await client.run(parent.using(id="p", tags={"tenant": "acme"}), "p")
    [found] = [each async for each in client.list(tags={"part": "of it"})]
    assert (found.handler, found.tags) == ("child", {"part": "of it"})
    again = await client.handle("p", parent).restart()
    other = await client.handle("p", parent).restart(parent.using(tags={"tenant": "other"}).bind("q"))
    assert (await again.describe()).tags == {"tenant": "acme"}
    assert (await other.describe()).tags == {"tenant": "other"}


async def test_tags_go_with_a_purge(client: Client) -> None:
    await client.run(child.using(id="a", tags={"tenant": "acme"}), "a")
    await client.handle("a").purge()
    assert await ids(client, tags={"tenant": "acme"}) == set()
    await client.run(child.using(id="a"), "a")
    assert await ids(client, tags={"tenant": "acme"}) == set()


@pytest.mark.parametrize(
    ("tags", "error", "text"),
    [
        ([("a", "b")], InvalidOption, "give a mapping of names to values"),
        ({f"n{n}": "v" for n in range(21)}, InvalidOption, "there are 21, and the limit is 20"),
        ({"a:b": "c"}, InvalidOption, "the name 'a:b' has a colon"),
        ({"": "c"}, BadId, "the name of a tag must have at least one character"),
        ({"a": 1}, BadId, "the value of tag 'a' must be a str, not int"),
        ({"a": "x" * 201}, BadId, "the value of tag 'a' has 201 characters where the limit is 200"),
        ({"a": "\n"}, BadId, "cannot be printed"),
    ],
)
async def test_what_cannot_be_a_tag_is_named(client: Client, tags: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        child.using(tags=tags)
    with pytest.raises(error, match=text):
        client.list(tags=tags)
