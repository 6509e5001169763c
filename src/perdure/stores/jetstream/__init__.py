"""The store on NATS JetStream: many worker processes, on one server or a cluster.

store      what the Store protocol asks for: submit, post, commit and its effects, reads
deliveries from the queue to the workers here: looked at, handed over, offered to an owner elsewhere, passed on
hands      what workers here hold, and what is renewed
pulls      one consumer, pulled
journals   frames on a stream, guarded, with a running checksum
overdue    schedules that a server missed
packs      the frames of long journals, in segments
keys       lines and holders
answers    what became of messages
janitor    what should not happen: found, reported, and made to go on
purge      retention
blobs      payloads above the server's limit
lanes      what goes to one key together
index      rows and changes
projection lists and counts, from a `table` in SQLite that follows the streams
view       a store that is only looked at
access     servers and credentials
checks     what can be wrong with a server
streams    made once, and checked
layout     subjects, settings, and what headers say
wire       the narrow interface to the server
"""

from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.jetstream.view import JetStreamView

__all__ = ["JetStreamStore", "JetStreamView"]
