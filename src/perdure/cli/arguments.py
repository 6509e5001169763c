"""Reads the arguments of a workflow from texts, by its signature.

Each text is the next positional argument. `NAME=VALUE` is the argument NAME if there is a parameter of exactly this
name (with `**kwargs`, if NAME could be one). Other text with a = is passed unchanged; to pass text that begins with
`NAME=`, quote it as JSON: `'"name=World"'`.

`{i}` stands for the number of the run: with three digits or more, as in `user-001`, except where it is a number in
JSON, which has no leading zeros: `[{i}]` is `[1]`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, get_args, get_origin

import click

from perdure.authoring.workflow import Workflow
from perdure.cli.values import is_json, reader, sample
from perdure.core.values import type_name
from perdure.errors import InputRefused

NUMBER = "{i}"
SHOWN_LIMIT = 80
"""Characters of an argument shown in a message."""

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def numbered(text: str, number: int) -> str:
    """Return a text for the run of this number, counted from 1."""
    return text.replace(NUMBER, f"{number:03d}")


@dataclass(frozen=True)
class Argument:
    """One argument: its text, and how to read it. `padded`: the number of the run has leading zeros."""

    text: str
    padded: bool
    read: Callable[[str], Any]

    def value(self, number: int) -> Any:
        if NUMBER not in self.text:
            return self.read(self.text)
        return self.read(numbered(self.text, number) if self.padded else self.text.replace(NUMBER, str(number)))


class Arguments:
    """The arguments of each run of a workflow. Wrong ones are refused here."""

    def __init__(self, workflow: Workflow[..., Any], texts: Sequence[str]) -> None:
        self._positional: list[Argument] = []
        self._named: dict[str, Argument] = {}
        self._constant: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        parameters = _Parameters(workflow)
        texts = [_as_utf8(text) for text in texts]
        for text in texts:
            name, equals, rest = text.partition("=")
            if equals and parameters.has(name):
                if name in self._named:
                    raise click.UsageError(f"{name!r} is given twice")
                self._named[name] = parameters.argument(parameters.named(name), rest)
            else:
                self._positional.append(parameters.argument(parameters.at(len(self._positional)), text))
        args, kwargs = first = self.of_run(1)
        try:
            workflow.signature().encode(args, kwargs, f"workflow {workflow.name!r}")
        except InputRefused as error:
            raise click.UsageError(f"{error}. It takes {parameters.shown}") from error
        if not any(NUMBER in text for text in texts):
            self._constant = first

    def of_run(self, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and named arguments of one run, counted from 1."""
        if self._constant is not None:
            return self._constant
        args = tuple(each.value(number) for each in self._positional)
        return args, {name: each.value(number) for name, each in self._named.items()}


class _Parameters:
    """The parameters of a workflow, each with the type of one argument for it."""

    def __init__(self, workflow: Workflow[..., Any]) -> None:
        signature = workflow.signature()
        self._workflow = workflow.name
        self._parameters = {one.name: one for one in signature.parameters}
        self._types = signature.types
        self._positional = [one for one in signature.parameters if one.kind in _BY_POSITION]
        self._rest = next((one for one in signature.parameters if one.kind is Parameter.VAR_POSITIONAL), None)
        self._any_name = next((one for one in signature.parameters if one.kind is Parameter.VAR_KEYWORD), None)
        self.shown = inspect.Signature(signature.parameters)

    def has(self, name: str) -> bool:
        one = self._parameters.get(name)
        if one is not None and one.kind in _BY_NAME:
            return True
        return self._any_name is not None and one is None and name.isidentifier()

    def named(self, name: str) -> tuple[str, Any]:
        if name in self._parameters:
            return name, self._types[name]
        assert self._any_name is not None
        return name, _item(self._types[self._any_name.name], dict, 1)

    def at(self, position: int) -> tuple[str, Any]:
        if position < len(self._positional):
            name = self._positional[position].name
            return name, self._types[name]
        if self._rest is not None:
            return self._rest.name, _item(self._types[self._rest.name], list, 0)
        return f"number {position + 1}", Any  # one argument too many: the signature refuses it

    def argument(self, parameter: tuple[str, Any], text: str) -> Argument:
        name, annotation = parameter
        read = reader(annotation)

        def read_or_explain(text: str) -> Any:
            try:
                text.encode()
                return read(text)
            except UnicodeEncodeError as error:
                raise click.UsageError(f"argument {name!r} of {self._workflow} is not UTF-8 text: {text!r}") from error
            except ValueError as error:
                raise click.UsageError(self._refusal(name, annotation, text, str(error))) from error

        in_json = annotation is not str and not is_json(numbered(text, 1)) and is_json(text.replace(NUMBER, "1"))
        return Argument(text, not in_json, read_or_explain)

    def _refusal(self, name: str, annotation: Any, text: str, reason: str) -> str:
        shown = text if len(text) <= SHOWN_LIMIT else text[: SHOWN_LIMIT - 1] + "…"
        wanted, example = type_name(annotation), sample(annotation)
        message = f"argument {name!r} of {self._workflow} takes {wanted} as JSON, not {shown!r}: {reason}."
        return message if example is None else f"{message} For example: {_quoted(example)}"


def _as_utf8(text: str) -> str:
    """Decode an argument as UTF-8 where the locale (`LANG=C`) could not; return it unchanged if it is not UTF-8."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def _item(annotation: Any, container: type, place: int) -> Any:
    """Return the type of each of `*args` or `**kwargs`; `Any` if they differ."""
    return get_args(annotation)[place] if get_origin(annotation) is container else Any


def _quoted(text: str) -> str:
    """Quote a text for the shell if necessary."""
    return text if text.isalnum() else f"'{text}'"
