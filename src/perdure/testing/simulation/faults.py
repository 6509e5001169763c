"""The faults of one process: which one its next write or read meets."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.testing.simulation.plan import READ_FAULTS, Fault


class Faults:
    """The faults of one process, by number; the counts go on over its restarts."""

    def __init__(self, process: str, faults: Iterable[Fault]) -> None:
        mine = [fault for fault in faults if fault.process == process]
        self._of_writes = {fault.number: fault for fault in reversed(mine) if fault.kind not in READ_FAULTS}
        self._of_reads = {fault.number: fault for fault in reversed(mine) if fault.kind in READ_FAULTS}
        self._writes = 0
        self._reads = 0

    def of_write(self) -> Fault | None:
        self._writes += 1
        return self._of_writes.get(self._writes)

    def of_read(self) -> Fault | None:
        self._reads += 1
        return self._of_reads.get(self._reads)
