"""size=auto takes the largest shape that text, machine and time can train; a run without a length gets it by a rule."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pretrain.config.compose import compose
from pretrain.errors import ConfigError
from pretrain.models.config import TransformerConfig
from pretrain.models.size import parameter_count
from pretrain.models.sizes import SHAPES, Size
from pretrain.planning import chosen_size
from pretrain.planning.answer import answer
from pretrain.planning.chosen_size import choose, fit_to_text, with_length, with_shape
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import PreparedData, Target
from pretrain.planning.length_rule import length_by_rule
from pretrain.planning.measured_step import measured_tokens_per_s
from pretrain.planning.workload import workload_of
from pretrain.training.config import Precision

Plan = Callable[..., PlanConfig]
ENOUGH = 10**12


def with_text(target: Target, tokens: int | None) -> Target:
    return replace(target, data=PreparedData(2048, tokens))


@pytest.fixture
def forecast_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the forecast for a machine of round numbers instead of a measurement on this one."""
    monkeypatch.setattr(chosen_size, "_speed", lambda config, planned, target: planned.cost.tokens_per_s)


@pytest.mark.long
@pytest.mark.usefixtures("forecast_only")
def test_more_time_and_more_text_make_a_larger_model(plan: Plan, target: Target) -> None:
    config = plan("size=auto")

    def chosen(minutes: float, tokens: int | None) -> Size:
        found, _ = choose(replace(config, time=minutes), with_text(target, tokens), {})
        return found.size

    by_time = [chosen(minutes, ENOUGH) for minutes in (3, 300, 3000, 30_000, 1e6)]
    by_text = [chosen(1e6, tokens) for tokens in (10**5, 10**7, 10**8, 10**9, None)]
    for sizes in (by_time, by_text):
        ranks = [list(SHAPES).index(size) for size in sizes]
        assert ranks == sorted(ranks)
        assert (sizes[0], sizes[-1], len(set(sizes)) >= 3) == (Size.nano, Size.small, True)


@pytest.mark.slow
@pytest.mark.usefixtures("forecast_only")
def test_the_chosen_run_is_optimal_within_text_and_time(plan: Plan, target: Target) -> None:
    found, lines = choose(plan("size=auto", "time=3000"), with_text(target, ENOUGH), {})
    assert 20 * found.parameters <= found.tokens_in(3000)
    run = with_length(found.config, 10**8, {})
    assert (run.size, run.time, run.trainer.max_time) == (None, None, 3000.0)
    assert run.trainer.max_steps == 4 * 10**8 // run.tokens_per_step()  # four passes at most
    text = "\n".join(lines)
    assert f"size=auto time=3000: {found.size.name}, {found.parameters:,} parameters" in text
    assert "the run ends after 3000 minutes" in text
    _, short = choose(plan("size=auto"), with_text(target, 1000), {})
    assert "size=auto time=10: nano" in short[0]
    assert short[2].endswith("4,000 tokens: the run ends with them")
    assert short[3] == "  the smallest size, which more text would train better"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["gpt_nano", "llama_nano", "bert_nano", "modernbert_nano", "hybrid_nano", "gpt_small"]
)
def test_every_family_has_every_size(plan: Plan, model: str) -> None:
    base = plan(f"model={model}")
    sizes = [with_shape(base, size, {}) for size in SHAPES]
    counts = [parameter_count(each.model, 2048) for each in sizes if isinstance(each.model, TransformerConfig)]
    assert counts == sorted(set(counts))
    assert len(counts) == len(SHAPES)
    for each in sizes:
        workload_of(each, 2048, Precision.fp32)  # builds on the meta device
        assert each.model.__class__ is base.model.__class__
        assert each.objective == base.objective
    rates = [each.optimizer.learning_rate for each in sizes]
    assert rates == sorted(rates, reverse=True)
    if model.endswith("_nano"):
        assert rates[0] == base.optimizer.learning_rate


@pytest.mark.slow
def test_under_mup_the_rate_of_a_size_is_that_of_the_base(plan: Plan) -> None:
    """The width scales it once, in the optimizer."""
    base = plan("model.parametrization=mup", "model.base_width=128")
    assert {with_shape(base, size, {}).optimizer.learning_rate for size in SHAPES} == {base.optimizer.learning_rate}


@pytest.mark.slow
def test_the_batch_of_a_size_does_not_grow_as_that_of_its_recipe(plan: Plan) -> None:
    base = plan("model=modernbert_base", "size=nano")
    assert base.batch_warmup_rows == 768
    sized = with_shape(base, Size.nano, {})
    assert (sized.batch_size, sized.batch_warmup_rows, sized.batch_warmup_tokens) == (8, None, None)
    typed = {"batch_warmup_rows": "2", "batch_warmup_tokens": "100"}
    own = plan("model=gpt_nano", "size=nano", *(f"{key}={value}" for key, value in typed.items()))
    assert with_shape(own, Size.nano, typed).batch_warmup_rows == 2


@pytest.mark.slow
def test_a_time_is_typed_once(plan: Plan, target: Target) -> None:
    typed = {"time": "30", "trainer.max_time": "10"}
    with pytest.raises(ConfigError, match=r"time=30 and trainer\.max_time=10 both say how long .* such as time=30"):
        choose(plan("size=nano", "time=30", "trainer.max_time=10"), target, typed)


@pytest.mark.slow
def test_what_is_typed_stays(plan: Plan) -> None:
    typed = {"model.d_model": "256", "batch_size": "6", "optimizer.learning_rate": "0.1", "trainer.max_steps": "7"}
    found = with_shape(plan("size=small", *(f"{key}={value}" for key, value in typed.items())), Size.small, typed)
    assert isinstance(found.model, TransformerConfig)
    assert (found.model.d_model, found.model.n_heads, found.model.n_layers) == (256, 4, 12)
    assert (found.batch_size, found.optimizer.learning_rate) == (6, 0.1)
    assert with_length(found, 10**9, typed).trainer.max_steps == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["time=10"], r"time=10 is the time of a run whose size .* Try size=auto time=10, or trainer\.max_time=10"),
        (["size=auto", "init_from=x"], r"size=auto chooses .* init_from=x has a shape already\. Try size=null"),
        (["size=mini", "objective=classify", "data=labeled", "data.path=x"], "size=mini .* fine-tunes .*=null"),
        (["size=auto", "time=0"], r"time=0.0 is not a number of minutes above 0\. Try time=10"),
        (["size=huge"], "size=huge"),
    ],
)  # fmt: skip
def test_what_no_size_can_do_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("train", words)


@pytest.mark.slow
def test_without_a_typed_length_the_rule_decides(plan: Plan, target: Target) -> None:
    config = plan("data=text_files", "data.path=x", "model.context_length=256", "batch_size=8")
    assert config.trainer.max_steps is None
    for data in ("data=curated", "data=prepared"):
        assert plan(data, "data.path=x").trainer.max_steps is None
    assert plan("data=curated", "data.path=x", "data.mode=stream").trainer.max_steps == 800
    steps, line = length_by_rule(config, 1_000_000, 10**9)
    assert steps == round(20_000_000 / 2048)
    assert "20 tokens for each of 1,000,000 parameters" in line
    assert "fewer than 4 passes" in line
    steps, line = length_by_rule(config, 1_000_000, 10**6)
    assert steps == 4_000_000 // 2048
    assert line.startswith("the run ends at step 1,953: 4 passes over the 1,000,000 tokens of text")
    steps, line = length_by_rule(replace(config, trainer=replace(config.trainer, max_time=5.0)), 1_000_000, None)
    assert "or after 5 minutes (trainer.max_time)" in line
    growing = replace(config, batch_warmup_rows=1, batch_warmup_tokens=10_000_000)
    for tokens, read in ((10**9, 20_000_000), (10**6, 4_000_000)):
        steps, _ = length_by_rule(growing, 1_000_000, tokens)
        assert growing.batch_sizes().tokens(steps) == pytest.approx(read, abs=2048)
    planned, lines = fit_to_text(config, with_text(target, 1000), {})
    assert planned.trainer.max_steps == 1
    assert lines[0].startswith("the run ends at step 1:")
    epochs, _ = fit_to_text(plan("trainer.max_epochs=2", "batch_size=8"), with_text(target, 2560), {})
    assert epochs.trainer.max_steps == 3  # 20 rows of 256 tokens, 8 a step


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt_nano", "bert_nano"])
def test_a_measured_step_has_a_speed(plan: Plan, model: str) -> None:
    config = plan(f"model={model}", "model.n_layers=1", "model.d_model=16", "model.context_length=32", "batch_size=2")
    work = workload_of(config, 300, Precision.fp32)
    before = torch.get_rng_state()
    speed = measured_tokens_per_s(config.run_config(), work, torch.device("cpu"), seconds=0.05)
    assert 100 < speed < 1e9
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.usefixtures("forecast_only")
def test_a_plan_shows_the_same_choice(plan: Plan) -> None:
    text = answer(plan("size=mini", "time=5", "device=h100", "dry_run=false", "paths.cache_dir=/nowhere"))
    assert text.startswith("size=mini time=5: mini, ")
    assert "16 rows x 256 tokens" in text
