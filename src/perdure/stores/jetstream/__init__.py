"""The store on NATS JetStream: many worker processes, on one server or a cluster.

store      what the Store protocol asks for, given to the part that does it
accepting  starts and messages, made durable
commits    a frame, guarded; then its effects; then the acknowledgements
cancelling what cannot have begun, cancelled without a worker
watching   outcomes, answers and changes, pushed to callers that wait
view       a store that is only looked at
wire/      the server: connection, reads, guarded puts; URLs and credentials; what can be wrong
layout/    subjects, headers, settings of streams, and their creation
queue/     from the work queue to the workers here: pulls, routing, offers to other processes
ownership/ what the workers here hold, and the leases that keep it
journal/   frames, large payloads in pieces, long journals in segments
keys/      the queue, holder and state of each key
index/     rows, lists and counts, in a table in SQLite that follows the streams
care/      the janitor, overdue schedules, idle consumers, retention
"""

from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.jetstream.view import JetStreamView

__all__ = ["JetStreamStore", "JetStreamView"]
