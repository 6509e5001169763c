"""Random programs for tests of the engine itself, and a model that says what must come of them.

`program` is what a program is, `author` writes them at random, `interpreter` is the workflow that runs one (`tools` is
the asyncio in it), `endings` collects what came of them, `model` says what must come of them, and `smaller` simplifies
one that came to something else. A store that is killed, cut off or slowed meanwhile must make no difference.
"""

from perdure.testing.programs.author import Author
from perdure.testing.programs.endings import Endings
from perdure.testing.programs.interpreter import Interpreter, Outside, outcome_of
from perdure.testing.programs.model import Model
from perdure.testing.programs.program import (
    KEYS,
    LOG,
    Outcome,
    Program,
    all_of,
    decode,
    encode,
    program_in,
    waits_to_be_mended,
)
from perdure.testing.programs.smaller import smaller, smaller_lists

__all__ = [
    "KEYS",
    "LOG",
    "Author",
    "Endings",
    "Interpreter",
    "Model",
    "Outcome",
    "Outside",
    "Program",
    "all_of",
    "decode",
    "encode",
    "outcome_of",
    "program_in",
    "smaller",
    "smaller_lists",
    "waits_to_be_mended",
]
