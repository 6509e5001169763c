"""Schedules: workflows that are started at certain times. See docs/how-to/schedules.md."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from perdure.authoring.workflow import Call, Workflow
from perdure.calls import refuse_in_body, submission_of
from perdure.core.retry import Duration, seconds
from perdure.core.schedule import CATCH_UP_SECONDS, Overlap, Plan, Timing, check_schedule_name
from perdure.errors import InvalidOption
from perdure.handle import Handle
from perdure.operations.port import Operations
from perdure.operations.schedules import Backfill, PauseSchedule, ResumeSchedule, ScheduleInfo, Trigger
from perdure.operations.ticks import check_options, check_timing, whole_seconds
from perdure.runtime.worker import Translators

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Schedule(Generic[R_co]):
    """What is started, when, and what becomes of a tick while an earlier run has not ended.

    `call` is a workflow with its arguments, `report.bind("all")`; of its options, `key`, `timeout` and `tags` hold for
    each run. It starts by a `cron` expression (five fields; six have seconds in front) on the clock of `timezone`, or
    `every` so many whole seconds, counted from the Unix epoch.

    `overlap`: "skip" leaves out a tick while a run has not ended, "queue" lets it wait, "cancel" cancels the run, with
    cleanup, and starts then, "allow" starts it beside. `catch_up` (seconds or a timedelta; default 10 minutes) is how
    late a tick may be started, after no worker ran. `jitter` delays each by a random time, up to so many seconds.
    """

    call: Call[R_co]
    _: KW_ONLY
    cron: str | None = None
    every: Duration | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: Duration = CATCH_UP_SECONDS
    jitter: Duration = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]  a checker may not be watching
            raise InvalidOption(
                f"Schedule({self.call!r}): give a workflow with its arguments, as in report.bind('all')"
            )
        options = self.call.workflow.options
        if options.id is not None or options.delay is not None:
            text = "each run has an id and a time of its own: leave id and delay out of using()"
            raise InvalidOption(f"Schedule({self.call.workflow.name}): {text}")
        if options.when_busy != "enqueue":
            text = "overlap= says what becomes of a run while another goes on: leave when_busy out of using()"
            raise InvalidOption(f"Schedule({self.call.workflow.name}): {text}")
        check_timing(self.timing)
        check_options(self.overlap, self.catch_up, self.jitter)

    @property
    def timing(self) -> Timing:
        """When it ticks, as it is recorded."""
        return Timing(self.cron, None if self.every is None else whole_seconds(self.every), self.timezone)

    def plan(self) -> Plan:
        """Return it as it is recorded; `InputRefused` if the arguments do not fit."""
        asked = submission_of(self.call.workflow, self.call.args, self.call.kwargs)
        return Plan(
            self.timing,
            asked.handler,
            asked.input,
            asked.digest,
            asked.key,
            asked.timeout,
            asked.tags,
            asked.interface,
            self.overlap,
            seconds("catch_up", self.catch_up),
            seconds("jitter", self.jitter),
        )


class ScheduleHandle(Generic[R]):
    """One schedule, by its name, from any process: there need not be one yet.

    But for `put` and `delete`, each call raises `UnknownSchedule` if there is none.
    """

    def __init__(
        self,
        operations: Operations,
        name: str,
        workflow: Workflow[..., R] | None = None,
        translators: Translators = tuple,
    ) -> None:
        self.name = check_schedule_name(name)
        self._operations = operations
        self._workflow = workflow
        self._translators = translators

    def __repr__(self) -> str:
        return f"ScheduleHandle({self.name!r})"

    async def put(self, schedule: Schedule[R], /) -> bool:
        """Make the schedule, or change it from now on; return false if it is the same already.

        A change of when it ticks passes over nothing that was due before, and no tick comes twice. Runs go on.
        """
        refuse_in_body("schedule.put()")
        if not isinstance(schedule, Schedule):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"put({schedule!r}): give a Schedule(workflow.bind(...), cron=...)")
        return await self._operations.put_schedule(self.name, schedule.plan())

    async def pause(self, note: str = "") -> None:
        """Start nothing until `resume`; `note` says why. What runs goes on, and what waits waits."""
        refuse_in_body("schedule.pause()")
        if not isinstance(note, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"pause({note!r}): the note must be a str")
        await self._operations.change_schedule(self.name, PauseSchedule(note))

    async def resume(self) -> None:
        """Go on from now. The ticks that came meanwhile are passed over: `backfill` runs them."""
        refuse_in_body("schedule.resume()")
        await self._operations.change_schedule(self.name, ResumeSchedule())

    async def trigger(self) -> Handle[R]:
        """Start a run now, also while the schedule is paused, and return its handle.

        The overlap rule holds. While an earlier run has not ended, "skip" raises `ScheduleBusy`; with "queue" and
        "cancel" the run starts when that has ended, and until then its id is unknown.
        """
        refuse_in_body("schedule.trigger()")
        (id,) = await self._operations.change_schedule(self.name, Trigger())
        return Handle(self._operations, id, self._workflow, self._translators)

    async def backfill(self, start: datetime, end: datetime) -> list[Handle[R]]:
        """Run the ticks of the past from `start` to `end` (aware datetimes, both included); return their handles.

        They run one after another, and until one starts, its id is unknown. A tick that has run, and was not purged, is
        not run again. At most 1,000 wait.
        """
        refuse_in_body("schedule.backfill()")
        for name, at in (("start", start), ("end", end)):
            if not isinstance(at, datetime) or at.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidOption(f"backfill({name}={at!r}): give a datetime with a time zone: datetime.now(UTC)")
        ids = await self._operations.change_schedule(self.name, Backfill(start, end))
        return [Handle(self._operations, id, self._workflow, self._translators) for id in ids]

    async def next(self, count: int = 1) -> list[datetime]:
        """Return the next times, in UTC, as if the schedule were not paused; at most 100."""
        refuse_in_body("schedule.next()")
        found = await self._operations.schedule_times(self.name, count)
        return [datetime.fromtimestamp(each, UTC) for each in found]

    async def describe(self) -> ScheduleInfo:
        """Return the schedule: what it starts and when, what runs and what waits, and what became of its ticks."""
        refuse_in_body("schedule.describe()")
        return await self._operations.describe_schedule(self.name)

    async def delete(self) -> bool:
        """Remove the schedule, with what waits; what it has started goes on. Return whether there was one."""
        refuse_in_body("schedule.delete()")
        return await self._operations.delete_schedule(self.name)
