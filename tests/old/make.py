"""Make an old store, with the release whose sources come first on the path: `python -m tests.old.make FOLDER`.

Into the folder go a SQLite file and a copy of the streams of JetStream, and for each what its client told of every
invocation when all was over: rows, descriptions, exported histories. What is there is never made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec

from examples.services.nats_server import server
from perdure import Client, connect, workflow
from perdure.errors import MessageRefused
from tests.nats.backup import Copy, back_up, restore
from tests.old import scenes
from tests.old.programs import SERVED, changes, changes_then, grows_then, ran

SHARDS = 2
LEASE_SECONDS = 1.0


class Told(msgspec.Struct, frozen=True):
    """What a client of the release of the day said of one invocation."""

    row: dict[str, Any]
    described: dict[str, Any]
    history: str


class Then(msgspec.Struct, frozen=True):
    """What a client said of a store. `ran` are the steps that had ended, and may never run again."""

    release: str
    stats: dict[str, Any]
    states: dict[str, dict[str, Any]]
    ran: list[str]
    invocations: dict[str, Told]


class Streams(msgspec.Struct, frozen=True):
    """The copies of an account's streams."""

    copies: list[Copy]


KEYS = ("account", "fragile", "other", "lock", "u", "unused")


# --- what a folder holds ----------------------------------------------------------------------------------------------
def keep(path: Path, data: bytes) -> None:
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def kept(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def then(folder: Path, store: str) -> Then:
    """Read what was told of a store."""
    return msgspec.json.decode(kept(folder / f"{store}.json.xz"), type=Then)


def put_file(folder: Path, path: Path) -> None:
    """Put the SQLite file there."""
    path.write_bytes(kept(folder / "sqlite.db.xz"))


async def put_streams(folder: Path, url: str) -> None:
    """Put the streams on a server that has none."""
    await restore(url, msgspec.msgpack.decode(kept(folder / "jetstream.xz"), type=Streams).copies)


# --- what a client tells ----------------------------------------------------------------------------------------------
async def tell(client: Client, steps: list[str]) -> Then:
    """Look at everything."""
    import perdure  # noqa: PLC0415  only for its version

    rows = {row.id: row async for row in client.list()}
    told = {
        id: Told(
            msgspec.to_builtins(row),
            builtins(await client.handle(id).describe()),
            (await client.handle(id).export()).decode(),
        )
        for id, row in rows.items()
    }
    stats = msgspec.to_builtins(await client.stats())
    return Then(perdure.__version__, stats, {key: await client.state(key) for key in KEYS}, steps, told)


def builtins(described: object) -> dict[str, Any]:
    """Return a description as JSON has it, with what is long cut short."""
    return msgspec.json.decode(msgspec.json.encode(_short(msgspec.to_builtins(described, builtin_types=(bytes,)))))


def _short(value: Any) -> Any:
    match value:
        case bytes() | str() if len(value) > 10_000:
            return f"{type(value).__name__} of {len(value)}: {value[:10]!r}"
        case bytes():
            return repr(value)
        case dict():
            return {str(name): _short(each) for name, each in cast("dict[Any, Any]", value).items()}
        case list() | tuple() | set() | frozenset():
            return [_short(each) for each in cast("Iterable[Any]", value)]
        case _:
            return value


# --- the making -------------------------------------------------------------------------------------------------------
def connected(url: str) -> Client:
    shards = SHARDS if url.startswith("nats:") else None
    return connect(url, retention=None, shards=shards)


async def play(url: str, steps: Path) -> None:
    """Play all scenes that need a worker, and end as a killed process does."""
    scenes.break_as_then()
    client = await connected(url).__aenter__()
    old = workflow(name="grows")(grows_then)
    async with client.worker(*SERVED, old, changes, lease=LEASE_SECONDS):
        for each in (*scenes.ENDED, *scenes.RETRIED, *scenes.WAITING, *scenes.DEPLOYED, *scenes.MAILED):
            await scenes.begin(client, each)
    mistaken = workflow(name="changes")(changes_then)
    async with client.worker(*SERVED, old, mistaken, lease=LEASE_SECONDS):
        changed = client.handle("changed")
        with contextlib.suppress(MessageRefused):  # since it diverges
            await scenes.resolved("given")(client, changed)
        await scenes.is_now(changed, "paused")
    worker = client.worker(*SERVED, max_concurrent=scenes.SLOTS, lease=LEASE_SECONDS)
    await worker.__aenter__()
    for each in scenes.CUT_SHORT:
        await scenes.begin(client, each)
    steps.write_text("\n".join(each for each in ran if not each.startswith("fail")))
    os._exit(0)


async def post(url: str, steps: Path, told: Path) -> None:
    """Leave what no worker takes, and look at everything."""
    async with connected(url) as client:
        for each in scenes.UNSERVED:
            await scenes.begin(client, each)
        for id, deal in scenes.MAIL.items():
            await deal(client, client.handle(id))
        keep(told, msgspec.json.encode(await tell(client, steps.read_text().splitlines())))


def in_process(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.old.make", *arguments], check=True, timeout=300)


def make(url: str, folder: Path, work: Path, store: str) -> None:
    steps = work / f"{store}.steps"
    in_process("play", url, str(steps))
    in_process("post", url, str(steps), str(folder / f"{store}.json.xz"))


def make_all(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        make(f"sqlite:{work / 'store.db'}", folder, work, "sqlite")
        keep(folder / "sqlite.db.xz", (work / "store.db").read_bytes())
        with server(work / "nats") as nats:
            make(nats.url, folder, work, "jetstream")
            copies = asyncio.run(back_up(nats.url))
            keep(folder / "jetstream.xz", msgspec.msgpack.encode(Streams(copies)))


def main() -> None:
    match sys.argv[1:]:
        case ["play", url, steps]:
            asyncio.run(play(url, Path(steps)))
        case ["post", url, steps, told]:
            asyncio.run(post(url, Path(steps), Path(told)))
        case [folder]:
            make_all(Path(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
