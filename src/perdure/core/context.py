"""The place of a body's context in the core: a type, and nothing else.

What authors see is `perdure.Context`, which derives from it. The core tells by this type which parameter takes the
context, and never looks inside.
"""

from __future__ import annotations


class BodyContext:
    """What a body is given of its turn. `written_as` is the name that authors write in annotations."""

    __slots__ = ()
    written_as = "Context"
