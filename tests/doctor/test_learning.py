"""The small model: tied, counted and able to learn; and what is found where it is not."""

import pytest
import torch

from pretrain.doctor import learning
from pretrain.models.transformer import Transformer
from pretrain.optim.config import AdamWConfig


@pytest.mark.parametrize(
    "words",
    [
        ["model=gpt_nano"],
        ["model=bert_nano", "optimizer=adamw"],
        ["model=hybrid_nano"],
        ["model=llama_nano", "model.tie_embeddings=false"],
        ["model=modernbert_nano"],
    ],
)
def test_sound_models_pass(context, words):
    sound = context(*words)
    for check in (
        learning.tied_weights, learning.parameters_counted, learning.initial_loss, learning.overfits,
    ):  # fmt: skip
        finding = check(sound)
        assert finding.passed, finding


def test_a_cut_tie_is_found(context, monkeypatch):
    monkeypatch.setattr(Transformer, "tie", lambda self: None)
    finding = learning.tied_weights(context())
    assert not finding.passed
    assert "model.tie_embeddings=true: memory of head and embedding separate before a step" in finding.figures


def test_a_tie_that_is_cut_on_the_way_is_found(context, monkeypatch):
    original = AdamWConfig.build

    def cut(self, model):
        optimizer = original(self, model)
        model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
        return optimizer

    monkeypatch.setattr(AdamWConfig, "build", cut)
    finding = learning.tied_weights(context("optimizer=adamw"))
    assert not finding.passed
    assert "shared before a step, separate after" in finding.figures


def test_a_formula_that_miscounts_is_found(context, monkeypatch):
    original = learning.parameter_count
    monkeypatch.setattr(learning, "parameter_count", lambda *given: original(*given) + 1)
    assert not learning.parameters_counted(context()).passed


def test_a_model_that_begins_with_opinions_is_found(context):
    assert not learning.initial_loss(context("model.init_std=3", "model.tie_embeddings=false")).passed


def test_a_model_that_does_not_learn_is_found(context, monkeypatch):
    monkeypatch.setattr(learning, "LEARNING_RATE", 1e-9)
    assert not learning.overfits(context()).passed
