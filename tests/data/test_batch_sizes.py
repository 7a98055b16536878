"""Sample indices of a step follow from all earlier batch sizes: none is skipped or read twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.errors import CheckpointError


def size(batch_size: int, tokens: int = 10, order: str = "o") -> StepSize:
    return StepSize(batch_size, batch_size * tokens, order)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=6))
def test_samples_follow_one_another_whatever_the_sizes(stretches: list[tuple[int, int]]) -> None:
    """Each stretch is a batch size and how many steps it lasts; the last goes on."""
    sizes, steps, expected = BatchSizes.constant(size(stretches[0][0])), 0, [0]
    for batch_size, lasts in stretches:
        sizes = sizes.changed(steps, size(batch_size))
        steps += lasts
        expected += [expected[-1] + batch_size * number for number in range(1, lasts + 1)]
    expected += [expected[-1] + stretches[-1][0]]
    assert [sizes.samples(step) for step in range(steps + 2)] == expected
    assert [sizes.tokens(step) for step in range(steps + 2)] == [10 * samples for samples in expected]
    assert [sizes.batch_size(step) for step in range(steps + 1)] == [b - a for a, b in pairwise(expected)]
    assert BatchSizes.saved({"batch_sizes": sizes.record(steps + 1)}, size(stretches[-1][0])) == sizes
    for tokens in range(10 * expected[-1]):
        within = sizes.steps_within(tokens)
        assert sizes.tokens(within) <= tokens < sizes.tokens(within + 1)
        to = sizes.steps_to(tokens)
        assert sizes.tokens(to) >= tokens
        assert not to or sizes.tokens(to - 1) < tokens


def test_a_checkpoint_from_before_they_were_saved_had_one_size_all_along() -> None:
    old = BatchSizes.saved({"tokens_seen": 240}, size(4))
    assert old.samples(6) == 24
    assert old.changed(6, size(4)) == old
    larger = old.changed(6, size(8))
    assert [larger.samples(step) for step in (5, 6, 7, 8)] == [20, 24, 32, 40]
    back = larger.changed(6, size(2))  # the larger one took no step
    assert [back.samples(step) for step in (5, 6, 7)] == [20, 24, 26]
    assert len(back.record(9)) == 2


def test_steps_from_before_another_order_are_known() -> None:
    sizes = BatchSizes.constant(size(4)).changed(6, size(8)).changed(9, size(8, order="p"))
    assert [sizes.order_changed_at(step) for step in (1, 6, 9, 10)] == [9, 9, 9, None]
    assert sizes.changed(12, size(8)).order_changed_at(1) == 12


WHOLE = BatchSizes.constant(size(4)).changed(6, size(8)).record(9)


@pytest.mark.parametrize(
    "written",
    [
        None, [], "x", [WHOLE[1]], [WHOLE[0]], [WHOLE[0], WHOLE[0]], [WHOLE[0], WHOLE[1] | {"samples": 25}],
        [WHOLE[0], WHOLE[1] | {"tokens": -1}], [WHOLE[0], WHOLE[1] | {"steps": 6.0}],
        [WHOLE[0] | {"batch_size": 0}, WHOLE[1]], [WHOLE[0], WHOLE[1] | {"order": 3}], [WHOLE[0], 7],
        [WHOLE[0] | {"batch_size": True}, WHOLE[1]], [WHOLE[0], WHOLE[1] | {"steps": 2**70}],
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(written: object) -> None:
    with pytest.raises(CheckpointError, match=r"batch_sizes in manifest\.json is damaged.* Take another checkpoint"):
        BatchSizes.saved({"batch_sizes": written}, size(8))


def test_a_batch_that_grows_does_so_by_tokens_and_a_resume_finds_the_same_steps() -> None:
    plan = [(0, size(2)), (100, size(4)), (200, size(6)), (300, size(8))]
    sizes = BatchSizes.constant(size(2)).planned(0, plan)
    assert [sizes.batch_size(step) for step in range(13)] == [2] * 5 + [4] * 3 + [6] * 2 + [8] * 3
    for step in range(13):
        saved = BatchSizes.saved({"batch_sizes": sizes.record(step)}, size(8), [2, 4, 6])
        assert saved.planned(step, plan) == sizes
    with pytest.raises(CheckpointError, match="damaged"):
        BatchSizes.saved({"batch_sizes": sizes.record(2)}, size(8), [4, 6])
    later = sizes.planned(12, [(0, size(3, order="p")), (50, size(5, order="p"))], since=sizes.tokens(12))
    assert [later.batch_size(step) for step in (11, 12, 13, 14)] == [8, 3, 3, 5]
    assert later.order_begins(14) == sizes.samples(12) == later.samples(12)
