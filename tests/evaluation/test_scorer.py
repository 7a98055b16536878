"""Scores of texts in a batch equal those of each text alone, computed token by token."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from families import random_model, shape
from folders import BYTES
from tokenizer_kinds import tokenizer_of

from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import Cloze, ExampleSet, MinimalPair, MultipleChoice
from pretrain.evaluation.scorer import Scorer, check_examples, encode_pairs

ALL = [("gpt", True), ("llama", True), ("local", True), ("bert", False), ("modern_bert", False)]
TEXTS = ["a", "The quick brown fox", "", "The quick brown dog", "é" * 9, "x" * 40, "The", "x" * 31, "y" * 32, "The"]


def scorer(family: str, causal: bool, **options: object) -> Scorer:
    return Scorer(random_model(shape(family), BYTES.vocab_size, causal), BYTES, **options)


@pytest.mark.parametrize(("family", "causal"), ALL)
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_texts_side_by_side_score_as_each_alone(family: str, causal: bool, batch_tokens: int) -> None:
    """With 100 tokens some texts share a batch, padded, and the copies of the long ones do not fit into one."""
    model = scorer(family, causal, batch_tokens=batch_tokens)
    together = model.texts(TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = scorer(family, causal).texts([text])
        assert (found.tokens, found.text_bytes) == (alone.tokens, alone.text_bytes)
        assert found.tokens == len(text.encode())
        assert found.loss == pytest.approx(alone.loss, abs=1e-5, nan_ok=not text)
        assert found.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-5, abs=1e-5)
    assert together[6] == together[9]
    assert math.isnan(together[2].perplexity)  # of the empty text: no token, no figure
    assert math.isnan(together[2].bits_per_byte)


@torch.no_grad()
def slow(model: Scorer, context: str, continuation: str) -> tuple[float, bool]:
    """One token at a time, each in a row of its own."""
    before, new = [BYTES.bos_id, *context.encode()], list(continuation.encode())
    transformer = model.model
    total, greedy = 0.0, True
    for number, token in enumerate(new):
        if model.causal:
            row = torch.tensor([[*before, *new[:number]]])[:, -32:]
            scores = transformer.head(transformer(row)[0, -1])
        else:
            row = torch.tensor([*before, *new[:number], BYTES.mask_id, *new[number + 1 :], BYTES.eos_id])
            scores = transformer.head(transformer(row.unsqueeze(0))[0, len(before) + number])
        total += float(scores.double().log_softmax(-1)[token])
        greedy &= int(scores.argmax()) == token
    return total, greedy


@pytest.mark.parametrize(("family", "causal"), ALL)
def test_continuations_score_as_one_token_after_the_other(family: str, causal: bool) -> None:
    model = scorer(family, causal, batch_tokens=90)
    pairs = [("The quick", " brown"), ("The quick ", "brown"), ("", "fox"), ("a", "b" * 20), ("The", " x"), ("q", "u")]
    found = model.continuations(pairs)
    for (context, continuation), score in zip(pairs, found, strict=True):
        moved = context.rstrip()
        total, greedy = slow(model, moved, context[len(moved) :] + continuation)
        assert score.log_likelihood == pytest.approx(total, rel=1e-5)
        assert score.greedy is greedy
    assert found[0].log_likelihood == pytest.approx(found[1].log_likelihood, rel=1e-6)  # in rows of their own
    assert found[0].greedy is found[1].greedy


@torch.no_grad()
def test_a_hybrid_model_is_scored_as_a_masked_one_too() -> None:
    """Each token is hidden in a row of its own that is read to both sides; the position before a mask predicts it."""
    model = scorer("llama", True, batch_tokens=70, pseudo_likelihood=True)
    long = "The quick brown fox jumps over the lazy dog"  # two windows, that share a token
    for text, found in zip(["fox", "a", long], model.texts(["fox", "a", long]), strict=True):
        ids, total = [BYTES.bos_id, *text.encode(), BYTES.eos_id], 0.0
        for start in range(0, len(ids) - 1, 31):
            window = ids[start : start + 32]
            for position in range(1, len(window)):
                if window[position] != BYTES.eos_id:
                    row = torch.tensor([[*window[:position], BYTES.mask_id, *window[position + 1 :]]])
                    hidden = model.model(row, is_causal=torch.tensor([False]))[0, position - 1]
                    total += float(model.model.head(hidden).double().log_softmax(-1)[window[position]])
        assert found.tokens == len(text)
        assert found.log_likelihood == pytest.approx(total, rel=1e-5)
    (score,) = model.continuations([("The quick", " brown")])
    assert score.tokens == 6
    assert score.log_likelihood != pytest.approx(
        scorer("llama", True).continuations([("The quick", " brown")])[0].log_likelihood
    )


def test_what_greedy_decoding_generates_is_greedy() -> None:
    from pretrain.language_model import LanguageModel

    model = scorer("gpt", True)
    (written,) = LanguageModel(model.model, BYTES).complete(["The"], temperature=0, max_new_tokens=1)
    text = BYTES.decode(written.tokens)
    assert text.isascii()  # one byte, so that the text has just this token
    said, other = model.continuations([("The", text), ("The", "?" if text != "?" else "!")])
    assert said.greedy
    assert not other.greedy


@pytest.mark.parametrize(("family", "causal"), [("gpt", True), ("bert", False)])
def test_a_long_context_is_cut_at_its_beginning(family: str, causal: bool) -> None:
    model = scorer(family, causal)
    longer, other = model.continuations([("x" * 50 + "abcdef", "gh"), ("y" * 20 + "x" * 50 + "abcdef", "gh")])
    assert longer.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6)


def test_a_model_trained_without_bos_gets_none() -> None:
    with_bos, without = scorer("gpt", True), scorer("gpt", True, starts_with_bos=False)
    assert with_bos.continuations([("ab", "c")]) != without.continuations([("ab", "c")])
    assert with_bos.continuations([("", "c")]) == without.continuations([("", "c")])  # a first token needs a context


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match=r"the continuation '' has 0 tokens, and this model can score 1 to 32\."):
        scorer("gpt", True).continuations([("a", "")])
    with pytest.raises(DataError, match=r"the continuation 'x+' has 31 tokens, and this model can score 1 to 30\."):
        scorer("bert", False).continuations([("a", "x" * 31)])
    tokenizer = byte_tokenizer()
    tokenizer.mask_id = None
    with pytest.raises(ConfigError, match="tokenizer has no mask token, so it cannot score a text"):
        Scorer(random_model(shape("bert"), 259, causal=False), tokenizer)
    with pytest.raises(ConfigError, match=r"classifies texts and predicts no tokens, .* Score the base model"):
        Scorer(shape("bert").build(BYTES.vocab_size, causal=False, n_labels=2), BYTES)


def test_special_tokens_in_a_text_are_not_predicted() -> None:
    tokenizer = train_bpe(["the quick brown fox"] * 3, 280)
    model = Scorer(random_model(shape("bert"), tokenizer.vocab_size, causal=False), tokenizer)
    text = "the quick"
    assert model.texts([text])[0].tokens == len(tokenizer.encode(text))


def test_progress_is_counted_in_tokens() -> None:
    reports: list[tuple[int, int]] = []
    for family, causal, total in (("gpt", True, 2 + 4), ("bert", False, 2 * 4 + 4 * 6)):
        reports.clear()
        model = scorer(family, causal, batch_tokens=5, report=lambda done, total: reports.append((done, total)))
        model.texts(["ab", "abcd"])
        assert [of for _, of in reports] == [total, total]
        assert reports[-1][0] == total


def test_a_token_across_the_join_leaves_the_continuation_its_own() -> None:
    """By itself it would have no token: "quick" is one, and context and continuation are "qui" and "ck"."""
    tokenizer = tokenizer_of("llama")
    model = Scorer(random_model(shape("gpt"), tokenizer.vocab_size, causal=True), tokenizer)
    context, apart = tokenizer.encode("the qui"), tokenizer.encode_following("ck")
    assert len(tokenizer.encode("the quick")) <= len(context)
    ((tokens, count),) = encode_pairs(tokenizer, [("the qui", "ck")])
    assert tokens.tolist() == [*context, *apart]
    assert count == len(context)
    (found,) = model.continuations([("the qui", "ck")])
    assert found.tokens == len(apart)
    assert np.isfinite(found.log_likelihood)
    assert encode_pairs(tokenizer, [("the ", "quick")])[0][0].tolist() == tokenizer.encode("the quick")  # as lm-eval


def examples(task: Task, *found: Any) -> ExampleSet:
    return ExampleSet("x", task, found)


def test_an_example_that_cannot_be_scored_is_refused_by_its_line() -> None:
    long = examples(Task.cloze, Cloze("a", "b", "x.jsonl:1"), Cloze("a", "b" * 33, "x.jsonl:2"))
    with pytest.raises(
        DataError, match=r"^x\.jsonl:2: the continuation 'b+' has 33 tokens, and this model can score 1 to 32"
    ):
        check_examples(long, BYTES, 32, causal=True)
    check_examples(long, BYTES, 33, causal=True)
    choice = examples(Task.multiple_choice, MultipleChoice("a", ("b", "c" * 31), (1, 31), 0, "x.jsonl:7"))
    with pytest.raises(
        DataError, match=r"^x\.jsonl:7: the continuation 'c+' has 31 tokens, and this model can score 1 to 30"
    ):
        check_examples(choice, BYTES, 32, causal=False)
    spaces = tokenizer_of("word level")
    pair = examples(Task.minimal_pairs, MinimalPair("the fox", "\n", "", location="x.jsonl:3"))
    with pytest.raises(DataError, match=r"^x\.jsonl:3: the sentence '\\n' has no token to score"):
        check_examples(pair, spaces, 32, causal=True)
    check_examples(examples(Task.cloze), BYTES, 32, causal=True)


@pytest.mark.parametrize("has_bound", [False, True])
def test_text_that_a_tokenizer_cannot_read_is_scored_as_unknown(has_bound: bool) -> None:
    """If it were left out, a text without a readable word would be the most likely of all."""
    words = tokenizer_of("word piece").with_mask("[MASK]")
    bound = BoundEstimate(2) if has_bound else None
    model = Scorer(random_model(shape("bert"), words.vocab_size, causal=False), words, bound=bound)
    unread, read = model.texts(["\u4e2d \u4e2d", "the dog"])
    assert (unread.tokens, read.tokens) == (2, 2)
    assert unread.log_likelihood < -1
    (pair,) = model.continuations([("the dog", " \u4e2d")])
    assert pair.tokens == 1
