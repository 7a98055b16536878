"""Runs of an earlier version resume: tests/earlier_version has four, with the final weights of that version.

All have one layer of 16 channels and are saved at step 4 of 8. gpt (gpt_nano with Muon) and bert (bert_nano with AdamW)
were written before settings and files had the names they have now; spans (a hybrid that hides spans) and diffusion when
what they hide was drawn row by row, versions 2 and 1 of the draw.
"""

import shutil
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.config.compose import compose
from pretrain.training.launch import launch

SAVED = Path(__file__).parents[1] / "earlier_version"
ROUNDING = 1e-6  # of float32 weights, as another processor may add in another order


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "spans", "diffusion"])
def test_a_run_of_an_earlier_version_resumes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(shutil.copytree(SAVED, tmp_path / "project"))
    overrides = [f"resume={name}"]
    launch(compose("train", overrides), overrides)
    reached = open_checkpoint(Path(name) / "checkpoints" / "step-00000008").tensors("model")
    expected = TensorFiles([SAVED / name / "expected.safetensors"])
    assert reached.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(reached[key], value, atol=ROUNDING, rtol=0)
