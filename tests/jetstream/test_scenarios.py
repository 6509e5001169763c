"""The scenarios of tests/scenarios on a real server, with processes killed by SIGKILL."""

from tests.scenarios.test_asyncio import *  # noqa: F403
from tests.scenarios.test_handover import *  # noqa: F403
from tests.scenarios.test_keys import *  # noqa: F403
from tests.scenarios.test_load import *  # noqa: F403
from tests.scenarios.test_messages import *  # noqa: F403
from tests.scenarios.test_retention import *  # noqa: F403
from tests.scenarios.test_steps import *  # noqa: F403
from tests.scenarios.test_timers import *  # noqa: F403
