"""The moving average of the weights: what it is, where it is saved, scored and used, and that a resume is exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from same_state import assert_same_state
from torch import nn

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose, register_schemas
from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows
from pretrain.optim.muon import Muon
from pretrain.reports.run import read_run, run_page
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.train import train
from pretrain.training.weight_average import WeightAverage

TEXT = "the quick brown fox sings in old trees"
EMA = ["ema.decay=0.5", "checkpoint.every_n_steps=1", "checkpoint.keep=0", "logger=csv"]


def scores(folder: Path, weights: str) -> float:
    register_schemas("eval", EvalConfig)
    return float(score(compose("eval", [f"weights={weights}"]), folder)["loss"])


def figures(folder: Path, name: str) -> list[float]:
    return [float(row["value"]) for row in read_rows(folder / "metrics.csv") if row["name"] == name]


def export_of(folder: Path, weights: str) -> ExportConfig:
    register_schemas("export", ExportConfig)
    config: ExportConfig = compose("export", [f"output={folder}", f"weights={weights}"])
    return config


@pytest.mark.slow
def test_it_is_the_average_of_the_saved_weights_and_a_killed_run_has_the_same(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(name: str) -> list[str]:
        options = ["optimizer.row_beta2=0.9", "optimizer.momentum_warmup_steps=8"]  # Muon resumes exactly with them too
        return ["model=gpt_nano", *EMA, *options, f"paths.run_dir={tiny.folder / name}"]

    momenta, step = list[float](), Muon.step

    def watched(optimizer: Muon, **given: Any) -> float | None:
        momenta.append(next(group["momentum"] for group in optimizer.param_groups if group["matrices"]))
        return step(optimizer, **given)

    with monkeypatch.context() as patched:
        patched.setattr(Muon, "step", watched)
        report = train(tiny.plan(*words("whole")))
    assert momenta == pytest.approx([0.85 + 0.1 * min(n / 8, 1.0) for n in range(12)])  # what before_step sets
    whole = Path(report.folder)
    plain = Path(train(tiny.plan(*words("plain"), "ema.decay=0")).folder)
    assert_same_state(plain, whole, but=("ema_updates",))  # it changes nothing of the training
    assert not open_checkpoint(plain).has_average

    steps = [open_checkpoint(folder) for folder in sorted((whole / "checkpoints").iterdir())]
    name = "blocks.1.attention.query.weight"
    expected: torch.Tensor | None = None
    for update, saved in enumerate(steps):
        weight = saved.tensors("model")[name].double()
        kept = min(0.5, (1 + update) / (10 + update))
        if expected is not None:
            expected = kept * expected + (1 - kept) * weight
            torch.testing.assert_close(saved.tensors("ema")[name].double(), expected, rtol=1e-6, atol=1e-7)
        else:
            expected = saved.tensors("ema")[name].double()
        assert saved.progress["ema_updates"] == saved.step

    original, kill = TrainingModule.optimizer_step, {"at": 7}

    def dies(module: TrainingModule, *given: Any, **more: Any) -> None:
        if module.global_step == kill["at"]:
            kill["at"] = -1
            raise OSError("killed")
        original(module, *given, **more)

    monkeypatch.setattr(TrainingModule, "optimizer_step", dies)
    with pytest.raises(OSError, match="killed"):
        train(tiny.plan(*words("killed")))
    killed = Path(train(tiny.plan(*words("killed"), "resume=auto")).folder)
    assert_same_state(whole, killed, parts=("ema",))
    assert figures(killed, "val/loss_ema") == figures(whole, "val/loss_ema")

    losses_of = json.loads((whole / "report.json").read_text())["validation"]
    assert abs(losses_of["val/loss_ema"] - losses_of["val/loss"]) > 1e-4
    assert scores(whole, "ema") == pytest.approx(losses_of["val/loss_ema"], abs=1e-5)
    assert scores(whole, "trained") == pytest.approx(losses_of["val/loss"], abs=1e-5)
    assert f"  of the average     {losses_of['val/loss_ema']:.4f}" in str(report)
    assert "validation of the average" in run_page(read_run(whole))
    average = LanguageModel.load(whole, weights="ema")
    assert torch.equal(average.model.get_parameter(name), steps[-1].tensors("ema")[name])
    folder = export_model(export_of(tiny.folder / "exported", "ema"), whole).folder
    card = (folder / "README.md").read_text()
    assert "moving average" in card
    assert f"{losses_of['val/loss_ema']:.4f}" in card
    assert f"{losses_of['val/loss']:.4f}" not in card
    exported = LanguageModel.load(folder)
    assert exported.score(TEXT).loss == pytest.approx(average.score(TEXT).loss, abs=1e-5)
    assert exported.score(TEXT).loss != pytest.approx(LanguageModel.load(whole).score(TEXT).loss, abs=1e-5)

    with pytest.raises(CheckpointError, match=r"holds no average of weights for weights=ema\. Train with ema\.decay"):
        LanguageModel.load(plain, weights="ema")
    with pytest.raises(CheckpointError, match=r"weights=ema is the average of a run of ours, and .* is none"):
        LanguageModel.load(tiny.folder / "exported", weights="ema")
    with pytest.raises(ConfigError, match=r"weights=ema is not fine-tuned by task=glue.*checkpoint=<folder>"):
        compose("eval", ["task=glue", "path=x", "weights=ema"])


def test_a_skipped_step_is_no_update() -> None:
    weights, averages = ([nn.Parameter(torch.tensor([value]))] for value in (2.0, 1.0))
    average = WeightAverage(0.5, None, None, lambda mesh, device: None, is_saved=False)  # type: ignore[arg-type]
    average._weights, average._averages = weights, averages
    for applies, expected, updates in ((False, 1.0, 0), (True, 1.9, 1), (False, 1.9, 1)):
        average.update(torch.tensor(applies))
        assert (float(averages[0].detach()), average.state_dict()["ema_updates"]) == (pytest.approx(expected), updates)


@pytest.mark.long
def test_a_resume_turns_it_on_and_off(tiny: Any) -> None:
    words = ["model=gpt_nano", f"paths.run_dir={tiny.folder / 'run'}", "trainer.max_steps=4", "resume=auto"]
    tiny.words = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    train(tiny.plan(*words))
    folder = Path(train(tiny.plan(*words, "trainer.max_steps=6", "ema.decay=0.9")).folder)
    assert open_checkpoint(folder).progress["ema_updates"] == 2
    train(tiny.plan(*words, "trainer.max_steps=8", "ema.decay=0"))
    assert not open_checkpoint(folder).has_average
    train(tiny.plan(*words, "trainer.max_steps=10", "ema.decay=0.9"))
    assert open_checkpoint(folder).progress["ema_updates"] == 2
