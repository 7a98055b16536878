"""What is to be predicted: each check passes on a sound objective, and fails on one that is a little off."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.doctor import targets
from pretrain.doctor.check import NotApplicableError
from pretrain.objectives.causal import Causal
from pretrain.objectives.hybrid import Hybrid
from pretrain.objectives.masked import Masked

BERT = ["model=bert_nano", "objective=masked"]


@pytest.mark.parametrize(
    "words",
    [
        BERT,
        ["model=bert_nano"],
        [*BERT, "objective.unit=whole_word"],
        [*BERT, "objective.unit=span"],
        [*BERT, "objective.mask_token_prob=1", "objective.random_token_prob=0"],
        [*BERT, "data.document_mask=false"],
        ["model=hybrid_nano"],
    ],
)
def test_sound_masks_pass(context, words):
    sound = context(*words)
    for check in (targets.mask_shares, targets.mask_places):
        finding = check(sound)
        assert finding.passed, finding


@pytest.mark.parametrize(
    "words", [[], ["model=hybrid_nano"], ["data.document_mask=false"], ["data.packing=concat"], ["data.mode=stream"]]
)
def test_sound_next_tokens_pass(context, words):
    sound = context(*words)
    finding = targets.next_tokens(sound)
    assert finding.passed, finding


def test_a_mask_rate_that_is_off_is_found(context, monkeypatch):
    def fewer(self, tokens, candidates, count, draw):
        return draw.permutation(candidates)[: count * 4 // 5]

    monkeypatch.setattr(Masked, "_choose", fewer)
    for words in (BERT, ["model=hybrid_nano"]):
        assert not targets.mask_shares(context(*words)).passed


@pytest.mark.parametrize("shares", [(0.7, 0.1), (0.8, 0.15), (0.9, 0.1)])
def test_replacements_in_other_shares_are_found(context, shares):
    wrong = context(*BERT)
    assert isinstance(wrong.objective, Masked)
    wrong.objective.config = replace(wrong.objective.config, mask_token_prob=shares[0], random_token_prob=shares[1])
    assert not targets.mask_shares(wrong).passed


def test_hidden_special_tokens_are_found(context):
    wrong = context(*BERT)
    assert isinstance(wrong.objective, Masked)
    wrong.objective.special_ids = np.array([], np.int64)
    finding = targets.mask_places(wrong)
    assert not finding.passed
    assert " 0 are special" not in finding.figures


def test_targets_one_further_are_found(context, monkeypatch):
    original = Causal.collate

    def further(self, rows, samples):
        batch = original(self, rows, samples)
        return replace(batch, targets=torch.roll(batch.targets, -1, dims=1))

    monkeypatch.setattr(Causal, "collate", further)
    for words in ([], ["model=hybrid_nano"]):
        assert not targets.next_tokens(context(*words)).passed


def test_tokens_that_were_changed_are_found(context, monkeypatch):
    original = Causal.collate
    monkeypatch.setattr(Causal, "collate", lambda *given: replace(original(*given), tokens=original(*given).tokens * 0))
    finding = targets.next_tokens(context())
    assert not finding.passed
    assert finding.figures.endswith("the tokens read were changed")


def test_rows_of_one_kind_are_found(context, monkeypatch):
    sound = context("model=hybrid_nano")
    assert targets.masked_rows(sound).passed
    monkeypatch.setattr(Hybrid, "is_masked", lambda self, samples: samples % 4 == 0)
    assert not targets.masked_rows(sound).passed


def test_what_does_not_apply_says_why(context):
    bert, gpt = context(*BERT), context()
    for check, given, message in (
        (targets.next_tokens, bert, "objective=masked predicts hidden tokens only"),
        (targets.mask_shares, gpt, "objective=causal hides no tokens"),
        (targets.mask_places, gpt, "objective=causal hides no tokens"),
        (targets.masked_rows, bert, "objective=masked makes rows of one kind"),
    ):
        with pytest.raises(NotApplicableError, match=message):
            check(given)
