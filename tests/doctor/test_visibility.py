"""Who sees whom: each check passes on a sound model, and fails on one that sees what it must not."""

import pytest
import torch

from pretrain.data import train_stream as batches
from pretrain.doctor import visibility
from pretrain.doctor.check import NotApplicableError
from pretrain.inference.kv_cache import KeyValueCache
from pretrain.models import attention, transformer
from pretrain.objectives import causal, masked

CAUSAL = ["gpt_nano", "llama_nano", "hybrid_nano"]
MASKED = ["bert_nano", "modernbert_nano", "hybrid_nano"]
WINDOW = ["model=llama_nano", "model.sliding_window=8", "model.global_attention_every=2", "model.dropout=0.1"]


@pytest.mark.parametrize("words", [*([f"model={name}"] for name in CAUSAL), WINDOW, ["model.residual_init=zero"]])
def test_sound_causal_models_pass(context, words):
    sound = context(*words)
    for check in (visibility.no_future, visibility.documents_apart, visibility.cached_generation):
        finding = check(sound)
        assert finding.passed, finding


@pytest.mark.parametrize("name", MASKED)
def test_sound_masked_models_pass(context, name):
    sound = context(f"model={name}")
    for check in (visibility.both_sides, visibility.documents_apart):
        finding = check(sound)
        assert finding.passed, finding


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_mask_shifted_by_one_is_found(context, monkeypatch, name):
    def shifted(causal, window, length, device):
        places = torch.arange(length)
        distance = places.unsqueeze(1) - places
        allowed = distance >= -1 if causal else torch.ones_like(distance, dtype=torch.bool)
        return allowed.view(1, 1, length, length)

    monkeypatch.setattr(attention, "_within", shifted)
    finding = visibility.no_future(context(f"model={name}"))
    assert not finding.passed
    assert "moved logits up to it by 0.0e+00" not in finding.figures


def test_plain_attention_that_looks_both_ways_is_found(context, monkeypatch):
    monkeypatch.setattr(transformer, "build_mask", lambda causal, *rest: attention.build_mask(False, *rest))
    assert not visibility.no_future(context("model=gpt_nano")).passed


@pytest.mark.parametrize("name", ["gpt_nano", "bert_nano", "hybrid_nano"])
def test_a_packing_leak_is_found(context, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr(attention, "_same_document", lambda documents: torch.ones(1, 1, 1, 1, dtype=torch.bool))
        assert not visibility.documents_apart(context(f"model={name}")).passed
    if name != "hybrid_nano":
        for objective in (causal, masked):
            monkeypatch.setattr(objective, "visible_documents", lambda rows, causal: None)
        assert not visibility.documents_apart(context(f"model={name}")).passed


def test_positions_that_do_not_restart_are_found(context, monkeypatch):
    original = batches.read_rows
    monkeypatch.setattr(batches, "read_rows", lambda *given: original(*given[:4], False))
    assert not visibility.documents_apart(context("model.position=learned")).passed


def test_documents_are_cut_where_none_share_a_row(context, tmp_path):
    (tmp_path / "long.txt").write_text("many words of one book " * 200)
    sound = context(f"data.path={tmp_path / 'long.txt'}", "data.packing=concat")
    assert visibility.documents_apart(sound).passed
    assert visibility.no_future(sound).passed


def test_a_cache_that_forgets_is_found(context, monkeypatch):
    original = KeyValueCache.extend

    def forgetful(self, layer, key, value):
        keys, values = original(self, layer, key, value)
        return keys, torch.cat((torch.zeros_like(values[:, :, :1]), values[:, :, 1:]), dim=2) if self.filled else values

    monkeypatch.setattr(KeyValueCache, "extend", forgetful)
    finding = visibility.cached_generation(context("model=llama_nano"))
    assert not finding.passed


def test_a_masked_model_that_looks_back_only_is_found(context, monkeypatch):
    monkeypatch.setattr(transformer, "build_mask", lambda causal, *rest: attention.build_mask(True, *rest))
    assert not visibility.both_sides(context("model=bert_nano")).passed


def test_what_does_not_apply_says_why(context):
    bert, gpt = context("model=bert_nano", "data.document_mask=false"), context("model=gpt_nano")
    for check, given, message in (
        (visibility.no_future, bert, "objective=masked looks both ways"),
        (visibility.cached_generation, bert, "objective=masked does not continue texts"),
        (visibility.documents_apart, bert, "data.document_mask=false: documents of one row"),
        (visibility.both_sides, gpt, "objective=causal fills no masks"),
    ):
        with pytest.raises(NotApplicableError, match=message):
            check(given)
