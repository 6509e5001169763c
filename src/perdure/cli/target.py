"""A target, `app.py:workflow` or `pkg.app:workflow`: the module is imported, the workflow found in it.

The current folder comes first on the path. A file in a package (its folder has an `__init__.py`) is imported by its
full name, `examples/simple.py` as `examples.simple`, as other modules import it. Any other file is imported under its
stem, from its own folder, as Python does for a script. Either way the module is in `sys.modules`, where the classes of
recorded exceptions are found.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from perdure.authoring.step import Step
from perdure.authoring.workflow import Workflow
from perdure.client import workflows_of

SHOWN_LIMIT = 12
"""Names of files or workflows that a message lists."""


@dataclass(frozen=True)
class Target:
    """A module, and the name of the requested workflow, if one was given."""

    path: str
    module: ModuleType
    name: str | None

    @property
    def workflows(self) -> list[Workflow[..., Any]]:
        """All workflows of the module, at least one, without references to workflows of other modules."""
        found = workflows_of(self.module)
        if not found:
            raise click.UsageError(f"{self.path} has no workflow: put @workflow above an async function in it")
        return found

    @property
    def workflow(self) -> Workflow[..., Any]:
        """The workflow that is named, or the only one."""
        found = self.workflows
        if self.name is not None:
            return self._named(self.name, found)
        own = [each for each in found if each.fn.__module__ == self.module.__name__] if len(found) > 1 else found
        if len(own) == 1:
            return own[0]
        raise click.UsageError(
            f"{self.path} has {len(found)} workflows: name one, as in {self.path}:{found[0].name} ({_names(found)})"
        )

    def _named(self, name: str, found: list[Workflow[..., Any]]) -> Workflow[..., Any]:
        there: object = vars(self.module).get(name)
        by_handler = [each for each in found if name == each.name or name in each.aliases]
        match there:
            case Workflow(is_reference=False):
                return there  # pyright: ignore[reportUnknownVariableType]
            case _ if by_handler:
                return by_handler[0]
            case Workflow():
                why = f"{name} in {self.path} is only a reference: name the module that holds its code"
            case Step():
                why = f"{name} in {self.path} is a step: only workflows are run by themselves"
            case None:
                why = f"{self.path} has no workflow {name!r}"
            case _:
                why = f"{name} in {self.path} is not a workflow: put @workflow above it"
        raise click.UsageError(f"{why}. Its workflows: {_names(found)}")


def load(text: str) -> Target:
    """Import the module of a target."""
    path, colon, name = text.rpartition(":")
    if not colon or "/" in name or "\\" in name:  # C:\app.py
        path, name = text, None
    elif not name or not path:
        raise click.UsageError(f"{text!r} is not a target: write app.py:workflow or pkg.app:workflow")
    _search_first([_here()])
    if path.endswith(".py") or "/" in path or os.sep in path:
        return Target(path, _import_file(path), name)
    return Target(path, _import_module(path), name)


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise click.UsageError("the current folder was removed: change to another one") from error


# --- importing --------------------------------------------------------------------------------------------------------
def _import_file(text: str) -> ModuleType:
    path = Path(text).resolve()
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise click.UsageError(f"{text} {kind}. {_files_in(path if path.is_dir() else path.parent)}")
    parts = [] if path.stem == "__init__" else [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    _search_first([_here(), root])
    known = sys.modules.get(name)
    if known is not None and _is_of(known, path):
        return known
    if root != path.parent:
        return _import_module(name)
    if known is not None or name in sys.stdlib_module_names:
        raise click.UsageError(f"{text} would be imported as {name!r}, which another module is called: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{text} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _broken(text, error) from error
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise click.UsageError(f"{name!r} is not a target: write app.py:workflow or pkg.app:workflow")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise click.UsageError(f"there is no module {name}. {_files_in(_here())}") from error
        raise _broken(name, error) from error
    except Exception as error:
        raise _broken(name, error) from error


def _broken(what: str, error: Exception) -> click.ClickException:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({frame.filename}, line {frame.lineno})"
    return click.ClickException(f"importing {what} failed: {type(error).__name__}: {error}{where}")


def _is_of(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def _search_first(folders: Iterable[Path]) -> None:
    wanted = list(dict.fromkeys(map(str, folders)))
    sys.path[:] = [*wanted, *(each for each in sys.path if each not in wanted)]


# --- what there is ----------------------------------------------------------------------------------------------------
def _files_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    files = sorted(each.name for each in folder.glob("*.py"))
    return f"Python files in {folder}: {_listed(files)}." if files else f"{folder} has no Python file."


def _names(workflows: Iterable[Workflow[..., Any]]) -> str:
    return _listed([each.name for each in workflows])


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN_LIMIT
    return ", ".join(names[:SHOWN_LIMIT]) + (f" and {more} more" if more > 0 else "")
