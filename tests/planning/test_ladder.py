"""The runs of a ladder, the shape for a budget, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_scaling_fit import PLANTED, ladder

from pretrain.commands.scale import Prediction, Scaling, _read_prediction
from pretrain.config.compose import compose, register_schemas
from pretrain.config.preset_folders import begins_with, use_configs
from pretrain.config.registry import choices
from pretrain.data.config import TokenizerConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.planning.config import LadderSize, ScaleConfig
from pretrain.planning.ladder import Cell, cell_of, cells_of, parameters_of, size_for, with_size
from pretrain.planning.scaling import Optimum, ScalingLaw
from pretrain.planning.scaling_fit import Point, Range, fit_law
from pretrain.reports.scale import HeldOut, Ladder, LadderRun, Recommended, in_words, notes, scale_page


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_schemas("scale", ScaleConfig)


def scale(*words: str) -> ScaleConfig:
    found: ScaleConfig = compose("scale", ["ladder.sizes=[2x64,4x128]", "ladder.tokens=[100000,200000]", *words])
    return found


def settings(words: tuple[str, ...]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


@pytest.mark.slow
def test_a_ladder_is_every_size_with_every_length() -> None:
    config = scale("model=llama_nano", "batch_size=8", "model.context_length=64", "trainer.max_time=5")
    cells = cells_of(config, {"batch_size", "model.context_length"})
    assert [(str(cell.size), cell.steps) for cell in cells] == [
        ("2x64", 195),
        ("2x64", 391),
        ("4x128", 195),
        ("4x128", 391),
    ]
    found = settings(cells[0].words)
    assert found["trainer.max_steps"] == "195"
    assert found["trainer.max_time"] == "null"
    assert found["schedule.warmup_fraction"] == "0.1"
    assert float(found["optimizer.learning_rate"]) == pytest.approx(config.optimizer.learning_rate * 2, rel=0.01)
    smaller = compose("scale", ["model=llama_nano", *cells[0].words]).model
    assert (smaller.n_layers, smaller.d_model, smaller.n_heads) == (2, 64, 2)  # heads keep their 32 channels
    assert smaller.d_ff == pytest.approx(config.model.d_ff / 2, abs=8)  # type: ignore[attr-defined]
    kept = cell_of(config, LadderSize(2, 64), 1e5, {"optimizer.learning_rate", "schedule.warmup_steps"})
    assert not {"optimizer.learning_rate", "schedule.warmup_fraction"} & settings(kept.words).keys()
    in_tokens = scale("schedule.warmup_tokens=20000")
    cell = cell_of(in_tokens, LadderSize(2, 64), 1e5, set())
    compose("scale", ["schedule.warmup_tokens=20000", *cell.words])  # one kind of warm-up
    flat = cell_of(scale("ladder.rate_exponent=0"), LadderSize(2, 64), 1e5, set())
    assert float(settings(flat.words)["optimizer.learning_rate"]) == scale().optimizer.learning_rate
    scaled_by_mup = cell_of(scale("model.parametrization=mup", "model.base_width=64"), LadderSize(2, 128), 1e5, ())
    assert "optimizer.learning_rate" not in settings(scaled_by_mup.words)


class Runes(TokenizerConfig):
    trains = True


@pytest.mark.slow
def test_lengths_may_follow_from_the_parameters() -> None:
    config = scale("ladder.tokens_per_parameter=[0.5,2]", "batch_size=8", "model.context_length=64")
    sizes = [LadderSize(2, 64), LadderSize(4, 128)]
    expected = [ratio * parameters_of(config, size, 2048) for size in sizes for ratio in (0.5, 2)]
    assert [cell.steps * 512 for cell in cells_of(config, set())] == [pytest.approx(each, abs=512) for each in expected]
    config.tokenizer = Runes(kind="runes")
    with pytest.raises(ConfigError, match=r"ladder\.tokens_per_parameter=\[0\.5, 2\.0\] takes a .* Try ladder\.tokens"):
        cells_of(config, set())


@pytest.mark.slow
def test_a_run_of_the_ladder_reads_the_tokens_and_has_the_parameters_that_are_predicted() -> None:
    growing = scale("batch_size=8", "model.context_length=64", "batch_warmup_rows=1", "batch_warmup_tokens=1000000")
    steps = cell_of(growing, LadderSize(2, 64), 1e5, set()).steps
    assert growing.batch_sizes().tokens(steps) == pytest.approx(1e5, abs=64 * 8)
    padded = scale("model.vocab_multiple=256")
    with torch.device("meta"):
        model = with_size(padded.model, LadderSize(2, 64)).build(padded.model.vocabulary(259), causal=True)
    assert parameters_of(padded, LadderSize(2, 64), 259) == sum(each.numel() for each in model.parameters())
    wide_heads = scale("model.head_dim=128", "model.n_heads=1")
    assert with_size(wide_heads.model, LadderSize(4, 256)).n_heads == 2
    typed = scale("model.n_heads=4")
    assert with_size(typed.model, LadderSize(4, 128)) == typed.model
    no_size = (
        r"ladder\.sizes or ladder\.held_out has 2x65, which is no size of this model: .* Try 2x64: heads are 64 wide"
    )
    with pytest.raises(ConfigError, match=no_size):
        with_size(scale().model, LadderSize(2, 65))


@pytest.mark.slow
def test_the_shape_for_a_budget_has_about_the_optimal_parameters() -> None:
    config = scale()
    sizes = [LadderSize(2, 64), LadderSize(3, 96), LadderSize(4, 128)]
    for wanted in (3e5, 1e6, 1e7):
        size = size_for(config, sizes, Optimum(wanted, 1e6, 3.0), 2048)
        assert parameters_of(config, size, 2048) == pytest.approx(wanted, rel=0.25)
        assert 24 < size.d_model / size.n_layers < 48  # as slender as the ladder


@pytest.mark.slow
def test_the_shape_for_a_budget_has_whole_heads() -> None:
    """Heads of 64 channels divide no 224: such a width ended the command after the whole ladder was trained."""
    config = scale("model=gpt_small", "optimizer=adamw")
    sizes = [LadderSize(4, 256), LadderSize(8, 512), LadderSize(12, 768)]
    for wanted in (2e7, 1e8, 1e9):
        size = size_for(config, sizes, Optimum(wanted, 1e9, 3.0), 50257)
        assert parameters_of(config, size, 50257) == pytest.approx(wanted, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "ladder.sizes=[2x64,wide]",
            r"ladder\.sizes=wide is no size, which is layers x width\. Try ladder\.sizes=4x128\.",
        ),
        ("ladder.held_out=0x5", r"ladder\.held_out=0x5 is no size, .* Try ladder\.held_out=4x128\."),
        ("ladder.sizes=[2x64]", r"ladder\.sizes=\['2x64'\] are not at least two different ones\. Try ladder\.sizes="),
        ("ladder.tokens=[5,5]", r"ladder\.tokens=\[5, 5\] are not at least two different ones"),
        ("ladder.tokens=[0,5]", r"ladder\.tokens=0 is below 1\. Try ladder\.tokens=\[500000,1000000\]"),
        ("ladder.tokens_per_parameter=[1,0]", r"tokens_per_parameter=\[1\.0, 0\.0\] are not all above 0\. Try"),
        (
            "ladder.tokens_per_parameter=[2]",
            r"=\[2\.0\] are not at least two .*_per_parameter=\[1,2,4\]",
        ),
        (
            "resume=auto",
            r"scale trains runs of its own from their first step: leave resume, branch, stages and size out",
        ),
    ],
)
def test_ladders_that_are_none_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scale(word)


def test_a_model_without_layers_and_width_is_refused() -> None:
    class Other:
        kind = "convolution"

    other: Any = Other()
    with pytest.raises(
        ConfigError, match=r"ladder\.sizes scales layers and width, and model\.kind=convolution is a mod"
    ):
        with_size(other, LadderSize(2, 64))
    assert "transformer" in choices("model")


@pytest.mark.slow
def test_words_of_the_ladder_stay_out_of_its_runs(tmp_path: Path) -> None:
    words = [
        "--config-dir", "mine", "model=bert_nano", "ladder.held_out=6x192", "paths.logs_dir=elsewhere",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "experiment=novels_small",
    ]  # fmt: skip
    scaling = Scaling(scale("paths.logs_dir=elsewhere", "model=bert_nano"), words)
    assert scaling.run_words == ["model=bert_nano", "experiment=novels_small"]
    assert scaling.hydra_words == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert scaling.flags == ["--config-dir", "mine"]
    typed = ["model=gpt_nano", "model.d_model=16", "trainer.max_steps=7", "batch_size=4", "experiment=novels_small"]
    recommended = Scaling(scale(*typed[:-1]), typed)
    cell = cell_of(recommended.config, LadderSize(2, 64), 1e5, recommended.typed)
    assert recommended._words_behind(cell) == ["model=gpt_nano", "batch_size=4"]  # those of the cell are its own
    assert scaling.folder == Path("elsewhere/scale/bert_nano")
    assert Scaling(scale(f"ladder.output={tmp_path}"), []).folder == tmp_path


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_refused_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"ladder\.output=.*file.* cannot be written: .*Try ladder\.output=logs/"):
            Scaling(scale(f"ladder.output={tmp_path / folder}"), []).answer()


@pytest.mark.slow
def test_a_held_out_size_that_cannot_be_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(scaling: Scaling, part: str, cells: list[Cell]) -> list[Path]:
        raise AssertionError("a run was started")

    monkeypatch.setattr(Scaling, "train", train)
    words = ["model=gpt_small", "batch_size=8", "optimizer=adamw", "ladder.held_out=6x416", f"ladder.output={tmp_path}"]
    with pytest.raises(ConfigError, match=r"model\.d_model=416 does not split into model\.n_heads=12 equal heads"):
        Scaling(scale(*words), words).answer()
    for held_out, tokens, steps in (("4x128", 200000, 98), ("2x64", 100000, 49)):  # one of those fitted, and a smaller
        words = [f"ladder.held_out={held_out}", f"ladder.held_out_tokens={tokens}", f"ladder.output={tmp_path}"]
        refused = rf"held_out={held_out}: {held_out} for {steps} steps takes no more operations than 4x128 for 98 steps"
        with pytest.raises(ConfigError, match=refused) as raised:
            Scaling(scale(*words), words).answer()
        words[1] = str(raised.value).rpartition("Try ")[2].rstrip(".")
        with pytest.raises(AssertionError, match="a run was started"):
            Scaling(scale(*words), words).answer()
    with pytest.raises(ConfigError, match=r"lengths of 2x64 \(100, 150 tokens\) are the same number of steps of 2,048"):
        cells_of(scale("ladder.tokens=[100,150]"), set())


@pytest.mark.slow
def test_a_config_that_the_runs_cannot_read_is_refused_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("defaults: [scale, _self_]\nladder: {samples: 10}\n")
    (tmp_path / "my_scale.yaml").write_text("defaults: [base, _self_]\n")
    (tmp_path / "my_run.yaml").write_text("defaults: [train, _self_]\n")
    use_configs(str(tmp_path), "my_scale")
    try:
        config = scale(f"ladder.output={tmp_path / 'output'}")
        with pytest.raises(
            ConfigError, match=r"--config-name my_scale begins with scale, and the runs .* Let it begin"
        ):
            Scaling(config, ["--config-dir", str(tmp_path), "--config-name", "my_scale"]).answer()
        assert not begins_with("my_run", "scale")
    finally:
        use_configs(None, "scale")
    assert not (tmp_path / "output").exists()


def test_a_damaged_prediction_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    assert _read_prediction(path) is None
    path.write_text('{"written_at": 5}')
    with pytest.raises(
        CheckpointError, match=r"prediction\.json cannot be read: .* Delete it; the run is predicted again"
    ):
        _read_prediction(path)
    written = Prediction("2026-01-01", 5.0, "6x192 for 5 steps", 10, 5.0, 3.0, 2.9, 3.1, 0.9, ["a=1"])
    path.write_text(json.dumps(vars(written)))
    assert _read_prediction(path) == written


def whole_ladder(objective: str = "causal", loss: float = 2.4) -> Ladder:
    points = ladder(0.002, 0)
    runs = [LadderRun("2x64", 5, int(p.parameters), p.tokens, p.loss, "logs/<b>") for p in points]
    held_out = HeldOut(LadderRun("6x192", 9, 6_400_000, 1e8, loss, "logs/h"), Range(2.42, 2.3, 2.5), "2026-01-01")
    fit = fit_law(points, samples=50)
    parameters = fit.optimal_parameters(1e20)
    found = Recommended(1e20, "9x288", 10, 5.0, Range(2.0, 1.9, 2.1), parameters, 1000.0, ["plan a=1", "train a=1"])
    return Ladder(objective, runs, fit, held_out, found)


@pytest.mark.slow
def test_a_page_shows_the_law_and_how_far_to_trust_it() -> None:
    page = scale_page(whole_ladder(), "gpt_nano")
    assert "prediction held" in page
    assert "<b>" not in page.partition("<h2>Runs")[2].partition("</table>")[0]
    assert page.count("<svg") == 4
    words = in_words(whole_ladder("masked", loss=2.6))
    assert "OUTSIDE of 2.3000 to 2.5000" in words
    assert "note: the budget is 1,000 times the largest run of the ladder: beyond 30 times" in words
    assert "note: the held-out run lies outside its interval" in words
    assert "note: the loss is that of masked tokens" in words
    assert "the law asks for" in words  # 10 parameters are recommended
    assert "more than the budget" not in words
    small = replace(whole_ladder(), recommended=replace(whole_ladder().recommended, budget=100.0))
    assert "takes 300 operations, more than the budget of 100: one step of the smallest size is the least" in in_words(
        small
    )
    assert "prediction failed" in scale_page(whole_ladder(loss=2.6), "gpt_nano")
    data = whole_ladder().as_data()
    assert data["held_out"]["inside"]
    assert data["constants"]["alpha"]["value"] == pytest.approx(PLANTED.alpha, abs=0.1)


@pytest.mark.slow
def test_runs_that_did_not_learn_are_named() -> None:
    found = whole_ladder()
    assert "stood still" not in in_words(found)
    assert "published laws have" not in in_words(found)
    shorter, longer = (
        LadderRun("3x96", 5, 500_000, tokens, loss, "logs/s") for tokens, loss in ((1e6, 4.3), (2e6, 5.5))
    )
    words = in_words(replace(found, runs=[longer, *found.runs, shorter]))
    assert "note: 3x96 ended at 5.500 after 2 M tokens, and at 4.300 after 1 M: a run that stood still" in words
    assert words.count("stood still") == 1
    # a plateau: at first hardly a model learns, then all do
    late = [Point(n, d, 2.0 + 20 / n**0.2 + 4e8 / d**1.4) for n in (2e5, 4e5, 8e5, 1.6e6) for d in (1e6, 2e6, 4e6)]
    words = in_words(replace(found, fit=fit_law(late, samples=10)))
    assert (
        "note: beta is 1.4, and published laws have about 0.3: the shortest runs may hardly have begun to learn"
        in words
    )
    assert "note: alpha is" not in words
    alike = [Point(n, d, 2.0 + 4e7 / n**1.4 + 20 / d**0.2) for n in (2e5, 4e5, 8e5, 1.6e6) for d in (1e6, 2e6, 4e6)]
    words = in_words(replace(found, fit=fit_law(alike, samples=10)))
    assert "note: alpha is 1.4, and published laws have about 0.3: the smallest models may hardly have begun" in words


@pytest.mark.parametrize(("of_parameters", "of_tokens", "cause"), [(1e-14, 9.0, "sizes"), (9.0, 1e-14, "lengths")])
def test_a_law_without_a_best_size_is_called_one(of_parameters: float, of_tokens: float, cause: str) -> None:
    law, budget = ScalingLaw("flat", 1.0, of_parameters, of_tokens, 0.34, 0.28), 1e10
    optimal = Range(law.optimum(budget).parameters, 1.0, 1.0)
    found = whole_ladder()
    assert not [line for line in notes(found) if "no best size" in line]
    recommended = replace(found.recommended, budget=budget, optimal_parameters=optimal)
    line = f"the law sees no gain in other {cause}, so that it has no best size"
    assert [each for each in notes(replace(found, recommended=recommended)) if each.startswith(line)]


@pytest.mark.slow
def test_a_list_of_jobs_without_any_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.commands import tasks

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "hydra/sweeper=listed"])
    with pytest.raises(SystemExit) as ended:
        tasks.main("train")
    assert ended.value.code == 2
    assert "hydra.sweeper.jobs is empty. Try hydra.sweeper.jobs=" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recommended_run_is_a_preset_on_top_of_the_typed_experiment() -> None:
    from pretrain.commands.scale import _experiment

    cell = cell_of(scale(), LadderSize(5, 160), 1e6, set())
    preset = yaml.safe_load(_experiment(cell, "novels_small", 1e15))
    assert preset["defaults"] == ["novels_small", "_self_"]
    assert preset["model"] == {"n_layers": 5, "d_model": 160}
    assert preset["trainer"]["max_steps"] == cell.steps
