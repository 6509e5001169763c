"""Nothing runs again that was purged, however long ago; and nothing is purged that has effects yet to be done."""

from __future__ import annotations

import asyncio

import pytest

from tests.jetstream.conftest import Join
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab, Refusal, until

LEASE_SECONDS = 0.3
FORGOTTEN_SECONDS = 10 * LEASE_SECONDS + 1.0
"""By then the server has removed the note that an invocation was purged."""


async def only_left(lab: Lab, *ids: str) -> None:
    async def left() -> bool:
        return await lab.ask("list") == [*ids]

    await until(left)


async def test_send_that_was_purged_long_ago_is_not_repeated_when_its_sender_is_read_again(make_lab: MakeLab) -> None:
    lab = await make_lab(lease=LEASE_SECONDS, retention=0.2)
    id = await lab.start(bodies.ticks, "tick", 1, 3600)
    await lab.noted("tick 0")
    await only_left(lab, id)
    await lab.kill()
    await asyncio.sleep(FORGOTTEN_SECONDS)
    await lab.up()
    await lab.ask("pause", id=id)  # it is read again, with the frame that sent it
    await only_left(lab, id)
    assert lab.notes() == ["tick 0"]
    await lab.ask("cancel", id=id, force=True)
    await only_left(lab)  # who looks at the whole store finds no journal that starts what nobody knows of


@pytest.mark.parametrize("waits", [True, False], ids=["which waits for somebody", "which has settled"])
async def test_send_stays_as_long_as_its_sender_may_repeat_it(make_lab: MakeLab, waits: bool) -> None:
    lab = await make_lab(lease=LEASE_SECONDS)
    id = await lab.start(bodies.sends_at_last, "s", waits)
    await lab.noted("sent by s")
    (sent,) = await lab.ask("list", handler="noting")
    await lab.result(sent)
    with pytest.raises(Refusal, match="may send it again"):
        await lab.ask("purge", id=sent)
    if waits:
        await lab.restart(retention=0.1)
        await asyncio.sleep(0.3)
        assert await lab.ask("list") == [sent, id]
        await lab.ask("resolve", awakeable=await lab.awakeable(id), value=1)
    else:
        await lab.ask("purge", id=id)
        await lab.ask("purge", id=sent)
    await only_left(lab)
    assert lab.count("sent by s") == 1


async def test_who_settled_under_a_lease_is_not_purged_before_its_last_effects_are_done(
    make_lab: MakeLab, join: Join
) -> None:
    lab = await make_lab(lease=2.0)
    lab.close_gate("after p-before")
    lab.close_gate("effects of p")
    await lab.start(bodies.sends_at_last, "p", False, id="p")
    await lab.noted("at after p-before")
    await asyncio.sleep(1.5)  # by now it is a lease that would bring it to others
    lab.open_gate("after p-before")
    await lab.noted("at effects of p")
    await lab.kill()
    lab.open_gate("effects of p")
    other = await join(lab, retention=0.1)
    await lab.noted("sent by p", wait=5.0)
    await only_left(other)
    assert lab.count("sent by p") == 1
