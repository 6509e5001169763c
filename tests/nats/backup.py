# pyright: reportUnknownMemberType=false
"""Copies the streams of an account and puts them back, by what `nats account backup` and `restore` ask of a server.

Each stream is a snapshot that the server sends in pieces, each to be acknowledged; a restore takes configuration and
state as the snapshot told them, then the pieces, each answered, and an empty one. As the tool does by default,
consumers are in the copy.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import nats
from nats.aio.client import Client as NATS
from nats.aio.msg import Msg

CHUNK_BYTES = 128 * 1024
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Copy:
    """A stream: its configuration, its state, and a compressed archive."""

    config: dict[str, Any]
    state: dict[str, Any]
    data: bytes


async def back_up(url: str, *, consumers: bool = True) -> list[Copy]:
    """Copy all streams, one after the other."""
    async with await nats.connect(url) as client:
        names = (await _ask(client, "$JS.API.STREAM.NAMES", {}))["streams"]
        return [await _snapshot(client, name, consumers) for name in names]


async def restore(url: str, copies: list[Copy]) -> None:
    """Put streams back that are not there."""
    async with await nats.connect(url) as client:
        for each in copies:
            await _restore(client, each)


async def _snapshot(client: NATS, name: str, consumers: bool) -> Copy:
    inbox = client.new_inbox()
    data = bytearray()
    ended = asyncio.Event()

    async def arrived(message: Msg) -> None:
        if not message.data:
            ended.set()
            return
        data.extend(message.data)
        if message.reply:  # only some of the pieces ask for an answer
            await message.respond(b"")

    subscription = await client.subscribe(inbox, cb=arrived)
    body = {"deliver_subject": inbox, "no_consumers": not consumers, "chunk_size": CHUNK_BYTES}
    answer = await _ask(client, f"$JS.API.STREAM.SNAPSHOT.{name}", body)
    await asyncio.wait_for(ended.wait(), TIMEOUT_S)
    await subscription.unsubscribe()
    return Copy(answer["config"], answer["state"], bytes(data))


async def _restore(client: NATS, copy: Copy) -> None:
    name = copy.config["name"]
    answer = await _ask(client, f"$JS.API.STREAM.RESTORE.{name}", {"config": copy.config, "state": copy.state})
    subject = answer["deliver_subject"]
    for at in range(0, len(copy.data), CHUNK_BYTES):
        await client.request(subject, copy.data[at : at + CHUNK_BYTES], timeout=TIMEOUT_S)
    restored = json.loads((await client.request(subject, b"", timeout=TIMEOUT_S)).data)
    assert "error" not in restored, restored
    assert restored["state"]["messages"] == copy.state["messages"], restored


async def _ask(client: NATS, subject: str, body: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        (await client.request(subject, json.dumps(body).encode(), timeout=TIMEOUT_S)).data
    )
    assert "error" not in answer, (subject, answer["error"])
    return answer
