"""What was raised is what is raised again: class, text, fields, members, causes; and never more than that."""

from __future__ import annotations

import asyncio
import builtins
import copy
import dataclasses
import enum
import inspect
import json
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, cast

import attrs
import grpc
import grpc.aio
import msgspec
import pydantic
import pydantic_core
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure import errors
from perdure.core import failures
from perdure.core.causes import Causes
from perdure.core.failures import Failure, FailureTranslator, failure_of, rebuild
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import NotRecorded, PerdureError, RemoteError

NOTE = "Remote traceback:\n"


class Code(enum.Enum):
    LIMIT = "limit"


@dataclass
class Detail:
    cents: int


class Declined(Exception):
    code: Code
    detail: Detail | None
    elsewhere: Nowhere  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    total: ClassVar[int]

    def __init__(self, code: Code, *, detail: Detail | None = None, at: datetime, price: Decimal) -> None:
        super().__init__(f"declined: {code.value}")
        self.code, self.detail, self.at, self.price = code, detail, at, price
        self.elsewhere = 1
        self.total = 3  # pyright: ignore[reportAttributeAccessIssue]
        self.unknown = [1]


class Later(Declined):
    """Its fields are annotated in the class it derives from."""


class Silent(Exception):
    def __init__(self, cents: int) -> None:
        self.cents = cents


class Wrong(Exception):
    count: int


class Slotted(Exception):
    __slots__ = ("left", "right")

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


class Disk(OSError):
    def __init__(self, number: int, text: str, *, device: str) -> None:
        super().__init__(number, text, "/dev/a")
        self.device = device


class Both(ValueError, OSError):
    pass


class Made(Exception):
    def __new__(cls, *, size: int) -> Made:
        return super().__new__(cls, size)

    def __init__(self, *, size: int) -> None:
        super().__init__(f"size {size}")


class Exits(ExceptionGroup[Exception]):
    def __new__(  # pyright: ignore[reportInconsistentConstructor]  as in Python's own documentation
        cls, members: list[Exception], status: int
    ) -> Exits:
        made = super().__new__(cls, f"status {status}", members)
        made.status = status
        return made

    status: int


class Unshowable(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


class Forgetful(Exception):
    """Shows what is never recorded: a rebuilt one cannot be shown."""

    def __init__(self) -> None:
        super().__init__(object())

    def __str__(self) -> str:
        held: Any = self.args[0]
        return f"{held.nothing}" if hasattr(held, "upper") else "shown"


class Outer:
    class Inner(Exception):
        pass

    Thing = 3


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def wire(failure: Failure) -> Failure:
    return decoder(Failure)(encode(failure))


def same(error: BaseException) -> BaseException:
    back = rebuild(wire(failure_of(error)))
    assert type(back) is type(error)
    assert str(back) == str(error)
    return back


def new_exits(*args: Any) -> Exits:
    return Exits(*args)


def members_of(group: Any) -> tuple[Any, ...]:
    assert isinstance(group, BaseExceptionGroup)
    return cast("BaseExceptionGroup[BaseException]", group).exceptions


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is not None:
            raise error from cause
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def caught_error(program: str) -> Exception:
    try:
        exec(program)
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError(program)


AT = datetime(2026, 11, 20, tzinfo=UTC)

PLAIN: list[BaseException] = [
    ValueError("x", 3),
    ValueError(),
    KeyError("k"),
    TimeoutError(),
    OSError(2, "no such thing", "/f"),
    OSError("only text"),
    FileNotFoundError(2, "no", "/a", None, "/b"),
    ConnectionResetError(104, "reset"),
    socket.gaierror(-2, "unknown host"),
    UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
    UnicodeEncodeError("ascii", "ä", 0, 1, "bad"),
    StopIteration(3),
    StopAsyncIteration(3),
    SyntaxError("bad", ("file", 3, 4, "text", 3, 5)),
    ImportError("no", name="n", path="p"),
    subprocess.CalledProcessError(3, "cmd", b"out", b"err"),
    subprocess.TimeoutExpired("cmd", 1.5),
    sqlite3.IntegrityError("UNIQUE constraint failed"),
    json.JSONDecodeError("Expecting value", "{", 1),
    caught_error("no_such_name"),
    caught_error("().no_such_attribute"),
    ExceptionGroup("g", [ValueError(1), ExceptionGroup("h", [KeyError(1)])]),
    Silent(4),
    Slotted(3),
    Disk(5, "broken", device="sda"),
    Both(5, "both"),
    Made(size=4),
    Outer.Inner(1),
    RemoteError("a.B", "text", "trace"),
]


@pytest.mark.parametrize("error", PLAIN, ids=lambda error: type(error).__name__)
def test_an_exception_comes_back_as_it_was(error: BaseException):
    back = same(error)
    if not isinstance(error, SyntaxError):  # its arguments hold a tuple, which comes back as a list
        assert repr(back) == repr(error)
    for name, slot in inspect.getmembers(type(error), inspect.ismemberdescriptor):
        if name != "obj" and hasattr(error, name) and not name.startswith("__"):
            before, after = slot.__get__(error), slot.__get__(back)
            assert repr(after) == repr(before), name
    assert {k: v for k, v in vars(back).items() if k != "__notes__"} == vars(error)


def test_fields_of_a_user_exception_are_converted_by_its_annotations():
    back = same(Declined(Code.LIMIT, detail=Detail(5), at=AT, price=Decimal("1.50")))
    assert isinstance(back, Declined)
    assert (back.code, back.detail, back.at, back.price) == (Code.LIMIT, Detail(5), AT, Decimal("1.50"))
    assert (back.elsewhere, back.total, back.unknown) == (1, 3, [1])  # pyright: ignore[reportUnknownMemberType]
    assert cast("Declined", same(Later(Code.LIMIT, at=AT, price=Decimal(1)))).code is Code.LIMIT


def test_a_field_that_does_not_fit_its_annotation_stays_as_it_is():
    error = Wrong()
    error.count = "many"  # pyright: ignore[reportAttributeAccessIssue]
    assert cast("Any", same(error)).count == "many"


def test_a_slot_that_was_not_set_stays_so():
    assert not hasattr(same(Slotted(3)), "right")


def test_neither_init_nor_new_of_a_class_is_called(monkeypatch: pytest.MonkeyPatch):
    failure = wire(failure_of(Made(size=4)))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(Made, "__init__", refuse)
    monkeypatch.setattr(Made, "__new__", refuse)
    assert str(rebuild(failure)) == "size 4"


def test_groups_keep_their_members_and_their_classes():
    group = ExceptionGroup(
        "g", [new_exits([ValueError(1)], 7), TimeoutError("t"), Declined(Code.LIMIT, at=AT, price=Decimal(1))]
    )
    back = same(group)
    exits, timeout, declined = members_of(back)
    assert (exits.status, exits.exceptions[0].args, timeout.args, declined.code) == (7, (1,), ("t",), Code.LIMIT)


def test_what_cannot_be_encoded_in_an_exception_is_kept_as_text():
    lock = object()
    error = ValueError(lock, Unprintable(), "\ud800", 2**70, Detail(1), "x" * (failures.VALUE_LIMIT + 1))
    error.lock = lock  # pyright: ignore[reportAttributeAccessIssue]
    failure = wire(failure_of(error))
    assert failure.args[:5] == [
        repr(lock),
        "<tests.core.test_failures.Unprintable without a repr>",
        "'\\ud800'",
        str(2**70),
        {"cents": 1},
    ]
    assert failure.args[5].endswith(f"… ({failures.VALUE_LIMIT + 3:,} characters)")
    assert failure.fields == {"lock": repr(lock)}
    assert rebuild(failure).args == tuple(failure.args)


def test_text_that_utf8_cannot_hold_is_escaped():
    error = ValueError("\ud800")
    error.add_note("\udfff")
    failure = wire(failure_of(error))
    assert failure.message == "\\ud800"
    assert failure.notes == ["\\udfff"]


def test_an_exception_whose_text_fails_is_recorded_even_so():
    failure = wire(failure_of(raised(Unshowable(1))))
    assert failure.message == "<str() of it raised KeyError>"
    assert failure.traceback
    assert isinstance(rebuild(failure), RemoteError)


def test_an_exception_whose_traceback_cannot_be_formatted_is_recorded_even_so(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(failures.tracebacks.TracebackException, "from_exception", refuse)
    assert failure_of(ValueError("x")).traceback == "ValueError: x\n"
    assert "raise error\nValueError: y\n" in failure_of(raised(ValueError("y"))).traceback


class Delegating(Exception):
    """Looks its attributes up elsewhere, and does not find those that Python asks for."""

    def __init__(self, data: dict[str, int]) -> None:
        super().__init__("delegating")
        self.data = data

    def __getattr__(self, name: str) -> int:
        return self.data[name]


class WithoutArgs(Exception):
    @property
    def args(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ZeroDivisionError


class WithoutDict(Exception):
    @property
    def __dict__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ZeroDivisionError


class Secretive(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name in ("args", "__dict__", "__traceback__", "__cause__", "__notes__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class WithoutMembers(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error", [Delegating({"a": 1}), WithoutArgs("a", 1), WithoutDict("a", 1), Secretive("a", 1)], ids=repr
)
def test_an_exception_whose_attributes_cannot_be_read_is_recorded_and_comes_back(error: Exception):
    failure = wire(failure_of(raised(error)))
    assert f"raise error\n{failure.type}" in failure.traceback
    back = rebuild(failure)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert wire(failure_of(back)) == failure


def test_the_members_of_a_group_that_does_not_show_them_are_recorded():
    back = rebuild(wire(failure_of(WithoutMembers("g", [ValueError(1)]))))
    assert type(back) is WithoutMembers
    assert [repr(each) for each in vars(BaseExceptionGroup)["exceptions"].__get__(back)] == ["ValueError(1)"]


@pytest.mark.parametrize("error", [Secretive("a"), WithoutMembers("g", [ValueError(1)])], ids=["secretive", "group"])
def test_the_cause_of_an_exception_that_does_not_show_it_is_found(error: Exception):
    cause, causes = ValueError(2), Causes()
    causes.add(cause, 7)
    assert causes.of(raised(error, cause)) == [7]


@pytest.mark.parametrize("notes", [None, 5, "a note"])
def test_notes_that_are_no_list_are_shown(notes: Any):
    error = ValueError("x")
    error.__notes__ = notes
    assert wire(failure_of(raised(error))).notes == ([] if notes is None else [repr(notes)])


class Elusive(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise ZeroDivisionError
        return super().__getattribute__(name)


class OfElusiveClass(Exception, metaclass=Elusive):
    pass


def test_an_exception_whose_class_does_not_tell_its_name_is_recorded():
    failure = wire(failure_of(raised(OfElusiveClass("text"))))
    assert (failure.type, failure.message) == (f"{__name__}.OfElusiveClass", "text")
    assert type(rebuild(failure)) is OfElusiveClass


def test_an_exception_that_cannot_be_examined_at_all_is_recorded_by_its_text(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(failures, "_slots", refuse)
    failure = wire(failure_of(raised(Declined(Code.LIMIT, at=AT, price=Decimal(1)))))
    assert failure.type == f"{__name__}.Declined"
    assert "raise error" in failure.traceback
    assert failure.traceback.endswith("(its attributes cannot be read: odd)\n")
    assert isinstance(rebuild(failure), RemoteError)


def test_an_exception_that_cannot_be_shown_once_rebuilt_is_a_remote_error():
    failure = wire(failure_of(Forgetful()))
    back = rebuild(failure)
    assert isinstance(back, RemoteError)
    assert back.type == "tests.core.test_failures.Forgetful"


# --- finding the class ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "qualname", "name"),
    [
        ("not.loaded", "Error", "not.loaded.Error"),
        ("builtins", "NoSuchError", "NoSuchError"),
        ("builtins", "int", "int"),
        (__name__, "AT", f"{__name__}.AT"),
        (__name__, "AT.year", f"{__name__}.AT.year"),
        (__name__, "Outer.Thing", f"{__name__}.Outer.Thing"),
        (__name__, "made.<locals>.Error", f"{__name__}.made.<locals>.Error"),
    ],
)
def test_a_class_that_is_not_loaded_is_a_remote_error_with_all_there_is(module: str, qualname: str, name: str):
    back = rebuild(Failure(module, qualname, "text", traceback="trace\n"))
    assert isinstance(back, RemoteError)
    assert (back.type, back.message, back.traceback) == (name, "text", "trace\n")
    assert str(back) == f"{name}: text"
    assert back.__notes__ == [f"{NOTE}trace\n"]


def test_nothing_is_imported_to_find_a_class(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("imported")

    module = types.ModuleType("lazy_module")
    module.__dict__["__getattr__"] = refuse
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert isinstance(rebuild(Failure("lazy_module", "Error", "text")), RemoteError)
    assert isinstance(rebuild(Failure("wave", "Error", "text")), RemoteError)


def local_class() -> type[Exception]:
    class Local(Exception):
        pass

    return Local


def test_a_class_made_in_a_function_is_found_the_newest_first():
    first = local_class()
    assert type(rebuild(failure_of(first("x")))) is first
    second = local_class()
    assert type(rebuild(failure_of(first("x")))) is second


def script(monkeypatch: pytest.MonkeyPatch, **names: object) -> types.ModuleType:
    main = types.ModuleType("__main__")
    vars(main).update(names)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def main_class() -> type[Exception]:
    return cast("type[Exception]", type("Mine", (Exception,), {"__module__": "__main__", "__qualname__": "Mine"}))


def test_a_class_that_is_no_name_of_its_module_is_found_while_it_lives(monkeypatch: pytest.MonkeyPatch):
    made = type("NoSuchKey", (LookupError,), {"__module__": "botocore.errorfactory"})  # as libraries make them
    assert type(rebuild(wire(failure_of(made("x"))))) is made
    cell = type("InCell", (Exception,), {"__module__": "__main__"})  # of a module that `exec` ran
    script(monkeypatch)
    assert type(rebuild(wire(failure_of(cell("x"))))) is cell
    other = Failure("__main__", "InCell", "x", script="another")
    assert isinstance(rebuild(other), RemoteError)


def test_a_class_of_the_script_is_found_where_the_script_runs_and_where_it_is_imported(monkeypatch: pytest.MonkeyPatch):
    there, here = main_class(), main_class()
    script(monkeypatch, Mine=there, __file__="/x/my_app.py")
    failure = wire(failure_of(there("x")))
    assert (failure.module, failure.script) == ("__main__", "my_app")
    assert type(rebuild(failure)) is there
    script(monkeypatch, Mine=here, __file__="/x/other.py")
    assert isinstance(rebuild(failure), RemoteError)
    app = types.ModuleType("my_app")
    app.__dict__["Mine"] = here
    monkeypatch.setitem(sys.modules, "my_app", app)
    assert type(rebuild(failure)) is here


def test_a_class_of_an_imported_module_is_found_where_that_is_the_script(monkeypatch: pytest.MonkeyPatch):
    mine = main_class()
    script(monkeypatch, Mine=mine, __file__="/x/my_app.py")
    assert type(rebuild(Failure("my_app", "Mine", "x"))) is mine
    assert isinstance(rebuild(Failure("another", "Mine", "x")), RemoteError)


def test_a_script_run_with_dash_m_has_its_full_name(monkeypatch: pytest.MonkeyPatch):
    mine = main_class()
    spec = types.SimpleNamespace(name="pkg.my_app")
    script(monkeypatch, Mine=mine, __spec__=spec)
    assert failure_of(mine("x")).script == "pkg.my_app"


def test_a_class_of_an_interactive_session_is_found_there(monkeypatch: pytest.MonkeyPatch):
    mine = main_class()
    script(monkeypatch, Mine=mine)
    failure = failure_of(mine("x"))
    assert failure.script == ""
    assert type(rebuild(failure)) is mine


# --- tracebacks, notes, causes ----------------------------------------------------------------------------------------


def test_the_remote_traceback_is_a_note_once_however_many_boundaries_it_crosses():
    error = raised(ValueError("x"))
    error.add_note("mine")
    failure = wire(failure_of(error))
    assert "in raised" in failure.traceback
    back = rebuild(failure)
    assert back.__notes__ == ["mine", NOTE + failure.traceback]
    for _ in range(3):
        again = wire(failure_of(raised(back)))
        assert again == failure
        back = rebuild(again)
    assert len(back.__notes__) == 2


def test_a_second_remote_note_is_dropped():
    error = ValueError("x")
    error.__notes__ = [f"{NOTE}first", f"{NOTE}second"]
    assert failure_of(error).traceback == "first"
    assert failure_of(error).notes == []


def test_members_and_causes_do_not_repeat_the_traceback_of_the_whole():
    member, cause = raised(ValueError("member")), raised(KeyError("cause"))
    failure = wire(failure_of(raised(ExceptionGroup("g", [cast("Exception", member)]), cause)))
    assert failure.group[0].traceback == ""
    assert failure.cause is not None
    assert failure.cause.traceback == ""
    assert "ValueError: member" in failure.traceback
    assert "KeyError: 'cause'" in failure.traceback
    back = rebuild(failure)
    assert not hasattr(members_of(back)[0], "__notes__")


def test_a_member_from_elsewhere_keeps_its_traceback_and_the_group_does_not_repeat_it():
    remote = rebuild(failure_of(raised(ValueError("far away"))))
    remote.add_note("kept")
    group = wire(failure_of(raised(ExceptionGroup("g", [remote]))))
    assert "in raised" in group.group[0].traceback
    assert NOTE not in group.traceback
    assert "kept" in group.traceback
    assert wire(failure_of(raised(rebuild(group)))) == group


def test_notes_that_are_no_text_are_shown():
    error = ValueError("x")
    error.__notes__ = [3]  # pyright: ignore[reportAttributeAccessIssue]
    assert failure_of(error).notes == ["3"]


def test_a_traceback_keeps_its_end():
    def descend(depth: int) -> None:
        if depth == 0:
            raise ValueError("x" * failures.TRACEBACK_LIMIT + "end")
        descend(depth - 1)

    with pytest.raises(ValueError, match="end") as caught:
        descend(20)
    text = failure_of(caught.value).traceback
    assert len(text) == failures.TRACEBACK_LIMIT
    assert text.startswith("…")
    assert text.endswith("end\n")


def test_causes_come_back_and_contexts_do_not():
    back = same(raised(ValueError("a"), raised(KeyError("b"), TimeoutError("c"))))
    assert isinstance(back.__cause__, KeyError)
    assert isinstance(back.__cause__.__cause__, TimeoutError)
    error = ValueError()
    error.__context__ = KeyError()
    assert same(error).__context__ is None


def test_causes_that_go_round_end():
    error = ValueError("a")
    error.__cause__ = KeyError("b")
    error.__cause__.__cause__ = error
    failure = wire(failure_of(error))
    assert failure.cause is not None
    assert failure.cause.cause is None


def test_causes_are_kept_to_a_depth():
    error: BaseException = ValueError("deepest")
    for number in range(20):
        error = raised(ValueError(number), error)
    failure: Failure | None = wire(failure_of(error))
    depth = 0
    while failure is not None:
        failure, depth = failure.cause, depth + 1
    assert depth == failures.DEPTH_LIMIT


def test_groups_deeper_than_the_limit_are_remote_errors():
    error: Any = ValueError("deepest")
    for number in range(failures.DEPTH_LIMIT + 2):
        error = ExceptionGroup(f"level {number}", [error])
    back: BaseException = rebuild(wire(failure_of(error)))
    levels = 0
    while not isinstance(back, RemoteError):
        back, levels = members_of(back)[0], levels + 1
    assert levels == failures.DEPTH_LIMIT - 1
    assert back.message.startswith("level 2 ")


def test_failures_beyond_the_limit_are_kept_flat():
    members = [
        cast("Exception", raised(ValueError(number), KeyError(number))) for number in range(failures.FAILURES_LIMIT)
    ]
    failure = failure_of(ExceptionGroup("g", members))
    assert len(failure.group) == failures.FAILURES_LIMIT
    assert failure.group[0].cause is not None
    assert failure.group[-1].cause is None
    assert failure.group[-1].args == [failures.FAILURES_LIMIT - 1]


# --- translators ------------------------------------------------------------------------------------------------------


class Grpc:
    """Stands for the translator of perdure.integrations.grpc."""

    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        if not isinstance(error, grpc.aio.AioRpcError):
            return None
        initial: Any = error.initial_metadata()
        trailing: Any = error.trailing_metadata()
        return {
            "code": error.code().name,
            "details": error.details(),
            "initial": [list(pair) for pair in initial],
            "trailing": [list(pair) for pair in trailing],
            "debug": error.debug_error_string(),
        }

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        if not issubclass(cls, grpc.aio.AioRpcError):
            return None
        held = failure.fields
        initial, trailing = (grpc.aio.Metadata(*map(tuple, held[name])) for name in ("initial", "trailing"))
        return cls(grpc.StatusCode[held["code"]], initial, trailing, held["details"], held["debug"])


RPC = grpc.aio.AioRpcError(
    grpc.StatusCode.NOT_FOUND,
    grpc.aio.Metadata(("a", "1"), ("a", "2")),
    grpc.aio.Metadata(("bin-bin", b"\xff")),
    "nothing there",
    "debug",
)


def test_a_translator_brings_back_what_has_no_builtin_form():
    translators: list[FailureTranslator] = [Grpc()]
    failure = wire(failure_of(raised(RPC), translators=translators))
    back = rebuild(failure, translators=translators)
    assert isinstance(back, grpc.aio.AioRpcError)
    assert (back.code(), back.details(), back.debug_error_string()) == (
        grpc.StatusCode.NOT_FOUND,
        "nothing there",
        "debug",
    )
    assert list(cast("Any", back.initial_metadata())) == [("a", "1"), ("a", "2")]
    assert list(cast("Any", back.trailing_metadata())) == [("bin-bin", b"\xff")]
    assert (str(back), repr(back)) == (str(RPC), repr(RPC))
    assert back.__notes__ == [NOTE + failure.traceback]
    assert wire(failure_of(back, translators=translators)) == failure


def test_translators_reach_members_and_causes_and_leave_others_alone():
    group = ExceptionGroup("g", [RPC, cast("Exception", raised(ValueError(1), RPC))])
    back = rebuild(wire(failure_of(group, translators=[Grpc()])), translators=[Grpc()])
    assert isinstance(members_of(back)[0], grpc.aio.AioRpcError)
    assert isinstance(members_of(back)[1].__cause__, grpc.aio.AioRpcError)


def test_without_its_translator_it_is_a_remote_error():
    back = rebuild(wire(failure_of(RPC, translators=[Grpc()])))
    assert isinstance(back, RemoteError)
    assert "nothing there" in back.message


class Faulty:
    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        raise RuntimeError

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        raise RuntimeError


def test_a_faulty_translator_hides_nothing():
    failure = wire(failure_of(ValueError("x"), translators=[Faulty()]))
    assert failure.args == ["x"]
    back = rebuild(failure, translators=[Faulty()])
    assert isinstance(back, RemoteError)
    assert back.message == "x"


# --- our own ----------------------------------------------------------------------------------------------------------

OURS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, BaseException)]
KEPT = [cls for cls in OURS if issubclass(cls, Exception)]


SAMPLES: dict[str, Any] = {"int": 7, "float": 1.5, "int | None": 7}


@pytest.mark.parametrize("cls", KEPT)
def test_every_exception_of_ours_survives_a_journal_a_pickle_and_a_copy(cls: type[BaseException]):
    taken: Mapping[str, inspect.Parameter] = inspect.signature(cls).parameters if "__init__" in vars(cls) else {}
    given = {name: SAMPLES.get(str(one.annotation), "text") for name, one in taken.items() if name != "text"}
    members = [[ValueError("one")]] if BaseExceptionGroup in cls.__mro__ else []
    error = cls(**given) if cls is RemoteError else cls("what happened", *members, **given)
    for back in (same(error), pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is cls
        assert (str(back), repr(back)) == (str(error), repr(error))
        assert repr(back.args) == repr(error.args)
        assert {name: getattr(back, name) for name in given} == given


def test_all_of_ours_derive_from_one_class_but_what_ends_a_body():
    assert [cls.__name__ for cls in OURS if not issubclass(cls, PerdureError)] == ["TurnClosed"]
    assert not issubclass(errors.TurnClosed, Exception)


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes():
    drawn = errors.__doc__
    assert drawn is not None
    assert [cls.__name__ for cls in OURS if f" {cls.__name__} " not in drawn.replace(",", " ").replace("\n", " ")] == []


def test_timeouts_of_ours_are_timeouts():
    assert issubclass(errors.WaitTimeout, TimeoutError)
    assert issubclass(errors.InvocationTimedOut, TimeoutError)
    assert errors.WaitTimeout("text", timeout=3).errno is None


def test_a_remote_error_without_a_message_shows_its_type():
    assert str(RemoteError("a.B")) == "a.B"


# the wall clock says nothing about a loaded machine
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- properties -------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()


def failing(cls: type[Exception], args: list[Any]) -> BaseException:
    return cls(*args)


some: st.SearchStrategy[BaseException] = st.builds(
    failing, st.sampled_from([ValueError, KeyError, OSError, RuntimeError]), st.lists(scalars)
) | st.builds(Silent, scalars)
exceptions: st.SearchStrategy[BaseException] = st.recursive(
    some,
    lambda inner: (
        st.builds(BaseExceptionGroup[BaseException], st.text(), st.lists(inner, min_size=1, max_size=3))
        | st.builds(raised, inner, inner)
    ),
    max_leaves=5,
)


@unhurried
@given(exceptions)
def test_recording_what_was_rebuilt_changes_nothing(error: BaseException):
    failure = failure_of(error)
    assert wire(failure) == failure
    assert failure_of(rebuild(failure)) == failure
    assert failure_of(raised(rebuild(failure))) == failure


@unhurried
@given(st.lists(scalars, max_size=3), st.dictionaries(st.text(min_size=1), scalars))
def test_arguments_and_fields_of_builtin_types_come_back(args: list[Any], fields: dict[str, Any]):
    for ours in ("__notes__", "__perdure_message__", "__perdure_unrecorded__"):  # which hypothesis finds in the code
        fields.pop(ours, None)
    error = Exception(*args)
    vars(error).update(fields)
    back = rebuild(wire(failure_of(error)))
    assert back.args == tuple(args)
    assert {name: value for name, value in vars(back).items() if name != "__notes__"} == fields


def test_a_failure_is_an_array_to_which_fields_can_be_added():
    assert decoder(Failure)(msgspec.msgpack.encode(["m", "Q", "text"])) == Failure("m", "Q", "text")
    assert (
        decoder(Failure)(msgspec.msgpack.encode(["m", "Q", "t", [], {}, [], "", [], None, "", [], "later"])).module
        == "m"
    )


# --- what the caller is never given -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError("by it")]
)
def test_failure_that_would_end_a_process_or_cancel_a_task_is_a_remote_error_with_its_name(error: BaseException):
    back = rebuild(wire(failure_of(raised(error))))
    assert isinstance(back, RemoteError)
    assert (back.type.rpartition(".")[2], back.message) == (type(error).__name__, str(error))


class Fatal(BaseException):
    pass


class Fatals(BaseExceptionGroup[Fatal]):
    pass


def test_own_class_that_is_no_exception_and_a_group_of_them_are_remote_errors():
    for error in (Fatal(1), Fatals("g", [Fatal(1)])):
        assert isinstance(rebuild(wire(failure_of(raised(error)))), RemoteError)


def test_members_and_causes_that_would_end_a_process_are_remote_errors_within_what_holds_them():
    group = BaseExceptionGroup("g", [SystemExit(1), ValueError(2)])
    error = ValueError("caused")
    error.__cause__ = KeyboardInterrupt()
    back = rebuild(wire(failure_of(raised(group))))
    assert type(back) is ExceptionGroup
    assert [type(member) for member in back.exceptions] == [RemoteError, ValueError]
    assert isinstance(rebuild(wire(failure_of(raised(error)))).__cause__, RemoteError)


@attrs.frozen
class FrozenByAttrs(Exception):
    code: int


@attrs.frozen(slots=False)
class FrozenWithoutSlots(Exception):
    code: int = attrs.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class FrozenDataclass(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrozenWithSlots(Exception):
    code: int


@pytest.mark.parametrize(
    "error", [FrozenByAttrs(7), FrozenWithoutSlots(code=7), FrozenDataclass(7), FrozenWithSlots(code=7)]
)
def test_frozen_exception_comes_back_as_its_class_with_notes_and_cause(error: Any):
    cause = ValueError("cause")
    BaseException.__setattr__(error, "__cause__", cause)
    BaseException.__setattr__(error, "__notes__", ["a note"])
    back: Any = same(error)
    assert type(back) is type(error)
    assert back.code == 7
    assert back.__notes__[0] == "a note"
    assert isinstance(back.__cause__, ValueError)


class Checked(pydantic.BaseModel):
    count: int
    kind: Literal["a", "b"]
    due: pydantic.FutureDatetime
    size: Annotated[int, pydantic.Field(gt=3)]
    name: str = "ok"
    mine: int = 0

    @pydantic.field_validator("name")
    @classmethod
    def _no_braces(cls, value: str) -> str:
        if value != "ok":
            raise ValueError(f"not {{{value}}}")
        return value

    @pydantic.field_validator("mine")
    @classmethod
    def _own(cls, value: int) -> int:
        if value:
            raise pydantic_core.PydanticCustomError("own_kind", "it has {value}", {"value": value})
        return value


def refused(model: type[pydantic.BaseModel], **values: Any) -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        model(**values)
    return caught.value


def test_validation_error_of_pydantic_comes_back_as_its_class_with_the_same_errors():
    error = refused(Checked, count="x", kind="c", due="2000-01-01T00:00:00Z", size=1, name="q", mine=1)
    back = same(error)
    assert isinstance(back, pydantic.ValidationError)
    assert (str(back), back.title, back.error_count()) == (str(error), "Checked", 6)
    for now, then in zip(back.errors(), error.errors(), strict=True):
        assert {**now, "ctx": repr(now.get("ctx"))} == {**then, "ctx": repr(then.get("ctx"))}


@pytest.mark.parametrize("value", [object(), "x" * 200_000, {"a": object()}, {"\ud800": "\ud800"}, float("nan"), 2**80])
def test_validation_error_of_any_input_comes_back_as_its_class(value: object):
    error = refused(Checked, count=value, kind=value, due=value, size=value, name=value, mine=value)
    back = rebuild(wire(failure_of(raised(error))))
    assert isinstance(back, pydantic.ValidationError)
    assert [each["loc"] for each in back.errors()] == [each["loc"] for each in error.errors()]


class Holds(Exception):
    def __init__(self, *, code: int, conn: object) -> None:
        super().__init__(code)
        self.code = code
        self.conn = conn

    def __str__(self) -> str:
        return f"{self.code} over {self.conn}"

    @property
    def peer(self) -> str:
        conn: Any = self.conn
        return str(conn.peer)


@attrs.define
class HoldsInSlots(Exception):
    code: int
    conn: object


@pytest.mark.parametrize("make", [Holds, HoldsInSlots])
def test_attribute_that_could_not_be_recorded_says_so_when_it_is_read(make: Any):
    error: Any = make(code=4, conn=threading.Lock())
    back: Any = rebuild(wire(failure_of(raised(error))))
    assert isinstance(back, make)
    assert back.code == 4
    with pytest.raises(
        NotRecorded, match=r"attribute 'conn' of .*could not be recorded.* it was <unlocked _thread.lock"
    ):
        _ = back.conn
    assert not hasattr(back, "other")
    assert wire(failure_of(back)).unrecorded == ["conn"]
    again: Any = rebuild(wire(failure_of(back)))
    with pytest.raises(NotRecorded, match="'conn'"):
        _ = again.conn


def test_text_of_an_exception_with_an_unrecorded_attribute_is_the_recorded_one():
    error = Holds(code=4, conn=threading.Lock())
    assert str(rebuild(wire(failure_of(error)))) == str(error)


def test_property_that_needs_an_unrecorded_attribute_names_it():
    back: Any = rebuild(wire(failure_of(Holds(code=4, conn=threading.Lock()))))
    with pytest.raises(NotRecorded, match="not recorded were 'conn'"):
        _ = back.peer


def test_exception_that_holds_itself_or_its_traceback_comes_back_and_says_so():
    error: Any = raised(ValueError("v"))
    error.me, error.where = error, error.__traceback__
    back: Any = rebuild(wire(failure_of(error)))
    assert isinstance(back, ValueError)
    for name in ("me", "where"):
        with pytest.raises(NotRecorded, match=name):
            getattr(back, name)


class Registered(Exception):
    made: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Registered.made.append(cls)


def test_class_that_watches_its_subclasses_sees_none_and_keeps_text_for_what_is_not_recorded():
    error: Any = Registered("r")
    error.conn = threading.Lock()
    back: Any = rebuild(wire(failure_of(error)))
    assert cast("object", back).__class__ is Registered
    assert back.conn.startswith("<unlocked")
    assert Registered.made == []


def test_validation_error_whose_text_this_pydantic_words_otherwise_keeps_the_recorded_one():
    failure = failure_of(refused(Checked, count=1, kind="a", due="2999-01-01T00:00:00Z", size=1))
    line = {**failure.fields["errors"][0], "msg": "Input was too small"}
    back: Any = rebuild(msgspec.structs.replace(failure, fields={**failure.fields, "errors": [line]}))
    assert [(each["type"], each["msg"]) for each in back.errors()] == [("greater_than", "Input was too small")]
