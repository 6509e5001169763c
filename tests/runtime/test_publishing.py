"""What workers publish of what they serve: for programs that start it without having its code."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure import Context, connect, workflow
from perdure.authoring.workflow import Workflow
from perdure.client import Client
from perdure.core.interface import decode_interface, identity, input_from_json
from perdure.errors import InvalidOption, StoreFull
from perdure.operations.local import store_behind
from perdure.runtime.publishing import HANDLERS, INTERFACES, Published, publish, published
from perdure.stores.documents import Put
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Store


@workflow(aliases=["hello_before"])
async def hello(ctx: Context, name: str, times: int = 1) -> list[str]:
    """Greet.

    Not part of the description.
    """
    return [name] * times


@workflow
async def odd(what: NotThere) -> None: ...  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]


@pytest.fixture(params=["memory:", "sqlite:{}/store.db"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


async def handler(store: Store, name: str) -> Published | None:
    """Return what is published of a handler."""
    (document,) = await store.documents.read(HANDLERS, [(name,)])
    return None if document is None else published(document.value)


async def eventually(store: Store, name: str) -> Published:
    while (found := await handler(store, name)) is None:
        await asyncio.sleep(0.01)
    return found


async def serve(client: Client, *served: Workflow[..., Any]) -> Store:
    store = await store_behind(client.operations)
    async with client.worker(*served):
        await eventually(store, served[-1].name)
    return store


async def test_worker_publishes_what_it_serves_under_all_names(url: str) -> None:
    async with connect(url) as client:
        store = await serve(client, hello)
        found = await eventually(store, "hello")
        alias = await eventually(store, "hello_before")
        assert (alias.interface, alias.name) == (found.interface, "hello")
        (document,) = await store.documents.read(INTERFACES, [(found.interface,)])
        assert document is not None
        interface = decode_interface(document.value)
        assert interface == hello.interface
        assert interface.description == "Greet."
        assert interface.hash.hex() == found.interface


async def test_start_names_the_interface_that_its_caller_knew(url: str) -> None:
    async with connect(url) as client:
        store = await serve(client, hello)
        handle = await client.start(hello, "ada")
        start = await store.start(handle.id)
        assert start is not None
        assert hello.interface is not None
        assert start.interface == hello.interface.hash
        assert start.digest == identity(hello.interface, input_from_json(hello.interface, {"name": "ada"}))
        by_name = await client.start(workflow.ref("hello"), "ada")
        start = await store.start(by_name.id)
        assert start is not None
        assert start.interface == b""


async def test_what_is_published_already_is_not_written_again(url: str) -> None:
    async with connect(url) as client:
        store = await serve(client, hello)
        before = await store.documents.read(HANDLERS, [("hello",), ("hello_before",)])
        await publish(store, [hello])
        assert await store.documents.read(HANDLERS, [("hello",), ("hello_before",)]) == before


async def test_new_interface_replaces_the_old_one_which_stays(url: str) -> None:
    @workflow(name="hello")
    async def changed(name: bytes) -> None: ...

    async with connect(url) as client:
        store = await serve(client, hello)
        before = await eventually(store, "hello")
        await publish(store, [changed])
        after = await eventually(store, "hello")
        assert before.interface != after.interface
        found = await store.documents.read(INTERFACES, [(before.interface,), (after.interface,)])
        assert [each is not None for each in found] == [True, True]


async def test_workflow_that_cannot_be_described_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with connect("memory:") as client:
        store = await serve(client, odd, hello)
        assert await handler(store, "odd") is None
    assert "the parameters of workflow 'odd' cannot be described" in caplog.text
    assert "NotThere" in caplog.text


async def test_record_of_another_release_that_does_not_decode_is_written_anew() -> None:
    async with connect("memory:") as client:
        store = await store_behind(client.operations)
        await store.documents.write(HANDLERS, [Put(("hello",), b"[1]")])
        await publish(store, [hello])
        assert await handler(store, "hello") is not None


@pytest.mark.parametrize("error", [StoreFull("the disk is full"), ZeroDivisionError()])
async def test_store_that_takes_no_documents_stops_no_worker(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()

    async def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(store.documents, "write", fail)
    await publish(store, [hello])
    assert "cannot be published" in caplog.text
    assert (str(error) or type(error).__name__) in caplog.text


def test_what_a_workflow_takes_is_resolved_once_for_all_its_options() -> None:
    """A start with an id is most often a start of a copy: it must not read the annotations again each time."""

    @workflow
    async def other(name: str) -> None: ...

    one, two = other.using(id="one"), other.using(id="one").using(key="k")
    assert one.signature() is two.signature() is other.signature()
    assert one.interface is two.interface is other.interface
    assert one.interface_hash is two.interface_hash is other.interface_hash


async def test_users_cannot_name_these_collections() -> None:
    async with connect("memory:") as client:
        for name in (HANDLERS, INTERFACES, "perdure.anything"):
            with pytest.raises(InvalidOption, match=r"Perdure's own"):
                client.documents(name)
        client.documents("perdure")
