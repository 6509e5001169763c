"""What the runs of a flow took: per node and in all, from their journals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import ceil

from msgspec import Struct

from perdure.core.lifecycle import SETTLED
from perdure.operations.describe import Invocation, JournalStep

_ELEMENT = re.compile(r"\[\d+\]")
_NO_NODES = ("SLEEP", "REST", "KEEP", "PATCH:", "SEND:", "AWAKEABLE:")


class Timing(Struct, frozen=True):
    """How long something took, in seconds."""

    min: float
    mean: float
    p50: float
    p95: float
    max: float


class NodeProfile(Struct, frozen=True):
    """One node. `attempts` counts all, those that failed included.

    `seconds` is from the beginning of its first attempt to its end. `critical_share` is the share that it has of the
    critical paths, which say how long the runs took at least: the last node to end, the last that ended before that
    began, and so on.
    """

    runs: int
    success_rate: float
    attempts: int
    seconds: Timing
    critical_share: float


class Profile(Struct, frozen=True):
    """What runs of a flow took. `speedup` is measured: the sum of the nodes' time over the time of the runs."""

    runs: int
    success_rate: float
    seconds: Timing
    speedup: float
    nodes: Mapping[str, NodeProfile]


class _Node(Struct, frozen=True):
    """A node of one run."""

    name: str
    began: float
    ended: float
    attempts: int
    is_completed: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def profile_of(runs: Iterable[Invocation]) -> Profile:
    """Return the profile of invocations of a flow that were described and have ended."""
    ended = [each for each in runs if each.status in SETTLED and each.started_at and each.ended_at]
    seconds = [_seconds(each.started_at, each.ended_at) for each in ended]
    nodes: dict[str, list[_Node]] = {}
    critical: dict[str, float] = {}
    for run in ended:
        found = [node for step in run.journal if (node := _node_of(step)) is not None]
        for node in found:
            nodes.setdefault(node.name, []).append(node)
        for node in _critical_path(found):
            critical[node.name] = critical.get(node.name, 0.0) + node.seconds
    total, on_path = sum(seconds), sum(critical.values())
    return Profile(
        len(ended),
        _share(sum(each.status == "completed" for each in ended), len(ended)),
        _timing(seconds),
        _share(sum(node.seconds for some in nodes.values() for node in some), total),
        {name: _profile(some, _share(critical.get(name, 0.0), on_path)) for name, some in nodes.items()},
    )


def _node_of(step: JournalStep) -> _Node | None:
    """Return what a step or child says of its node: elements of a map are one node."""
    if step.step_type.startswith(_NO_NODES) or step.started_at is None or step.ended_at is None:
        return None
    name = _ELEMENT.sub("", step.step_type.removeprefix("CHILD:"))
    is_completed = step.status == "completed"
    return _Node(
        name, step.started_at.timestamp(), step.ended_at.timestamp(), step.attempts + is_completed, is_completed
    )


def _critical_path(nodes: Sequence[_Node]) -> list[_Node]:
    """Return the nodes on the path that took longest: the last to end, the last that had ended when it began, etc."""
    path: list[_Node] = []
    left = sorted(nodes, key=lambda each: each.ended)
    began = float("inf")
    while left:
        node = left.pop()
        if node.ended <= began and node.seconds >= 0:
            path.append(node)
            began = node.began
    return path


def _profile(nodes: Sequence[_Node], critical_share: float) -> NodeProfile:
    completed = sum(each.is_completed for each in nodes)
    attempts = sum(each.attempts for each in nodes)
    timing = _timing([each.seconds for each in nodes])
    return NodeProfile(len(nodes), _share(completed, len(nodes)), attempts, timing, critical_share)


def _timing(seconds: Sequence[float]) -> Timing:
    found = sorted(seconds) or [0.0]
    return Timing(found[0], sum(found) / len(found), _rank(found, 0.5), _rank(found, 0.95), found[-1])


def _rank(found: Sequence[float], share: float) -> float:
    """Return a percentile by the nearest rank."""
    return found[max(0, ceil(share * len(found)) - 1)]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _seconds(began: datetime | None, ended: datetime | None) -> float:
    return 0.0 if began is None or ended is None else (ended - began).total_seconds()
