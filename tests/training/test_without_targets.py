"""Rows, steps and validations without targets: skipped and counted, and no metric is made up."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.sweep import Job, show_table
from pretrain.data.collate import IGNORE
from pretrain.errors import DataError, DivergenceError
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.run import score
from pretrain.interop.export import _scores
from pretrain.interop.load import open_model
from pretrain.launch.run_folder import read_rows
from pretrain.objectives.causal import Causal
from pretrain.objectives.masked import Masked
from pretrain.parallel.config import ParallelDims
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.callbacks.metrics import Metrics, write
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.report import check_outcome
from pretrain.training.run_parts import build_metrics
from pretrain.training.step_outcomes import StepOutcomes
from pretrain.training.throughput import Throughput
from pretrain.training.train import run
from pretrain.training.validation_metrics import LossMetrics, ValidationScores

PAIR = {"prompt": "a", "response": "b"}
LONG = {"prompt": "why " * 40, "response": "so"}


def pairs(path: Path, *records: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def numbered(count: int) -> list[dict[str, str]]:
    return [PAIR | {"prompt": f"a {number}"} for number in range(count)]


def figures(folder: str | Path) -> dict[str, float]:
    return {row["name"]: float(row["value"]) for row in read_rows(Path(folder) / "metrics.csv")}


@pytest.mark.slow
def test_pairs_without_a_response_are_left_out_and_not_validated(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = pairs(tmp_path / "train.jsonl", *numbered(6), LONG), pairs(tmp_path / "dev.jsonl", LONG)
    words = ["data=pairs", f"data.path={train}", f"data.validation_path={held_out}", "model=gpt_nano"]
    longer = {"prompt": LONG["prompt"] + "x", "response": "so"}  # a text is in one split only
    pairs(held_out, longer)
    report = run(tiny.plan(*words, "trainer.max_steps=3", f"paths.run_dir={tmp_path / 'run'}"))
    out = capsys.readouterr().out
    assert out.count("have no response to learn and are excluded: 1 of 7 to train on. Try model.context_length=") == 1
    assert out.count("warning: no validation: the held-out documents have no target token.") == 1
    found = figures(report.folder)
    assert found["train/loss"] > 0
    assert all(math.isfinite(value) for value in found.values())
    assert not any(name.startswith("val/") for name in found)
    assert report.validation == {}
    assert "  validation loss    none: the held-out documents have no target token" in str(report).splitlines()
    saved = json.loads((Path(report.folder) / "report.json").read_text())
    assert saved["validation"] == {"val/loss": None}
    job = Job(["a=1"], ["a=1"], Path(report.folder), exit_code=0)
    assert job.loss is None
    show_table([job])
    shown = capsys.readouterr().out
    assert "val/loss" in shown
    assert "*" not in shown
    assert _scores(open_model(report.folder)) == {}
    with pytest.raises(DataError, match=r"the 1 documents to score have no target token, .* path=<file>"):
        score(EvalConfig(paths=replace(EvalConfig().paths, cache_dir=str(tiny.folder / "cache"))), report.folder)


@pytest.mark.slow
def test_where_no_pair_has_a_response_in_its_row_the_run_does_not_begin(tiny: Any, tmp_path: Path) -> None:
    path = pairs(tmp_path / "long.jsonl", LONG)
    words = [f"data.path={path}", "data.validation_fraction=0", "model=gpt_nano", "trainer.max_steps=3"]
    with pytest.raises(DataError, match=r"has 1 pairs whose prompts all fill the context of 32 tokens.*_length=160"):
        run(tiny.plan("data=pairs", *words))
    fits = run(tiny.plan("data=pairs", *words, "model.context_length=160", f"paths.run_dir={tmp_path / 'run'}"))
    assert figures(fits.folder)["train/loss"] > 0
    good = pairs(tmp_path / "good.jsonl", *numbered(3))
    each = ", ".join(f"{file.stem}: {{kind: pairs, path: {file}, weight: 1}}" for file in (good, path))
    sources = f"data.sources={{{each}}}"
    del tiny.words[:2]  # of a single source
    with pytest.raises(DataError, match=r"^source long: the token store .* fill the context of 32 tokens"):
        run(tiny.plan("data=mixture", "data.packing=whole", sources, *words[1:]))


@pytest.fixture
def masks_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a maker of runs whose tokenizer calls every token special, as one that knows no word of the text does."""
    original = Masked.__init__

    def all_special(self: Masked, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named | {"special_ids": range(named["vocab_size"])})

    monkeypatch.setattr(Masked, "__init__", all_special)
    tiny.words += ["model=bert_nano", "logging.ledger=true", f"paths.run_dir={tiny.folder / 'run'}"]
    return tiny


@pytest.mark.slow
def test_a_masked_objective_that_masks_nothing_is_no_success(masks_nothing: Any) -> None:
    with pytest.raises(DataError, match=r"has learned nothing: each of its 3 steps was skipped.* Try tokenizer=bpe"):
        run(masks_nothing.plan("trainer.max_steps=3"))
    folder = masks_nothing.folder / "run"
    found = figures(folder)
    assert found["optim/skipped_steps"] == 3
    assert not {"train/loss", "val/loss", "val/perplexity"} & found.keys()
    assert [line["loss"] for line in read_lines(folder / "ledger.jsonl")] == [None] * 3
    assert json.loads((folder / "report.json").read_text())["validation"] == {"val/loss": None}
    again = f"paths.run_dir={masks_nothing.folder / 'again'}"
    with pytest.raises(DataError, match=r"10 steps in a row were skipped, up to step 10: .* had no target token"):
        run(masks_nothing.plan("trainer.max_steps=20", again))


@pytest.mark.slow
def test_a_single_step_without_targets_leaves_the_weights_alone(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.training_step

    def second_is_empty(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        if self.global_step == 1:
            batch.targets.fill_(IGNORE)
        return original(self, batch, batch_index)

    monkeypatch.setattr(TrainingModule, "training_step", second_is_empty)
    words = ["model=gpt_nano", "checkpoint.every_n_steps=1", "checkpoint.keep=0", "trainer.max_steps=3"]
    report = run(tiny.plan(*words, "divergence.on_spike=skip"))
    assert report.skipped_steps == 1
    rows = [(row["step"], row["name"]) for row in read_rows(Path(report.folder) / "metrics.csv")]
    assert [step for step, name in rows if name == "train/loss"] == ["1", "3"]
    one, two = (open_checkpoint(Path(report.folder) / "checkpoints" / f"step-0000000{n}") for n in (1, 2))
    before, after = one.tensors("model"), two.tensors("model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(two.progress["losses"]) == 1  # a step without a loss is no usual one


@pytest.mark.slow
def test_a_run_that_diverged_at_its_end_is_no_success(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda *arguments: original(*arguments) * math.nan)
    with pytest.raises(DivergenceError, match=r"each of its 3 steps was skipped, .* the gradient was not finite\. Try"):
        run(tiny.plan("model=gpt_nano", "trainer.max_steps=3", f"paths.run_dir={tiny.folder / 'run'}"))
    assert (tiny.folder / "run" / "report.json").exists()
    assert not {"train/loss", "optim/grad_norm"} & figures(tiny.folder / "run").keys()
    check_outcome(3, 2, "the loss jumped", {"val/loss": 2.0})
    with pytest.raises(DivergenceError, match=r"val/loss of its last validation is nan, not a finite number") as error:
        check_outcome(3, 0, "", {"val/loss": math.nan})
    assert error.value.exit_code == 5


@pytest.mark.slow
def test_a_model_of_nans_is_not_scored(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(tiny.plan("model=gpt_nano", "trainer.max_steps=1"))
    load = open_model(report.folder).load

    def diverged(self: Any) -> Any:
        model = load()
        torch.nn.init.constant_(next(model.parameters()), math.nan)
        return model

    monkeypatch.setattr("pretrain.interop.load.ModelFolder.load", diverged)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    paths = replace(EvalConfig().paths, cache_dir=str(tiny.folder / "cache"))
    for config in (EvalConfig(paths=paths), EvalConfig(task=Task.multiple_choice, path=str(asked))):
        with pytest.raises(DivergenceError, match=r"probabilities are NaN, .* Take an earlier checkpoint"):
            score(config, report.folder)


def test_a_share_of_the_peak_above_one_is_not_shown(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a processor is measured, and too low where something else ran meanwhile."""
    logged: list[set[str]] = []
    monkeypatch.setattr("pretrain.training.callbacks.metrics.write", lambda _, found, step: logged.append(set(found)))
    module: Any = SimpleNamespace(
        take_training_loss=lambda: 2.0, learning_rate=lambda: 0.1, grad_norm=1.0, skipped_steps=0,
        loss_scaler=None, length=SimpleNamespace(stage=None),
        device=torch.device("cpu"), outcomes=StepOutcomes(), log_dict=lambda found, logger: None,
    )  # fmt: skip
    throughput: Any = SimpleNamespace(tokens_per_s=lambda: 100.0, goodput=lambda: 1.0, other_s={})
    for peak in (1_000.0, 1_001.0, 999.0):
        metrics = Metrics(throughput, every_n_steps=1, flops_per_token=10.0, peak_flops_per_s=peak, validated_at=-1)
        metrics._log(SimpleNamespace(callback_metrics={}), module, 1)  # type: ignore[arg-type]
    assert ["speed/mfu" in names for names in logged] == [True, True, False]


def test_the_peak_is_that_of_all_devices(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tokens are: with that of one, two GPUs at half of their peak would be at all of it."""
    monkeypatch.setattr("pretrain.training.run_parts.peak_flops_per_s", lambda device, half: (1e9, "documented"))
    config = tiny.config("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    run_plan: Any = SimpleNamespace(config=config, start=0, folder=tiny.folder)
    assert build_metrics(run_plan, Throughput(), 10.0, torch.device("cpu")).peak_flops_per_s == 2e9


def test_targets_that_several_processes_read_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a tensor- or context-parallel group; else a validation of few targets would pass for one of many."""
    scores = ValidationScores(Causal(), {"": None, "other": None}, None, torch.float64)
    for metrics, count in zip(scores.losses, (300, 0), strict=True):
        losses = torch.full((4, count), 2.0)  # of four processes
        cast(LossMetrics, metrics).update(losses, torch.zeros(4, count), torch.full((4,), count))
    module: Any = SimpleNamespace(
        validation=scores, average=None,
        parallel_dims=ParallelDims(8, tensor=2, context=2), log_dict=lambda *_, **__: None,
        trainer=SimpleNamespace(global_step=3, world_size=8, sanity_checking=False),
    )  # fmt: skip
    TrainingModule.on_validation_epoch_end(module)
    assert module.validation_targets == {"": 300, "other": 0}
    assert module.validated == {"val/loss": 2.0, "val/perplexity": math.exp(2.0), "val/accuracy": 0.0}


def test_nan_is_not_logged() -> None:
    logged: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda found, step: logged.append(found))
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    write(trainer, {"optim/grad_norm": math.nan, "train/loss": math.inf}, 1)
    assert logged == [{"train/loss": math.inf}]
