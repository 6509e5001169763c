"""Waiting for a person: the workflow hands out the id of an awakeable, suspends, and goes on when the answer comes.

python -m examples.approval [--reject] [--wait] [--port 8080] [--service HelloService=HOST:PORT]

The answer comes over HTTP. With `--wait` it is yours: type the command that is shown, or open the link.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass

from examples import stage
from examples.curl import PORT, Curl, served
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, step, workflow


@dataclass(frozen=True)
class Expense:
    employee: str
    amount: float


@dataclass(frozen=True)
class Approval:
    approved: bool
    comments: str = ""


inbox: asyncio.Queue[str] = asyncio.Queue()
"""The manager's mail: ids that want an answer. In life it is a web page or a chat, in another process."""


@step
async def notify_manager(expense: Expense, approval_id: str) -> None:
    print(f"✉️  To the manager: ${expense.amount:.2f} for {expense.employee}?")
    await inbox.put(approval_id)


@workflow
async def expense_approval(ctx: Context, expense: Expense) -> str:
    hello = ctx.stub(HelloServiceStub)
    await hello.SayHello(HelloRequest(name=f"Expense from {expense.employee}"))

    approval = ctx.awakeable(Approval, title=f"${expense.amount:.2f} for {expense.employee}?")
    await notify_manager(expense, approval.id)
    decision = await approval  # for minutes or for months; restarts do not matter

    if not decision.approved:
        return f"❌ Rejected: ${expense.amount:.2f} ({decision.comments})"
    await hello.SayHello(HelloRequest(name=f"Approved: {expense.employee}"))
    return f"✅ Approved: ${expense.amount:.2f} for {expense.employee}"


async def main() -> None:
    parser = stage.parser(__doc__)
    parser.add_argument("--reject", action="store_true", help="the manager says no")
    parser.add_argument("--wait", action="store_true", help="wait for your answer")
    parser.add_argument("--port", type=int, default=PORT, help=f"where the API listens (default: {PORT})")
    options = parser.parse_args()
    async with AsyncExitStack() as parts:
        services = await parts.enter_async_context(stage.hello_service(options.service))
        client = await parts.enter_async_context(connect(parts.enter_context(stage.store())))
        async with client.worker(expense_approval, services=services):
            handle = await client.start(expense_approval, Expense("Ada", 120))
            approval_id = await inbox.get()
        print("⏳ Waiting. The worker has stopped; another one starts.")
        await parts.enter_async_context(client.worker(expense_approval, services=services))
        base = await served(parts, client, options.port)
        curl = Curl(base)
        parts.push_async_callback(curl.aclose)
        decision = {"approved": not options.reject, "comments": "too much" if options.reject else "OK!"}
        path, answer = f"/api/awakeables/{approval_id}/resolve", {"result": json.dumps(decision)}
        print(f"🔗 {await client.approval_link(approval_id, public_url=base)}")
        if options.wait:
            print(f"$ {curl.command(path, answer)}")
        else:
            await curl.post(path, answer)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
