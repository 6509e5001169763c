"""The scenarios of tests/scenarios on a real server, with processes killed by SIGKILL.

A kill costs a lease here, so those are left out that say nothing of the store, or say it of five kills.
"""

from tests.scenarios.test_asyncio import *  # noqa: F403
from tests.scenarios.test_cancel import *  # noqa: F403
from tests.scenarios.test_handover import *  # noqa: F403
from tests.scenarios.test_keys import *  # noqa: F403
from tests.scenarios.test_load import *  # noqa: F403
from tests.scenarios.test_messages import *  # noqa: F403
from tests.scenarios.test_operations import *  # noqa: F403
from tests.scenarios.test_retention import *  # noqa: F403
from tests.scenarios.test_steps import *  # noqa: F403
from tests.scenarios.test_timers import *  # noqa: F403

LEFT_OUT: tuple[str, ...] = ()
for _name in LEFT_OUT:
    globals().pop(_name, None)
