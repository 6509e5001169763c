from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from perdure.cli.target import load

ALONE = "from perdure import workflow\n\n@workflow\nasync def only() -> None: ...\n"


def names(target: str) -> list[str]:
    return [each.name for each in load(target).workflows]


def test_file_is_imported_under_its_stem_and_its_workflow_found(inside: Path) -> None:
    assert load("app.py:hello").workflow.name == "hello"
    assert sys.modules["app"].__file__ == str(inside / "app.py")
    assert names("app.py") == ["hello", "checkout", "odd", "twice", "retried", "forever", "keyed", "seed"]


def test_module_is_imported_from_the_current_folder(inside: Path) -> None:
    package = inside / "pkg"
    package.mkdir()
    (package / "flows.py").write_text(ALONE)
    assert load("pkg.flows:only").workflow.name == "only"
    assert sys.path[0] == str(inside)


def test_target_is_imported_once(inside: Path) -> None:
    assert load("app.py").module is load("app").module is load(str(inside / "app.py")).module


def test_file_elsewhere_sees_the_modules_beside_it(inside: Path) -> None:
    (inside / "sub").mkdir()
    (inside / "sub" / "beside.py").write_text("NAME = 'x'\n")
    (inside / "sub" / "main_flow.py").write_text("from beside import NAME\n" + ALONE)
    assert load("sub/main_flow.py").workflow.name == "only"
    assert "main_flow" in sys.modules


def test_file_in_a_package_is_imported_by_its_full_name(inside: Path) -> None:
    package = inside / "shop" / "flows"
    package.mkdir(parents=True)
    (inside / "shop" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "concurrent.py").write_text("from . import names\n" + ALONE)  # the stem is a standard module's
    (package / "names.py").touch()
    assert load("shop/flows/concurrent.py").module.__name__ == "shop.flows.concurrent"
    assert load("shop/flows/concurrent.py:only").workflow.name == "only"
    assert load("shop/__init__.py").module.__name__ == "shop"


def test_workflow_is_found_by_its_variable_its_handler_and_its_aliases(inside: Path) -> None:
    (inside / "named.py").write_text(
        "from perdure import workflow\n\n"
        "@workflow(name='billing.charge', aliases=['charge_v1'])\nasync def charge() -> None: ...\n\n" + ALONE
    )
    for name in ("charge", "billing.charge", "charge_v1"):
        assert load(f"named.py:{name}").workflow.name == "billing.charge"


def test_only_workflow_that_a_module_defines_needs_no_name_beside_imported_ones(inside: Path) -> None:
    (inside / "parent.py").write_text("from app import hello, odd\n" + ALONE)
    assert load("parent.py").workflow.name == "only"
    assert names("parent.py") == ["hello", "odd", "only"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nope.py", r"nope\.py does not exist\. Python files in \S+: \S.* app\.py, broken\.py, "),
        ("missing/app.py", r"missing/app\.py does not exist\. The folder \S+missing does not exist either"),
        ("empty/", r"empty/ is a folder\. \S+empty has no Python file"),
        ("nope", r"there is no module nope\. Python files in \S+: \S.* app\.py, "),
        ("app.hello", r"there is no module app\.hello\. Python files"),
        ("app.py:nope", r"app\.py has no workflow 'nope'\. Its workflows: hello, checkout, odd, "),
        ("app.py:note", r"note in app\.py is a step: only workflows are run by themselves"),
        ("app.py:plain", r"plain in app\.py is not a workflow: put @workflow above it"),
        ("app.py:elsewhere", r"elsewhere in app\.py is only a reference: name the module that holds its code"),
        ("app.py", r"app\.py has 8 workflows: name one, as in app\.py:hello \(hello, checkout, "),
        ("none.py", r"none\.py has no workflow: put @workflow above an async function in it"),
        ("none.py:x", r"none\.py has no workflow: "),
        ("logging.py", r"logging\.py would be imported as 'logging', which another module is called: rename the file"),
        ("antigravity.py", r"antigravity\.py would be imported as 'antigravity'"),
        ("click.py", r"click\.py would be imported as 'click'"),
        ("app.py:", r"'app\.py:' is not a target: write app\.py:workflow or pkg\.app:workflow"),
        (":hello", r"':hello' is not a target"),
        ("a b", r"'a b' is not a target"),
        ("..app", r"'\.\.app' is not a target"),
    ],
)
def test_wrong_target_is_explained(inside: Path, target: str, message: str) -> None:
    for name in ("logging.py", "antigravity.py", "click.py", "none.py", "broken.py"):
        (inside / name).touch()
    (inside / "empty").mkdir()
    with pytest.raises(click.UsageError, match=message):
        _ = load(target).workflow


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n1 / 0\n", r"importing broken\.py failed: ZeroDivisionError: .*\(\S+broken\.py, line 2\)"),
        ("import nothing_like_it\n", r"failed: ModuleNotFoundError: No module named 'nothing_like_it' \(\S+, line 1\)"),
        ("def f(:\n", r"importing broken\.py failed: SyntaxError: .*\(broken\.py, line 1\)"),
    ],
)
def test_module_that_fails_is_explained_and_forgotten(inside: Path, source: str, message: str) -> None:
    (inside / "broken.py").write_text(source)
    with pytest.raises(click.ClickException, match=message):
        load("broken.py")
    assert "broken" not in sys.modules
    with pytest.raises(click.ClickException, match=message.replace(r"broken\.py failed", "broken failed")):
        load("broken")


def test_long_list_of_names_is_cut(inside: Path) -> None:
    for number in range(20):
        (inside / f"flow_{number}.py").touch()
    with pytest.raises(click.UsageError, match=r" and 9 more\.$"):
        load("nope.py")
