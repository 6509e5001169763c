"""The scenarios of tests/scenarios on a real server, with processes killed by SIGKILL. A kill costs a lease here.

Of its files only test_dispatch_races is not run: it is about the dispatcher that the embedded stores share.
"""

from tests.scenarios.test_asyncio import *  # noqa: F403
from tests.scenarios.test_body_time import *  # noqa: F403
from tests.scenarios.test_cancel import *  # noqa: F403
from tests.scenarios.test_changed_code import *  # noqa: F403
from tests.scenarios.test_handover import *  # noqa: F403
from tests.scenarios.test_keys import *  # noqa: F403
from tests.scenarios.test_load import *  # noqa: F403
from tests.scenarios.test_messages import *  # noqa: F403
from tests.scenarios.test_operations import *  # noqa: F403
from tests.scenarios.test_random_programs import *  # noqa: F403
from tests.scenarios.test_retention import *  # noqa: F403
from tests.scenarios.test_steps import *  # noqa: F403
from tests.scenarios.test_streams import *  # noqa: F403
from tests.scenarios.test_timers import *  # noqa: F403
from tests.scenarios.test_when_busy import *  # noqa: F403

LEFT_OUT = (
    # They move a virtual clock, on the memory store, by days; a server has no clock that can be moved.
    "test_approval_after_days_with_restarts_in_between_completes",
    "test_delayed_start_comes_once_and_not_early_though_its_sender_is_gone",
    "test_suspended_holder_keeps_its_key_for_days_and_others_wait",
)
for _name in LEFT_OUT:
    del globals()[_name]
