"""For tests of workflows: an engine in memory whose time jumps, and that replays every turn."""

from perdure.testing.environment import Environment

__all__ = ["Environment"]
