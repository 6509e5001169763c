"""Waiting for a person: the workflow hands out the id of an awakeable, suspends, and goes on when the answer comes.

python -m examples.approval [--reject] [--service HelloService=HOST:PORT]
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from examples import stage
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

    approval = ctx.awakeable(Approval)
    await notify_manager(expense, approval.id)
    decision = await approval  # for minutes or for months; restarts do not matter

    if not decision.approved:
        return f"❌ Rejected: ${expense.amount:.2f} ({decision.comments})"
    await hello.SayHello(HelloRequest(name=f"Approved: {expense.employee}"))
    return f"✅ Approved: ${expense.amount:.2f} for {expense.employee}"


async def main() -> None:
    parser = stage.parser(__doc__)
    parser.add_argument("--reject", action="store_true", help="the manager says no")
    options = parser.parse_args()
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client:
                async with client.worker(expense_approval, services=services):
                    handle = await client.start(expense_approval, Expense("Ada", 120))
                    approval_id = await inbox.get()
                print("⏳ Waiting. The worker has stopped; another one starts.")
                async with client.worker(expense_approval, services=services):
                    decision = Approval(False, "too much") if options.reject else Approval(True, "OK!")
                    await client.resolve(approval_id, decision)
                    print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
