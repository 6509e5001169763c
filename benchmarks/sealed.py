"""Measure what sealing costs: one field, one frame, one start; and a new key.

    python -m benchmarks.sealed [--rounds 20]

Each is the best of several rounds of 5,000: a busy machine makes the others slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count

from perdure.core.journal import CallStep, Frame, Returned, Start
from perdure.encryption import Encrypted
from perdure.stores.sealed.fields import DigestKey, Opening, Sealing
from perdure.stores.sealed.walk import frame_with, start_with

CALLS = 5_000
VALUE = b"\xd9\x40" + b"x" * 64
SCOPE, PLACE = b"i/01a230aab32b7d8994cbf3e06bd64562", b"returned 3 12345678"


def best(work: Callable[[], object], rounds: int) -> float:
    """Return the time of one call in µs, of the best round."""
    found = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(CALLS):
            work()
        found = min(found, (time.perf_counter() - begun) / CALLS)
    return found * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sealing costs.")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    codec, store, digests = Encrypted({"2026-11": b"k" * 32}), b"s" * 16, DigestKey(b"name", b"d" * 32)
    sealing, opening = Sealing(codec, store, digests), Opening(codec, store, digests, time.time)
    sealed = sealing.value(VALUE, SCOPE, PLACE)
    frame = Frame("w", 1.0, [Returned(1, 2.0, VALUE)], [CallStep(2, "step", b"12345678")])
    sealed_frame = frame_with(sealing, "invocation", frame)
    start = Start("invocation", "handler", VALUE, 1.0, 1.0, 7, digest=b"12345678")
    sealed_start = start_with(sealing, start)
    scopes = count()
    print("| what | µs |\n|---|---|")
    for what, work in (
        ("seal a field of 66 bytes", lambda: sealing.value(VALUE, SCOPE, PLACE)),
        ("open it", lambda: opening.value(sealed, SCOPE, PLACE)),
        (
            "seal one of an invocation that is new: its key is derived",
            lambda: sealing.value(VALUE, b"%d" % next(scopes), PLACE),
        ),
        ("seal a frame of two fields", lambda: frame_with(sealing, "invocation", frame)),
        ("open it", lambda: frame_with(opening, "invocation", sealed_frame)),
        ("seal a start, with its keyed digest", lambda: start_with(sealing, start)),
        ("open it", lambda: start_with(opening, sealed_start)),
    ):
        print(f"| {what} | {best(work, rounds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
