"""Which batches are passed over, against a twin that enumerates."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.training.trouble import TROUBLE_WINDOW, Rollback, batch_index, plan_rollback, recent

PASSED = st.sets(st.integers(0, 60), max_size=30).map(sorted)


@given(passed_over=PASSED)
def test_batches_follow_one_another_and_leave_out_exactly_the_passed_over(passed_over):
    taken = (index for index in count() if index not in passed_over)
    assert [batch_index(step, passed_over) for step in range(100)] == [next(taken) for _ in range(100)]


def test_without_trouble_a_step_has_its_own_batch():
    assert [batch_index(step, []) for step in (0, 1, 10**9)] == [0, 1, 10**9]


@given(passed_over=PASSED, more=st.sets(st.integers(0, 20)))
def test_batches_before_the_passed_over_stay(passed_over, more):
    """So that a rollback changes nothing of the steps that are kept."""
    step = 25
    first = batch_index(step, passed_over)
    longer = sorted({*passed_over, *(first + i for i in more)})
    assert [batch_index(s, longer) for s in range(step)] == [batch_index(s, passed_over) for s in range(step)]


@given(skipped=st.sets(st.integers(1, 200)).map(sorted), step=st.integers(1, 200))
def test_recent_steps_are_the_last_ten(skipped, step):
    skipped = [s for s in skipped if s <= step]
    assert recent(skipped, step) == [s for s in skipped if s in range(step - TROUBLE_WINDOW + 1, step + 1)]


def test_the_first_time_the_batches_of_the_skipped_steps_are_passed_over():
    rollback = plan_rollback(37, [12, 31, 34, 37], 20, [], [])
    assert rollback == Rollback(37, 20, [30, 33, 36])


def test_indices_are_those_of_the_batches_and_not_of_the_steps():
    """Where batches were passed over before, step 37 had another batch than 36."""
    rollback = plan_rollback(37, [31, 34, 37], 20, [5, 31, 32], [Rollback(9, 0, [5])])
    assert rollback.passed_over == [batch_index(s, [5, 31, 32]) for s in (30, 33, 36)] == [33, 36, 39]


def test_steps_before_the_checkpoint_do_not_count():
    assert plan_rollback(22, [15, 21, 22], 20, [], []).passed_over == [20, 21]


def test_the_second_time_from_one_checkpoint_all_batches_since_are():
    earlier = [Rollback(24, 20, [21, 22, 23])]
    rollback = plan_rollback(26, [24, 25, 26], 20, [21, 22, 23], earlier)
    assert rollback == Rollback(26, 20, [20, 24, 25, 26, 27, 28])


def test_a_rollback_to_another_checkpoint_is_a_first_time():
    earlier = [Rollback(24, 20, [21, 22, 23])]
    assert plan_rollback(36, [34, 35, 36], 30, [21, 22, 23], earlier).passed_over == [36, 37, 38]


@given(
    passed_over=PASSED,
    checkpoint=st.integers(0, 50),
    length=st.integers(1, 30),
    again=st.booleans(),
    data=st.data(),
)
def test_no_batch_is_passed_over_twice_and_none_of_a_step_that_is_kept(passed_over, checkpoint, length, again, data):
    step = checkpoint + length
    skipped = sorted({*data.draw(st.sets(st.integers(max(1, checkpoint - 20), step))), step})
    earlier = [Rollback(step, checkpoint, [])] if again else []
    new = plan_rollback(step, skipped, checkpoint, passed_over, earlier).passed_over
    kept = {batch_index(s, passed_over) for s in range(checkpoint)}
    assert new == sorted(set(new))
    assert not set(new) & {*passed_over, *kept}
    twin = [batch_index(s - 1, passed_over) for s in range(checkpoint + 1, step + 1)]
    if not again:
        twin = [b for s, b in zip(range(checkpoint + 1, step + 1), twin, strict=True) if s in skipped[-99:]]
        twin = twin[-len([s for s in skipped if s > max(checkpoint, step - 10)]) :]
    assert new == twin


@pytest.mark.parametrize("rollback", [Rollback(5, 0, []), Rollback(37, 20, [30, 33])])
def test_a_rollback_comes_back_from_its_dict(rollback):
    assert Rollback(**rollback.to_dict()) == rollback
