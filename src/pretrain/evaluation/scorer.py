"""Score texts with a model and its tokenizer: likelihood for causal models, pseudo-likelihood for masked ones."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, DivergenceError, printable
from pretrain.evaluation.examples import ExampleSet, MinimalPair
from pretrain.evaluation.likelihood import (
    BATCH_TOKENS,
    Ints,
    Passage,
    Predicted,
    Report,
    Score,
    causal_predictions,
    ignore_progress,
    masked_predictions,
)
from pretrain.models.transformer import LabelHead, Transformer

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class ContinuationScore:
    """How well a model predicts a continuation of a context."""

    log_likelihood: float  # nats, summed over the tokens; of a masked model a pseudo-likelihood
    tokens: int
    greedy: bool  # whether greedy decoding would generate it


class Scorer:
    """Scores texts in batches: by likelihood a causal model, by pseudo-likelihood one that only fills masks."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        starts_with_bos: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        report: Report = ignore_progress,
    ) -> None:
        """`starts_with_bos` prepends the beginning-of-document token to contexts; `report` receives progress.

        Raises ConfigError for a classifier, and for a masked model whose tokenizer has no mask.
        """
        if isinstance(model.head, LabelHead):
            raise ConfigError(
                "this model was trained to classify texts and gives tokens no probabilities. "
                "Score the base that it was made of."
            )
        if not model.causal and tokenizer.mask_id is None:
            raise ConfigError("this model's tokenizer has no mask token, so a text cannot be scored.")
        self.model = model
        self.tokenizer = tokenizer
        self.starts_with_bos = starts_with_bos
        self.batch_tokens = batch_tokens
        self.report = report

    @property
    def causal(self) -> bool:
        """Whether scores are likelihoods, each token predicted from those before it."""
        return self.model.causal

    def predictions(self, passages: Sequence[Passage]) -> list[Predicted]:
        """Return how the tokens of each passage are predicted.

        Raises DivergenceError for NaN, which would make some answer the best one when compared.
        """
        if self.causal:
            found = causal_predictions(self.model, passages, self.batch_tokens, self.report)
        else:
            mask_id = self.tokenizer.mask_id
            assert mask_id is not None
            found = masked_predictions(
                self.model, passages, mask_id, self.tokenizer.special_ids, self.batch_tokens, self.report
            )
        check_numbers(bool(each.log_probabilities.isnan().any()) for each in found)
        return found

    def texts(self, texts: Sequence[str]) -> list[Score]:
        """Return how likely the model finds each text; equal texts score exactly the same.

        A text longer than the context is read in windows that do not overlap, for a causal model but for one token.
        """
        rows = [self._framed(tokens) for tokens in self._encoded(texts)]
        distinct = {row.tobytes(): row for row in rows}
        scores = dict(zip(distinct, self.documents(list(distinct.values())), strict=True))
        return [
            Score(*scores[row.tobytes()], text_bytes=len(text.encode())) for row, text in zip(rows, texts, strict=True)
        ]

    def documents(self, rows: Sequence[Ints]) -> list[tuple[float, int]]:
        """Return the log-likelihood in nats and the predicted tokens of each row of ids, of any length."""
        windows = [self._windows(row) for row in rows]
        found = iter(self.predictions([passage for each in windows for passage in each]))
        scores = []
        for each in windows:
            parts = [next(found).log_probabilities for _ in each]
            scores.append((sum(float(p.double().sum()) for p in parts), sum(len(p) for p in parts)))
        return scores

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[ContinuationScore]:
        """Return how likely the model finds each continuation behind its context, tokenized by `encode_pairs`.

        What does not fit into the context length is left out at the beginning. Raises DataError for a continuation that
        has no token, or more than fit.
        """
        encoded = encode_pairs(self.tokenizer, pairs)
        passages = [
            self._passage(context, whole, pair) for (whole, context), (_, pair) in zip(encoded, pairs, strict=True)
        ]
        return [
            ContinuationScore(
                float(each.log_probabilities.double().sum()), len(each.predictions), bool(each.predictions.all())
            )
            for each in self.predictions(passages)
        ]

    def _encoded(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, with nothing added."""
        return [document[1:-1] for document in self.tokenizer.encode_documents(texts)]

    def _framed(self, tokens: NDArray[Any]) -> Ints:
        """Return the ids of a text between those that begin and, for a masked model, end a document."""
        end = [] if self.causal else [self.tokenizer.eos_id]
        return np.concatenate([[self.tokenizer.bos_id], tokens, end]).astype(np.int64)

    def _windows(self, row: Ints) -> list[Passage]:
        length = self.model.config.context_length
        if self.causal:  # the last token of a window is the first input of the next
            return [Passage(row[start : start + length + 1], 1) for start in range(0, len(row) - 1, length)]
        return [Passage(row[start : start + length], 0) for start in range(0, len(row), length)]

    def _passage(self, context: int, whole: Ints, continuation: str) -> Passage:
        """Return the passage in which the ids behind the first `context` of `whole` are predicted."""
        new = len(whole) - context
        length = self.model.config.context_length
        check_length(new, length if self.causal else length - 2, continuation)
        if self.causal:
            row = self._framed(whole) if self.starts_with_bos or not context else whole
            row = row[-(length + 1) :]
            return Passage(row, len(row) - new)
        row = self._framed(whole)[-length:]
        return Passage(row, len(row) - 1 - new)


def check_numbers(are_nan: Iterable[bool]) -> None:
    """Raise DivergenceError where a model's log-probabilities or losses are NaN."""
    if any(are_nan):
        raise DivergenceError(
            "the model's probabilities are not numbers (NaN), so nothing can be scored: its weights have diverged. "
            "Take an earlier checkpoint."
        )


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ints, int]]:
    """Return the ids of each (context, continuation), nothing added, and how many of them are the context's.

    The two are tokenized as one text, and spaces at the end of a context move to the continuation, as in lm-eval. Where
    that leaves the continuation no token, because the context's last token includes it, they are tokenized apart.
    """
    moved = [_spaces_moved(context, continuation) for context, continuation in pairs]
    contexts = tokenizer.encode_documents([context for context, _ in moved])
    wholes = tokenizer.encode_documents([context + continuation for context, continuation in moved])
    found = []
    for context, whole, (_, continuation) in zip(contexts, wholes, moved, strict=True):
        if len(whole) <= len(context) and continuation:
            whole = np.array([*context[:-1], *tokenizer.encode_behind(continuation), tokenizer.eos_id])
        found.append((whole[1:-1].astype(np.int64), len(context) - 2))
    return found


def check_examples(examples: ExampleSet, tokenizer: Tokenizer, context_length: int, causal: bool) -> None:
    """Raise DataError, naming file and line, for an example that a model of this context cannot score."""
    sentences, pairs = list[tuple[str, str]](), list[tuple[tuple[str, str], str]]()
    for each in examples.examples:
        if isinstance(each, MinimalPair):
            sentences += [(each.good, each.place), (each.bad, each.place)]
        else:
            pairs += [(pair, each.place) for pair in each.pairs()]
    _check_sentences(sentences, tokenizer)
    encoded = encode_pairs(tokenizer, [pair for pair, _ in pairs])
    for ((_, continuation), place), (tokens, context) in zip(pairs, encoded, strict=True):
        check_length(len(tokens) - context, context_length if causal else context_length - 2, continuation, place)


def check_length(new: int, most: int, continuation: str, place: str = "") -> None:
    """Raise DataError for a continuation that has no token, or more than a model predicts at once."""
    if not 0 < new <= most:
        raise DataError(
            f"{f'{place}: ' if place else ''}the continuation {continuation[:40]!a} has {new} tokens, and between 1 "
            f"and {most} can be scored. Leave the example out, or take a model with a longer context."
        )


def _check_sentences(texts: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> None:
    for (text, place), ids in zip(texts, tokenizer.encode_documents([text for text, _ in texts]), strict=True):
        if len(ids) < 3:  # what begins and ends a document alone
            raise DataError(f"{place}: the sentence {text[:40]!a} has no token to score. Leave the example out.")


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


class Progress:
    """Shows progress on standard error: a bar in a terminal, else a line every 10 seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None
        self._started = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read."""
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(
                    total=total,
                    desc=printable(self.name, one_line=True),
                    unit="token",
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
