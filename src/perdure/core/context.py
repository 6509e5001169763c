"""The type of a body's context, empty in the core.

Authors see `perdure.Context`, which derives from it. The core uses the type to find the parameter that takes the
context, and never looks inside.
"""

from __future__ import annotations


class BodyContext:
    """The part of its turn that a body may use. `written_as` is its name in annotations."""

    __slots__ = ()
    written_as = "Context"
