"""The documentation is true: programs run and print what it shows, links lead somewhere, tables are current.

How a page says what is to be done with a block:

* ```` ```python ```` is a program: it runs, and prints what a ```` ```text ```` block right after it shows, if any.
* Programs whose first line is `# In [N]` are the cells of one notebook: they share a namespace and an event loop, may
  await at the top level, and show the value of a last expression.
* A block whose first line is `# NAME.EXT` is a file of that name, for the blocks that follow.
* ```` ```console ```` holds commands (`$ ...`) with their output, in which `...` stands for anything.
* `<!-- fragment -->` on the line above keeps a block from running: it must compile, and import only what exists.
* Anything else (```` ```sh ````, ```` ```toml ````) is to be read.

The blocks of a page share a folder, which is new.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import get_args

import click
import pytest

import perdure
from perdure import Client, Context, Flow, Handle, Worker
from perdure.blocking import Blocking
from perdure.cli import commands
from perdure.core.journal import Accepted, CallChild, CallStep, Command, Entry, Frame, SendStart, SetTimer, Start
from perdure.operations.describe import from_journal
from perdure.stores.port import Row
from perdure.testing import Environment
from perdure.testing.contract.numbers import sample
from tests.docs.tables import DOCS, TABLES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
COMMAND_SECONDS = 60
COMMENT = "<!-- fragment -->"
BLOCK = re.compile(r"^(?P<mark>[^\n]*)\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"# In \[\d+\]\n")
FILE = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    is_fragment: bool
    follows: bool
    """Whether nothing but an empty line is between the block before and this one."""

    @property
    def is_cell(self) -> bool:
        return CELL.match(self.text) is not None

    @property
    def file(self) -> str | None:
        found = FILE.match(self.text)
        return found[1] if found else None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(), -1
    for found in BLOCK.finditer(text):
        follows = end >= 0 and not text[end : found.start("language") - 3].strip()
        yield Block(found["language"], found["text"], found["mark"] == COMMENT, follows)
        end = found.end()


def prose(page: Path) -> str:
    """The text without its blocks."""
    return BLOCK.sub("", page.read_text())


# --- programs ---------------------------------------------------------------------------------------------------------
def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command, and return its exit code and all that it printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    environment["GRPC_VERBOSITY"] = "ERROR"  # grpc's own notes, as of a connection that ends, are not the program's
    environment.pop("PERDURE_URL", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return ran.returncode, ran.stdout


def matches(expected: str, printed: str) -> bool:
    """Compare output, where `...` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, printed.rstrip() + "\n", re.DOTALL) is not None


def check_fragment(block: Block, where: str) -> None:
    tree = compile(block.text, where, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "perdure":
            module = importlib.import_module(node.module or "")
            for each in node.names:
                assert hasattr(module, each.name), f"{where}: {node.module} has no {each.name}"


def check_console(block: Block, folder: Path) -> None:
    assert block.text.startswith("$ "), block.text
    for command, expected in re.findall(r"^\$ ([^\n]+)\n((?:(?!\$ )[^\n]*\n)*)", block.text, re.MULTILINE):
        _, printed = run(shlex.split(command), folder)
        assert matches(expected or "\n", printed), f"$ {command}\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_programs_of_a_page_run_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    everything = [*blocks(page)]
    for number, block in enumerate(everything):
        where = f"{name(page)}, block {number + 1}"
        following = everything[number + 1 :]
        if block.is_fragment:
            assert block.language == "python", f"{where}: only Python is checked as a fragment"
            check_fragment(block, where)
        elif block.language == "console":
            check_console(block, tmp_path)
        elif block.file is not None:
            (tmp_path / block.file).write_text(block.text)
            stem = Path(block.file).stem
            used = block.language != "python" or any(re.search(rf"\b{stem}\b", each.text) for each in following)
            assert used, f"{where}: nothing runs {block.file}"
        elif block.language == "python" and not block.is_cell:
            program = tmp_path / f"block_{number + 1}.py"
            program.write_text(block.text)
            code, printed = run([sys.executable, program.name], tmp_path)
            assert code == 0, f"{where}:\n{printed}"
            if following and following[0].language == "text" and following[0].follows:
                assert matches(following[0].text, printed), f"{where}:\n{printed}"
            else:
                assert not printed, f"{where} prints something that the page does not show:\n{printed}"


NOTEBOOK = """
import ast, asyncio, inspect, json, sys


async def cell(source, names):
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    for part, mode in ((tree, "exec"), (ast.Expression(last.value) if last else None, "eval")):
        if part is not None:
            value = eval(compile(part, "cell", mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            value = await value if inspect.iscoroutine(value) else value
            if mode == "eval" and value is not None:
                print(repr(value))


async def main():
    names = {"__name__": "__main__"}
    for source in json.loads(sys.argv[1]):
        await cell(source, names)
        print("--- end of cell ---")


asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(each.is_cell for each in blocks(page))], ids=name)
def test_cells_of_a_page_run_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    everything = [*blocks(page)]
    cells = [at for at, block in enumerate(everything) if block.is_cell]
    sources = json.dumps([everything[at].text for at in cells])
    code, printed = run([sys.executable, "-c", NOTEBOOK, sources], tmp_path)
    assert code == 0, printed
    *parts, rest = printed.split("--- end of cell ---\n")
    assert (len(parts), rest) == (len(cells), "")
    for at, part in zip(cells, parts, strict=True):
        shown = everything[at + 1] if at + 1 < len(everything) else None
        expected = shown.text if shown and shown.language == "text" and shown.follows else "\n"
        assert matches(expected, part), f"{name(page)}, block {at + 1}:\n{part}"


# --- links ------------------------------------------------------------------------------------------------------------
def anchors(page: Path) -> set[str]:
    """The names under which the headings of a page can be linked to, made as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(to), f"{name(page)}: {target}"


def test_index_leads_to_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)]+)\)", index)) == {"README.md"}


# --- names ------------------------------------------------------------------------------------------------------------
SPEAKERS: dict[str, type] = {
    "client": Client,
    "handle": Handle,
    "ctx": Context,
    "env": Environment,
    "worker": Worker,
    "flow": Flow,
    "wait": Blocking,
}
ATTRIBUTES = {("env", "client"), ("env", "clock"), ("env", "worker"), ("env", "store"), ("handle", "id")}
"""What only an instance has."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_names_only_what_there_is(page: Path) -> None:
    """`client.run` in the prose is a method of a client, and so on; so are names in programs."""
    ours = prose(page)
    if page == DOCS / "coming-from.md":  # the first column holds the names of others
        ours = re.sub(r"^\|[^|]*\|", "|", ours, flags=re.MULTILINE)
    code = [block.text for block in blocks(page) if block.language == "python"]
    for text in (*re.findall(r"`([^`\n]+)`", ours), *code):
        for owner, member in re.findall(r"(?<![\w.])(client|handle|ctx|env|worker|flow|wait)\.(\w+)", text):
            known = hasattr(SPEAKERS[owner], member) or (owner, member) in ATTRIBUTES
            assert known, f"{name(page)}: there is no {owner}.{member}"


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    missing = [each for each in perdure.__all__ if not re.search(rf"\b{each}\b", reference)]
    assert not missing


# --- tables -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", TABLES)
def test_table_is_that_of_the_code(page: str) -> None:
    (drawn,) = [each.text for each in blocks(DOCS / page) if each.language == "text"]
    assert drawn == TABLES[page](), "run `make docs-tables`"


LIMIT = re.compile(r"^\| `(?P<name>\w+)` \| (?P<value>[^|]+) \| `(?P<module>[\w.]+)` \|", re.MULTILINE)


def limits_of_the_code() -> set[tuple[str, str]]:
    """Module and name of every constant called a limit, but for those that only shape what the command line prints."""
    found: set[tuple[str, str]] = set()
    for path in (ROOT / "src").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=id)]) | ast.AnnAssign(target=ast.Name(id=id)):
                    if re.fullmatch(r"[A-Z][A-Z_]*_LIMIT(_[A-Z]+)?", id) and not module.startswith("perdure.cli"):
                        found.add((module, id))
                case _:
                    pass
    return found


def test_limits_are_those_of_the_code() -> None:
    page = (DOCS / "reference/limits.md").read_text()
    listed = {(each["module"], each["name"]): each["value"] for each in LIMIT.finditer(page)}
    for (module, constant), value in listed.items():
        shown = float(re.sub(r"[^\d.].*", "", value.replace(",", "")))
        assert shown == getattr(importlib.import_module(module), constant), constant
    assert listed.keys() >= limits_of_the_code()


def test_loggers_are_those_of_the_code() -> None:
    page = (DOCS / "how-to/log.md").read_text()
    listed = set(re.findall(r"`(perdure\.[\w.]+)`", page.partition("## Loggers")[2].partition("\n\nAll")[0]))
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    used = {
        each.replace("{self._turn.start.handler}", "NAME") for each in re.findall(r'getLogger\(f?"([^"]+)"\)', code)
    }
    assert listed == used


def test_command_line_is_that_of_the_code() -> None:
    page = (DOCS / "reference/command-line.md").read_text()
    sections = dict(re.findall(r"^## perdure ([\w-]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == commands.commands.keys()
    for verb, command in commands.commands.items():
        options = {
            max(each.opts, key=len) for each in command.params if isinstance(each, click.Option) and not each.hidden
        }
        assert set(re.findall(r"^\| `(--[\w-]+)", sections[verb], re.MULTILINE)) == options, verb


# --- the journal ------------------------------------------------------------------------------------------------------
def first_cells(page: Path, heading: str) -> set[str]:
    """Return what is in backticks in the first column of the table under a heading."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {found for row in rows for found in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(("heading", "kinds"), [("Commands", Command), ("Entries", Entry)])
def test_every_kind_of_command_and_entry_is_in_the_journal_format(heading: str, kinds: UnionType) -> None:
    tags = {kind.__struct_config__.tag for kind in get_args(kinds)}
    assert first_cells(DOCS / "reference/journal.md", heading) == tags


def test_every_field_of_a_frame_is_in_the_journal_format() -> None:
    assert first_cells(DOCS / "reference/journal.md", "Frame") == {*Frame.__struct_fields__}


def test_every_step_type_is_in_the_reference_of_the_client() -> None:
    start: Start = sample(Start, handler="child")
    commands = [sample(kind) for kind in get_args(Command)]
    commands += [SetTimer(1, 1.0, rest=True), *(kind(1, start) for kind in (CallChild, SendStart))]
    text = (DOCS / "reference/client.md").read_text()
    row = Row("i", "h", "running", None, 1.0, 1.0, 1.0)
    seen: set[str] = set()
    for command in commands:
        info = from_journal(row, start, [Frame("w", 1.0, [Accepted(start)], [command])], (), b"", served=True)
        if not isinstance(command, CallStep):  # its type is its name
            seen.add(info.journal[0].step_type.partition(":")[0])
    assert seen == {"SLEEP", "REST", "CHILD", "SEND", "AWAKEABLE", "PATCH", "KEEP"}
    for each in seen:
        assert re.search(rf"`{each}[`:]", text), each
