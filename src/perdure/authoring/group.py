"""Groups: many invocations that run together, with a rule for when to stop waiting for them.

This module has the rules, the outcomes and the report. `perdure.run_all` runs a group through a client, and
`authoring.children` as the children of a workflow.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from msgspec import Struct

from perdure.core.retry import Duration, seconds, whole_number
from perdure.errors import InvalidOption, NotAWorkflow, PerdureError

if TYPE_CHECKING:
    from perdure.authoring.workflow import Call

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

SETTLE_SECONDS = 30.0
"""How long the report of a group waits for cancelled members, unless `settle` is given."""


# --- when to stop waiting ---------------------------------------------------------------------------------------------
class WaitForever(Struct, frozen=True):
    """Wait until every invocation has ended."""


class WaitForQuota(Struct, frozen=True):
    """Wait until `quota` invocations have completed, then cancel the others."""

    quota: int

    def __post_init__(self) -> None:
        whole_number("WaitForQuota(quota=…)", self.quota)


class WaitDuration(Struct, frozen=True):
    """Wait for `duration` (seconds or a timedelta), then cancel those that have not ended."""

    duration: Duration

    def __post_init__(self) -> None:
        seconds("WaitDuration(duration=…)", self.duration)


class WaitQuotaOrDuration(Struct, frozen=True):
    """Wait until `quota` have completed or `duration` has passed, whichever comes first, then cancel the others."""

    quota: int
    duration: Duration

    def __post_init__(self) -> None:
        whole_number("WaitQuotaOrDuration(quota=…)", self.quota)
        seconds("WaitQuotaOrDuration(duration=…)", self.duration)


Wait = WaitForever | WaitForQuota | WaitDuration | WaitQuotaOrDuration


class Rule(Struct, frozen=True):
    """The checked options of a group. `quota` and `duration` (seconds) are None if there is no such limit."""

    quota: int | None
    duration: float | None
    concurrency: int
    settle: float


def rule_of(wait: Wait | None, concurrency: int | None, settle: Duration, size: int) -> Rule:
    """Return the options of `run_all`, or raise `InvalidOption`."""
    if wait is not None and not isinstance(wait, Wait):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"run_all(wait={wait!r}): give a rule, as in WaitForQuota(3) or WaitDuration(60)")
    quota = wait.quota if isinstance(wait, (WaitForQuota, WaitQuotaOrDuration)) else None
    limit = wait.duration if isinstance(wait, (WaitDuration, WaitQuotaOrDuration)) else None
    return Rule(
        None if quota is None else whole_number("quota", quota),
        None if limit is None else seconds("duration", limit),
        max(1, size) if concurrency is None else whole_number("run_all(concurrency=…)", concurrency),
        seconds("run_all(settle=…)", settle),
    )


# --- the calls --------------------------------------------------------------------------------------------------------
def listed(calls: Iterable[Call[R]]) -> list[Call[R]]:
    """Return calls as a list; `NotAWorkflow` if they are not iterable."""
    try:
        return [*calls]
    except TypeError as error:
        text = f"run_all({calls!r}): give the calls in a list, as in [checkout.bind(cart) for cart in carts]"
        raise NotAWorkflow(text) from error


def check_calls(members: Sequence[Call[Any]]) -> None:
    """Check that all members are calls with distinct ids; the error names the first that is not."""
    from perdure.authoring.workflow import Call  # noqa: PLC0415  groups are seldom needed

    ids: dict[str, int] = {}
    for n, member in enumerate(members):
        if not isinstance(member, Call):  # pyright: ignore[reportUnnecessaryIsInstance]
            for each in cast("Sequence[Any]", members):
                if inspect.iscoroutine(each):
                    each.close()  # it will not be awaited
            raise NotAWorkflow(f"calls[{n}] is {member!r}, not the call of a workflow: write checkout.bind(cart)")
        id = member.workflow.options.id
        if id is not None and ids.setdefault(id, n) != n:
            text = f"calls[{n}] has the id of calls[{ids[id]}], {id!r}: each member needs an id of its own"
            raise InvalidOption(text)


def name_member(n: int, error: PerdureError) -> None:
    """Add to the text of an error which member of the group it is about."""
    text, *others = error.args or ("",)
    error.args = (f"calls[{n}]: {text}", *others)


# --- outcomes ---------------------------------------------------------------------------------------------------------
class Completed(Struct, Generic[R_co], frozen=True):
    """An invocation that returned `value`; `duration` in seconds from its start."""

    id: str
    value: R_co
    duration: float
    status: Literal["completed"] = "completed"


class Failed(Struct, frozen=True):
    """An invocation that raised `error`. It has no id if it was not accepted."""

    id: str
    error: BaseException
    duration: float
    status: Literal["failed"] = "failed"


class Cancelled(Struct, frozen=True):
    """An invocation that was cancelled, by the group or from outside. It has no id if it was never started."""

    id: str
    duration: float
    status: Literal["cancelled"] = "cancelled"


class Unsettled(Struct, frozen=True):
    """An invocation that was cancelled but had not ended when the report was made: it ends later.

    `status` is its status at that time, such as `paused` for one that ends when it is resumed.
    """

    id: str
    status: Literal["scheduled", "pending", "running", "suspended", "paused"]
    duration: float = 0.0


Ended = Completed[R_co] | Failed | Cancelled | Unsettled


class Group(Generic[R_co]):
    """The outcomes of a group, in the order of its calls. `total_duration` is in seconds."""

    def __init__(self, results: Sequence[Ended[R_co]], total_duration: float) -> None:
        self.results = results
        self.total_duration = total_duration
        self.completed = sum(isinstance(each, Completed) for each in results)
        self.failed = sum(isinstance(each, Failed) for each in results)
        self.cancelled = sum(isinstance(each, Cancelled) for each in results)
        self.unsettled = sum(isinstance(each, Unsettled) for each in results)

    def __repr__(self) -> str:
        counts = f"completed={self.completed}, failed={self.failed}, cancelled={self.cancelled}"
        return f"Group({counts}, unsettled={self.unsettled})"

    def values(self) -> list[R_co]:
        """Return the values of those that completed, in order."""
        return [each.value for each in self.results if isinstance(each, Completed)]
