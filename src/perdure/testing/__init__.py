"""For tests of workflows: an engine in memory whose time jumps, with faults on demand; and replay of real histories."""

from perdure.testing.environment import Environment, crash_everywhere
from perdure.testing.replay import replay

__all__ = ["Environment", "crash_everywhere", "replay"]
