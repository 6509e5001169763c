"""What goes wrong again and again is said in the log once a while, and not once a second. Knows nothing of servers."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

COMPLAINT_SECONDS = 60.0
"""How long the log is spared what it was told."""
COMPLAINTS_LIMIT = 100
"""Different complaints that are remembered; the oldest is forgotten, and may be said again earlier."""


class Complaints:
    """Says each thing, and then for a while not again."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, and how often not since

    def say(self, what: str, text: str, *values: object, level: int = logging.ERROR) -> None:
        """Log a text, unless `what` was the matter a while ago too; then it is counted, and the number told later."""
        now = self._clock()
        at, unsaid = self._said.get(what, (0.0, 0))
        if what in self._said and now < at + COMPLAINT_SECONDS:
            self._said[what] = at, unsaid + 1
            return
        if unsaid:
            text, values = text + " (and %d times since this was last said)", (*values, unsaid)
        self._log.log(level, text, *values)
        self._said[what] = now, 0
        self._said.move_to_end(what)
        if len(self._said) > COMPLAINTS_LIMIT:
            self._said.popitem(last=False)
