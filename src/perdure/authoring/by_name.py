"""Workflows known only by name: arguments are recorded by position, and get their names where the code is."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from perdure.core.journal import CallStep, Start
from perdure.core.recording import encode_as
from perdure.core.signature import POSITIONAL, Signature, changed_inputs
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import CalledOutsideWorkflow, InputRefused, Undecodable, Unencodable


async def elsewhere(*_: Any, **__: Any) -> Any:
    """Replace the function of a workflow whose code is in another program."""
    raise CalledOutsideWorkflow("a workflow known only by its name has no code here: it is in another program")


class Loose(Struct, frozen=True):
    """The types of a workflow whose parameter names are unknown here. Positional arguments are recorded without names.

    `takes` has the types of the positional arguments; None accepts anything.
    """

    takes: tuple[Any, ...] | None
    returns: Any

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bytes:
        if self.takes is not None and (len(args) != len(self.takes) or kwargs):
            raise InputRefused(f"workflow {name!r} takes {len(self.takes)} positional argument, not {len(args)}")
        for value, type in zip(args, self.takes or (), strict=False):
            try:
                encode_as(value, type, f"the argument of workflow {name!r}")
            except Unencodable as error:
                raise InputRefused(f"workflow {name!r}: {error}") from error
        return encode({POSITIONAL: list(args), **kwargs}, f"the arguments of workflow {name!r}")


class GivenLoosely(Struct, eq=False):
    """The arguments of a start by name, for comparison with recorded ones (a `journal.Arguments`)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeat(self, recorded: CallStep | Start, /) -> bool:
        """Report whether they equal the recorded ones although the digests differ."""
        return not self.changed(recorded)

    def changed(self, recorded: CallStep | Start, /) -> list[str]:
        """Return the names of those that differ from the recorded ones."""
        assert isinstance(recorded, Start)
        return changed_inputs({POSITIONAL: list(self.args), **self.kwargs}, recorded.input)


_POSITIONAL_FIRST = encode(POSITIONAL)


def is_loose(data: bytes, /) -> bool:
    """Report whether an input was recorded by a caller that did not know the names and types of the parameters."""
    return data[1:3] == _POSITIONAL_FIRST


def named(data: bytes, signature: Signature) -> bytes:
    """Give positional arguments that were recorded without names the names of the parameters."""
    if not is_loose(data):
        return data
    recorded: dict[str, Any] = decoder(dict[str, Any])(data)
    args: list[Any] = recorded.pop(POSITIONAL)
    names = [one.name for one in signature.parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one.name for one in signature.parameters if one.kind is one.VAR_POSITIONAL), None)
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names):
        if rest is None:
            raise Undecodable(f"the input of {signature.name} has {len(args)} arguments, but it takes {len(names)}")
        named[rest] = args[len(names) :]
    return encode({**named, **recorded})
