"""The published recipes: each composes at full size with its published numbers, and its nano twin keeps its stages."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.compose import compose, register_schemas
from pretrain.config.preset_folders import CONFIG_FOLDER
from pretrain.config.run import RunConfig
from pretrain.config.stages import course_of
from pretrain.data.batch_sizes import BatchSizes
from pretrain.launch.run_folder import read_rows
from pretrain.training.train import train

B = 10**9
MODERN, BERT, BABY = 50_368, 30_522, 8_192  # vocabularies
RECIPES = {  # vocabulary, published parameters in millions, names of the stages
    "modernbert_base": (MODERN, 149, "short long decay"),
    "modernbert_large": (MODERN, 395, "short slow long decay"),
    "ettin_17m": (MODERN, 17, "short long decay"),
    "ettin_32m": (MODERN, 32, "short long decay"),
    "ettin_68m": (MODERN, 68, "short long decay"),
    "ettin_17m_decoder": (MODERN, 17, "short long decay"),
    "ettin_32m_decoder": (MODERN, 32, "short long decay"),
    "ettin_68m_decoder": (MODERN, 68, "short long decay"),
    "neobert": (BERT, 250, "cosine flat long"),
    "gpt_bert": (BABY, 30, "short middle long"),
}
WITHOUT_STAGES = "track3_124m_nano"
TWINS = sorted({path.stem for path in (CONFIG_FOLDER / "experiment").glob("*_nano.yaml")} - {WITHOUT_STAGES})


@cache
def recipe(name: str) -> RunConfig:
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", [f"experiment={name}", "data.path=x"])
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_published_size_and_its_stages(name: str) -> None:
    vocabulary, millions, stages = RECIPES[name]
    config = recipe(name)
    assert list(config.stages) == stages.split()
    with torch.device("meta"):
        model = config.model.build(config.model.vocabulary(vocabulary), config.objective.causal)
    count = sum(parameter.numel() for parameter in model.parameters())
    rounded = 0.07 if name == "gpt_bert" else 0.025  # without the relative positions and gates of GPT-BERT
    assert count / 1e6 == pytest.approx(millions, rel=rounded)
    assert config.objective.causal is (name == "gpt_bert" or name.endswith("decoder"))
    assert {stage.name: stage.config.name for stage in course_of(config).stages} == dict.fromkeys(config.stages, name)


def test_ettins_larger_encoders_are_the_shapes_of_modernbert() -> None:
    ettin, base, large = (recipe(name).model for name in ("ettin_68m", "modernbert_base", "modernbert_large"))
    for model, layers, width, ff, heads in ((base, 22, 768, 1152, 12), (large, 28, 1024, 2624, 16)):  # 150 M, 400 M
        shape = model.transformer
        assert shape is not None
        assert (shape.n_layers, shape.d_model, shape.d_ff, shape.n_heads) == (layers, width, ff, heads)
        by_depth = {"global_attention_every", "nope_every", "value_embeddings_every"}  # listed layer by layer
        differences = set(shape.differences(ettin)) - by_depth  # type: ignore[arg-type]
        assert differences == {"n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff"}


@pytest.mark.slow
def test_modernbert_base_is_trained_in_its_published_phases() -> None:
    course = course_of(recipe("modernbert_base"))
    short, long, decay = (stage.config for stage in course.stages)
    bases = [(each.model.rope_base, each.model.rope_base_local or each.model.rope_base) for each in (short, long)]  # type: ignore[attr-defined]
    assert bases == [(1e4, 1e4), (1.6e5, 1e4)]
    assert short.optimizer.kind == "stable_adamw"
    assert [each.optimizer.learning_rate * each.optimizer.weight_decay for each in (short, long)] == pytest.approx(
        [1e-5, 1e-5], rel=1e-3
    )  # the published decay of a step
    sizes: BatchSizes = course.sizes
    warm = short.step_sizes()
    assert (warm[0][1].batch_size, warm[-1][1].batch_size, warm[-1][0]) == (768, 4608, 50 * B)
    assert [sizes.tokens(stage.end or 0) // B for stage in course.stages[:2]] == [1719, 1969]
    assert short.warmup_steps(sizes) == pytest.approx(3 * B / 768 / 1024, abs=1)
    step = 576 * 8192
    assert [each.tokens_per_step() for each in (short, long, decay)] == [step, step, step]
    length = (course.max_steps or 0) - course.stages[2].begin
    assert [decay.schedule.lr_multiplier(part, length) for part in (0, length // 4, length)] == pytest.approx(
        [1.0, 0.5, 0.0], abs=1e-3
    )
    assert short.schedule.lr_multiplier(300_000, 382_742) == 1.0
    assert short.objective.validation_mask_probability == 0.15  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_typed_batch_size_is_constant_unless_its_warmup_is_typed_too(capsys: pytest.CaptureFixture[str]) -> None:
    config: RunConfig = compose("train", ["model=modernbert_base", "batch_size=8"])
    assert (config.batch_size, config.batch_warmup_rows, config.batch_warmup_tokens) == (8, None, None)
    assert "batch_warmup_rows=768 of the recipe grow to its own batch_size, and batch_size=8" in capsys.readouterr().out
    typed: RunConfig = compose("train", ["model=modernbert_base", "batch_size=8", "batch_warmup_rows=4"])
    assert (typed.batch_warmup_rows, typed.batch_warmup_tokens) == (4, 50 * B)


@pytest.mark.slow
def test_ettins_rates_fall_in_two_stages_and_its_encoders_hide_less_at_the_end() -> None:
    for name in ("ettin_17m", "ettin_17m_decoder"):
        short, long, decay = course_of(recipe(name)).stages
        rates = []
        for stage, end in ((short, short.end), (long, long.end), (decay, course_of(recipe(name)).max_steps)):
            length = (end or 0) - stage.begin
            warm = 0 if stage.own_schedule else 2_000
            multipliers = [stage.config.schedule.lr_multiplier(at, length) for at in (warm, length)]
            rates.append([stage.config.optimizer.learning_rate * each for each in multipliers])
        assert [rates[1], rates[2]] == [pytest.approx([3e-3, 1.5e-3]), pytest.approx([1.5e-3, 6e-5])]
        local = [stage.config.model.rope_base_local for stage in (short, long, decay)]  # type: ignore[attr-defined]
        assert local == [None, 1e4, 1.6e5 if name == "ettin_17m" else 1e4]
    hidden = [stage.config.objective.mask_probability for stage in course_of(recipe("ettin_17m")).stages]  # type: ignore[attr-defined]
    assert hidden == [0.3, 0.3, 0.15]


@pytest.mark.slow
def test_neobert_decays_over_nine_tenths_of_a_million_steps() -> None:
    course = course_of(recipe("neobert"))
    cosine, flat, long = course.stages
    assert [cosine.end, flat.end, course.max_steps] == [900_000, 1_000_000, 1_050_000]
    rate = [cosine.config.schedule.lr_multiplier(step, 900_000) * 6e-4 for step in (1_999, 900_000)]
    assert rate == pytest.approx([6e-4, 6e-5])
    assert [stage.config.schedule.lr_multiplier(0, 50_000) for stage in (flat, long)] == [1.0, 1.0]
    assert {stage.config.optimizer.learning_rate for stage in (flat, long)} == {6e-5}
    assert {stage.config.tokens_per_step() for stage in course.stages} == {2**21}


@pytest.mark.long
def test_every_recipe_has_a_nano_twin_with_its_stages_optimizer_and_objectives() -> None:
    assert {f"{name}_nano" for name in RECIPES} == set(TWINS)
    for name in RECIPES:
        twin: RunConfig = compose("train", [f"experiment={name}_nano"])
        mine, theirs = course_of(twin).stages, course_of(recipe(name)).stages
        for one, other in zip(mine, theirs, strict=True):
            assert one.name == other.name
            ours, full = one.config, other.config
            assert (ours.optimizer.kind, ours.objective) == (full.optimizer.kind, full.objective)
            assert (ours.schedule.kind, one.own_schedule) == (full.schedule.kind, other.own_schedule)
            assert ours.model.rope_base == full.model.rope_base  # type: ignore[attr-defined]
            assert (ours.model.context_length > twin.model.context_length) is (
                full.model.context_length > recipe(name).model.context_length
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "modernbert_base_nano" else pytest.mark.long)
        for name in TWINS
    ],
)
def test_a_twin_trains_through_its_stages(tiny: Any, name: str) -> None:
    names = list(compose("train", [f"experiment={name}"]).stages)
    words = [
        f"experiment={name}",
        "tokenizer.kind=bpe",
        "tokenizer.vocab_size=270",
        f"trainer.max_steps={2 * len(names)}",
    ]
    words += ["batch_size=4", "batch_warmup_rows=2", "batch_warmup_tokens=100", "model.dropout=0.0", "logger=csv"]
    for number, stage in enumerate(names, start=1):
        words += [f"stages.{stage}.{end}=null" for end in ("until_tokens", "until_fraction")]
        words += [f"stages.{stage}.until_steps={2 * number if number < len(names) else 'null'}"]
        words += [f"stages.{stage}.batch_size=4", f"stages.{stage}.micro_batch_size=null"]
        words += [] if number == 1 else [f"stages.{stage}.batch_warmup_{each}=null" for each in ("rows", "tokens")]
    words += [f"stages.{stage}.model.context_length=64" for stage in names if stage in ("long", "decay")]
    tiny.words = [word for word in tiny.words if not word.startswith(("tokenizer", "schedule"))]
    report = train(tiny.plan(*words, "schedule.warmup_steps=1"))
    rows = read_rows(Path(report.folder) / "metrics.csv")
    stages = [float(row["value"]) for row in rows if row["name"] == "progress/stage"]
    assert stages == [float(number) for number in range(1, len(names) + 1) for _ in range(2)]
    assert report.validation["val/loss"] < 6.0


@pytest.mark.slow
def test_the_twin_without_stages_trains(tiny: Any) -> None:
    tiny.words = [word for word in tiny.words if not word.startswith(("tokenizer", "schedule", "optimizer"))]
    words = [f"experiment={WITHOUT_STAGES}", "tokenizer.kind=bpe", "tokenizer.vocab_size=270", "trainer.max_steps=4"]
    report = train(tiny.plan(*words, "batch_size=4", "model.context_length=64", "logger=csv"))
    assert report.validation["val/loss"] < 6.0
