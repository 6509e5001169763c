"""What the index knows of what an invocation waits for. Shared by all stores."""

from __future__ import annotations

from msgspec import Struct


class Wait(Struct, frozen=True, omit_defaults=True):
    """What an invocation waits for: `what` is the type of a command, as `describe` shows it (`charge`, `CHILD:pay`).

    It has waited since the time `since`; `due` is when the wait ends, if time ends it. With an `attempt`, it is a step
    that failed: this attempt is the next one, or runs. `more` other commands are waited for as well.
    """

    what: str
    since: float
    due: float | None = None
    attempt: int = 0
    more: int = 0
