"""Score texts with a model: likelihoods of causal models, pseudo-likelihoods of masked ones, bounds of diffusion."""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, DivergenceError, printable
from pretrain.evaluation.bound import Bound, BoundEstimate, bounds, filled_greedily
from pretrain.evaluation.examples import ExampleSet, MinimalPair, StereotypePair
from pretrain.evaluation.likelihood import (
    BATCH_TOKENS,
    Floats,
    Ints,
    Passage,
    Predicted,
    Report,
    Score,
    causal_predictions,
    ignore_progress,
    masked_predictions,
)
from pretrain.models.interface import LanguageModule
from pretrain.models.transformer import LabelHead

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class ContinuationScore:
    """Log-likelihood of a continuation after its context."""

    log_likelihood: float  # nats, summed over the tokens; of a masked model a pseudo-likelihood, of diffusion a bound
    tokens: int
    greedy: bool  # whether greedy decoding would generate it, from left to right
    text_bytes: int = 0  # of the text that was scored, in UTF-8: the continuation with the spaces before it
    draws: Floats | None = field(default=None, repr=False, compare=False)  # (K,) of a bound: the estimate by each


class Scorer:
    """Scores texts in batches: by likelihood with a causal model, by pseudo-likelihood with a masked one.

    With `bound`, a diffusion model's texts are scored by an estimated lower bound of the log-likelihood. With
    `pseudo_likelihood` a hybrid model is scored as a masked one.
    """

    def __init__(
        self,
        model: LanguageModule,
        tokenizer: Tokenizer,
        starts_with_bos: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        report: Report = ignore_progress,
        bound: BoundEstimate | None = None,
        pseudo_likelihood: bool = False,
    ) -> None:
        """`starts_with_bos` prepends the beginning-of-document token to contexts; `report` receives progress.

        Raises ConfigError for a classifier, and for a masked model whose tokenizer has no mask token.
        """
        if isinstance(model.head, LabelHead):
            raise ConfigError(
                "this model classifies texts and predicts no tokens, so it cannot be scored on text. "
                "Score the base model that it was fine-tuned from."
            )
        if not model.causal and tokenizer.mask_id is None:
            raise ConfigError(
                "this masked model's tokenizer has no mask token, so it cannot score a text. "
                "Take a tokenizer with a mask_token."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.starts_with_bos = starts_with_bos
        self.batch_tokens = batch_tokens
        self.report = report
        self.bound = bound
        self.pseudo_likelihood = pseudo_likelihood

    @property
    def causal(self) -> bool:
        """Whether scores are likelihoods, each token predicted from those before it."""
        return self.model.causal and not self.pseudo_likelihood

    def predictions(self, passages: Sequence[Passage], report: Report | None = None) -> list[Predicted]:
        """Return the predictions of each passage's targets; `report` receives progress instead of the scorer's.

        Raises DivergenceError for NaN, which would make an arbitrary answer the best when compared.
        """
        report = report or self.report
        if self.causal:
            predicted = causal_predictions(self.model, passages, self.batch_tokens, report)
        else:
            predicted = masked_predictions(self.model, passages, self.tokenizer, self.batch_tokens, report)
        check_numbers(bool(passage.log_probabilities.isnan().any()) for passage in predicted)
        return predicted

    def texts(self, texts: Sequence[str], group_size: int = 1) -> list[Score]:
        """Return the score of each text; equal texts score exactly the same.

        A text longer than the context is read in windows. They do not overlap, except by one token in a causal model.
        Every `group_size` texts in turn are compared with each other: their bounds share random masks.
        """
        rows = [self._with_specials(document[1:-1]) for document in self.tokenizer.encode_documents(texts)]
        text_bytes = [len(text.encode()) for text in texts]
        if self.bound is not None:
            found = self._bounds(rows, group_size)
            return [
                Score(each.log_likelihood, each.tokens, size, True, math.sqrt(each.variance), each.draws)
                for each, size in zip(found, text_bytes, strict=True)
            ]
        distinct = {row.tobytes(): row for row in rows}
        scores = dict(zip(distinct, self.documents(list(distinct.values())), strict=True))
        return [Score(*scores[row.tobytes()], text_bytes=size) for row, size in zip(rows, text_bytes, strict=True)]

    def _bounds(self, rows: Sequence[Ints], group_size: int) -> list[Bound]:
        """Return the bound of each row of ids; the windows at the same place in the rows of a group share masks."""
        assert self.bound is not None
        windows = [self._windows(row) for row in rows]
        groups, rows_of = list[list[Passage]](), list[int]()
        for start in range(0, len(rows), group_size):
            group = range(start, min(start + group_size, len(rows)))
            for number in range(max(len(windows[row]) for row in group)):
                members = [row for row in group if number < len(windows[row])]
                groups.append([windows[row][number] for row in members])
                rows_of += members
        totals = [Bound(np.zeros(self.bound.draws), 0)] * len(rows)
        for row, part in zip(rows_of, self.bounds_of(groups), strict=True):
            totals[row] = totals[row] + part
        return totals

    def bounds_of(self, groups: Sequence[Sequence[Passage]]) -> list[Bound]:
        """Return the bound of each passage of the groups, in order; those of a group share masks."""
        assert self.bound is not None
        found = bounds(self.model, groups, self.tokenizer, self.bound, self.batch_tokens, self.report)
        check_numbers(math.isnan(each.log_likelihood) for each in found)
        return found

    def documents(self, rows: Sequence[Ints]) -> list[tuple[float, int]]:
        """Return the log-likelihood in nats and the predicted tokens of each row of ids, of any length."""
        windows = [self._windows(row) for row in rows]
        predicted = iter(self.predictions([passage for passages in windows for passage in passages]))
        scores = []
        for passages in windows:
            parts = [next(predicted).log_probabilities for _ in passages]
            scores.append((sum(float(p.double().sum()) for p in parts), sum(len(p) for p in parts)))
        return scores

    def continuations(
        self, pairs: Sequence[tuple[str, str]], group_sizes: Sequence[int] = (), needs_greedy: bool = False
    ) -> list[ContinuationScore]:
        """Return the score of each continuation after its context; `encode_pairs` tokenizes them.

        Contexts are truncated at their beginning to the context length. Continuations of a group, by default each of
        its own, are compared with each other: their bounds share random masks. With a bound, `greedy` takes runs of the
        model of its own and is false unless `needs_greedy`. Raises DataError for a continuation without a token, or
        with more than fit.
        """
        encoded = encode_pairs(self.tokenizer, pairs)
        sizes = [len(_move_spaces(*pair)[1].encode()) for pair in pairs]
        passages = [
            self._passage(ids, n_context, text) for (ids, n_context), (_, text) in zip(encoded, pairs, strict=True)
        ]
        if self.bound is not None:
            rest = iter(passages)
            groups = [[next(rest) for _ in range(size)] for size in group_sizes or [1] * len(passages)]
            greedy = [False] * len(passages)
            if needs_greedy:
                greedy = filled_greedily(self.model, passages, self.tokenizer, self.bound)
            return [
                ContinuationScore(each.log_likelihood, each.tokens, is_greedy, size, each.draws)
                for each, is_greedy, size in zip(self.bounds_of(groups), greedy, sizes, strict=True)
            ]
        return [
            ContinuationScore(
                float(passage.log_probabilities.double().sum()), len(passage.correct), bool(passage.correct.all()), size
            )
            for passage, size in zip(self.predictions(passages), sizes, strict=True)
        ]

    def _with_specials(self, tokens: NDArray[Any]) -> Ints:
        """Return the ids of a text between BOS and, for a masked model, EOS."""
        end = [] if self.causal else [self.tokenizer.eos_id]
        return np.concatenate([[self.tokenizer.bos_id], tokens, end]).astype(np.int64)

    def _windows(self, row: Ints) -> list[Passage]:
        """Return the ids of a document, of any length, as passages; the last target of one is the next one's input."""
        length = self.model.config.context_length
        hybrid = self.model.causal and self.pseudo_likelihood
        if hybrid or (self.bound is not None and self.bound.shift_targets):  # the position before predicts a token
            return [Passage(row[start : start + length], 1) for start in range(0, len(row) - 1, length - 1)]
        if self.causal:
            return [Passage(row[start : start + length + 1], 1) for start in range(0, len(row) - 1, length)]
        return [Passage(row[start : start + length], 0) for start in range(0, len(row), length)]

    def _passage(self, ids: Ints, n_context: int, continuation: str) -> Passage:
        """Return the passage whose targets are the ids after the first `n_context`; the text is for the error."""
        new, length = len(ids) - n_context, self.model.config.context_length
        check_length(new, length if self.causal else length - 2, continuation)
        if self.causal:
            row = self._with_specials(ids) if self.starts_with_bos or not n_context else ids
            row = row[-(length + 1) :]
            return Passage(row, len(row) - new)
        row = self._with_specials(ids)[-length:]
        return Passage(row, len(row) - 1 - new)


def check_numbers(are_nan: Iterable[bool]) -> None:
    """Raise DivergenceError where a model's log-probabilities or losses are NaN."""
    if any(are_nan):
        raise DivergenceError(
            "the model's probabilities are NaN, so it cannot be scored: its weights have diverged. "
            "Take an earlier checkpoint."
        )


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ints, int]]:
    """Return the ids of each (context, continuation), without BOS and EOS, and the number of ids of the context.

    The two are tokenized as one text, and spaces at the end of a context move to the continuation, as in lm-eval. If
    that leaves the continuation no token, because the context's last token includes it, they are tokenized apart.
    """
    moved = [_move_spaces(context, continuation) for context, continuation in pairs]
    contexts = tokenizer.encode_documents([context for context, _ in moved])
    joined = tokenizer.encode_documents([context + continuation for context, continuation in moved])
    encoded = []
    for context, ids, (_, continuation) in zip(contexts, joined, moved, strict=True):
        if len(ids) <= len(context) and continuation:
            retokenized = [*context[:-1], *tokenizer.encode_following(continuation), tokenizer.eos_id]
            ids = np.array(retokenized, np.uint32)
        encoded.append((ids[1:-1].astype(np.int64), len(context) - 2))
    return encoded


def check_examples(examples: ExampleSet, tokenizer: Tokenizer, context_length: int, causal: bool) -> None:
    """Raise DataError, naming file and line, for an example that a model of this context cannot score."""
    sentences, pairs = list[tuple[str, str]](), list[tuple[tuple[str, str], str]]()
    for example in examples.examples:
        if isinstance(example, MinimalPair):
            sentences += [(example.good, example.location), (example.bad, example.location)]
        elif isinstance(example, StereotypePair):
            sentences += [(example.more, example.location), (example.less, example.location)]
        else:
            pairs += [(pair, example.location) for pair in example.pairs()]
    documents = tokenizer.encode_documents([text for text, _ in sentences])
    for (text, location), ids in zip(sentences, documents, strict=True):
        if len(ids) < 3:  # BOS and EOS alone
            raise DataError(f"{location}: the sentence {text[:40]!a} has no token to score. Remove the line.")
    encoded = encode_pairs(tokenizer, [pair for pair, _ in pairs])
    for ((_, continuation), location), (pair, n_context) in zip(pairs, encoded, strict=True):
        check_length(len(pair) - n_context, context_length if causal else context_length - 2, continuation, location)


def check_length(new: int, most: int, continuation: str, location: str = "") -> None:
    """Raise DataError for a continuation without a token, or with more than `most`."""
    if not 0 < new <= most:
        raise DataError(
            f"{f'{location}: ' if location else ''}the continuation {continuation[:40]!a} has {new} tokens, and this "
            f"model can score 1 to {most}. Remove the example, or take a model with a longer context."
        )


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


class Progress:
    """Shows progress on standard error: a bar in a terminal, else a line every 10 seconds."""

    def __init__(self, name: str, unit: str = "token") -> None:
        self.name, self.unit = name, unit
        self.bar: Any = None
        self._started = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units have been read."""
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(
                    total=total,
                    desc=printable(self.name, one_line=True),
                    unit=self.unit,
                    unit_scale=True,
                    dynamic_ncols=True,
                )
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
                self.bar = None
        elif (now := time.perf_counter()) - self._shown >= SECONDS_BETWEEN_LINES:
            left = int((now - self._started) * (total - done) / done)
            line = f"{self.name} {done / total:.0%}  {left // 60}:{left % 60:02d} left"
            print(printable(line, one_line=True), file=sys.stderr, flush=True)
            self._shown = now
