"""What cancels an invocation that has not begun."""

from __future__ import annotations

from perdure.core.effects import Release
from perdure.core.history import History
from perdure.core.journal import Answer, Cancel, Message, Parent, Settled, Start
from perdure.core.unbegun import cancelled_unbegun


def test_one_frame_settles_it_answers_the_message_tells_the_parent_and_leaves_the_queue_of_the_key() -> None:
    start = Start("child", "h", b"\x80", 1.0, 1.0, 7, key="k", parent=Parent("parent", 0, 3))
    message = Message("m", "child", 2.0, Cancel())
    frame, effects = cancelled_unbegun(start, message, "store", 2.0)
    history = History.of([frame])
    assert history.status == "cancelled"
    assert history.start == start
    assert effects.answers == (Answer("m"),)
    assert effects.release == Release("k", 0)
    (told,) = effects.messages
    assert told.to == "parent"
    assert isinstance(told.request, Settled)
    assert told.request.outcome == frame.outcome
