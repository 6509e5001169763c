"""Graphs as pictures: Mermaid, which GitHub, notebooks and editors draw."""

from __future__ import annotations

from perdure.authoring.flows.graph import Calling, Choosing, Mapped, Piece, Plan, needs_of
from perdure.authoring.flows.nodes import refs_in
from perdure.authoring.step import Step


def mermaid(plan: Plan) -> str:
    """Return a graph as Mermaid text, from top to bottom."""
    ids = {name: f"n{n}" for n, name in enumerate([*plan.inputs, *plan.pieces])}
    lines = ["flowchart TD"]
    lines += [f"    {ids[name]}[/{_quoted(name)}/]" for name in plan.inputs]
    lines += [f"    {ids[name]}{_shape(piece)}" for name, piece in plan.pieces.items()]
    lines += [f"    {ids[need]} --> {ids[name]}" for name, piece in plan.pieces.items() for need in needs_of(piece)]
    results = [*dict.fromkeys(ref.node for ref in refs_in(plan.result))]
    if results:
        lines.append("    result([result])")
        lines += [f"    {ids[name]} --> result" for name in results]
    return "\n".join(lines) + "\n"


def _shape(piece: Piece) -> str:
    match piece:
        case Calling(bound=bound):
            callee = bound.callee
            text = piece.name if callee.name == piece.name else f"{piece.name}: {callee.name}"
            return f"[{_quoted(text)}]" if isinstance(callee, Step) else f"[[{_quoted(text)}]]"
        case Mapped(bound=bound):
            text = piece.name if bound.callee.name == piece.name else f"{piece.name}: {bound.callee.name}"
            return f"@{{ shape: procs, label: {_quoted(f'{text}, for each')} }}"
        case Choosing():
            chosen = [each.callee.name for each in (piece.then, piece.otherwise) if each is not None]
            return "{" + _quoted(f"{piece.name}: {' or '.join(chosen)}") + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;") + '"'
