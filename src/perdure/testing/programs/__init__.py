"""Random programs for tests of the engine itself, and a model that says what must come of them.

`program` is what a program is, `author` writes them at random, `interpreter` is the workflow that runs one, and `model`
says what must come of all. A store that is killed, cut off or slowed meanwhile must make no difference.
"""

from perdure.testing.programs.author import Author
from perdure.testing.programs.interpreter import Interpreter, Outside
from perdure.testing.programs.model import Model
from perdure.testing.programs.program import KEYS, LOG, Program, decode, encode

__all__ = ["KEYS", "LOG", "Author", "Interpreter", "Model", "Outside", "Program", "decode", "encode"]
