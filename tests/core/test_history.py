from __future__ import annotations

from perdure.core.failures import Failure
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Joined,
    OpenAwakeable,
    Parent,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    Start,
)

START = Start("one", "handler", b"\x80", 1.0, 1.0, 7)
FAILURE = Failure("builtins", "ValueError", "no")


def claim(epoch: int, *, python: str = "3.11", hash_seed: str = "0") -> Claimed:
    return Claimed(1.0, epoch, f"worker {epoch}", python, hash_seed)


def frame(*entries: Entry) -> Frame:
    return Frame("writer", 1.0, [*entries])


def history(*frames: Frame) -> History:
    """Fold frames, and check that noting every entry a second time changes nothing."""
    folded = History.of(frames)
    again = History.of(frames)
    for each in frames[-1:]:
        for entry in each.entries:
            again.note(entry)
    assert again == folded
    return folded


def test_nothing_is_known_of_an_empty_journal():
    assert History.of([]) == History()
    assert History().status == "suspended"


def test_the_first_claim_records_the_python_and_the_last_the_hash_seed():
    folded = history(
        frame(Accepted(START), claim(1, python="3.11", hash_seed="0")), frame(claim(2, python="3.12", hash_seed="5"))
    )
    assert folded.start == START
    assert (folded.epoch, folded.python, folded.hash_seed, folded.claimed) == (2, "3.11", "5", True)
    assert folded.status == "running"


def test_a_release_ends_a_claim():
    folded = history(frame(Accepted(START), claim(1)), frame(Returned(0, 2.0, b""), Released(2.0, 9.0)))
    assert not folded.claimed
    assert folded.status == "suspended"


def test_a_pause_lasts_until_it_is_over_claimed_or_not():
    paused = [frame(Accepted(START), claim(1)), frame(Paused(2.0, "because", "m1"), Released(2.0))]
    assert history(*paused).status == "paused"
    assert history(*paused).paused == "because"
    assert history(*paused, frame(claim(2))).status == "paused"
    assert history(*paused, frame(claim(2), Resumed(3.0, "m2"))).status == "running"
    assert history(*paused, frame(Resumed(3.0))).status == "suspended"


def test_an_outcome_settles_and_ends_the_claim():
    for outcome, status in (
        (Completed(2.0, b""), "completed"),
        (Failed(2.0, FAILURE), "failed"),
        (Cancelled(2.0, True, "m"), "cancelled"),
    ):
        folded = history(frame(Accepted(START), claim(1)), frame(Paused(1.5, "because")), frame(outcome))
        assert folded.status == status
        assert folded.outcome == outcome
        assert not folded.claimed


def test_every_message_that_was_applied_or_refused_is_known_by_its_id():
    folded = history(
        frame(Accepted(START), claim(1)),
        frame(
            Returned(0, 2.0, b"", "returned"),
            Returned(1, 2.0, b""),
            Raised(2, 2.0, FAILURE, "raised"),
            Raised(3, 2.0, FAILURE),
            CancelRequested(2.0, False, "cancel"),
            CancelRequested(2.0, True),
            Paused(2.0, "because", "pause"),
            Resumed(2.0, "resume"),
            Refused(2.0, "refused", "too late"),
            Cancelled(2.0, True, "forced"),
        ),
    )
    applied = dict.fromkeys(("returned", "raised", "cancel", "pause", "resume", "forced"))
    assert folded.messages == {**applied, "refused": "too late"}


def test_deaths_are_claims_in_a_row_that_brought_nothing():
    frames = [frame(Accepted(START), claim(1)), frame(claim(2)), frame(claim(3))]
    assert history(*frames).deaths == 3
    for entry in (
        Fired(0, 2.0),
        Interrupted(0, 2.0),
        Attempted(0, 2.0, 1, FAILURE, 3.0),
        Released(2.0),
        Returned(0, 2.0, b""),
    ):
        assert history(*frames, frame(entry)).deaths == 0
        assert history(*frames, frame(entry), frame(claim(4))).deaths == 1
    assert history(*frames, frame(claim(4), Returned(0, 2.0, b""))).deaths == 0


def test_a_claim_seen_twice_is_one_claim():
    folded = History.of([frame(Accepted(START), claim(1))])
    folded.note(claim(2))
    folded.add(frame(claim(2)))
    assert folded.deaths == 2


def test_the_last_frame_is_the_last_that_is_more_than_a_claim():
    first = Frame("writer", 1.0, [Accepted(START), claim(1)], [CallStep(0, "a", b"")])
    answer, late = frame(Returned(0, 2.0, b"")), frame(claim(2))
    assert history(frame(Accepted(START), claim(1))).last is None
    assert History.of([first]).last is first
    assert History.of([first, late]).last is first
    assert History.of([first, answer, late, frame(claim(3))]).last is answer


def test_children_are_known_by_their_numbers():
    child = Start("child", "other", b"\x80", 1.0, 1.0, 8)
    folded = history(Frame("writer", 1.0, [Accepted(START)], [OpenAwakeable(0), CallChild(1, child)]))
    assert folded.children == {1: child}


def test_a_retry_takes_the_outcome_back_and_forgets_the_children_of_the_failure_path():
    child = Start("child", "other", b"\x80", 1.0, 1.0, 8)
    new = Start("new", "other", b"\x80", 1.0, 1.0, 8)
    frames = [
        Frame("writer", 1.0, [Accepted(START), claim(1)], [CallChild(0, child)]),
        Frame("writer", 2.0, [Paused(1.9, "late"), Failed(2.0, FAILURE, 0)], [CallChild(1, child)]),
        Frame("writer", 3.0, [claim(2), Retried(3.0, 1, 0, 1, "m", 1, 0, [0])], [CallChild(0, new)]),
    ]
    folded = history(*frames)
    assert (folded.outcome, folded.paused, folded.status) == (None, None, "running")
    assert (folded.generation, folded.retried_at, folded.epoch) == (1, 3.0, 2)
    assert folded.children == {0: new}
    assert folded.messages == {"m": None}
    assert folded.last is frames[-1]
    again = history(*frames, frame(Failed(4.0, FAILURE)))
    assert (again.status, again.generation) == ("failed", 1)


KEYED = Start("one", "handler", b"\x80", 1.0, 1.0, 7, "user-1")


def test_who_was_accepted_and_not_granted_its_key_is_pending():
    folded = history(frame(Accepted(KEYED)))
    assert (folded.status, folded.waits_for_key) == ("pending", True)
    assert history(frame(Accepted(KEYED), claim(1))).status == "running"
    assert history(frame(Accepted(KEYED), claim(1), Paused(2.0, "because"), Released(2.0))).status == "paused"
    granted = history(frame(Accepted(KEYED), claim(1), Granted(2.0, 0), Released(2.0)))
    assert (granted.status, granted.waits_for_key) == ("suspended", False)


def test_the_state_of_the_key_is_what_was_granted_and_all_changes_since():
    granted = Frame("writer", 1.0, [Accepted(KEYED), claim(1), Granted(2.0, 0, {"a": b"1", "b": b"2"})])
    assert (history(granted).key_state, history(granted).key_state_changed) == ({"a": b"1", "b": b"2"}, False)
    changed = Frame("writer", 2.0, [Returned(0, 2.0, b"")], [], {"a": None, "c": b"3"})
    folded = history(granted, changed)
    assert (folded.key_state, folded.key_state_changed) == ({"b": b"2", "c": b"3"}, True)
    assert folded.granted == 0


def test_a_retry_is_granted_the_key_anew():
    failed = Frame(
        "writer", 1.0, [Accepted(KEYED), claim(1), Granted(2.0, 0, {"a": b"1"}), Failed(2.0, FAILURE)], [], {"a": b"2"}
    )
    again = frame(claim(2), Granted(3.0, 1, {"a": b"5"}), Retried(3.0, 1, None, 0, "m", 0, 3))
    folded = history(failed, again)
    assert (folded.granted, folded.generation, folded.waits_for_key) == (1, 1, False)
    assert (folded.key_state, folded.key_state_changed) == ({"a": b"5"}, False)


def test_histories_share_nothing():
    one, two = History(), History()
    one.messages["m"] = None
    one.children[1] = START
    assert two == History()


def test_children_are_open_until_they_answer():
    child = Start("c", "h", b"", 1.0, 1.0, 1, parent=Parent("one", 0, 0))
    history = History.of([Frame("w", 1.0, [Accepted(START)], [CallChild(n, child) for n in range(3)])])
    assert history.open_children() == [0, 1, 2]
    history.add(Frame("w", 2.0, [Interrupted(1, 2.0), Fired(7, 2.0)]))
    assert history.open_children() == [0, 2]
    assert history.waits_for_child(0, 0, "c")
    assert not history.waits_for_child(1, 0, "c")


def test_who_joined_is_known_once_and_until_a_retry():
    other = Parent("other", 0, 3)
    folded = history(frame(Accepted(START)), frame(Joined(2.0, other, "m")))
    folded.note(Joined(2.0, other, "m"))
    assert folded.joined == [other]
    assert folded.messages == {"m": None}
    folded.add(frame(Failed(3.0, FAILURE)))
    folded.add(frame(Retried(4.0, 1, None, 0, "r", 1, 0)))
    assert folded.joined == []
