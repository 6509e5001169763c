"""Bugs that are planted in the engine, one at a time: the simulation must report each, and what it breaks.

    python -m tests.simulation.planted              the whole table: the seeds that it takes to catch each
    python -m tests.simulation.planted --seed 5     from this seed on

`in_store`, `in_worker` and `in_body` hold the bugs: each is a patch made at run time, and its docstring says what is
wrong then. A bug that no seed reports is a hole in the net: mend the simulation, not the bug.
"""

from tests.simulation.planted import in_body, in_store, in_worker
from tests.simulation.planted.bug import SEEDS_LIMIT, Bug, Caught, hunt

BUGS = (*in_store.BUGS, *in_worker.BUGS, *in_body.BUGS)

__all__ = ["BUGS", "SEEDS_LIMIT", "Bug", "Caught", "hunt"]
