"""A sealed JetStream store keeps the contract that every store keeps, on a real server."""

from __future__ import annotations

from perdure.encryption import Encrypted
from perdure.stores.port import Store
from perdure.stores.sealed import Sealed
from tests.jetstream.test_contract import TestJetStreamStore as Plain
from tests.stores.test_sealed_contract import KEYS, SealedStarts


class TestSealedJetStreamStore(SealedStarts, Plain):
    def make(self, **limits: int) -> Store:
        return Sealed(super().make(**limits), Encrypted(KEYS))

    def reopen(self, store: Store, /) -> Store:
        return Sealed(super().reopen(store), Encrypted(KEYS))


del Plain  # or pytest collects it here too
