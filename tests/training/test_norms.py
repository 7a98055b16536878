"""Norms by part add up to the logged gradient norm, and computing them changes nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.checkpoint.read import open_checkpoint
from pretrain.launch.run_folder import read_rows
from pretrain.objectives.objective import ModelWithLoss
from pretrain.training.callbacks.metrics import parts_of
from pretrain.training.train import run

PARTS = ["embeddings", "block_00", "block_01", "final_norm"]


def logged(folder: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in read_rows(folder / "metrics.csv"):
        if "norm" in row["name"]:
            found.setdefault(int(row["step"]), {})[row["name"]] = float(row["value"])
    return found


def test_a_model_of_your_own_may_have_parameters_of_any_name() -> None:
    model = nn.Module()
    model.gain, model.frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    model.blocks = nn.ModuleDict({"first": nn.Linear(1, 1), "2": nn.Linear(1, 1)})
    assert list(parts_of(model)) == ["gain", "blocks", "block_02"]


@pytest.mark.slow
def test_norms_of_the_parts_make_up_the_whole_and_change_nothing(tiny: Any) -> None:
    words = ["model=gpt_nano", "trainer.log_every_n_steps=4", "trainer.max_steps=10", "trainer.gradient_clip_val=0.1"]
    plain, watched = (
        run(tiny.plan(*words, f"logging.norms={on}", f"paths.run_dir={tiny.folder / on}")) for on in ("false", "true")
    )
    assert plain.validation == watched.validation
    one, other = (open_checkpoint(tiny.folder / on).tensors("model") for on in ("false", "true"))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert all(list(figures) == ["optim/grad_norm"] for figures in logged(tiny.folder / "false").values())
    found = logged(tiny.folder / "true")
    assert list(found) == [4, 8, 10]
    for figures in found.values():
        assert {name for name in figures if name != "optim/grad_norm"} == {
            f"weights/{kind}/{part}" for part in PARTS for kind in ("grad_norm", "norm")
        }
        parts = [figures[f"weights/grad_norm/{part}"] for part in PARTS]
        assert math.hypot(*parts) == pytest.approx(figures["optim/grad_norm"], rel=1e-5)
        assert figures["optim/grad_norm"] > 0.1  # of before it is clipped
    step_8 = open_checkpoint(tiny.folder / "true" / "checkpoints" / "step-00000008").tensors("model")
    block = [tensor.norm() for name, tensor in step_8.items() if name.startswith("blocks.1.")]
    nearly = torch.stack(block).norm().item()  # after the step that is logged
    assert found[8]["weights/norm/block_01"] == pytest.approx(nearly, rel=0.05)


@pytest.mark.slow
def test_the_part_whose_gradient_is_not_finite_is_seen(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ModelWithLoss.forward

    def broken(self: ModelWithLoss, batch: Any) -> Any:
        loss, count = original(self, batch)
        weight: Any = self.model.blocks[1].feed_forward.down.weight  # type: ignore[union-attr, index]
        return loss + weight.sum() * (float("nan") if int(batch.sample_indices[0]) == 0 else 0.0), count

    monkeypatch.setattr(ModelWithLoss, "forward", broken)
    run(tiny.plan("model=gpt_nano", "logging.norms=true", "trainer.max_steps=2", f"paths.run_dir={tiny.folder / 'r'}"))
    first = logged(tiny.folder / "r")[1]
    assert [part for part in PARTS if math.isnan(first[f"weights/grad_norm/{part}"])] == ["block_01"]
