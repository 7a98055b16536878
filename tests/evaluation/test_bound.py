"""The bound of a diffusion model: unbiased, with a standard error that holds, and little chance in comparisons."""

import itertools
import math
import string
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from families import random_model, shape
from torch import Tensor, nn

from pretrain.data.collate import IGNORE, Rows
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError
from pretrain.evaluation.bound import (
    Bound,
    BoundEstimate,
    _draw,
    bounds,
    estimate_of,
    filled_greedily,
    undecided,
    variance_of_mean,
)
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import Cloze, ExampleSet, MinimalPair, MultipleChoice, StereotypePair
from pretrain.evaluation.likelihood import Passage
from pretrain.evaluation.run import score_rows
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_examples, score_tasks
from pretrain.evaluation.totals import Totals, validation_metrics
from pretrain.language_model import LanguageModel
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config import CausalConfig, DiffusionConfig, HybridConfig, MaskedConfig
from pretrain.objectives.diffusion import Diffusion
from pretrain.objectives.objective import ModelWithLoss
from pretrain.training.datamodule import RankSlice, ValidationBatches
from pretrain.training.validation_metrics import ValidationScores

BYTES = byte_tokenizer()
MASK = BYTES.mask_id or 0


def passage(text: bytes, first: int = 0) -> Passage:
    return Passage(np.array([BYTES.bos_id, *text, BYTES.eos_id]), first)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(shape("bert", context_length=64), BYTES.vocab_size, causal=False)


@torch.no_grad()
def exact_bound(model: Any, text: bytes, first: int = 1, shift: int = 0) -> float:
    """Return the mean over every way to hide tokens, each number of them equally likely: by enumeration."""
    tokens, n = [BYTES.bos_id, *text, BYTES.eos_id], len(text) + 1 - first
    total = 0.0
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(first, len(text) + 1), k))
        rows = torch.tensor([[MASK if i in subset else token for i, token in enumerate(tokens)] for subset in subsets])
        log_p = model.head(model(rows)).double().log_softmax(-1)
        of_size = sum(log_p[row, i - shift, tokens[i]] for row, subset in enumerate(subsets) for i in subset)
        total += float(of_size) / len(subsets) * n / k / n
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("first", "shift"), [(1, 0), (3, 0), (1, 1)])
def test_the_estimate_is_unbiased_and_its_standard_error_holds(model: Any, first: int, shift: int) -> None:
    """Against the mean over all masks. The other text of a group changes the random numbers and nothing else."""
    expected = exact_bound(model, b"abcdef", first, shift)
    estimate = BoundEstimate(8, bool(shift))
    found = []
    for seed in range(200):
        other = Passage(np.array([BYTES.bos_id, seed % 250, seed // 250, BYTES.eos_id]), 4)
        found.append(bounds(model, [[passage(b"abcdef", first), other]], BYTES, estimate)[0])
    values = np.array([each.log_likelihood for each in found])
    errors = np.array([math.sqrt(each.variance) for each in found])
    assert all(each.tokens == 7 - first for each in found)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)
    assert values.std() > 0.01


class Surer(nn.Module):
    """A model that is surer the fewer tokens of a row are hidden: chance in how many there are changes its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.causal, self.vocab_size = False, 12
        self.head = nn.Linear(12, 12, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = (tokens == 1).float().mean(1)
        return torch.eye(12)[3] * 4 * (1 - hidden[:, None, None]) ** 2 + torch.zeros(*tokens.shape, 12)


class Stream:
    """A stream of rows of 17 tokens."""

    def __init__(self, n_rows: int) -> None:
        tokens = np.random.default_rng(0).integers(3, 12, (n_rows, 17))
        tokens[:, 0] = 0
        following = np.concatenate([tokens[:, 1:], np.full((n_rows, 1), IGNORE)], 1)
        positions = np.tile(np.arange(17), (n_rows, 1))
        self._rows = Rows(tokens, following, positions, np.zeros((n_rows, 17), np.int32))

    def __len__(self) -> int:
        return len(self._rows.tokens)

    def rows(self, chosen: Any) -> Rows:
        return self._rows[chosen]


@pytest.mark.parametrize("n_rows", [4, 49])
def test_the_standard_error_over_documents_is_not_too_small(n_rows: int) -> None:
    """Against the spread over 150 seeds. If the n-th sample after a row's gave its next mask, all masks of these
    numbers of rows would hide nearly equal shares of a row, and the error would be 0.8 of the spread.
    """
    stream: Any = Stream(n_rows)
    model: Any = Surer()
    found = []
    for seed in range(150):
        diffusion = Diffusion(DiffusionConfig(), mask_id=1, bos_id=0, seed=seed)
        found.append(score_rows(ModelWithLoss(model, diffusion), stream, n_rows, 32, None, draws=4))
    spread = np.std([totals.loss_sum for totals in found], ddof=1)
    assert 0.95 * spread < np.sqrt(np.mean([totals.variance for totals in found])) < 1.7 * spread


def validate(draws: int, seed: int, size: int = 8, ranks: int = 1) -> tuple[ValidationScores, int]:
    """Return the scores of a validation of 21 rows by all ranks in turn, and how many batches each has read."""
    diffusion = Diffusion(DiffusionConfig(validation_draws=draws), mask_id=1, bos_id=0, seed=seed)
    model: Any = Surer()
    with_loss, stream = ModelWithLoss(model, diffusion), cast(Any, Stream(21))
    scores = ValidationScores(diffusion, {"": 0.5}, None, torch.float64)
    loaders = [ValidationBatches(stream, diffusion, RankSlice(size, rank, ranks), 0) for rank in range(ranks)]
    for loader in loaders:
        for batch in map(loader.__getitem__, range(len(loader))):
            scores.update(0, batch, *with_loss.evaluate(batch))
    return scores, len(loaders[0])


@torch.no_grad()
def test_the_standard_error_of_a_validation_holds() -> None:
    """Against the spread over seeds; on one rank and two, and where two ranks read the same rows."""
    found = [validate(4, seed)[0].compute() for seed in range(100)]
    spread = np.std([metrics["val/loss"] for metrics, _ in found], ddof=1)
    errors = np.array([metrics["val/loss_standard_error"] for metrics, _ in found])
    assert 0.95 * spread < np.sqrt((errors**2).mean()) < 1.7 * spread
    assert all(targets == {"": 21 * 16} for _, targets in found)
    (one, n_one), (two, n_two), (single, _) = validate(4, 0), validate(4, 0, size=4, ranks=2), validate(1, 0)
    assert (n_one, n_two) == (3 * 4, 3 * 4)
    for name in ("loss_sum", "correct", "count", "variance"):  # as if another rank had added the same rows
        setattr(two.losses[0], name, 2 * getattr(two.losses[0], name))
    (metrics, _), (others, targets) = one.compute(), two.compute(same_rows=2)
    assert metrics == found[0][0] == pytest.approx(others, rel=1e-6)
    assert targets == {"": 21 * 16}
    metrics, targets = single.compute()
    assert "val/loss_standard_error" not in metrics
    assert targets == {"": 21 * 16}
    assert one.losses[0].count == one.losses[0].variance == 0  # it begins anew


def test_more_draws_agree_within_the_errors(model: Any) -> None:
    few, many = (bounds(model, [[passage(b"the quick fox")]], BYTES, BoundEstimate(n))[0] for n in (16, 512))
    assert abs(few.log_likelihood - many.log_likelihood) < 4 * math.sqrt(few.variance + many.variance)
    assert many.variance < few.variance / 8


class Independent(nn.Module):
    """A model that predicts each place alone, whatever it reads: its bound is its likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.config = TransformerConfig(context_length=16)
        self.vocab_size, self.causal = BYTES.vocab_size, False
        self.embedding = nn.Embedding(16, 24)
        self.head = nn.Linear(24, BYTES.vocab_size)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.embedding(torch.arange(tokens.shape[1])).expand(len(tokens), -1, -1)


def test_the_bound_of_independent_tokens_is_their_likelihood() -> None:
    """A mean over draws with k of n hidden estimates it; a wrong weight such as k / n would be far off."""
    torch.manual_seed(0)
    model: Any = Independent()
    llm = LanguageModel(model, BYTES, denoises=True)
    score = llm.score("hello", draws=2000)
    tokens = list(b"hello")
    with torch.no_grad():
        log_p = model.head(model.embedding.weight).double().log_softmax(-1)
    expected = sum(float(log_p[place + 1, token]) for place, token in enumerate(tokens))
    assert score.is_bound
    assert 0 < score.standard_error < 0.2
    assert abs(score.log_likelihood - expected) < 4 * score.standard_error
    assert score.tokens == score.text_bytes == 5


def test_masks_are_stratified_and_shared_within_a_group() -> None:
    estimate = BoundEstimate(16)
    first, second = _draw([passage(b"abcXefgh"), passage(b"abcYZefgh")], BYTES, estimate)
    assert (first.hidden.sum(1) == 1 + np.arange(8).repeat(2)).all()  # of 8 tokens: each number of them twice
    for one, other in zip(first.hidden, second.hidden, strict=True):
        # the numbers differ by one token at most, so that nearly all of the common tokens are hidden together
        assert (one[[0, 1, 2, 4, 5, 6, 7]] != other[[0, 1, 2, 5, 6, 7, 8]]).sum() <= 2
    same = _draw([passage(b"abcXefgh"), passage(b"abcYefgh")], BYTES, estimate)
    assert (same[0].hidden == same[1].hidden).all()
    alone = _draw([passage(b"abcXefgh")], BYTES, estimate)[0]
    assert (alone.hidden != same[0].hidden).any()


def test_shared_masks_leave_less_chance_in_a_comparison(model: Any) -> None:
    def spread(group_size: int) -> float:
        scorer = Scorer(model, BYTES, bound=BoundEstimate(4))
        texts = [f"{start}he quick {noun} runs far" for start in "tTabcdefgh" for noun in ("fox", "cow")]
        values = np.array([score.log_likelihood for score in scorer.texts(texts, group_size)])
        fine = Scorer(model, BYTES, bound=BoundEstimate(64)).texts(texts, 2)
        exact = np.array([score.log_likelihood for score in fine])
        return float(((values - exact)[::2] - (values - exact)[1::2]).std())

    assert spread(2) < 0.7 * spread(1)


def test_a_score_does_not_depend_on_the_batch_and_adds_up_over_windows(model: Any) -> None:
    llm = LanguageModel(model, BYTES, denoises=True)
    texts = ["a", "", "the quick brown fox " * 8, "é", "the"]
    together = llm.score(texts)
    for text, found in zip(texts, together, strict=True):
        alone = llm.score(text)
        assert found.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-5)
        assert found.standard_error == pytest.approx(alone.standard_error, rel=1e-3, abs=1e-5)
        assert found.tokens == len(text.encode())
    assert together[0].standard_error == 0.0  # one token: one way to hide it
    assert together[0].log_likelihood == pytest.approx(exact_bound(model, b"a"), rel=1e-5)
    assert math.isnan(together[1].loss)
    shifted = LanguageModel(model, BYTES, denoises=True, shift_targets=True).score(texts[2])
    assert shifted.tokens == 160  # in windows that overlap by one token


def test_tasks_are_scored_by_the_bound(model: Any) -> None:
    scorer = Scorer(model, BYTES, bound=BoundEstimate(4))
    pairs = [MinimalPair("ab cd", "ba cd", "p"), MinimalPair("same", "same", "p")]
    found = score_examples(scorer, ExampleSet("x", Task.minimal_pairs, pairs))
    assert found["ties"] == 1
    question = MultipleChoice("ab", (" c", " dddd", " e"), (1, 4, 1), 0)
    assert score_examples(scorer, ExampleSet("x", Task.multiple_choice, [question]))["questions"] == 1
    one, two = scorer.continuations([("ab", " c"), ("ab", " dddd")], [2])
    assert (one.tokens, two.tokens) == (2, 5)
    (alone,) = scorer.continuations([("", "abcdef")])
    fine = Scorer(model, BYTES, bound=BoundEstimate(400)).continuations([("", "abcdef")])[0]
    assert fine.log_likelihood == pytest.approx(exact_bound(model, b"abcdef"), rel=0.05)
    assert alone.tokens == 6


def test_tasks_share_the_masks_of_what_they_compare(model: Any) -> None:
    """With two draws chance decides much: only masks that a pair or a question share give these answers."""
    scorer = Scorer(model, BYTES, bound=BoundEstimate(2))
    texts = [(f"{start}he quick fox runs", f"{start}he quick cow runs") for start in string.ascii_letters]

    def shares(group_size: int) -> tuple[float, float]:
        flat = [text for pair in texts for text in pair]
        scores = [score.log_likelihood for score in scorer.texts(flat, group_size)]
        first = [one > other for one, other in zip(scores[::2], scores[1::2], strict=True)]
        asked = [(start, end) for start, _ in texts for end in (" as fox", " as cow")]
        sizes = [group_size] * (len(asked) // group_size)
        answers = [score.log_likelihood for score in scorer.continuations(asked, sizes)]
        chosen = [one > other for one, other in zip(answers[::2], answers[1::2], strict=True)]
        return float(np.mean(first)), float(np.mean(chosen))

    pairs = [MinimalPair(good, bad, "p") for good, bad in texts]
    questions = [MultipleChoice(start, (" as fox", " as cow"), (7, 7), 0) for start, _ in texts]
    found = (
        score_examples(scorer, ExampleSet("x", Task.minimal_pairs, pairs))["accuracy"],
        score_examples(scorer, ExampleSet("x", Task.multiple_choice, questions))["accuracy"],
    )
    assert found == shares(2)
    assert all(one != other for one, other in zip(found, shares(1), strict=True))


def test_undecided_answers_are_those_that_other_masks_could_change(model: Any) -> None:
    """Against eight times as many masks: decided answers stay, others may turn."""
    nouns = [noun for other in ("fxo", "fow") for noun in ("fox", other)]
    texts = [f"{start}{noun} runs" for start in string.ascii_letters for noun in nouns]
    few, many = (Scorer(model, BYTES, bound=BoundEstimate(n)).texts(texts, 2) for n in (64, 512))
    is_open = np.array([undecided([[few[at].draws, few[at + 1].draws]])["undecided"] for at in range(0, len(few), 2)])
    first, last = (np.array([score.log_likelihood for score in scores]) for scores in (few, many))
    turned = (first[::2] > first[1::2]) != (last[::2] > last[1::2])
    assert 0.2 < is_open.mean() < 0.8
    assert turned[is_open == 0].mean() < 0.06 < turned[is_open == 1].mean()
    apart = [abs(a.log_likelihood - b.log_likelihood) < 2 * math.hypot(a.standard_error, b.standard_error)
             for a, b in zip(few[::2], few[1::2], strict=True)]  # fmt: skip
    assert is_open.mean() < np.mean(apart)  # shared masks leave less chance in the difference
    pairs: Sequence[Any] = [MinimalPair(*texts[at : at + 2], "p") for at in range(0, len(texts), 2)]
    biased: Sequence[Any] = [StereotypePair(*texts[at : at + 2], "kind") for at in range(0, len(texts), 2)]
    scorer = Scorer(model, BYTES, bound=BoundEstimate(64))
    for examples in (ExampleSet("x", Task.minimal_pairs, pairs), ExampleSet("x", Task.bias, biased)):
        assert score_examples(scorer, examples)["undecided"] == pytest.approx(is_open.mean())
    assert not any("undecided" in name for name in score_tasks(model, BYTES, [examples], bound=BoundEstimate(4)))
    assert "undecided" not in score_examples(Scorer(model, BYTES), examples)


def test_a_question_is_undecided_if_any_choice_is_close_to_the_best() -> None:
    best, close, far = np.array([-1.0, -2.0, -1.2, -1.9]), np.array([-1.5, -1.5, -2.0, -1.5]), np.full(4, -30.0)
    assert undecided([[best, far, close], [best, far, far], [best, best]]) == {"undecided": 1 / 3}
    assert undecided([[None, None]]) == undecided([]) == {}
    assert variance_of_mean(best) == pytest.approx((1.0 + 0.49) / 4 / 4)
    both = Bound(best, 2) + Bound(close, 3)
    assert (both.tokens, both.log_likelihood) == (5, pytest.approx(best.mean() + close.mean()))
    random = np.random.default_rng(0)  # of independent passages variances add up
    first, second = (Bound(scale * random.standard_normal(20_000), 1) for scale in (1.0, 2.0))
    assert (first + second).variance == pytest.approx(first.variance + second.variance, rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 1])
def test_greedy_filling_is_that_of_the_model(model: Any, shift: int) -> None:
    """A continuation that the model itself fills from left to right is greedy, and no other is."""
    tokens = [BYTES.bos_id, *b"ab", *[MASK] * 4, BYTES.eos_id]
    estimate = BoundEstimate(shift_targets=bool(shift))
    for place in range(3, 7):
        scores = model.head(model(torch.tensor([tokens])))[0, place - shift]
        tokens[place] = int(scores.argmax())
    other = [*tokens]
    other[5] = tokens[5] ^ 1
    passages = [Passage(np.array(row), 3) for row in (tokens, other)]
    assert max(tokens[3:7]) < 256
    assert filled_greedily(model, passages, BYTES, estimate) == [True, False]
    (score,) = Scorer(model, BYTES, bound=estimate).continuations([("ab", "cd")], needs_greedy=True)
    assert score.greedy is False
    cloze = ExampleSet("x", Task.cloze, [Cloze("ab", " cd")])
    found = score_examples(Scorer(model, BYTES, bound=BoundEstimate()), cloze)
    assert set(found) == {
        "accuracy", "loss_bound", "loss_standard_error", "perplexity_bound", "bits_per_byte_bound", "passages"
    }  # fmt: skip
    assert found["accuracy"] == 0.0
    assert found["bits_per_byte_bound"] > 0


def test_the_standard_error_of_cloze_passages_holds(model: Any) -> None:
    """Of their mean: the estimate of few masks is as far from that of many as it says."""
    passages = [Cloze(f"{letter}b", f" {letter}cd") for letter in "abcdefghijklmnop"]
    few, many = (
        score_examples(Scorer(model, BYTES, bound=BoundEstimate(n)), ExampleSet("x", Task.cloze, passages))
        for n in (4, 512)
    )
    away = abs(few["loss_bound"] - many["loss_bound"])
    assert 0.1 * few["loss_standard_error"] < away < 3 * few["loss_standard_error"]
    assert many["loss_standard_error"] < few["loss_standard_error"] / 8
    found = score_tasks(model, BYTES, [ExampleSet("x", Task.cloze, passages)], bound=BoundEstimate(4))
    assert set(found) == {f"eval/x/{name}" for name in ("accuracy", "loss_bound", "perplexity_bound",
                                                        "bits_per_byte_bound")}  # fmt: skip


@pytest.mark.parametrize("causal_first", [True, False])
def test_figures_of_which_a_part_is_a_bound_are_named_one(causal_first: bool) -> None:
    """A hybrid model's causal rows are exact, those of its diffusion bounds."""
    causal, diffusion = Totals(4.0, 1, 4, 0.5), Totals(12.0, 1, 4, 0.5, is_bound=True)
    parts = [("", "causal", causal), ("", "diffusion", diffusion)][:: 1 if causal_first else -1]
    found = validation_metrics(parts)
    assert (found["loss"], found["loss_bound"], found["perplexity_bound"]) == (2.0, 2.0, pytest.approx(math.e**2))
    assert found["bits_per_byte"] == 0.5  # of the exact part
    assert not {"perplexity", "bits_per_byte_bound"} & set(found)
    assert {name for name in found if "/" in name} == {
        "causal/loss", "causal/bits_per_byte",
        "diffusion/loss", "diffusion/loss_bound", "diffusion/bits_per_byte_bound",
    }  # fmt: skip
    sources = validation_metrics([("a", part, totals) for _, part, totals in parts])
    assert {name for name in sources if name.startswith("a/")} == {"a/loss", "a/loss_bound", "a/bits_per_byte_bound"}
    nothing = Totals(0.0, 0, 0, 0.5, is_bound=True)
    assert "perplexity" in validation_metrics([("", "causal", causal), ("", "diffusion", nothing)])


def test_which_objectives_have_a_bound() -> None:
    assert estimate_of(DiffusionConfig(), 8) == BoundEstimate(8) == BoundEstimate(np.int64(8))
    assert estimate_of(DiffusionConfig(shift=True)) == BoundEstimate(32, shift_targets=True)
    others: Sequence[Any] = (CausalConfig(), MaskedConfig(), HybridConfig())
    assert [estimate_of(each) for each in others] == [None] * 3


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_draws_come_in_pairs(model: Any, draws: int) -> None:
    with pytest.raises(ConfigError, match=rf"draws={draws} is not an even number from 2 up\. Try draws=32"):
        LanguageModel(model, BYTES, denoises=True).score("a", draws=draws)
    with pytest.raises(ConfigError, match=r"means nothing for a model that is scored without a bound"):
        LanguageModel(model, BYTES).score("a", draws=draws)
