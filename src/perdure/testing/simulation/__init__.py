"""The engine in simulation: workers, clients and a store under virtual time, in an order and with faults by a seed.

    python -m perdure.testing.simulation --seed 4711              one seed: what failed, made smaller, with its trace
    python -m perdure.testing.simulation --seeds 20000 --jobs 2   many seeds

A seed stands for a `plan`: random programs, what clients ask meanwhile, and faults. A `run` of it makes `machines`,
each with a process of its own on the `loop` of the world and a `face` of the one `server`, whose store is `shared`. The
`observer` sees every write, delivery and step, and checks the invariants of ARCHITECTURE.md; what has come of it all is
compared with the model of `perdure.testing.programs`. The same seed gives the same trace in every process.

It knows the engine's workers, client and memory store, and replaces nothing of them but the clock, the event loop, what
they draw at random, and the way to the store.
"""

from perdure.testing.simulation.plan import Plan, plan_of
from perdure.testing.simulation.run import Result, run
from perdure.testing.simulation.shrink import shrink
from perdure.testing.simulation.violation import INVARIANTS, Violation

__all__ = ["INVARIANTS", "Plan", "Result", "Violation", "plan_of", "run", "shrink"]
