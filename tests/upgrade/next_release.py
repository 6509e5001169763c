"""The next release: the sources of this one with one more entry, command, message verb and status.

`build` copies the package and adds to the copy what a later release might add, in the places where this release would
have it. A process that has the copy first on its path is a worker of that release. What is added:

* the verb `annotate` with a text, which is applied as the entry `annotated`;
* the status `annotated`: suspended, with an annotation;
* the command `remark`, which a body issues by `ctx.remark(text)`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import perdure

Changes = list[tuple[str, str]]
"""Pieces of text, each of which is there once, and what they become."""

ENTRY = '''class Annotated(Struct, frozen=True, array_like=True, gc=False, tag="annotated"):
    """Somebody wrote a note."""

    at: float
    text: str
    message: str


'''
VERB = '''class Annotate(Struct, frozen=True, array_like=True, gc=False, tag="annotate"):
    """Write a note."""

    text: str


'''
COMMAND = '''class Remark(Struct, frozen=True, array_like=True, gc=False, tag="remark"):
    """The body wrote a note."""

    n: int
    text: str


'''
IMPORTED = """from perdure.core.journal.commands import Remark
from perdure.core.journal.entries import Annotated
from perdure.core.journal.requests import Annotate

"""
NOTED = """            case Annotated(text=text, message=message):
                self.annotation = text
                self._answered(message)
"""
APPLIED = """        case Annotate(text=text):
            return Annotated(at, text, message.id)
"""
TOLD_IN_ONE_LINE = """        case Remark(n=n):
            return f"#{n} remark"
"""
TYPED = """        case Remark():
            return "REMARK"
"""
DESCRIBED = """        case Remark(n=n):
            return JournalStep(n, kind, "completed", _time(at), _time(at))
"""
REMARK = '''    def remark(self, text: str, /) -> None:
        """Write a note into the journal."""
        self._turn.remark(text)

'''
ISSUED = '''    def remark(self, text: str) -> None:
        """Issue the command of a remark."""
        self._issue(Remark(self._next(), text))

'''


def before(anchor: str, added: str) -> tuple[str, str]:
    return anchor, added + anchor


def after(anchor: str, added: str) -> tuple[str, str]:
    return anchor, anchor + added


CHANGES: dict[str, Changes] = {
    "core/journal/entries.py": [before("class Completed(", ENTRY), after("Entry = (\n", "    Annotated |\n")],
    "core/journal/requests.py": [("Request = ", f"{VERB}Request = Annotate | ")],
    "core/journal/commands.py": [
        ("Command = ", f"{COMMAND}Command = Remark | "),
        before("        case MarkPatch(n=n, name=", TOLD_IN_ONE_LINE),
        before("        case MarkPatch(name=", TYPED),
    ],
    "core/journal/__init__.py": [before("__all__ = [", IMPORTED)],
    "core/journal/status.py": [after('"suspended", ', '"annotated", ')],
    "core/history.py": [
        after("import (\n    Accepted,", "\n    Annotated,"),
        after("    start: Start | None = None\n", "    annotation: str | None = None\n"),
        before("            case Retried():\n", NOTED),
        before('else "suspended"', 'else "annotated" if self.annotation is not None '),
    ],
    "core/lifecycle.py": [
        before('    "suspended": {"run"', '    "annotated": {"run": "running", "end_cancelled": "cancelled"},\n')
    ],
    "core/effects.py": [
        after("import (\n    Accepted,", "\n    Annotated,"),
        before("                | Paused(message=str(message))", "                | Annotated(message=message)\n"),
    ],
    "core/apply/__init__.py": [
        before("        case Pause():\n", APPLIED),
        after("from perdure.core.journal import (\n", "    Annotate,\n    Annotated,\n"),
    ],
    "core/issuer.py": [before("    def patched(", ISSUED), after("    MarkPatch,\n", "    Remark,\n")],
    "authoring/context.py": [before("    def patched(", REMARK)],
    "operations/describe.py": [
        before("        case MarkPatch(n=n) | Keep(", DESCRIBED),
        after("    MarkPatch,\n", "    Remark,\n"),
    ],
}


def build(folder: Path) -> Path:
    """Write the next release into a folder, and return what a process needs first on its path to be of it."""
    sources = folder / "next"
    shutil.copytree(Path(perdure.__file__).parent, sources / "perdure", ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        path = sources / "perdure" / name
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times: say here where it is now"
            text = text.replace(old, new)
        path.write_text(text)
    return sources
