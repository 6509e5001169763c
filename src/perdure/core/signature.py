"""The parameters of a step or workflow: its arguments as bytes by name, and back.

Recorded by name, so that a new parameter with a default leaves old journals readable; only passed arguments are
recorded, in the order of the parameters. Compiled once per function; annotations are resolved on first use, since they
may name classes defined further down. Knows functions and types, nothing of steps or workflows.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Union, Unpack, cast, get_args, get_origin

import msgspec

from perdure.core.context import BodyContext
from perdure.core.journal import CallStep, Start
from perdure.core.recording import encode_as
from perdure.core.types import (
    Read,
    decoder,
    from_record,
    from_wire,
    has_hooks,
    names_in,
    resolved,
    validator,
    wire_type,
)
from perdure.core.values import (
    SCALARS,
    Omits,
    agrees,
    always,
    digest,
    encode,
    encode_for_digest,
    encode_scalar,
    forms,
    map_header,
    map_of,
    type_name,
)
from perdure.errors import AnnotationUnresolved, InputRefused, NotAWorkflow, Undecodable, Unencodable

POSITIONAL = "*"
"""The first field of an input whose recorder did not know the types: it has the arguments without names."""
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_ANYTHING = inspect.Signature([Parameter("args", _VARIADIC[0]), Parameter("kwargs", _VARIADIC[1])])


class Signature:
    """The parameters and result of a function. Make one with `Signature.of`.

    `name` is the function's name, for texts. `parameters` are those that a caller fills; if `takes_context`, the
    context comes before them.
    """

    def __init__(self, fn: Callable[..., Any], name: str, signature: inspect.Signature, takes_context: bool) -> None:
        self.name = name
        self.takes_context = takes_context
        self.parameters = tuple(signature.parameters.values())
        self._fn = fn
        self._signature = signature
        self._keys = {one.name: encode(one.name) for one in self.parameters}
        # numbers of positional arguments that need no binding
        positional = [one for one in self.parameters if one.kind in _POSITIONAL]
        self._headers = tuple(map_header(count) for count in range(len(self.parameters) + 1))
        self._untyped = dict.fromkeys(self._keys, Any)
        self._names = tuple(one.name for one in positional)
        self._positional_keys = tuple(self._keys[each] for each in self._names)
        self._rest = {one.name for one in self.parameters if one.kind is Parameter.VAR_POSITIONAL}
        self._others = {one.name for one in self.parameters if one.kind is Parameter.VAR_KEYWORD}
        self._least = sum(_required(one) for one in positional)
        self._most = len(positional)
        if any(_required(one) for one in self.parameters if one.kind not in _POSITIONAL):
            self._most = -1

    @classmethod
    def of(
        cls, fn: Callable[..., Any], /, *, skip_context: type[BodyContext] | None = None, skip_self: bool = False
    ) -> Signature:
        """Compile a function, method, partial, static method or callable object.

        A first parameter annotated with `skip_context` is left out, also by name if the annotation is a string that
        cannot be resolved (imported for type checkers only). `skip_self` leaves out the first parameter of a method
        given as a plain function. A builtin without a signature accepts anything.
        """
        name = getattr(fn, "__qualname__", None) or getattr(_function(fn), "__qualname__", type_name(type(fn)))
        try:
            signature = parameters_of(fn)
        except TypeError as error:
            raise NotAWorkflow(f"{name} cannot be called: give a function ({error})") from error
        except ValueError:
            signature = _ANYTHING
        if isinstance(made := _called(fn), type):  # its signature is that of `__init__`, which returns None
            signature = signature.replace(return_annotation=made)
        parameters = list(signature.parameters.values())[skip_self:]
        takes_context = bool(parameters) and is_context(parameters[0].annotation, fn, skip_context)
        return cls(fn, name, signature.replace(parameters=parameters[takes_context:]), takes_context)

    @functools.cached_property
    def types(self) -> Mapping[str, Any]:
        """The recorded types by parameter: a list for `*args`, a mapping for `**kwargs`.

        Raises `AnnotationUnresolved`, naming the function, the parameter and the annotation.
        """
        return {one.name: self._recorded_type(one) for one in self.parameters}

    @functools.cached_property
    def returns(self) -> Any:
        """The annotation of the result, resolved; `Any` if there is none. Raises `AnnotationUnresolved`."""
        return self._resolve(self._signature.return_annotation, "its result", lambda annotation: annotation)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str, /, *, check: bool = True) -> bytes:
        """Return the arguments as a msgpack map by parameter name, the same for positional and named ones.

        Raises `InputRefused` if they do not match the parameters or, with `check`, their types; `Unencodable` if they
        cannot be recorded. Both name `where` ("the input of workflow 'hello'") and the parameter.
        """
        matched = self.matched(args, kwargs, where)
        types = self.types if check else self._untyped
        pieces = [self._headers[len(matched)]]
        name = ""
        try:
            for name, value in matched:
                pieces.append(self._keys[name])
                pieces.append(encode_as(value, types[name], where))
        except Unencodable as error:
            raise self._refusal(name, where, error) from error
        return b"".join(pieces)

    def decode(self, payload: bytes, /, *, validated: bool = True) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments for a call, by name and types.

        `validated` unless their recorder did not know the types. Defaults fill missing arguments. Raises `Undecodable`,
        naming the argument, for a missing one without default, an unknown name (unless there is `**kwargs`) and a
        wrong type; and `AnnotationUnresolved`.
        """
        read = self._read if validated else self._validate
        try:
            values = tuple(self._values(read, payload))
            unknown = self._unknown(payload) if self._takes_any_name else {}
        except Exception as error:
            raise self._undecodable(str(error)) from error
        if len(self._names) == self._least == len(values):
            return values, {}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        skipped: list[Any] = []
        for parameter, value in zip(self.parameters, values, strict=True):
            if parameter.kind in _POSITIONAL and value is msgspec.UNSET:
                skipped.append(parameter.default)  # passed only if something follows it
            elif value is msgspec.UNSET:
                continue
            elif parameter.kind in _POSITIONAL:
                args += (*skipped, value)
                skipped.clear()
            elif parameter.kind is Parameter.VAR_POSITIONAL:
                args += (*skipped, *value)
            elif parameter.kind is Parameter.VAR_KEYWORD:
                kwargs |= value
            else:
                kwargs[parameter.name] = value
        return tuple(args), unknown | kwargs

    def digest(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> bytes:
        """Return an 8-byte digest of the arguments of a call, the same in every process.

        A field that equals its default does not count. Raises `InputRefused` (a TypeError) if the arguments do not
        match the parameters, `Unencodable` naming the parameter.
        """
        return digest(b"".join(self.pieces(args, kwargs)))

    def digest_and_checks(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> tuple[bytes, bytes]:
        """Return the digest and, for several arguments, a 4-byte check of each, in the order of the parameters.

        Raises as `digest` does.
        """
        pieces = self.pieces(args, kwargs)
        if len(pieces) <= _ONE:
            return digest(b"".join(pieces)), b""
        return digest(b"".join(pieces)), b"".join(map(_check, pieces[1::2]))

    def pieces(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], omits: Omits = always) -> list[bytes]:
        """Return the encoded names and values, alternating, as a digest covers them."""
        pieces: list[bytes] = []
        if not kwargs and self._least <= len(args) <= self._most:
            try:
                for place, value in enumerate(args):
                    if value.__class__ not in SCALARS:
                        break
                    pieces.append(self._positional_keys[place])
                    pieces.append(encode_scalar(value))
                else:
                    return pieces  # most calls: the same bytes as below
            except (OverflowError, ValueError):
                pass  # an int above 64 bits, text with surrogates: refused below, by name
            pieces.clear()
        where, name = f"the call of {self.name}()", ""
        try:
            for name, value in self.matched(args, kwargs, where):
                pieces.append(self._keys[name])
                pieces.append(encode_for_digest(value, where, omits=omits))
        except Unencodable as error:
            raise self._refusal(name, where, error) from error
        return pieces

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> GivenArguments:
        """Return the arguments of a call, to be compared with recorded ones."""
        return GivenArguments(self, args, kwargs)

    def identity(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> bytes:
        """Return an 8-byte digest of an input, as `identity_of_arguments` does: by position where there is one.

        Raises as `digest` does.
        """
        if not kwargs and self._least <= len(args) <= self._most:  # most calls: the same as below
            return identity_of_arguments(args, kwargs)
        positional: list[Any] = []
        named: dict[str, Any] = {}
        known = iter(self._names)
        for name, value in self.matched(args, kwargs, f"the call of {self.name}()"):
            if not named and name == next(known, None):
                positional.append(value)
            elif name in self._rest and not named and len(positional) == len(self._names):
                positional += value
            elif name in self._others:
                named |= value
            else:
                named[name] = value
        return identity_of_arguments(positional, named)

    def match(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> list[tuple[str, Any]]:
        """Return the arguments by parameter name, in their order; `InputRefused` if they do not match."""
        return self.matched(args, kwargs, f"the call of {self.name}()")

    def matched(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
        """Return the arguments by parameter name, in the order of the parameters."""
        if not kwargs and self._least <= len(args) <= self._most:
            return list(zip(self._names, args, strict=False))
        try:
            passed = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputRefused(f"{where}: {self.name}(): {error}") from error
        for parameter in self.parameters:
            if parameter.kind is Parameter.VAR_KEYWORD and parameter.name in passed:
                passed[parameter.name] = dict(sorted(passed[parameter.name].items()))
        return list(passed.items())

    def _refusal(self, name: str, where: str, error: Unencodable) -> InputRefused | Unencodable:
        reason = error.__cause__
        if isinstance(reason, Undecodable):
            text = f"{where}: {name!r} is a {error.type}, but {self.name}() takes {reason.annotation}: {reason.reason}"
            return InputRefused(text, parameter=name)
        text = f"{where}: {name!r}{str(error).removeprefix(where)}"
        if name in ("self", "cls") and name == self.parameters[0].name:
            text += "; if this is a method, call it on an instance, or put @step above @classmethod"
        return Unencodable(text, path=error.path, type=error.type)

    def _values(self, read: Callable[[bytes], Any], payload: bytes) -> Iterable[Any]:
        try:
            values = msgspec.structs.astuple(read(payload))
            if not self._has_hooks:
                return values
            return [self._apart(*each) for each in zip(self.parameters, values, strict=True)]
        except Exception:  # noqa: BLE001  a type that takes a validator to rebuild; if not, this raises the same
            return msgspec.structs.astuple(self._validate(payload))

    @functools.cached_property
    def _has_hooks(self) -> bool:
        """Whether the type of a parameter has hooks, so that it is decoded apart."""
        return any(has_hooks(each) for each in self.types.values())

    def _apart(self, parameter: Parameter, value: Any) -> Any:
        return decoder(self.types[parameter.name])(bytes(value)) if isinstance(value, msgspec.Raw) else value

    @functools.cached_property
    def _read(self) -> Callable[[bytes], Any]:
        return msgspec.msgpack.Decoder(self._shape(decoder), dec_hook=from_record).decode

    @functools.cached_property
    def _validate(self) -> Callable[[bytes], Any]:
        return msgspec.msgpack.Decoder(self._shape(validator), dec_hook=from_wire).decode

    def _shape(self, read: Read) -> Any:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        names: dict[str, str] = {}  # by field: a parameter may have a name that no field can have
        for place, one in enumerate(self.parameters):
            wanted, field = wire_type(self.types[one.name], read=read), f"p{place}"
            if read is decoder and has_hooks(self.types[one.name]):
                wanted = msgspec.Raw  # decoded separately, so that its hooks do not count
            fields.append((field, wanted) if _required(one) else (field, wanted, msgspec.UNSET))
            names[field] = one.name
        return msgspec.defstruct(
            "Arguments", fields, kw_only=True, forbid_unknown_fields=not self._takes_any_name, rename=names
        )

    @functools.cached_property
    def _takes_any_name(self) -> bool:
        return any(one.kind is Parameter.VAR_KEYWORD for one in self.parameters)

    def _unknown(self, payload: bytes) -> dict[str, Any]:
        """Return the recorded arguments that match no parameter: `**kwargs` takes them."""
        raw = msgspec.msgpack.decode(payload, type=dict[str, msgspec.Raw])
        others = [(name, value) for name, value in raw.items() if name not in self._keys]
        if not others:
            return {}
        pieces = [piece for name, value in others for piece in (encode(name), bytes(value))]
        return decoder(self.types[self.parameters[-1].name])(map_header(len(others)) + b"".join(pieces))

    def _undecodable(self, reason: str) -> Undecodable:
        text = f"the recorded arguments of {self.name}() do not fit it: {reason}"
        return Undecodable(text, annotation=f"the parameters of {self.name}()", reason=reason)

    def _recorded_type(self, parameter: Parameter) -> Any:
        wrap = {Parameter.VAR_POSITIONAL: _list_of, Parameter.VAR_KEYWORD: _mapping_to}
        return self._resolve(
            parameter.annotation,
            f"parameter {parameter.name!r}",
            wrap.get(parameter.kind, lambda annotation: annotation),
        )

    def _resolve(self, annotation: Any, whose: str, wrap: Callable[[Any], Any]) -> Any:
        if annotation is Parameter.empty:
            return wrap(Any)
        try:
            found = wrap(resolved(annotation, *_scope(self._fn)))
        except Exception as error:
            name = annotation if isinstance(annotation, str) else type_name(annotation)
            text = (
                f"{self.name}(): annotation {name} of {whose} cannot be resolved ({error}): define what it names "
                "where the function can see it at run time, not in another function or under TYPE_CHECKING"
            )
            raise AnnotationUnresolved(text, annotation=name, reason=str(error)) from error
        try:
            decoder(found)
        except AnnotationUnresolved as error:
            text = f"{self.name}(): {whose}: {error}"
            raise AnnotationUnresolved(text, annotation=error.annotation, reason=error.reason) from error
        return found


class GivenArguments(msgspec.Struct, eq=False):
    """The arguments of a call, to be compared with recorded ones (a `journal.Arguments`)."""

    signature: Signature
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def repeat(self, recorded: CallStep | Start, /) -> bool:
        """Report whether they are the recorded ones, although the digests differ."""
        if isinstance(recorded, Start):
            return not self.changed(recorded)
        written = forms(lambda omits: b"".join(self.signature.pieces(self.args, self.kwargs, omits)))
        return any(digest(form) == recorded.digest for form in written)

    def changed(self, recorded: CallStep | Start, /) -> list[str]:
        """Name the arguments that differ from the recorded ones, as far as their checks show."""
        matched = self.signature.match(self.args, self.kwargs)
        if isinstance(recorded, Start):
            return changed_inputs(dict(matched), recorded.input)
        names = [name for name, _ in matched]
        checks = self.signature.digest_and_checks(self.args, self.kwargs)[1]
        if len(names) == 1 and not recorded.checks:
            return names
        if len(checks) != len(recorded.checks):
            return []
        starts = range(0, len(checks), _CHECK_BYTES)
        pairs = ((checks[at : at + _CHECK_BYTES], recorded.checks[at : at + _CHECK_BYTES]) for at in starts)
        return [name for name, (now, then) in zip(names, pairs, strict=False) if now != then]


def changed_inputs(given: Mapping[str, Any], recorded: bytes, /) -> list[str]:
    """Name the arguments that differ from a recorded input, ignoring fields that equal their defaults."""
    known: dict[str, Any] = msgspec.msgpack.decode(recorded)
    names = [*given, *(name for name in known if name not in given)]
    return [name for name in names if name not in given or name not in known or not agrees(given[name], known[name])]


_CHECK_BYTES = 4
_ONE = 2  # the name and value of one argument


def _check(piece: bytes) -> bytes:
    return zlib.crc32(piece).to_bytes(_CHECK_BYTES, "big")


def identity_of_arguments(positional: Sequence[Any], named: Mapping[str, Any], /) -> bytes:
    """Return an 8-byte digest, the same for equal arguments in every process; `Unencodable` if they cannot be recorded.

    Where an argument has a position, the position counts and the name does not: a caller that knows only the workflow's
    name gets the same digest as one that knows its parameters.
    """
    pieces = [
        encode_scalar(value) if value.__class__ in SCALARS else encode_for_digest(value, "an argument")
        for value in positional
    ]
    return digest_of_pieces(pieces, {name: encode_for_digest(value, "an argument") for name, value in named.items()})


def digest_of_pieces(positional: Sequence[bytes], named: Mapping[str, bytes], /) -> bytes:
    """Return the digest of arguments that are encoded for one."""
    pieces = b"".join(positional)
    if named:
        pieces += _NAMED_FOLLOW + map_of(sorted(encode(name) + value for name, value in named.items()))
    return digest(pieces)


_NAMED_FOLLOW = b"\xc1"  # no msgpack value begins with it


def _required(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty and parameter.kind not in _VARIADIC


def _list_of(item: Any) -> Any:
    if get_origin(item) is Unpack:  # *args: Unpack[tuple[int, str]]
        return get_args(item)[0]
    return list[item]


def _mapping_to(item: Any) -> Any:
    if get_origin(item) is Unpack:  # **kwargs: Unpack[SomeTypedDict]
        return get_args(item)[0]
    return dict[str, item]


def parameters_of(fn: Callable[..., Any], /, *, follow_wrapped: bool = True) -> inspect.Signature:
    """Return the parameters of a function, annotations unresolved; a wrapper's own if `follow_wrapped` is false."""
    if sys.version_info >= (3, 14):  # pragma: no cover  names defined further down are no error yet
        import annotationlib  # noqa: PLC0415  it exists from 3.14 on

        return inspect.signature(fn, follow_wrapped=follow_wrapped, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn, follow_wrapped=follow_wrapped)


def is_context(annotation: Any, fn: Callable[..., Any], context: type[BodyContext] | None, /) -> bool:
    """Report whether an annotation is the context's type; compare names if it cannot be resolved."""
    if context is None:
        return False
    annotation = _in_scope(annotation, fn)
    if isinstance(annotation, str):
        return annotation.strip("'\" ").rpartition(".")[2] == context.written_as
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return isinstance(annotation, type) and issubclass(annotation, context)


def may_be_context(annotation: Any, fn: Callable[..., Any], context: type[BodyContext], /) -> bool:
    """Report whether an annotation is a union of the context's type and others."""
    annotation = _in_scope(annotation, fn)
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return is_union and any(is_context(member, fn, context) for member in get_args(annotation))


def _in_scope(annotation: Any, fn: Callable[..., Any]) -> Any:
    """Return an annotation of a function, resolved; as text if that fails, since it may be resolved later, or never."""
    written = getattr(annotation, "__forward_arg__", annotation)
    if not isinstance(written, str):
        return annotation
    try:
        return resolved(written, *_scope(fn))
    except Exception:  # noqa: BLE001  whatever its names raise
        return written


def _scope(fn: Callable[..., Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the names that annotations of a function may use: globals, and variables of enclosing functions."""
    function = _function(fn)
    if function is None:
        return names_in(getattr(fn, "__module__", None)), {}
    local = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            local[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return function.__globals__, local


def _called(fn: Any) -> Any:
    """Return what partials call in the end."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return fn


def _function(fn: Any) -> types.FunctionType | None:
    """Return the author's function beneath partials, methods, wrappers and callable objects."""
    while True:
        if isinstance(fn, functools.partial):
            fn = cast("functools.partial[Any]", fn).func
        elif isinstance(fn, types.MethodType | staticmethod | classmethod):
            fn = cast("types.MethodType", fn).__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif isinstance(fn, types.FunctionType):
            return fn
        elif isinstance(type(fn).__call__, types.FunctionType):
            fn = type(fn).__call__
        else:
            return None
