"""The JetStream store keeps the contract that every store keeps, on a real server."""

from __future__ import annotations

from typing import Any, cast

import pytest

from perdure.stores.jetstream import JetStreamStore
from perdure.stores.store import Store
from perdure.testing.contract import StoreContract
from tests.jetstream.server import Server


class TestJetStreamStore(StoreContract):
    patience = 10.0
    calm = 0.1

    @pytest.fixture(autouse=True)
    def _place(self, nats: Server, namespace: str) -> None:
        self.nats = nats
        self.namespace = namespace

    def make(self, **limits: int) -> Store:
        return JetStreamStore([self.nats.url], namespace=self.namespace, shards=1, **cast("Any", limits))

    def reopen(self, store: Store, /) -> Store:
        return JetStreamStore([self.nats.url], namespace=self.namespace, shards=1)
