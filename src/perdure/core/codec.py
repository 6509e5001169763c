"""Values and exceptions as the bytes a journal keeps, and back.

Values are msgpack, written and read by msgspec; annotations decide what they come back as. Exceptions become a
`Failure` and are rebuilt from it without importing, unpickling or calling anybody's `__init__`.
Knows nothing of journals, workflows or stores. Reads `sys.modules` (to find classes that are loaded) and, while it
formats a traceback, the source lines that Python shows in it.

* pydantic models are read and written by field name (pydantic >= 2.11), without their private attributes; a model that
  declares serializers of its own is written by them. protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes keep their instant and come back in UTC. Paths and IP addresses are text.
* A union that msgspec refuses is read as the one member that the bytes fit without loss; see `_Choice`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import reprlib
import sys
import traceback as tracebacks
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, Union, cast, get_args, get_origin

import msgspec
import msgspec.inspect

from perdure.errors import AnnotationUnresolved, PerdureError, RemoteError, Undecodable, Unencodable

TRACEBACK_LIMIT = 16_384
"""Characters of a traceback that a failure keeps: the last ones, nearest to what was raised."""

VALUE_LIMIT = 65_536
"""Bytes of one argument or field of an exception, and characters of its text. What is larger is kept as its start."""

DEPTH_LIMIT = 8
"""Causes of causes, and groups in groups, that a failure keeps."""

FAILURES_LIMIT = 1_000
"""Exceptions in one failure whose causes and members are kept; any further ones are kept flat."""

DECODERS_LIMIT = 1_024
"""Annotations whose decoders are kept ready."""

PATH_LIMIT = 64
"""Levels into a value that the search for what cannot be encoded goes."""

_TIP = "use builtin types, dataclasses, TypedDicts, or msgspec, attrs, pydantic or protobuf classes"
_PLAIN = frozenset({str, int, float, bool, bytes})
SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
"""Classes whose values `encode_scalar` writes as they are."""
_AS_TEXT = (
    PurePath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)


# --- to bytes ---------------------------------------------------------------------------------------------------------


def encode(value: object, /, where: str = "the value") -> bytes:
    """Return the msgpack bytes of a value, or raise `Unencodable` naming `where` it is from and what is in the way."""
    try:
        return _encode(value)
    except Exception as error:
        raise _unencodable(value, error, where) from error


def encode_as(value: object, annotation: Any, where: str, /) -> bytes:
    """Return the bytes of a value after proving that they decode as its annotation says.

    Raises `Unencodable` if they do not, `AnnotationUnresolved` if nothing decodes the annotation; both name `where`.
    """
    try:
        payload = _encode(value)
    except Exception as error:
        raise _unencodable(value, error, where) from error
    if (value.__class__ is annotation and annotation in _PLAIN) or annotation is Any or value is None is annotation:
        return payload
    try:
        decoder(annotation)(payload)
    except Undecodable as error:
        kind = type_name(value.__class__)
        text = f"{where} is a {kind}, but its annotation says {error.annotation}: {error.reason}"
        raise Unencodable(text, type=kind) from error
    except AnnotationUnresolved as error:
        raise AnnotationUnresolved(f"{where}: {error}", annotation=error.annotation, reason=error.reason) from error
    return payload


def encode_for_digest(value: object, /, where: str = "the value") -> bytes:
    """Return bytes that are the same for equal values in every process: sets and mappings are sorted by their bytes.

    They need not be those of `encode`. Raises `Unencodable`.
    """
    try:
        return _canonical(value)
    except Exception as error:
        raise _unencodable(value, error, where) from error


def digest(payload: bytes, /) -> bytes:
    """Return 8 bytes (BLAKE2b) that tell payloads apart."""
    return hashlib.blake2b(payload, digest_size=8).digest()


def map_header(size: int, /) -> bytes:
    """Return the bytes that open a msgpack map of this many pairs."""
    return _header(0x80, 0xDE, size)


def _header(short: int, long: int, size: int) -> bytes:
    if size < 16:
        return bytes((short | size,))
    return bytes((long,)) + size.to_bytes(2, "big") if size < 65_536 else bytes((long + 1,)) + size.to_bytes(4, "big")


def _foreign(value: Any) -> object:
    """Give msgspec something it knows in place of a value it does not."""
    if isinstance(value, str):  # a subclass, as are the next two: msgspec wants the classes themselves
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, _loaded("pydantic.main", "BaseModel")):
        return _model_fields(value)
    if isinstance(value, _loaded("google.protobuf.message", "Message")):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, _AS_TEXT) or type(cast("object", value)).__module__ == "pydantic.networks":
        return str(value)
    raise TypeError(_TIP)


class _NeverLoaded:
    """Stands for a class that is not loaded: nothing is an instance of it."""


def _loaded(module: str, name: str) -> type[Any]:
    return getattr(sys.modules.get(module), name, _NeverLoaded)


def _model_fields(model: Any) -> object:
    """Return a pydantic model by field name: as it is held, unless the class says how it wants to be written."""
    cls: Any = model.__class__
    own = cls.__pydantic_decorators__
    marks = (type(mark).__module__ for field in cls.model_fields.values() for mark in field.metadata)
    if own.field_serializers or own.model_serializers or "pydantic.functional_serializers" in marks:
        return model.model_dump(by_alias=False, round_trip=True, warnings="error")
    if cls.__pydantic_root_model__:
        return model.root
    fields: dict[str, object] = {name: getattr(model, name) for name in cls.model_fields}
    return fields | cast("dict[str, object]", model.model_extra or {})


_encode = msgspec.msgpack.Encoder(enc_hook=_foreign).encode
encode_scalar = msgspec.msgpack.Encoder().encode
_decode_any = msgspec.msgpack.Decoder().decode


def _canonical(value: Any, unordered: bool = False) -> bytes:
    """Encode with sets and mappings sorted; with `unordered`, lists too (they may have been sets)."""
    if value.__class__ in SCALARS:
        return encode_scalar(value)
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value).items()
        pairs = sorted(_canonical(key, unordered) + _canonical(item, unordered) for key, item in entries)
        return map_header(len(pairs)) + b"".join(pairs)
    if isinstance(value, list | tuple | set | frozenset):
        values = cast("Iterable[Any]", value)
        items = [encode_scalar(item) if item.__class__ in SCALARS else _canonical(item, unordered) for item in values]
        if unordered or isinstance(value, set | frozenset):
            items.sort()
        return _header(0x90, 0xDC, len(items)) + b"".join(items)
    names = _field_names(value.__class__)
    if names is not None:
        held = [(key, getattr(value, name)) for key, name in names]
        pairs = [key + _canonical(item, unordered) for key, item in held if item is not msgspec.UNSET]
        return map_header(len(pairs)) + b"".join(pairs)
    try:
        return encode_scalar(value)
    except TypeError:
        return _canonical(_foreign(value), unordered)


@lru_cache(maxsize=DECODERS_LIMIT)
def _field_names(cls: Any) -> tuple[tuple[bytes, str], ...] | None:
    """Return the fields of a Struct, dataclass or attrs class: their names encoded, in that order, and as they are."""
    if issubclass(cls, msgspec.Struct):
        names: Iterable[str] = cls.__struct_fields__
    elif dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [attribute.name for attribute in cls.__attrs_attrs__]
    else:
        return None
    return tuple(sorted((_encode(name), name) for name in names))


# --- what cannot be encoded, and where it is --------------------------------------------------------------------------


def _unencodable(value: object, error: Exception, where: str) -> Unencodable:
    path, culprit, reason = _culprit(value, error)
    kind = type_name(type(culprit))
    return Unencodable(
        f"{where} cannot be recorded: {f'value{path}' if path else 'it'} is a {kind}; {reason}", path=path, type=kind
    )


def _culprit(value: object, error: Exception) -> tuple[str, object, str]:
    """Follow what cannot be encoded down to the smallest part. Return its path, itself and why."""
    path, ancestors = "", [value]
    for _ in range(PATH_LIMIT):
        for step, part in _parts(value):
            if any(part is ancestor for ancestor in ancestors):
                return path + step, part, "it contains itself"
            failed = _error_of(part)
            if failed is not None:
                path, value, error = path + step, part, failed
                ancestors.append(part)
                break
        else:
            return path, value, str(error)
    return path, value, f"it is nested more than {PATH_LIMIT} levels deep"


def _error_of(value: object) -> Exception | None:
    try:
        _encode(value)
    except Exception as error:  # noqa: BLE001  returned, not swallowed
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield f" key {reprlib.repr(key)}", key
            yield f"[{reprlib.repr(key)}]", item
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(cast("Sequence[Any]", value)))
    elif isinstance(value, set | frozenset):
        yield from ((f" item {reprlib.repr(item)}", item) for item in cast("Iterable[Any]", value))
    else:
        cls: Any = value.__class__
        model = issubclass(cls, _loaded("pydantic.main", "BaseModel"))
        names = cls.model_fields if model else [name for _, name in _field_names(cls) or ()]
        yield from ((f".{name}", getattr(value, name, None)) for name in names)


def type_name(annotation: object, /) -> str:
    """Return an annotation as a reader would write it, classes with their module unless it is `builtins`."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is not Any and isinstance(annotation, type) and not get_args(annotation):
        within = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
        return f"{within}{annotation.__qualname__}"
    return str(annotation).replace("typing.", "")


# --- from bytes -------------------------------------------------------------------------------------------------------


def decoder(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes payloads as an annotation says, strictly.

    It raises `Undecodable`. No annotation is `Any`: builtin types. `object` and type variables are `Any` too;
    `NoReturn` is `None`. Raises `AnnotationUnresolved` for a type that nothing can decode.
    """
    try:
        return _cached_decoder(annotation)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _new_decoder(annotation)


def wire_type(annotation: object, /) -> Any:
    """Return what msgspec must be given, with `from_wire`, for an annotation. Raises `AnnotationUnresolved`."""
    try:
        wanted = _wire_type(annotation)
        for cls in _custom_types(msgspec.inspect.type_info(wanted), set()):
            if not issubclass(cls, _decodable()):
                raise _unusable(annotation, f"nothing decodes {type_name(cls)}; {_TIP}")
    except AnnotationUnresolved:
        raise
    except Exception as error:  # msgspec: TypeError mostly, NameError for fields that name nothing
        raise _unusable(annotation, str(error)) from error
    return wanted


def from_wire(cls: Any, value: Any, /) -> Any:
    """Build what msgspec does not know, as the `dec_hook` of a decoder for a `wire_type`."""
    if cls is object:
        return value
    if issubclass(cls, _Choice):
        return cls.pick(value)
    if issubclass(cls, _loaded("pydantic.main", "BaseModel")):
        return cls.model_validate(value, strict=False, by_alias=False, by_name=True)
    if issubclass(cls, _loaded("google.protobuf.message", "Message")):
        if isinstance(value, bytes):
            return cls.FromString(value)
    elif isinstance(value, str):
        return cls(value)
    raise TypeError(f"Expected `{type_name(cls)}`, got `{type_name(value.__class__)}`")


@lru_cache(maxsize=DECODERS_LIMIT)
def _cached_decoder(annotation: object) -> Callable[[bytes], Any]:
    return _new_decoder(annotation)


def _new_decoder(annotation: object) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder[Any](wire_type(annotation), dec_hook=from_wire).decode

    def decode_payload(payload: bytes) -> Any:
        try:
            return decode(payload)
        except Exception as error:
            name, reason = type_name(annotation), str(error)
            text = f"a recorded value does not decode as {name}: {reason}"
            raise Undecodable(text, annotation=name, reason=reason) from error

    return decode_payload


def _unusable(annotation: object, reason: str) -> AnnotationUnresolved:
    name = type_name(annotation)
    return AnnotationUnresolved(f"annotation {name} cannot be used: {reason}", annotation=name, reason=reason)


def _decodable() -> tuple[type[Any], ...]:
    known = (_Choice, _loaded("pydantic.main", "BaseModel"), _loaded("google.protobuf.message", "Message"))
    return *known, *_AS_TEXT


def _custom_types(node: object, seen: set[int]) -> Iterator[type[Any]]:
    """Find the classes that msgspec leaves to `from_wire`, anywhere in a type."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.CustomType):
        if node.cls is not object:
            yield get_origin(node.cls) or node.cls
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in node.__struct_fields__:
            yield from _custom_types(getattr(node, name), seen)
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from _custom_types(item, seen)


_NAMED_ALIAS: Any = getattr(typing, "TypeAliasType", _NeverLoaded)  # `type X = ...`, Python 3.12


def _wire_type(annotation: Any) -> Any:
    if annotation is object or isinstance(annotation, TypeVar):
        return Any
    if annotation is NoReturn or annotation is typing.Never:
        return None
    if isinstance(annotation, _NAMED_ALIAS):
        return _wire_type(annotation.__value__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Iterable or origin is Iterable:
        return list[_wire_type(arguments[0] if arguments else Any)]
    if not arguments or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _wire_type(arguments[0])
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    wired = tuple(_wire_type(argument) for argument in arguments)
    if origin is Union or origin is types.UnionType:
        return _union(annotation, arguments, wired)
    same = all(new is old for new, old in zip(wired, arguments, strict=True))
    return annotation if same else origin[wired]


def _union(annotation: object, members: tuple[Any, ...], wired: tuple[Any, ...]) -> Any:
    union: Any = Union[wired]  # noqa: UP007  built from a tuple
    try:
        msgspec.inspect.type_info(union)
    except TypeError:
        some = tuple(member for member in members if member is not type(None))
        options = tuple((type_name(member), decoder(member)) for member in some)
        choice: Any = _HasAnyInstance("Choice", (_Choice,), {"name": type_name(annotation), "options": options})
        return choice if len(some) == len(members) else choice | None
    return union


class _HasAnyInstance(type):
    def __instancecheck__(cls, instance: object, /) -> bool:
        return True


class _Choice(metaclass=_HasAnyInstance):  # msgspec checks that what `from_wire` returns is an instance of it
    """A union that msgspec refuses, such as one of two dataclasses.

    The one member is taken that the value fits without loss, or failing that the only one that it fits at all (fields
    that this member does not know are dropped, as anywhere). A value that fits several equally is refused: `encode_as`
    finds out when it is first recorded.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[tuple[str, Callable[[bytes], Any]], ...]]

    @classmethod
    def pick(cls, value: object) -> object:
        payload, wanted = _encode(value), _canonical(value, unordered=True)
        exact: list[tuple[str, object]] = []
        loose: list[tuple[str, object]] = []
        reasons: list[str] = []
        for name, decode in cls.options:
            try:
                candidate = decode(payload)
            except Undecodable as error:
                reasons.append(error.reason)
                continue
            again = _canonical(_decode_any(_encode(candidate)), unordered=True)
            (exact if again == wanted else loose).append((name, candidate))
        fitting = exact or loose
        if len(fitting) == 1:
            return fitting[0][1]
        if fitting:
            names = " and ".join(name for name, _ in fitting)
            raise ValueError(f"it fits {names}: tell them apart, as by a field `kind: Literal[...]` in each")
        raise ValueError(f"Expected `{cls.name}`: {'; '.join(reasons)}")


# --- exceptions -------------------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An exception as it is recorded: builtin values only.

    `args` and `fields` (its `__dict__`, slots, and what its builtin class holds, such as `errno`) keep what can be
    encoded, as it comes back without an annotation (a tuple as a list); anything else is its `repr`. `traceback` is
    where it was first raised. `script` is the name by which others import the module that is `__main__` where it was
    raised, if `module` is that.
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

    @property
    def type(self) -> str:
        """The full name of its class."""
        return self.qualname if self.module == "builtins" else f"{self.module}.{self.qualname}"


class FailureTranslator(Protocol):
    """Takes apart and rebuilds exceptions of a library whose attributes are not builtin values, such as gRPC's.

    Pass those in use to both `failure_of` and `rebuild`; the first that answers decides. An example for a class whose
    `code` is an enum::

        class Translator:
            def fields_of(self, error):
                return {"code": error.code.name} if isinstance(error, ApiError) else None

            def restore(self, cls, failure):
                return cls(Code[failure.fields["code"]]) if issubclass(cls, ApiError) else None
    """

    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        """Return the fields to record, encodable each, or None if the exception is not this translator's."""
        ...

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        """Return the exception again from what `fields_of` gave, or None if the class is not this translator's."""
        ...


_REMOTE = "Remote traceback:\n"


def failure_of(error: BaseException, /, *, translators: Sequence[FailureTranslator] = ()) -> Failure:
    """Return an exception as it is recorded. Never raises, whatever the exception's own methods do.

    `failure_of(rebuild(failure))` is `failure` again, traceback included: it stays that of the first place.
    """
    return _Recorder(translators).record(error, ())


class _Recorder:
    def __init__(self, translators: Sequence[FailureTranslator]) -> None:
        self._translators = translators
        self._left = FAILURES_LIMIT

    def record(self, error: BaseException, within: tuple[BaseException, ...]) -> Failure:
        self._left -= 1
        cls = type(error)
        members: Sequence[BaseException] = ()
        args = error.args
        group: Any = error
        if BaseExceptionGroup in cls.__mro__:
            args, members = (group.message,), group.exceptions
        cause = error.__cause__
        path = (*within, error)
        if self._left < 0 or len(path) >= DEPTH_LIMIT:
            cause, members = None, ()
        notes, remote = _notes(error)
        return Failure(
            module=str(cls.__module__),
            qualname=cls.__qualname__,
            message=_text(error),
            args=[_builtin(value) for value in args],
            fields={_clean(name): _builtin(value) for name, value in self._fields(error).items()},
            notes=notes,
            # the text of the outermost one shows its members and causes too
            traceback=remote if remote is not None else ("" if within else _traceback(error)),
            group=[self.record(member, path) for member in members],
            cause=None if cause is None or any(cause is one for one in path) else self.record(cause, path),
            script=_script_name() if cls.__module__ == "__main__" else "",
        )

    def _fields(self, error: BaseException) -> Mapping[str, object]:
        for translator in self._translators:
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
            # None is what a builtin's reads like when it was not set; setting it would show in the text of an OSError
            if value is not None or slot.__objclass__.__flags__ & _DEFINED_IN_PYTHON:
                held[name] = value
        held.update(error.__dict__)
        return {name: value for name, value in held.items() if name != "__notes__"}


def rebuild(failure: Failure, /, *, translators: Sequence[FailureTranslator] = ()) -> BaseException:
    """Return the exception that a failure records, its remote traceback as a note.

    The class is looked for by name among loaded modules. If it is not there, or cannot be rebuilt: `RemoteError`.
    An exception class made inside a function is found as long as it lives, the newest if there are several.
    """
    error = _restored(failure, translators)
    if error is None:
        error = RemoteError(failure.type, failure.message, failure.traceback)
    notes = [*failure.notes, _REMOTE + failure.traceback] if failure.traceback else failure.notes
    if notes:
        error.__notes__ = list(notes)
    if failure.cause is not None:
        error.__cause__ = rebuild(failure.cause, translators=translators)
    return error


def _restored(failure: Failure, translators: Sequence[FailureTranslator]) -> BaseException | None:
    cls = _class_of(failure)
    if cls is None:
        return None
    try:
        for translator in translators:
            error = translator.restore(cls, failure)
            if error is not None:
                return error
        error = _instance(cls, failure, translators)
        str(error)  # an exception that cannot be shown is worse than a RemoteError
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        return None
    return error


def _instance(cls: type[BaseException], failure: Failure, translators: Sequence[FailureTranslator]) -> BaseException:
    # `__new__` of the builtin class beneath: that of a Python class may take other arguments, or do anything
    native: Any = cls
    while native.__flags__ & _DEFINED_IN_PYTHON:
        native = native.__base__
    error: BaseException
    if BaseExceptionGroup in cls.__mro__:
        members = [rebuild(member, translators=translators) for member in failure.group]
        error = native.__new__(cls, failure.args[0], members)
    else:
        error = native.__new__(cls, *failure.args)
        error.args = tuple(failure.args)
    slots = _slots(cls)
    for name, value in failure.fields.items():
        value = _as_annotated(cls, name, value)
        if name in slots:
            slots[name].__set__(error, value)
        else:
            error.__dict__[name] = value
    return error


_DEFINED_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_UNSETTABLE = (object, BaseException, BaseExceptionGroup)


def _slots(cls: type[BaseException]) -> dict[str, Any]:
    """Return what instances hold beside `__dict__`: `errno` of an OSError, `start` of a UnicodeError, user's slots.

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
    """Convert a field by the class's annotation, or by that of the parameter of `__init__` of its name."""
    for base in cls.__mro__:
        for holder in (base, vars(base).get("__init__")):
            annotations = vars(holder).get("__annotations__", {}) if holder is base else _annotations(holder)
            if name in annotations:
                try:
                    return decoder(resolved(annotations[name], names_in(base.__module__), {}))(_encode(value))
                except (PerdureError, NameError, TypeError, SyntaxError, AttributeError):
                    return value
    return value


def _annotations(function: object) -> Mapping[str, object]:
    return getattr(function, "__annotations__", {})


def names_in(module: str | None, /) -> Mapping[str, Any]:
    """Return the global names of a module, none if it is not loaded."""
    return getattr(sys.modules.get(module or ""), "__dict__", {})


def resolved(annotation: object, scope: Mapping[str, Any], local: Mapping[str, Any], /) -> Any:
    """Return an annotation with the strings in it evaluated. Raises what that raises, `NameError` mostly."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, dict(scope), dict(local), include_extras=True)["it"]


def _class_of(failure: Failure) -> type[BaseException] | None:
    if "<locals>" in failure.qualname:
        return _local_class(failure.module, failure.qualname)
    found: Any = _module_of(failure)
    for name in failure.qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # not getattr: modules may import on demand
    return cast("type[BaseException]", found) if _is_exception(found) else None


def _is_exception(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BaseException)


def _module_of(failure: Failure) -> object:
    """Return the module that defines the class, if loaded. One program's `app` is `__main__` where it is the script."""
    mine = _script_name()
    if failure.module == "__main__":
        return sys.modules.get("__main__" if failure.script == mine else failure.script)
    return sys.modules.get(failure.module) or (sys.modules.get("__main__") if failure.module == mine else None)


def _script_name() -> str:
    """Return the name by which others import the module that is `__main__` here, "" if they cannot."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    return PurePath(getattr(main, "__file__", None) or "").stem


def _local_class(module: str, qualname: str) -> type[BaseException] | None:
    found: type[BaseException] | None = None
    waiting: list[type[BaseException]] = [BaseException]
    while waiting:
        for cls in type.__subclasses__(waiting.pop()):  # in the order they were made
            waiting.append(cls)
            if cls.__qualname__ == qualname and cls.__module__ == module:
                found = cls
    return found


def _builtin(value: object) -> Any:
    try:
        payload = _encode(value)
        return _decode_any(payload) if len(payload) <= VALUE_LIMIT else _clean(repr(value))
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        return _shown(value)


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
    """Return its notes, and apart from them the traceback that `rebuild` attached."""
    notes: list[str] = []
    remote: str | None = None
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, str) and note.startswith(_REMOTE):
            remote = note.removeprefix(_REMOTE) if remote is None else remote
        else:
            notes.append(_clean(note) if isinstance(note, str) else _shown(note))
    return notes, remote


def _traceback(error: BaseException) -> str:
    try:
        shown = tracebacks.TracebackException.from_exception(error, compact=True)
        _drop_remote_notes(shown, set())
        text = "".join(shown.format())
    except Exception:  # noqa: BLE001  a broken __str__ or __repr__ may break it; the failure is recorded even so
        text = f"{type_name(type(error))}: {_text(error)}\n"
    cut = text if len(text) <= TRACEBACK_LIMIT else f"…{text[-TRACEBACK_LIMIT + 1 :]}"
    return cut.encode("utf-8", "backslashreplace").decode()


def _drop_remote_notes(shown: Any, seen: set[int]) -> None:
    """Leave out the tracebacks that members and causes bring along: they keep them themselves."""
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    notes: Any = shown.__notes__
    if isinstance(notes, list):
        shown.__notes__ = [note for note in cast("list[object]", notes) if not str(note).startswith(_REMOTE)]
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        _drop_remote_notes(other, seen)
