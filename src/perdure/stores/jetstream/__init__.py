"""The store on NATS JetStream: many worker processes, on one server or a cluster.

store      the Store protocol; delegates to the parts
accepting  makes starts and messages durable
commits    appends a frame, then performs its effects, then acknowledges
cancelling cancels invocations that have not begun, without a worker
watching   pushes outcomes, answers and changes to waiting callers
view       a read-only store
wire/      the server: connection, reads, guarded puts, URLs, credentials, checks
layout/    subjects, headers, stream settings, creation of streams
queue/     from the work queue to the workers here: pulls, routing, offers to other processes
ownership/ what the workers here hold, and their leases
journal/   frames, large payloads in pieces, long journals in segments
keys/      queue, holder and state of each key
documents/ documents, in the streams of keys
streams    what invocations write to streams, in the streams of large payloads
index/     rows, lists and counts, in a SQLite table that follows the streams
care/      the janitor, overdue schedules, idle consumers, retention
"""

from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.jetstream.view import JetStreamView

__all__ = ["JetStreamStore", "JetStreamView"]
