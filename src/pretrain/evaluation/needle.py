"""Needle in a haystack: whether a causal model finds a number that stands far back in a long text.

A sentence with a number is put into held-out text, at depth 0 (its beginning) to 1 (its end). After the text stands
the sentence again, and the likelihood of its number is compared with those of other numbers. All numbers are drawn
alike, so a model that does not find the sentence is right in one case out of `choices`, whatever it prefers.
Source of the test: Kamradt 2023, https://github.com/gkamradt/LLMTest_NeedleInAHaystack, which judges free answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, printable, shown
from pretrain.evaluation.bias import wilson_interval
from pretrain.evaluation.config import NeedleConfig
from pretrain.evaluation.likelihood import Ints, Passage, Report
from pretrain.evaluation.scorer import Scorer
from pretrain.models.choices import Position

STATEMENT = " The magic number is {}"
_SENTENCE_ENDS = (".", "!", "?", "\n")
_LONGEST_TOKEN = 32  # characters: enough text is read for tokens that are all as long
_SHIFT = 20  # a needle moves back to the end of a sentence by at most one part in so many of the text

Trial = list[Passage]  # rows that differ in their last number alone: the true one first


def score_needles(scorer: Scorer, haystack: Ints, config: NeedleConfig) -> dict[str, Any]:
    """Return the share of trials whose true number is most likely, its interval of 95 %, and the share of each cell.

    A cell is `length_<tokens>/depth_<part>`; its share has no interval. `haystack` are ids of held-out text (T,). A tie
    is not correct. Raises ConfigError for a model that is not causal or cannot read a length, DataError for a haystack
    that is shorter than a length.
    """
    if not scorer.causal or scorer.bound is not None:
        raise ConfigError(
            "task=needle needs a causal model, which is asked for the number after the text, and this one fills "
            f"masks. Take task={'pseudo_perplexity' if scorer.bound is None else 'documents'}."
        )
    needles = Needles(scorer.tokenizer, scorer.starts_with_bos, haystack, config)
    lengths = _lengths(scorer, needles, config.lengths)
    rows_of_cell, right, before = config.trials * config.choices, 0, 0
    whole = sum(lengths) * len(config.depths) * rows_of_cell
    figures: dict[str, Any] = {}
    for length in lengths:
        for depth in config.depths:
            trials = list(needles.trials(length, depth))
            rows = [row for trial in trials for row in trial]
            cell = range(before, before + length * rows_of_cell)
            predicted = scorer.predictions(rows, partial(_report, scorer.report, cell, whole))
            likelihoods = np.array([float(each.log_probabilities.double().sum()) for each in predicted])
            found = [true > max(others) for true, *others in likelihoods.reshape(len(trials), -1).tolist()]
            figures[f"length_{length}/depth_{depth:g}/accuracy"] = float(np.mean(found))
            right, before = right + sum(found), cell.stop
    examples = len(figures) * config.trials
    low, high = wilson_interval(right, examples)
    total = {"accuracy": right / examples, "accuracy_low": low, "accuracy_high": high, "chance": 1 / config.choices}
    return total | {"examples": examples} | figures


def open_haystack(path: str, tokenizer: Tokenizer, context_length: int, config: NeedleConfig) -> Ints:
    """Return the ids of a text file in which a run hides numbers, as many as it needs (T,).

    Raises DataError for a file that is no text or too short, ConfigError for a context that holds no needle.
    """
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            text = file.read(_LONGEST_TOKEN * context_length * config.trials)
        ids = np.array(tokenizer.encode(text), np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"scores.needle: {printable(path)} cannot be read as text: {printable(error)}.") from None
    needles = Needles(tokenizer, True, ids[: context_length * config.trials], config)
    around = needles.tokens_around
    if context_length <= around:
        raise ConfigError(
            f"scores.needle={shown([path])} reads at least {around + 1} tokens, and model.context_length="
            f"{context_length}. Leave it out, or take a longer context."
        )
    if len(needles.haystack) < context_length - around:
        raise DataError(
            f"scores.needle: {printable(path)} has {len(needles.haystack):,} tokens, too few for model.context_length="
            f"{context_length:,}. Give a longer text."
        )
    return needles.haystack


def needle_table(figures: dict[str, Any]) -> str:
    """Return the accuracies of all cells as text: a line for each depth, a column for each length."""
    cells = [name.split("/") for name in figures if name.startswith("length_")]
    lengths, depths = (list(dict.fromkeys(parts[side] for parts in cells)) for side in (0, 1))
    lines = [["depth", *(f"{length.removeprefix('length_')} tokens" for length in lengths)]]
    for depth in depths:
        shares = (figures[f"{length}/{depth}/accuracy"] for length in lengths)
        lines.append([depth.removeprefix("depth_"), *(f"{share:.2f}" for share in shares)])
    return "\n".join(f"{first:<8}{''.join(f'{value:>14}' for value in rest)}" for first, *rest in lines)


@dataclass
class Needles:
    """Texts with a hidden number; a trial has the same numbers at every length and depth."""

    tokenizer: Tokenizer
    starts_with_bos: bool
    haystack: Ints  # (T,)
    config: NeedleConfig

    def trials(self, length: int, depth: float) -> Iterator[Trial]:
        """Yield the trials of a cell: rows of `length` tokens, needle, question and BOS included."""
        end = self._end_of_sentence
        for number, statements in enumerate(self._statements):
            around = _around(statements, end) + self.starts_with_bos  # differs by a few tokens from trial to trial
            size = min(length - around, len(self.haystack))
            start = (len(self.haystack) - size) * number // max(1, self.config.trials - 1)
            text = self.haystack[start : start + size]
            cut = _cut(self._ends[start : start + size], depth)
            begin = [self.tokenizer.bos_id] if self.starts_with_bos else []
            shared = np.concatenate([begin, text[:cut], statements[0], end, text[cut:]]).astype(np.int64)
            yield _rows(shared, statements)

    @cached_property
    def tokens_around(self) -> int:
        """The most tokens of a row that are not held-out text."""
        return max(_around(each, self._end_of_sentence) for each in self._statements) + self.starts_with_bos

    @cached_property
    def _statements(self) -> list[list[Ints]]:
        """The sentence with each number of each trial, as ids, without its full stop; the first number is hidden."""
        return [self._encoded(trial) for trial in range(self.config.trials)]

    @cached_property
    def _end_of_sentence(self) -> Ints:
        return np.array(self.tokenizer.encode_following("."), np.int64)

    @cached_property
    def _ends(self) -> np.ndarray:
        """Whether a sentence ends with each token of the text, bool (T,)."""
        ids, inverse = np.unique(self.haystack, return_inverse=True)
        spelled = (self.tokenizer.token(number).rstrip(" ") for number in ids.tolist())
        found: np.ndarray = np.array([text.endswith(_SENTENCE_ENDS) for text in spelled], np.bool_)[inverse]
        return found

    def _encoded(self, trial: int) -> list[Ints]:
        lowest = 10 ** (self.config.digits - 1)
        draw = np.random.default_rng((self.config.seed, trial))
        numbers: dict[int, None] = {}  # in order, each once
        while len(numbers) < self.config.choices:
            numbers[int(draw.integers(lowest, 10 * lowest))] = None
        ids = [np.array(self.tokenizer.encode_following(STATEMENT.format(number)), np.int64) for number in numbers]
        if len({each.tobytes() for each in ids}) < len(ids):
            raise ConfigError(
                "task=needle hides a number, and the model's tokenizer gives different numbers the same tokens. Take "
                "a model whose tokenizer knows the digits."
            )
        return ids


def _report(report: Report, cell: range, whole: int, done: int, total: int) -> None:
    """Report a part of a cell as that of all cells: its rows are a little shorter than its length says."""
    report(cell.start + len(cell) * done // total, whole)


def _around(statements: Sequence[Ints], end: Ints) -> int:
    return len(statements[0]) + len(end) + max(map(len, statements))


def _rows(shared: Ints, statements: Sequence[Ints]) -> Trial:
    """Return a row for each number; its targets begin with the first token that not all of them share."""
    shortest = min(map(len, statements))
    differs = np.any([each[:shortest] != statements[0][:shortest] for each in statements], axis=0)
    first = len(shared) + (int(differs.argmax()) if differs.any() else shortest)
    return [Passage(np.concatenate([shared, each]), first) for each in statements]


def _cut(ends: np.ndarray, depth: float) -> int:
    """Return how many tokens of a text stand before a needle: up to the end of a sentence, if one is near."""
    wanted = round(depth * len(ends))
    if wanted in (0, len(ends)):
        return wanted
    first = max(0, wanted - len(ends) // _SHIFT)
    near = np.flatnonzero(ends[first:wanted])
    return first + int(near[-1]) + 1 if len(near) else wanted


def _lengths(scorer: Scorer, needles: Needles, wanted: Sequence[int]) -> Sequence[int]:
    """Return the lengths to score; by default a quarter, half and all of the context, as far as the sentences fit."""
    context, shape = scorer.model.config.context_length, scorer.model.config.transformer
    around = needles.tokens_around
    lengths = wanted or [length for length in (context // 4, context // 2, context) if length > around]
    if not lengths:
        raise ConfigError(
            f"task=needle reads at least {around + 1} tokens, and the model's context is {context}. "
            "Take a model with a longer context."
        )
    if min(lengths) <= around:
        raise ConfigError(
            f"needle.lengths has {min(lengths)}, and the sentence and its repetition alone take {around} tokens. "
            f"Try 'needle.lengths=[{4 * around}]'."
        )
    longest = max(lengths)
    if longest > context and (shape is None or shape.position is not Position.rope):
        raise ConfigError(
            f"needle.lengths has {longest}, and the model has no positions after its context of {context} tokens. "
            f"Try 'needle.lengths=[{context}]'."
        )
    if len(needles.haystack) < longest - around:
        fits = around + len(needles.haystack)
        raise DataError(
            f"the text that hides the number has {len(needles.haystack):,} tokens, too few for a length of "
            f"{longest:,}. Give more text: path=<files>; or try 'needle.lengths=[{fits}]'."
        )
    return lengths
