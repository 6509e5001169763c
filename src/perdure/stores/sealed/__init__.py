"""A store that seals: values are encrypted on their way to another store, and opened on the way back.

The store within, its files, streams and logs, see sealed values only; whatever is above sees plain ones.

store      the Store protocol, over another store; deliveries
documents  the documents of a store
streams    the streams of a store
walk       which fields of which types are sealed, and where each is
fields     seals, opens or shows one field; keyed digests
kept       what a sealed store keeps for itself: its id, the key of its digests, its secret
"""

from perdure.stores.sealed.store import Sealed, opened, sealed

__all__ = ["Sealed", "opened", "sealed"]
