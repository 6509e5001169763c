"""Webhooks: another system's signed event starts a workflow. Repeated it starts nothing, and forged it is refused.

python -m examples.webhook [--port 8080]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hmac
import json
import logging
import time
from contextlib import AsyncExitStack

import httpx

from examples import stage
from examples.curl import PORT, served
from perdure import Webhook, connect, step, workflow
from perdure.http import StandardWebhooks

SECRET = "whsec_" + base64.b64encode(b"known to both, and to nobody else").decode()


@step
async def book(customer: str, amount: float) -> str:
    return f"{amount:.2f} EUR of {customer} booked"


@workflow
async def on_payment(event: Webhook) -> str:
    payment = event.json()
    return await book(payment["customer"], payment["amount"])


def signed(id: str, body: bytes, secret: str = SECRET) -> dict[str, str]:
    """Return the headers with which a system sends an event, by the Standard Webhooks specification."""
    at = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = hmac.digest(key, f"{id}.{at}.".encode() + body, "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=PORT, help=f"where the API listens (default: {PORT})")
    options = parser.parse_args()
    logging.getLogger("perdure.http").setLevel(logging.ERROR)  # one of the events is to be refused
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(connect(parts.enter_context(stage.store())))
        await parts.enter_async_context(client.worker(on_payment))
        base = await served(parts, client, options.port, hooks={"on_payment": StandardWebhooks(SECRET)})
        system = await parts.enter_async_context(httpx.AsyncClient(base_url=base))
        while not (await system.get("/api/handlers")).json()["handlers"]:  # noqa: ASYNC110  it is in the store
            await asyncio.sleep(0.01)  # the worker is about to publish what it serves

        body = json.dumps({"customer": "Ada", "amount": 12}).encode()
        taken = (await system.post("/api/hooks/on_payment", content=body, headers=signed("evt-1", body))).json()
        print(f"📨 evt-1: {await client.handle(taken['invocation_id'], on_payment).result()}")

        again = (await system.post("/api/hooks/on_payment", content=body, headers=signed("evt-1", body))).json()
        is_same = again == {"invocation_id": taken["invocation_id"], "repeated": True}
        print(f"🔁 evt-1 again: {'the same invocation' if is_same else again}")

        more = body.replace(b"12", b"1200")
        forged = await system.post("/api/hooks/on_payment", content=more, headers=signed("evt-2", body))
        print(f"🚫 evt-2, forged: {forged.status_code} {forged.json()['detail']}")
        print(f"Invocations: {(await client.stats()).total}")


if __name__ == "__main__":
    asyncio.run(main())
