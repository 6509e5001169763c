"""The workflow that runs a random program, whose steps leave notes."""

from __future__ import annotations

from perdure.testing.programs import Interpreter
from tests.scenarios.notes import closed, note


class Notes:
    """The outside of programs: what they ask for is in the notes, and a closed gate says that one is mended."""

    def ran(self, key: str, attempt: int, /) -> None:
        note(f"ran {key} {attempt}")

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        note(f"ask {awakeable} {value} {int(rejected)}")

    def mended(self, tag: str, /) -> bool:
        return closed(mended(tag))


def mended(tag: str) -> str:
    """Return the gate that is closed once a program has been mended."""
    return f"mended {tag}"


interpret = Interpreter(Notes()).workflow
