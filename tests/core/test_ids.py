from __future__ import annotations

from typing import Any, cast
from uuid import RFC_4122, UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perdure.core.ids import (
    ID_LENGTH_LIMIT,
    awakeable_id,
    check_name,
    check_new_id,
    derived_id,
    idempotency_key,
    new_id,
    parse_awakeable_id,
    seed_of,
)
from perdure.errors import BadId

SECRET = b"secret"
times = st.floats(0, 1e10)
ids = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30)
numbers = st.integers(0, 10**9)
ten_bytes = st.binary(min_size=10, max_size=10)


# --- new ids ----------------------------------------------------------------------------------------------------------
@given(times, ten_bytes)
def test_a_new_id_is_a_uuid_of_version_7(at: float, random: bytes):
    id = UUID(new_id(at, random))
    assert id.version == 7
    assert id.variant == RFC_4122
    assert id.int >> 80 == int(at * 1000)


@given(times, times, ten_bytes, ten_bytes)
def test_new_ids_sort_by_time(early: float, late: float, one: bytes, two: bytes):
    early, late = sorted((early, late))
    assume(int(early * 1000) < int(late * 1000))
    assert new_id(early, one) < new_id(late, two)


@given(times, st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_74_random_bits_tell_ids_of_one_millisecond_apart(at: float, one: int, two: int):
    assume(one != two)
    assert new_id(at, one.to_bytes(10, "big")) != new_id(at, two.to_bytes(10, "big"))


def test_a_new_id_is_always_the_same_text_for_the_same_time_and_bytes():
    assert new_id(1_700_000_000.0, bytes(range(10))) == "018bcfe5680078098010203040506070"


# --- derived ids ------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(ids, numbers, numbers), unique=True, min_size=2, max_size=5))
def test_no_derived_id_names_two_commands(sources: list[tuple[str, int, int]]):
    made = {derived_id(*source) for source in sources}
    made |= {idempotency_key(*source, "name") for source in sources}
    made |= {idempotency_key(*source, "other") for source in sources}
    assert len(made) == 3 * len(sources)
    assert len({awakeable_id(*source, SECRET) for source in sources}) == len(sources)


def test_derived_ids_are_for_ever():
    """Journals hold them: were they to change, children and sends of old journals would be started again."""
    assert derived_id("id", 0, 1) == "275cb7a96e5f3c0feb1aad117d07a8a9"
    assert idempotency_key("id", 0, 1, "step") == "5b2c7dd7e71218de2179a15540a54df5"
    assert seed_of("id") == 1_608_715_051_860_144_469
    assert awakeable_id("id", 0, 1, SECRET) == "id~0~1~f7be77bf821d6c87"


@given(ids)
def test_a_seed_is_a_positive_64_bit_number(id: str):
    assert 0 <= seed_of(id) < 2**63


# --- awakeables -------------------------------------------------------------------------------------------------------
@given(ids, numbers, numbers)
def test_the_id_of_an_awakeable_says_where_to_go(id: str, generation: int, n: int):
    assert parse_awakeable_id(awakeable_id(id, generation, n, SECRET), SECRET) == (id, generation, n)


@given(ids, numbers, numbers, st.data())
def test_a_changed_awakeable_id_is_refused(id: str, generation: int, n: int, data: st.DataObject):
    text = awakeable_id(id, generation, n, SECRET)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("0123456789abcdef~\ud800\n"))
    assume(text[place] != other)
    with pytest.raises(BadId):
        parse_awakeable_id(text[:place] + other + text[place + 1 :], SECRET)


@given(ids, numbers, numbers)
def test_the_awakeable_of_another_store_is_refused(id: str, generation: int, n: int):
    with pytest.raises(BadId, match="this store handed out no such awakeable"):
        parse_awakeable_id(awakeable_id(id, generation, n, b"other"), SECRET)


@given(st.text())
def test_any_other_text_is_no_awakeable(text: str):
    with pytest.raises(BadId):
        parse_awakeable_id(text, SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~~~",
        "id",
        "id~0~1",
        "id~0~1~",
        "id~x~1~00",
        "id~0~-1~00",
        "id~0~²~00",
        f"id~{'9' * 5000}~1~00",
        "\ud800~0~1~00",
    ],
)
def test_what_only_looks_like_an_awakeable_is_refused(text: str):
    with pytest.raises(BadId):
        parse_awakeable_id(text, SECRET)


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["a", "order-17", "Bestellung ä/ö", "日本", "x" * ID_LENGTH_LIMIT])
def test_a_printable_name_is_returned(text: str):
    assert check_name("an id", text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one character"),
        ("x" * (ID_LENGTH_LIMIT + 1), f"has {ID_LENGTH_LIMIT + 1} characters where the limit is {ID_LENGTH_LIMIT}"),
        ("a\nb", "cannot be printed"),
        ("a\x00", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        (17, "must be a str, not int"),
        (None, "must be a str, not NoneType"),
    ],
)
def test_a_name_that_no_store_could_hold_is_refused_and_the_text_says_why(text: Any, says: str):
    with pytest.raises(BadId, match=says) as caught:
        check_name("an id", cast("str", text))
    assert "an id" in str(caught.value)


@pytest.mark.parametrize("id", [5, None, b"x~0~0~0"])
def test_an_awakeables_id_that_is_no_text_is_refused(id: Any) -> None:
    with pytest.raises(BadId, match="an awakeable's id must be a str"):
        parse_awakeable_id(id, b"secret")


def test_new_invocation_cannot_have_an_id_that_means_something_else_in_a_url():
    assert check_new_id("order/1") == "order/1"
    for id in (".", "..", "stats"):
        with pytest.raises(BadId, match="in a URL it means something else"):
            check_new_id(id)
    with pytest.raises(BadId):
        check_new_id("")
