"""Replicas that are behind: a direct read, which any of them may answer, must not show less than there is.

A real replica is behind for some milliseconds only. Here every other direct read is answered as one would that has
nothing yet; all else is a real server's.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from examples.services.nats_server import Server
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.wire.protocol import Stored
from perdure.stores.jetstream.wire.reads import BATCH_LIMIT
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Store
from perdure.testing.contract import StoreContract

COUNTED = {"test_line_that_is_full_refuses_a_client_and_takes_what_workflows_send"}
"""These want a line to be counted exactly: the limit is one of a million, and its count may be a moment late."""


class WireToReplicas(Wire):
    """A wire to a cluster, of which every other direct read meets a replica that has nothing."""

    reads = 0
    asked_now = 0
    asked_most = 0

    @property
    def is_clustered(self) -> bool:
        return True

    async def _direct(self, stream: str, body: object) -> tuple[list[Stored], int]:
        self.reads += 1
        return ([], 0) if self.reads % 2 else await super()._direct(stream, body)

    async def last(self, stream: str, subject: str) -> Stored | None:
        self.asked_now += 1
        self.asked_most = max(self.asked_most, self.asked_now)
        try:
            return await super().last(stream, subject)
        finally:
            self.asked_now -= 1


class TestJetStreamStoreOfReplicasThatAreBehind(StoreContract):
    patience = 60.0
    calm = 0.1

    @pytest.fixture(autouse=True)
    def _place(self, nats: Server, namespace: str, request: pytest.FixtureRequest) -> None:
        self.nats = nats
        self.namespace = namespace
        if request.node.name in COUNTED:
            pytest.skip("its count may be late")

    def make(self, **limits: int) -> Store:
        store = JetStreamStore([self.nats.url], namespace=self.namespace, shards=1, **cast("Any", limits))
        store.wire.__class__ = WireToReplicas
        return store

    def reopen(self, store: Store, /) -> Store:
        return self.make()

    async def test_leader_is_asked_for_many_journals_some_at_a_time(self) -> None:
        """The servers' API has a queue, of which they drop what is too much."""
        async with self.opened() as store:
            wire = cast("JetStreamStore", store).wire
            assert isinstance(wire, WireToReplicas)
            ids = [f"many{n}" for n in range(2_500)]
            assert all(await store.submit([self.start(id) for id in ids]))
            assert wire.asked_most <= BATCH_LIMIT
