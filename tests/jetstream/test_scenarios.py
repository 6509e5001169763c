"""The scenarios of tests/scenarios on a real server, with processes killed by SIGKILL.

A kill costs a lease here, so those are left out that say nothing of the store, or say it of five kills.
"""

from tests.scenarios.test_handover import *  # noqa: F403
from tests.scenarios.test_keys import *  # noqa: F403
from tests.scenarios.test_load import *  # noqa: F403
from tests.scenarios.test_messages import *  # noqa: F403
from tests.scenarios.test_random_programs import *  # noqa: F403
from tests.scenarios.test_retention import *  # noqa: F403
from tests.scenarios.test_steps import *  # noqa: F403
from tests.scenarios.test_timers import *  # noqa: F403

LEFT_OUT = (
    "test_body_that_blocks_is_reported_with_its_stack_and_others_go_on",
    "test_kill_in_the_middle_of_a_sweep_leaves_whole_invocations_and_the_next_goes_on",
    "test_replay_of_five_times_as_many_steps_is_five_times_the_work",
    "test_result_that_cannot_be_encoded_fails_at_once_and_names_the_step",
    "test_two_thousand_that_wait_for_one_key_take_no_place_in_the_worker",
    "test_what_kills_its_worker_five_times_is_set_aside_before_a_sixth",
)
for _name in LEFT_OUT:
    globals().pop(_name, None)
