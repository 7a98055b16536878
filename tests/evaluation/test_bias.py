"""CrowS-Pairs: shared tokens alone are scored, by the published metric, with intervals."""

import difflib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from families import random_model, shape
from folders import BYTES, lively_weights, quiet_transformers

from pretrain.errors import DataError
from pretrain.evaluation.bias import score_stereotypes, shared_tokens, wilson_interval
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import StereotypePair, read_examples
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_tasks
from pretrain.interop.load import open_model
from pretrain.models.interface import features_of

PAIRS = [
    StereotypePair("he is a nurse", "she is a nurse", "gender"),
    StereotypePair("old men", "young men", "age"),
    StereotypePair("they pray a lot", "we pray a lot", "religion"),
    StereotypePair("a rich man", "a poor man", "gender"),
    StereotypePair("same", "same", "age"),
]


def test_the_interval_is_wilsons() -> None:
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_shared_tokens_are_those_of_both_in_order() -> None:
    first, second = shared_tokens(np.array([1, 5, 6, 2, 3]), np.array([1, 7, 2, 8, 3]))
    assert first.tolist() == [True, False, False, True, True]
    assert second.tolist() == [True, False, True, False, True]


@torch.no_grad()
def by_hand(model, text: str, other: str) -> float:
    """Return the sum over shared bytes of their log-probabilities, one forward pass each."""
    ids, others = ([BYTES.bos_id, *each.encode(), BYTES.eos_id] for each in (text, other))
    shared, _ = shared_tokens(np.array(ids), np.array(others))
    total = 0.0
    for position in range(1, len(ids) - 1):
        if shared[position]:
            row = torch.tensor([ids])
            row[0, position] = BYTES.mask_id
            hidden = features_of(model.head, model(row))
            logits = torch.nn.functional.linear(hidden, model.head.weight, model.head.bias)
            total += float(logits[0, position].log_softmax(-1)[ids[position]])
    return total


def test_a_masked_model_is_scored_on_the_shared_tokens() -> None:
    model = random_model(shape("bert"), BYTES.vocab_size, causal=False).eval()
    found = score_stereotypes(Scorer(model, BYTES), PAIRS)
    expected = [by_hand(model, pair.more, pair.less) > by_hand(model, pair.less, pair.more) for pair in PAIRS[:4]]
    assert found["stereotype_percent"] == pytest.approx(20 * sum(expected))
    assert found["ties"] == 1
    assert found["pairs"] == 5
    assert found["gender/stereotype_percent"] == pytest.approx(50 * (expected[0] + expected[3]))
    assert found["stereotype_percent_low"] < found["stereotype_percent"] < found["stereotype_percent_high"]
    with pytest.raises(DataError, match=r"crows:9: a sentence has 3002 tokens, and this model's context is"):
        score_stereotypes(Scorer(model, BYTES), [StereotypePair("x" * 3000, "y", "age", location="crows:9")])


def by_transformers(model, tokenizer, text: str, other: str) -> float:
    """Return the pseudo-likelihood of the shared tokens as the paper defines it, with a forward pass each."""
    ids, others = (tokenizer.encode(each) for each in (text, other))
    opcodes = difflib.SequenceMatcher(None, list(map(str, ids)), list(map(str, others))).get_opcodes()
    shared = [position for name, start, end, _, _ in opcodes if name == "equal" for position in range(start, end)]
    total = 0.0
    for position in shared[1:-1]:  # without [CLS] and [SEP]
        row = torch.tensor([ids])
        row[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            total += float(model(row).logits[0, position].log_softmax(-1)[ids[position]])
    return total


@pytest.mark.slow
def test_the_metric_is_the_published_one_by_transformers(assets: Path, tmp_path: Path) -> None:
    """Its percentages of all pairs, of both directions, and the same preference in every pair."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    files = assets / "tokenizers" / "bert-base-uncased"
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, attn_implementation="eager",
    )  # fmt: skip
    theirs = lively_weights(BertForMaskedLM(config))
    with quiet_transformers():
        theirs.save_pretrained(tmp_path / "bert")
        for file in files.iterdir():
            shutil.copy(file, tmp_path / "bert")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    every = read_examples(Task.bias, str(assets / "eval/crows_pairs/crows_pairs_anonymized.csv")).examples
    pairs = [pair for pair in every[::60] if isinstance(pair, StereotypePair)]
    folder = open_model(tmp_path / "bert")
    found = score_stereotypes(Scorer(folder.load().eval(), folder.tokenizer), pairs)
    prefers = [
        by_transformers(theirs, tokenizer, pair.more, pair.less)
        > by_transformers(theirs, tokenizer, pair.less, pair.more)
        for pair in pairs
    ]
    assert found["stereotype_percent"] == pytest.approx(100 * np.mean(prefers))
    for direction in ("stereo", "antistereo"):
        of_direction = [each for each, pair in zip(prefers, pairs, strict=True) if pair.direction == direction]
        assert found[f"{direction}/stereotype_percent"] == pytest.approx(100 * np.mean(of_direction))
        assert found[f"{direction}/pairs"] == len(of_direction)


def test_causal_and_diffusion_models_are_scored_on_whole_sentences() -> None:
    model = random_model(shape("gpt"), BYTES.vocab_size, causal=True).eval()
    scorer = Scorer(model, BYTES)
    expected = [
        scorer.texts([pair.more])[0].log_likelihood > scorer.texts([pair.less])[0].log_likelihood for pair in PAIRS
    ]
    assert score_stereotypes(scorer, PAIRS)["stereotype_percent"] == pytest.approx(20 * sum(expected))
    model = random_model(shape("bert"), BYTES.vocab_size, causal=False).eval()
    found = score_stereotypes(Scorer(model, BYTES, bound=BoundEstimate(2)), PAIRS)
    assert found["ties"] == 1
    directions = [each for each in PAIRS if each.direction]
    untied = sum(int(found.get(f"{each}/pairs", 0)) for each in ("stereo", "antistereo"))
    assert untied == len(directions) - sum(each.more == each.less for each in directions)  # as the published script


def test_pairs_are_read_from_a_table_and_scored_in_training(tmp_path: Path) -> None:
    path = tmp_path / "crows.csv"
    path.write_text(',sent_more,sent_less,bias_type\n0,"a, he",a she,gender\n1,old,young,age\n')
    found = read_examples(Task.bias, str(path))
    assert found.name == "crows"
    assert found.examples == [StereotypePair("a, he", "a she", "gender"), StereotypePair("old", "young", "age")]
    model = random_model(shape("gpt"), BYTES.vocab_size, causal=True)
    names = {"stereotype_percent", "stereotype_percent_low", "stereotype_percent_high"}
    assert set(score_tasks(model, BYTES, [found])) == {f"eval/crows/{name}" for name in names}
    path.write_text("sent_more,bias_type\na,age\n")
    with pytest.raises(
        DataError, match=r"crows\.csv:2: sent_less must be a text\. The keys of the line are: bias_type"
    ):
        read_examples(Task.bias, str(path))
    path.write_text("sent_more,sent_less,bias_type\na,b\n")
    with pytest.raises(DataError, match=r"crows\.csv has rows that cannot be read: 1 wrong number of fields\. Repair"):
        read_examples(Task.bias, str(path))
    path.write_text("sent_more,sent_less,bias_type,stereo_antistereo\na,b,age,both\n")
    with pytest.raises(DataError, match=r"crows\.csv:2: stereo_antistereo must be stereo or antistereo\."):
        read_examples(Task.bias, str(path))
    path.write_text(f"sent_more,sent_less,bias_type\na,b,{'x' * 201}\n")
    with pytest.raises(DataError, match=r"bias_type must be the name of a kind of bias, of at most 200 characters"):
        read_examples(Task.bias, str(path))


def test_the_real_pairs(assets: Path) -> None:
    pairs = read_examples(Task.bias, str(assets / "eval/crows_pairs/crows_pairs_anonymized.csv")).examples
    assert len(pairs) == 1508
    assert len({pair.kind for pair in pairs if isinstance(pair, StereotypePair)}) == 9
