"""Exceptions as a journal keeps them, and back.

An exception becomes a `Failure` and is rebuilt from it without importing, unpickling or calling an `__init__`. Knows
nothing of journals, workflows or stores. Reads `sys.modules` to find loaded classes and, to format a traceback, the
source lines that Python shows in it.
"""

from __future__ import annotations

import sys
import traceback as tracebacks
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol, cast

import msgspec

from perdure.core.types import decoder, names_in, resolved
from perdure.core.values import decode_any, encode_any, loaded, type_name
from perdure.errors import NotRecorded, PerdureError, RemoteError

TRACEBACK_LIMIT = 16_384
"""Characters of a traceback that a failure keeps: the last ones."""

VALUE_LIMIT = 65_536
"""Bytes of one argument or field of an exception, and characters of its text. The rest is cut off."""

DEPTH_LIMIT = 8
"""Causes of causes, and groups in groups, that a failure keeps."""

FAILURES_LIMIT = 1_000
"""Exceptions in one failure whose causes and members are kept; further ones are kept without."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An exception as it is recorded: builtin values only.

    `args` and `fields` (`__dict__`, slots, attributes of the builtin class such as `errno`) hold encodable values, as
    they decode without an annotation (a tuple as a list). Any other value is its `repr`, and `unrecorded` names its
    field. `traceback` is where it was first raised. If `module` is `__main__`, `script` is the name under which other
    processes import that module.
    """

    module: str
    qualname: str
    message: str
    args: list[Any] = []
    fields: dict[str, Any] = {}
    notes: list[str] = []
    traceback: str = ""
    group: list[Failure] = []
    cause: Failure | None = None
    script: str = ""
    unrecorded: list[str] = []

    @property
    def type(self) -> str:
        """The full name of its class."""
        return self.qualname if self.module == "builtins" else f"{self.module}.{self.qualname}"


class FailureTranslator(Protocol):
    """Records and rebuilds exceptions of a library whose attributes are not builtin values, such as gRPC's.

    Pass all translators to both `failure_of` and `rebuild`; the first that answers decides. An example for a class
    whose `code` is an enum::

        class Translator:
            def fields_of(self, error):
                return {"code": error.code.name} if isinstance(error, ApiError) else None

            def restore(self, cls, failure):
                return cls(Code[failure.fields["code"]]) if issubclass(cls, ApiError) else None
    """

    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        """Return the fields to record, all encodable, or None if the exception is not this translator's."""
        ...

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        """Rebuild the exception from the result of `fields_of`; None if the class is not this translator's."""
        ...


_REMOTE = "Remote traceback:\n"
_PACKAGE = __file__.removesuffix("core/failures.py").removesuffix("core\\failures.py")
"""The folder of this package."""


def failure_of(error: BaseException, /, *, translators: Sequence[FailureTranslator] = ()) -> Failure:
    """Return an exception as it is recorded. Never raises, whatever the exception's own methods do.

    `failure_of(rebuild(failure))` is `failure` again, traceback included: it stays that of the first place.
    """
    try:
        return _Recorder(translators).record(error, ())
    except Exception as broken:  # noqa: BLE001  something of it raises even so: it is recorded by what is left
        module, qualname = _names_of(type(error))
        shown = f"{_text(error)}\n(its attributes cannot be read: {_text(broken)})\n"
        return Failure(module, qualname, _text(error), traceback=_stack(_TRACEBACK.__get__(error)) + shown)


# The attributes as Python keeps them: a class may define its own, which may be anything, or raise.
_ARGS = vars(BaseException)["args"]
_DICT = vars(BaseException)["__dict__"]
_CAUSE = vars(BaseException)["__cause__"]
_TRACEBACK = vars(BaseException)["__traceback__"]
_MESSAGE_OF_GROUP = vars(BaseExceptionGroup)["message"]
_MEMBERS = vars(BaseExceptionGroup)["exceptions"]
_MODULE = vars(type)["__module__"]
_QUALNAME = vars(type)["__qualname__"]
_NAMES = vars(type)["__dict__"]


def _names_of(cls: type[BaseException]) -> tuple[str, str]:
    return str(_MODULE.__get__(cls)), _clean(_QUALNAME.__get__(cls))


class _Recorder:
    def __init__(self, translators: Sequence[FailureTranslator]) -> None:
        self._translators = translators
        self._left = FAILURES_LIMIT

    def record(self, error: BaseException, within: tuple[BaseException, ...]) -> Failure:
        self._left -= 1
        cls = type(error)
        members: Sequence[BaseException] = ()
        module, qualname = _names_of(cls)
        args: tuple[Any, ...] = _ARGS.__get__(error)
        if BaseExceptionGroup in cls.__mro__:
            args, members = (_MESSAGE_OF_GROUP.__get__(error),), _MEMBERS.__get__(error)
        cause: BaseException | None = _CAUSE.__get__(error)
        path = (*within, error)
        if self._left < 0 or len(path) >= DEPTH_LIMIT:
            cause, members = None, ()
        notes, remote = _notes(error)
        held = self._fields(error)
        fields = {_clean(name): _builtin(value) for name, value in held.items()}
        return Failure(
            module=module,
            qualname=qualname,
            message=_text(error),
            args=[_builtin(value) for value in args],
            fields=fields,
            notes=notes,
            # the text of the outermost one shows its members and causes too
            traceback=remote if remote is not None else ("" if within else _traceback(error)),
            group=[self.record(member, path) for member in members],
            cause=None if cause is None or any(cause is one for one in path) else self.record(cause, path),
            script=_script_name() if module == "__main__" else "",
            unrecorded=[_clean(name) for name, value in held.items() if not _is_kept(value)],
        )

    def _fields(self, error: BaseException) -> Mapping[str, object]:
        for translator in (*self._translators, *_TRANSLATORS):
            try:
                fields = translator.fields_of(error)
            except Exception:  # noqa: BLE001  a failure is recorded even so, with what it holds itself
                continue
            if fields is not None:
                return fields
        held: dict[str, object] = {}
        for name, slot in _slots(type(error)).items():
            try:
                value = slot.__get__(error)
            except AttributeError:  # a slot that was not set
                continue
            # an unset builtin attribute reads as None; setting it would change the text of an OSError
            if value is not None or slot.__objclass__.__flags__ & _DEFINED_IN_PYTHON:
                held[name] = value
        held.update(_DICT.__get__(error))
        held.update(held.pop(_UNRECORDED, {}))  # pyright: ignore[reportCallIssue, reportArgumentType]  a mapping
        return {name: value for name, value in held.items() if name not in _OURS}


def rebuild(failure: Failure, /, *, translators: Sequence[FailureTranslator] = ()) -> Exception:
    """Return the exception that a failure records, its remote traceback as a note.

    The class is looked up by name among loaded modules. The result is a `RemoteError` if it is not there, cannot be
    rebuilt, or is no `Exception`: nothing remote ends a process or cancels a task of the caller. An exception class
    made in a function is found while it lives, the newest of several. Reading an attribute that could not be recorded
    raises `NotRecorded`.
    """
    error = _restored(failure, translators)
    if error is None:
        error = RemoteError(failure.type, failure.message, failure.traceback)
    notes = [*failure.notes, _REMOTE + failure.traceback] if failure.traceback else failure.notes
    if notes:
        _DICT.__get__(error)["__notes__"] = list(notes)
    if failure.cause is not None:
        _CAUSE.__set__(error, rebuild(failure.cause, translators=translators))
    return error


def _restored(failure: Failure, translators: Sequence[FailureTranslator]) -> Exception | None:
    cls = _class_of(failure)
    if cls is None:
        return None
    try:
        error = _translated(cls, failure, translators)
        if error is None:
            error = _instance(cls, failure, translators)
            str(error)  # an exception that cannot be shown is worse than a RemoteError
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        return None
    return error if isinstance(error, Exception) else None


def _translated(
    cls: type[BaseException], failure: Failure, translators: Sequence[FailureTranslator]
) -> BaseException | None:
    for translator in (*translators, *_TRANSLATORS):
        error = translator.restore(cls, failure)
        if error is not None:
            return error
    return None


_UNRECORDED = "__perdure_unrecorded__"


def _with_unrecorded(cls: type[BaseException]) -> type[BaseException]:
    """Return a subclass of `cls` whose unrecorded attributes raise, or `cls` if it controls its own subclasses.

    The class has the same name, so it records as the same.
    """
    if type(cls) is not type or any("__init_subclass__" in vars(base) for base in cls.__mro__ if base is not object):
        return cls

    def refuse(self: BaseException, name: str) -> Any:
        known: Mapping[str, str] = _DICT.__get__(self).get(_UNRECORDED, {})
        told = type_name(cls)
        if name in known:
            raise NotRecorded(
                f"attribute {name!r} of {told} could not be recorded where it was raised: it was {known[name]}; "
                "keep builtin values in an exception that a workflow reads"
            )
        raise NotRecorded(f"{told} has no attribute {name!r}; not recorded were {', '.join(map(repr, known))}")

    def show(self: BaseException) -> str:
        try:
            return cls.__str__(self)
        except NotRecorded:
            return cast("str", _DICT.__get__(self).get(_MESSAGE, ""))

    body: dict[str, Any] = {"__getattr__": refuse, "__str__": show, "__module__": cls.__module__, _UNRECORDED: ()}
    return type(cls.__name__, (cls,), {**body, "__qualname__": cls.__qualname__})


_MESSAGE = "__perdure_message__"
_OURS = ("__notes__", _MESSAGE)


def _instance(cls: type[BaseException], failure: Failure, translators: Sequence[FailureTranslator]) -> BaseException:
    # `__new__` of the builtin class beneath: that of a Python class may take other arguments, or do anything
    native: Any = cls
    while native.__flags__ & _DEFINED_IN_PYTHON:
        native = native.__base__
    error: BaseException
    whole = cls
    if failure.unrecorded:
        cls = _with_unrecorded(whole)
    if BaseExceptionGroup in cls.__mro__:
        members = [rebuild(member, translators=translators) for member in failure.group]
        error = native.__new__(cls, failure.args[0], members)
    else:
        error = native.__new__(cls, *failure.args)
        _ARGS.__set__(error, tuple(failure.args))
    slots, held = _slots(cls), _DICT.__get__(error)
    if cls is not whole:
        held[_UNRECORDED] = {name: _Text(failure.fields.get(name)) for name in failure.unrecorded}
        held[_MESSAGE] = failure.message
    for name, value in failure.fields.items():
        if cls is not whole and name in failure.unrecorded:
            continue
        value = _as_annotated(cls, name, value)
        if name in slots:
            slots[name].__set__(error, value)
        else:
            held[name] = value
    return error


_DEFINED_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_UNSETTABLE = (object, BaseException, BaseExceptionGroup)


def _slots(cls: type[BaseException]) -> dict[str, Any]:
    """Return the attributes outside `__dict__`: `errno` of an OSError, `start` of a UnicodeError, slots of the author.

    Without `AttributeError.obj`: it serves "did you mean", and may be anything.
    """
    return {
        name: slot
        for base in reversed(cls.__mro__)
        if base not in _UNSETTABLE
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType) and not (base is AttributeError and name == "obj")
    }


def _as_annotated(cls: type[BaseException], name: str, value: object) -> object:
    """Convert a field by the annotation of the class, or of the parameter of `__init__` with its name."""
    for base in cls.__mro__:
        for holder in (base, vars(base).get("__init__")):
            annotations = vars(holder).get("__annotations__", {}) if holder is base else _annotations(holder)
            if name in annotations:
                try:
                    return decoder(resolved(annotations[name], names_in(base.__module__), {}))(encode_any(value))
                except (PerdureError, NameError, TypeError, SyntaxError, AttributeError):
                    return value
    return value


def _annotations(function: object) -> Mapping[str, object]:
    return getattr(function, "__annotations__", {})


def _class_of(failure: Failure) -> type[BaseException] | None:
    found: Any = _module_of(failure)
    for name in failure.qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # not getattr: modules may import on demand
    if _is_exception(found):
        return cast("type[BaseException]", found)
    for module in _modules_of(failure):  # it was made in a function, as a library may, or its module was never imported
        if (made := _living_class(module, failure.qualname)) is not None:
            return made
    return None


def _is_exception(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BaseException)


def _module_of(failure: Failure) -> object:
    """Return the loaded module that defines the class. A process that runs module `app` calls it `__main__`."""
    mine = _script_name()
    if failure.module == "__main__":
        return sys.modules.get("__main__" if failure.script == mine else failure.script)
    return sys.modules.get(failure.module) or (sys.modules.get("__main__") if failure.module == mine else None)


def _modules_of(failure: Failure) -> list[str]:
    """Return the names that the class's module may have here, as `_module_of` finds it."""
    mine = _script_name()
    if failure.module == "__main__" and failure.script != mine:
        return [failure.script] if failure.script else []
    return [failure.module, *(["__main__"] if failure.module == mine else [])]


def _script_name() -> str:
    """Return the name under which other processes import this `__main__`, "" if they cannot."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    return PurePath(getattr(main, "__file__", None) or "").stem


def _living_class(module: str, qualname: str) -> type[BaseException] | None:
    found: type[BaseException] | None = None
    waiting: list[type[BaseException]] = [BaseException]
    while waiting:
        for cls in type.__subclasses__(waiting.pop()):  # in the order they were made
            waiting.append(cls)
            if _names_of(cls) == (module, qualname) and _UNRECORDED not in _NAMES.__get__(cls):
                found = cls
    return found


def _builtin(value: object) -> Any:
    try:
        payload = encode_any(value)
        return decode_any(payload) if len(payload) <= VALUE_LIMIT else _clean(repr(value))
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        return _shown(value)


def _is_kept(value: object) -> bool:
    """Report whether a field is recorded as a value, not as its `repr`."""
    if isinstance(value, str):
        return not isinstance(value, _Text)
    try:
        return len(encode_any(value)) <= VALUE_LIMIT
    except Exception:  # noqa: BLE001  it cannot be encoded, which is what was asked
        return False


class _Text(str):
    """The text that stands for an attribute that could not be recorded."""

    __slots__ = ()


def _shown(value: object) -> str:
    try:
        return _clean(repr(value))
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        return f"<{type_name(type(value))} without a repr>"


def _text(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except Exception as broken:  # noqa: BLE001  the same, for __str__
        return f"<str() of it raised {type_name(type(broken))}>"


def _clean(text: str) -> str:
    """Cut text at its limit, and escape what UTF-8 cannot hold."""
    cut = text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]}… ({len(text):,} characters)"
    return cut.encode("utf-8", "backslashreplace").decode()


def _notes(error: BaseException) -> tuple[list[str], str | None]:
    """Return an exception's notes, and separately the traceback that `rebuild` attached."""
    notes: list[str] = []
    remote: str | None = None
    for note in _notes_held(error):
        if isinstance(note, str) and note.startswith(_REMOTE):
            remote = note.removeprefix(_REMOTE) if remote is None else remote
        else:
            notes.append(_clean(note) if isinstance(note, str) else _shown(note))
    return notes, remote


def _notes_held(error: BaseException) -> Iterable[object]:
    try:
        held: object = getattr(error, "__notes__", None)
    except Exception:  # noqa: BLE001  a class with a `__getattr__` of its own may raise anything
        held = _DICT.__get__(error).get("__notes__")
    if held is None:
        return ()
    return cast("Iterable[object]", held) if isinstance(held, list | tuple) else (_Text(_shown(held)),)


def _traceback(error: BaseException) -> str:
    try:
        shown = tracebacks.TracebackException.from_exception(error, compact=True)
        _drop_remote_notes(shown, set())
        _drop_leading_frames_of_ours(shown.stack)
        text = "".join(shown.format())
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        told = Failure(*_names_of(type(error)), _text(error))
        text = f"{_stack(_TRACEBACK.__get__(error))}{told.type}: {told.message}\n"
    cut = text if len(text) <= TRACEBACK_LIMIT else f"…{text[-TRACEBACK_LIMIT + 1 :]}"
    return cut.encode("utf-8", "backslashreplace").decode()


def _stack(traceback: types.TracebackType | None) -> str:
    try:
        stack = tracebacks.extract_tb(traceback)
        _drop_leading_frames_of_ours(stack)
        return "".join(["Traceback (most recent call last):\n", *stack.format()]) if stack else ""
    except Exception:  # noqa: BLE001  a module's loader may break it; the failure is recorded even so
        return ""


def _drop_leading_frames_of_ours(stack: tracebacks.StackSummary) -> None:
    """Cut the frames of Perdure from the beginning of a traceback: it begins with the author's function."""
    theirs = next((n for n, frame in enumerate(stack) if not frame.filename.startswith(_PACKAGE)), 0)
    del stack[:theirs]


def _drop_remote_notes(shown: Any, seen: set[int]) -> None:
    """Leave out the tracebacks of members and causes: each keeps its own."""
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    notes: Any = shown.__notes__
    if isinstance(notes, list):
        shown.__notes__ = [note for note in cast("list[object]", notes) if not str(note).startswith(_REMOTE)]
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        _drop_remote_notes(other, seen)


# --- pydantic's -------------------------------------------------------------------------------------------------------


class _ValidationErrors:
    """Records a `pydantic.ValidationError`: it has no arguments or attributes, and only pydantic makes it."""

    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        if not isinstance(error, loaded("pydantic_core", "ValidationError")):
            return None
        found: Any = error
        errors = [self._recorded(each) for each in found.errors(include_url=False)]
        if len(encode_any(errors)) > VALUE_LIMIT:  # mostly inputs: each error holds its own
            errors = [self._shortened(each) for each in errors[:_ERRORS_KEPT]]
        return {"title": found.title, "errors": errors}

    def _recorded(self, line: Mapping[str, Any]) -> dict[str, Any]:
        context = {name: _builtin(value) for name, value in line.get("ctx", {}).items()}
        if isinstance(error := line.get("ctx", {}).get("error"), Exception):
            context["error"] = _text(error)
        kept = {"type": line["type"], "loc": list(line["loc"]), "msg": line["msg"], "input": _builtin(line["input"])}
        return kept | ({"ctx": context} if context else {})

    def _shortened(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        message, shown = kept["msg"], repr(kept["input"])
        return {"type": kept["type"], "loc": kept["loc"], "msg": message[:_TEXT_KEPT], "input": shown[:_TEXT_KEPT]}

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        if not issubclass(cls, loaded("pydantic_core", "ValidationError")):
            return None
        made: Any = cls
        lines = [self._line(each) for each in failure.fields["errors"]]
        error = made.from_exception_data(failure.fields["title"], lines)
        error.args = tuple(failure.args)
        return error

    def _line(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        kind, context = kept["type"], dict(kept.get("ctx", {}))
        line = {"type": kind, "loc": tuple(kept["loc"]), "input": kept["input"]}
        if isinstance(context.get("error"), str):
            raised = ValueError if kind == "value_error" else AssertionError
            context["error"] = raised(context["error"])
        try:
            known: Any = loaded("pydantic_core", "PydanticKnownError")(kind, context or None)
            if known.message() == kept["msg"]:
                return line | ({"ctx": context} if context else {})
        except Exception:  # noqa: BLE001  a type that this pydantic does not know, or the user's own
            pass
        return line | {"type": loaded("pydantic_core", "PydanticCustomError")(kind, kept["msg"], context or None)}


_ERRORS_KEPT = 100
_TEXT_KEPT = 200
_TRANSLATORS: tuple[FailureTranslator, ...] = (_ValidationErrors(),)
