from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.retry import (
    DEFAULT_RETRY,
    DURATION_LIMIT_SECONDS,
    Retry,
    is_mistake,
    next_wait,
    seconds,
    whole_number,
)
from perdure.errors import (
    BadId,
    CalledOutsideWorkflow,
    IdConflict,
    IllegalTransition,
    InputRefused,
    InvalidOption,
    MessageRefused,
    NonRetryable,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Unencodable,
    UnknownInvocation,
    WaitTimeout,
)

chances = st.floats(0, 1, exclude_max=True)
durations = st.floats(0, DURATION_LIMIT_SECONDS)


@given(durations, durations, st.floats(1, 1e300), st.floats(0, 1), st.integers(1, 10**9), chances)
def test_a_wait_is_within_its_jitter_of_a_bounded_power(
    initial: float, maximum: float, factor: float, jitter: float, attempt: int, chance: float
):
    retry = Retry(max_attempts=None, initial=initial, maximum=maximum, factor=factor, jitter=jitter)
    wait = retry.delay(ValueError(), attempt, chance)
    assert wait is not None
    least = min(initial, maximum)
    assert least * (1 - jitter) * 0.999 <= wait <= maximum * (1 + jitter) * 1.001
    if initial == 0:
        assert wait == 0


@given(st.floats(0.001, 10), st.floats(1, 3), st.integers(1, 8))
def test_without_jitter_waits_grow_by_the_factor_up_to_the_maximum(initial: float, factor: float, attempt: int):
    retry = Retry(initial=initial, factor=factor, maximum=100.0, jitter=0.0)
    wait = retry.delay(ValueError(), attempt, 0.7)
    assert wait == pytest.approx(min(initial * factor ** (attempt - 1), 100.0))


def test_chance_places_the_wait_within_its_jitter():
    retry = Retry(initial=10.0, jitter=0.5)
    assert [retry.delay(ValueError(), 1, chance) for chance in (0.0, 0.5, 0.75)] == [5.0, 10.0, 12.5]


@pytest.mark.parametrize("attempt", [1_100, 10**6, 10**12])
@pytest.mark.parametrize("factor", [2, 2.0, 1e308])
def test_powers_that_overflow_are_the_maximum(factor: float, attempt: int):
    assert Retry(max_attempts=None, factor=factor, jitter=0.0, maximum=60).delay(ValueError(), attempt, 0.5) == 60


def test_no_wait_stays_no_wait_however_large_the_power():
    assert Retry(max_attempts=None, initial=0).delay(ValueError(), 10**6, 0.5) == 0


def test_the_last_attempt_is_the_last():
    retry = Retry(max_attempts=3)
    assert [retry.delay(ValueError(), attempt, 0.5) is None for attempt in (1, 2, 3, 4)] == [False, False, True, True]
    assert Retry(max_attempts=1).delay(ValueError(), 1, 0.5) is None
    assert Retry(max_attempts=None).delay(ValueError(), 10**9, 0.5) is not None


def test_the_default_is_ten_attempts_over_about_50_seconds():
    waits = [DEFAULT_RETRY.delay(ValueError(), attempt, 0.5) for attempt in range(1, 11)]
    assert waits[-1] is None
    assert sum(wait for wait in waits if wait is not None) == pytest.approx(51.1)


def test_only_what_is_listed_and_not_excluded_is_tried_again():
    retry = Retry(on=(OSError, KeyError), never=(FileNotFoundError,))
    again = [OSError(), ConnectionError(), KeyError()]
    given_up = [FileNotFoundError(), ValueError(), NonRetryable("no")]
    assert all(retry.delay(error, 1, 0.5) is not None for error in again)
    assert all(retry.delay(error, 1, 0.5) is None for error in given_up)
    assert DEFAULT_RETRY.delay(NonRetryable("no"), 1, 0.5) is None
    assert DEFAULT_RETRY.delay(KeyboardInterrupt(), 1, 0.5) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": -1}, "max_attempts=-1"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"factor": float("nan")}, "factor=nan"),
        ({"factor": float("inf")}, "factor=inf"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"jitter": 1.1}, "jitter=1.1"),
        ({"jitter": float("nan")}, "jitter=nan"),
        ({"initial": -1}, "initial"),
        ({"initial": "1"}, "initial.* not str"),
        ({"maximum": timedelta(seconds=-1)}, "maximum"),
        ({"maximum": float("inf")}, "maximum"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, Any], says: str):
    with pytest.raises(InvalidOption, match=says):
        Retry(**options)


@pytest.mark.parametrize(
    ("duration", "positive", "value"),
    [
        (0, False, 0.0),
        (1, True, 1.0),
        (0.25, False, 0.25),
        (timedelta(minutes=2), True, 120.0),
        (DURATION_LIMIT_SECONDS, False, DURATION_LIMIT_SECONDS),
    ],
)
def test_durations_are_seconds_or_timedeltas(duration: float | timedelta, positive: bool, value: float):
    got = seconds("timeout", duration, positive=positive)
    assert got == value
    assert isinstance(got, float)


@pytest.mark.parametrize(
    ("duration", "positive"),
    [
        (-1, False),
        (0, True),
        (timedelta(0), True),
        (float("nan"), False),
        (float("nan"), True),
        (float("inf"), False),
        (DURATION_LIMIT_SECONDS * 1.01, False),
        (10**400, False),
        (timedelta.max, False),
        (True, False),
        ("1", False),
        (None, False),
    ],
)
def test_other_durations_are_refused(duration: Any, positive: bool):
    with pytest.raises(InvalidOption, match=r"timeout .*(must be a number|at least 0|more than 0)"):
        seconds("timeout", duration, positive=positive)


@pytest.mark.parametrize("field", ["on", "never"])
@pytest.mark.parametrize(
    "classes",
    [
        [ConnectionError],
        "ConnectionError",
        (ConnectionError, "TimeoutError"),
        int,
        (int,),
        ConnectionError(),
        None,
        {ConnectionError},
        ((OSError,),),
    ],
)
def test_classes_that_are_no_tuple_of_exceptions_are_refused_by_name(field: str, classes: Any):
    with pytest.raises(InvalidOption, match=rf"Retry\({field}=.*give a tuple of exception classes"):
        Retry(**{field: classes})


@pytest.mark.parametrize("field", ["on", "never"])
def test_one_class_stands_for_a_tuple_of_it(field: str):
    assert getattr(Retry(**cast("Any", {field: ConnectionError})), field) == (ConnectionError,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_attempts", value) for value in ("3", 2.5, True, 0, -1, float("nan"), [3])),
        *(("factor", value) for value in ("2", None, float("nan"), float("inf"), 0.5, True, timedelta(1))),
        *(("jitter", value) for value in ("0.1", None, float("nan"), -0.1, 1.1, True)),
        *(("initial", value) for value in ("1", None, float("nan"), float("inf"), -1, 1e300, True)),
        *(("maximum", value) for value in ("1", None, float("nan"), float("inf"), -1, 1e300, True)),
    ],
)
def test_option_of_the_wrong_kind_is_refused_by_name_when_the_policy_is_made(field: str, value: Any):
    with pytest.raises(InvalidOption, match=rf"Retry\({field}="):
        Retry(**{field: value})


def needs_two(left: int, right: int, /, *, key: int = 0) -> int:
    return left + right + key


class NeedsOne:
    def __init__(self, one: int) -> None:
        self.one = one


def loose(call: Any) -> Any:
    """Hide from the type checkers what is wrong on purpose."""
    return call


WRONG_CALLS: list[Callable[[Any], Any]] = [
    lambda f: f(1),
    lambda f: f(),
    lambda f: f(1, 2, 3),
    lambda f: f(1, 2, other=3),
    lambda f: f(1, right=2),
    lambda f: f(1, 2, 3, key=4),
    lambda _: loose(NeedsOne)(),
    lambda _: loose(NeedsOne)(1, 2),
    lambda _: loose(NeedsOne)(1, one=2),
    lambda _: loose(len)(),
    lambda _: loose(list[int]().append)(1, 2),
    lambda _: loose(dict[str, int]().get)(),
    lambda _: loose(object)(1),
    lambda _: loose(int)(1, 2, 3),
    lambda _: loose("a".split)(1, 2, 3),
    lambda _: loose(isinstance)(1),
    lambda _: loose("a".encode)(encod="x"),
    lambda _: loose(timedelta)(day=1),
]


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_call_with_wrong_arguments_is_a_mistake_of_the_program(call: Callable[[Any], Any]):
    with pytest.raises(TypeError) as raised:
        call(needs_two)
    assert is_mistake(raised.value), str(raised.value)


BAD_DATA: list[Callable[[Any], Any]] = [
    lambda nothing: nothing + 1,
    lambda nothing: nothing["x"],
    lambda nothing: len(nothing),
    lambda nothing: loose(int)([nothing]),
    lambda nothing: nothing(),
    lambda nothing: sum([nothing]),
]


@pytest.mark.parametrize("act", BAD_DATA)
def test_type_error_that_data_may_cause_is_no_mistake_of_the_program(act: Any):
    with pytest.raises(TypeError) as raised:
        act(None)
    assert not is_mistake(raised.value), str(raised.value)


# --- whole numbers ----------------------------------------------------------------------------------------------------
def test_a_whole_number_is_returned_and_anything_else_is_refused_by_name() -> None:
    assert whole_number("size", 1) == 1
    assert whole_number("size", 0, least=0) == 0
    for given_number in (1.0, "1", None, True):
        with pytest.raises(InvalidOption, match=r"size: .* is not a whole number"):
            whole_number("size", cast("Any", given_number))
    with pytest.raises(InvalidOption, match="size: 0 is too small, give at least 1"):
        whole_number("size", 0)


# --- what a policy may say --------------------------------------------------------------------------------------------
class Says(Retry):
    """A policy that returns what it is told to."""

    says: Any = None

    def delay(self, error: BaseException, attempt: int, chance: float) -> float | None:
        said = type(self).says
        return cast("Any", said() if callable(said) else said)


async def _never() -> float:
    return 1.0


def says(value: Any) -> Retry:
    return type("Says", (Says,), {"says": staticmethod(value) if callable(value) else value})()


def test_the_next_wait_is_what_the_policy_says() -> None:
    assert next_wait(says(2), ValueError(), 1, 0.5) == 2.0
    assert next_wait(says(None), ValueError(), 1, 0.5) is None
    assert next_wait(says(2), Unencodable("x"), 1, 0.5) is None, "no attempt can change it"


def test_mistakes_of_the_program_are_tried_again_only_by_a_policy_that_names_them() -> None:
    assert next_wait(says(2), CalledOutsideWorkflow("x"), 1, 0.5) is None
    assert next_wait(Retry(on=(CalledOutsideWorkflow,)), CalledOutsideWorkflow("x"), 1, 0.5) is not None


@pytest.mark.parametrize(
    "error",
    [
        MessageRefused("no", invocation_id="a", reason="no"),
        IllegalTransition("no", invocation_id="a", reason="no", status="completed"),
        UnknownInvocation("no", invocation_id="a"),
        IdConflict("no", invocation_id="a"),
        InputRefused("no"),
        BadId("no"),
    ],
)
def test_what_an_invocation_refuses_is_tried_again_only_by_a_policy_that_names_it(error: Exception) -> None:
    assert next_wait(says(2), error, 1, 0.5) is None
    assert next_wait(Retry(on=(type(error),)), error, 1, 0.5) is not None


@pytest.mark.parametrize(
    "error", [StoreUnavailable("away"), StoreFull("full"), StoreLocked("locked"), WaitTimeout("late")]
)
def test_what_the_store_may_do_later_is_tried_again(error: Exception) -> None:
    assert next_wait(says(2), error, 1, 0.5) == 2.0


@pytest.mark.parametrize("value", [timedelta(seconds=1), "1", float("nan"), -1, True, _never])
def test_a_policy_that_says_no_number_of_seconds_is_an_invalid_option(value: Any) -> None:
    with pytest.raises(InvalidOption, match=r"delay\(\)"):
        next_wait(says(value), ValueError(), 1, 0.5)
