"""The workflow that runs a random program, whose steps leave notes."""

from __future__ import annotations

from perdure.testing.programs import Interpreter
from tests.scenarios.notes import note


class Notes:
    """The outside of programs: what they ask for is in the notes."""

    def ran(self, key: str, attempt: int, /) -> None:
        note(f"ran {key} {attempt}")

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        note(f"ask {awakeable} {value} {int(rejected)}")


interpret = Interpreter(Notes()).workflow
