"""The closed form equals the published fits, and is the optimum of its own curve."""

import pytest

from pretrain.planning.scaling import BESIROGLU, HOFFMANN, ScalingLaw, data_warnings, twenty_per_parameter

BUDGET = 2.21e19


def test_the_optimum_of_hoffmann_et_al() -> None:
    best = HOFFMANN.optimum(BUDGET)
    assert round(best.parameters / 1e6, 1) == 326.1
    assert round(best.tokens / 1e9, 2) == 11.29
    assert round(best.loss, 3) == 2.837


def test_the_refit_and_the_rule_of_thumb() -> None:
    refit, simple = BESIROGLU.optimum(BUDGET), twenty_per_parameter(BUDGET)
    assert refit.tokens / refit.parameters == pytest.approx(23.8, abs=0.1)
    assert simple.tokens == pytest.approx(20 * simple.parameters)
    assert refit.loss < simple.loss < refit.loss + 0.001


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU], ids=lambda law: law.name)
def test_no_other_size_is_better(law: ScalingLaw) -> None:
    best = law.optimum(BUDGET)
    assert 6 * best.parameters * best.tokens == pytest.approx(BUDGET)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(best.parameters * factor, best.tokens / factor) > best.loss


def test_a_law_that_hardly_depends_on_the_size_has_its_optimum_at_the_end() -> None:
    flat = ScalingLaw("a", 1.0, 0.05, 50.0, 1e-3, 4.0)
    small = ScalingLaw("b", 1.0, 1e-300, 1e9, 3.0, 1e-3)
    for law in (flat, small):
        best = law.optimum(1e15)
        assert 6 * best.parameters * best.tokens == pytest.approx(1e15)
        assert best.parameters >= 1.0
        assert best.tokens >= 1.0
        assert best.loss > 1.0


def test_a_run_that_leaves_most_of_its_text_unread_says_so() -> None:
    few = data_warnings(parameters=10**6, tokens_in_data=15 * 10**6, tokens_planned=1_638_400)
    assert len(few) == 1
    assert "reads 1,638,400 tokens: 10.9% of one pass over the data's 15,000,000, and 1.6 for each parameter" in few[0]
    assert "type trainer.max_epochs=1 without trainer.max_steps, or trainer.max_tokens=15000000 for a mix" in few[0]
    assert few[0].endswith("for that rule: trainer.max_steps=null.")
    assert data_warnings(10**6, 10**9, 20 * 10**6) == []  # compute-optimal
    assert data_warnings(10**6, 15 * 10**6, 0) == []  # its length is not known
    assert data_warnings(10**6, 15 * 10**6, 10 * 10**6) == []
    assert "5.0 epochs" in data_warnings(10**6, 2 * 10**6, 10 * 10**6)[0]
