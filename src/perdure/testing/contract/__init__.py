"""The tests that every store must pass: subclass `StoreContract`, define `make` and `reopen`, run pytest.

Each section is a class in a module of its own; a subclass of one section runs that section alone. The suite sees only
the Store protocol, and requires no more than the weakest store can promise: revisions grow, but not by one; an attempt
above 1 is a hint; an effect is idempotent, not free.
"""

from __future__ import annotations

from perdure.testing.contract.awakeables import Awakeables
from perdure.testing.contract.changes import Changes
from perdure.testing.contract.commits import Commits
from perdure.testing.contract.deliveries import Deliveries
from perdure.testing.contract.documents import Documents
from perdure.testing.contract.index import Index
from perdure.testing.contract.keys import Keys
from perdure.testing.contract.lifetime import Lifetime
from perdure.testing.contract.messages import Messages
from perdure.testing.contract.numbers import Numbers
from perdure.testing.contract.payloads import Payloads
from perdure.testing.contract.retention import Retention
from perdure.testing.contract.rewriting import RewritesValues
from perdure.testing.contract.streams import Streams
from perdure.testing.contract.submit import Submit
from perdure.testing.contract.wakes import Wakes
from perdure.testing.contract.watching import Watching

SECTIONS = (
    Submit,
    Deliveries,
    Commits,
    Messages,
    Watching,
    Wakes,
    Keys,
    Index,
    Awakeables,
    Changes,
    Retention,
    Payloads,
    Numbers,
    Documents,
    Streams,
    RewritesValues,
    Lifetime,
)


class StoreContract(
    Submit,
    Deliveries,
    Commits,
    Messages,
    Watching,
    Wakes,
    Keys,
    Index,
    Awakeables,
    Changes,
    Retention,
    Payloads,
    Numbers,
    Documents,
    Streams,
    RewritesValues,
    Lifetime,
):
    """The whole suite. A subclass defines `make` and `reopen`; each test makes a store of its own."""
