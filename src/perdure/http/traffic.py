"""Counts the requests of a server, and logs each of them if it is asked to.

Neither shows a path or query as it was sent, since ids and capabilities are in them: a route is shown as its template.
"""

from __future__ import annotations

import logging

from perdure.counters import OTHER, SHORT_SECONDS, Counts, Histograms
from perdure.http.routes import Route

ROUTES_LIMIT = 500
"""Combinations of route, method and status that are counted apart."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are shown as they are; a client may send any word."""
NO_ROUTE = "none"
"""Shown for a request that was refused before its route was found, or that has none."""

log = logging.getLogger("perdure.http.access")


class Traffic:
    """The requests of one application. `is_logged`: each is a line of the log, at INFO."""

    def __init__(self, *, is_logged: bool = False) -> None:
        self.requests = Counts(ROUTES_LIMIT)  # by method, route and status
        self.seconds = Histograms(SHORT_SECONDS, ROUTES_LIMIT)  # by method and route
        self._is_logged = is_logged

    def ended(
        self, method: str, route: Route | None, status: int, seconds: float, *, principal: str | None = None
    ) -> None:
        """Note a request for which there is an answer, after so many seconds; `principal` names who sent it."""
        method = method if method in METHODS else OTHER
        path = NO_ROUTE if route is None else route.path
        self.requests.add((method, path, str(status)))
        self.seconds.observe((method, path), seconds)
        if self._is_logged:
            log.info(
                "%s %s %d %.1f ms%s",
                *(method, path, status, seconds * 1000, "" if principal is None else f" {principal}"),
                extra={"method": method, "route": path, "status": status, "seconds": seconds, "principal": principal},
            )
