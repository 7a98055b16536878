"""LoRA: only adapters train, a checkpoint is complete, merged equals unmerged, resume is exact."""

import json
from pathlib import Path

import pytest
import torch
from same_state import assert_same_state
from test_fine_tuning import pairs, tune
from torch.testing import assert_close

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.export import export_adapters, export_model
from pretrain.interop.load import build_without_weights, open_model
from pretrain.language_model import LanguageModel
from pretrain.models.interface import hidden_states
from pretrain.models.lora import add_adapters, is_adapter
from pretrain.parallel.mesh import load_parameters
from pretrain.planning.answer import answer
from pretrain.planning.config import PlanConfig
from pretrain.training.train import run

LORA = ["lora.rank=4", "lora.alpha=8", "optimizer.learning_rate=0.02", "model.dropout=0.0"]


@pytest.fixture
def base(tiny) -> Path:
    return Path(run(tiny.plan("model=gpt_nano", "model.context_length=64", "model.dropout=0.0")).folder)


def lora_words(tiny, base: Path, folder: Path, *words: str) -> list[str]:
    return tune(tiny, "lora", base, f"data.path={pairs(folder)}", *LORA, *words)


def logits(model, rows) -> torch.Tensor:
    with torch.no_grad():
        return model.head(hidden_states(model.eval(), rows))


def unmerged(path: Path):
    """Return the model of a LoRA checkpoint with its adapters beside the matrices."""
    folder = open_model(path)
    model = build_without_weights(folder.shape, folder.objective, folder.tokenizer)
    add_adapters(model, folder.run.lora)
    model.to_empty(device="cpu")
    model.tie()
    load_parameters(model, lambda name, size: folder.saved.read(name))
    return model


def test_only_adapters_train_and_the_checkpoint_is_complete(tiny, base, tmp_path, capsys):
    words = lora_words(tiny, base, tmp_path, "trainer.max_steps=60", "checkpoint.every_n_steps=60")
    report = run(tiny.plan(*words))
    assert "parameters are trained" in capsys.readouterr().out
    before, after = open_checkpoint(base), open_checkpoint(Path(report.folder))
    weights = after.tensors("model")
    for name, value in before.tensors("model").items():
        assert torch.equal(value, weights[name]), name
    optimizer = {name.rpartition("/")[0] for name in after.tensors("optimizer")}
    assert optimizer == {name for name in weights if is_adapter(name)}
    base.rename(base.with_name("elsewhere"))  # the checkpoint needs it no more
    llm = LanguageModel.load(report.folder)
    assert llm.respond("The quick brown", temperature=0) == "fox"
    rows = torch.arange(64).reshape(1, -1)
    assert_close(logits(llm.model, rows), logits(unmerged(Path(report.folder)), rows), atol=1e-5, rtol=1e-5)
    assert "lora" not in str(list(dict(llm.model.named_parameters())))
