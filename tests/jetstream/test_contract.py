"""The JetStream store keeps the contract that every store keeps, on a real server."""

from __future__ import annotations

from typing import Any, cast

import pytest

from examples.services.nats_server import Server
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.port import Store
from perdure.testing.contract import StoreContract

ORDERED = {
    "test_slow_reader_gets_the_newest_of_each_the_latest_change_last",
    "test_start_handed_back_goes_to_who_has_room",
    "test_starts_are_delivered_within_what_was_requested",
    "test_starts_of_a_handler_come_in_the_order_accepted",
    "test_unacknowledged_starts_come_again_in_order_after_their_subscriber_closes",
}
"""These want an order of starts, which there is in a shard and not between shards."""


class TestJetStreamStore(StoreContract):
    patience = 60.0
    calm = 0.1

    @pytest.fixture(autouse=True)
    def _place(self, nats: Server, namespace: str, request: pytest.FixtureRequest) -> None:
        self.nats = nats
        self.shards = 1 if request.node.name in ORDERED else 4
        self.namespace = namespace

    def make(self, **limits: int) -> Store:
        return JetStreamStore([self.nats.url], namespace=self.namespace, shards=self.shards, **cast("Any", limits))

    def reopen(self, store: Store, /) -> Store:
        return JetStreamStore([self.nats.url], namespace=self.namespace, shards=self.shards)
