"""Many runs of one workflow at a time, each of three calls of a service.

python -m examples.concurrent --count 1000, or
perdure run examples/concurrent.py 'user-{i}' --count 1000 --service HelloService=HOST:PORT
"""

from __future__ import annotations

import asyncio
import sys

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, workflow
from perdure.cli.batch import run_batch


@workflow
async def concurrent(ctx: Context, user: str) -> str:
    hello = ctx.stub(HelloServiceStub)
    lines = [f"AsyncWorkflow[{user}] completed:"]
    for number, what in enumerate(("User", "Async", "Confirm"), start=1):
        response = await hello.SayHello(HelloRequest(name=f"{what}:{user}"))
        lines.append(f"  Step{number}: {response.message}")
    return "\n".join(lines)


async def main() -> int:
    parser = stage.parser(__doc__)
    parser.add_argument("--count", type=int, default=10, help="how many runs (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=100, help="how many at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each run (default: %(default)s)")
    options = parser.parse_args()
    if options.count < 1 or options.concurrency < 1 or not options.timeout > 0:
        parser.error("--count and --concurrency must be at least 1, and --timeout more than 0")

    limited = concurrent.using(timeout=options.timeout)
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(concurrent, services=services):
                tally = await run_batch(
                    lambda number: client.run(limited, f"user-{number:03d}"),
                    count=options.count,
                    concurrency=options.concurrency,
                    timeout=options.timeout,
                )
    return 0 if tally.completed == tally.total else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
