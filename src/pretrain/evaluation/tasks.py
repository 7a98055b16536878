"""Tasks with correct answers: minimal pairs, multiple choice, cloze."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import Cloze, ExampleSet, MinimalPair, MultipleChoice
from pretrain.evaluation.likelihood import BATCH_TOKENS
from pretrain.evaluation.scorer import Scorer
from pretrain.models.transformer import Transformer


def score_tasks(
    model: Transformer, tokenizer: Tokenizer, tasks: Sequence[ExampleSet], batch_tokens: int = BATCH_TOKENS
) -> dict[str, float]:
    """Return the figures of every task as `eval/<name of its file>/<figure>`, without those of single paradigms.

    The model is read as it stands, in evaluation mode, and left in the mode that it was in. Raises ConfigError where
    the model cannot do a task.
    """
    was_training = model.training
    model.eval()
    try:
        scorer = Scorer(model, tokenizer, batch_tokens=batch_tokens)
        figures = {task.name: score_examples(scorer, task) for task in tasks}
    finally:
        model.train(was_training)
    return {
        f"eval/{task}/{name}": value
        for task, found in figures.items()
        for name, value in found.items()
        if "/" not in name and name not in _COUNTS
    }


def score_examples(scorer: Scorer, examples: ExampleSet) -> dict[str, float]:
    """Return what a model scores on examples: the figures of all, then those of parts as `<part>/<figure>`.

    Raises ConfigError where the model cannot do the task.
    """
    return _SCORED[examples.task](scorer, cast(Any, examples.examples))


def _minimal_pairs(scorer: Scorer, pairs: Sequence[MinimalPair]) -> dict[str, float]:
    """Return the share of pairs whose good sentence is likelier, by paradigm and as the mean over paradigms.

    A tie is no right answer; sentences that are the same to the tokenizer tie exactly.
    Source: Warstadt et al. 2020, https://arxiv.org/abs/1912.00582, section 4.1.
    """
    scores = scorer.texts([text for pair in pairs for text in (pair.good, pair.bad)])
    good, bad = (np.array([score.log_likelihood for score in scores[start::2]]) for start in (0, 1))
    paradigms = defaultdict[str, list[bool]](list)
    for pair, correct in zip(pairs, (good > bad).tolist(), strict=True):
        paradigms[pair.paradigm].append(correct)
    shares = {name: float(np.mean(correct)) for name, correct in sorted(paradigms.items())}
    ties = int((good == bad).sum())
    figures = {"accuracy": float(np.mean(list(shares.values()))), "pairs": len(pairs), "ties": ties}
    return figures | {f"{name}/accuracy": share for name, share in shares.items() if name}


def _multiple_choice(scorer: Scorer, examples: Sequence[MultipleChoice]) -> dict[str, float]:
    """Return the share of queries whose right choice is the likeliest, as it is and for each byte of it.

    They are what lm-eval calls acc and, for choices in ASCII, acc_norm. Of a masked model the tokens of a choice are
    hidden one by one, the query and the rest of the choice being seen.
    """
    found = iter(scorer.continuations([(each.query, text) for each in examples for text in each.continuations]))
    correct = correct_per_byte = 0
    for each in examples:
        scores = np.array([next(found).log_likelihood for _ in each.continuations])
        correct += int(scores.argmax()) == each.gold
        correct_per_byte += int((scores / np.array(each.choice_bytes)).argmax()) == each.gold
    count = len(examples)
    return {"accuracy": correct / count, "accuracy_per_byte": correct_per_byte / count, "questions": count}


def _cloze(scorer: Scorer, examples: Sequence[Cloze]) -> dict[str, float]:
    """Return the share of continuations that the model would say by itself, their mean loss in nats, and perplexity.

    Loss and perplexity are over continuations, each counting once however many tokens it has, as in lm-eval.
    """
    if not scorer.causal:
        raise ConfigError(
            "task=cloze continues a passage, and this model was trained to fill masks. Score it with "
            "task=minimal_pairs or task=multiple_choice, or take a causal model."
        )
    found = scorer.continuations([(each.context, each.continuation) for each in examples])
    loss = -float(np.mean([score.log_likelihood for score in found]))
    return {
        "accuracy": float(np.mean([score.greedy for score in found])),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "passages": len(examples),
    }


_COUNTS = ("pairs", "ties", "questions", "passages")
_SCORED: dict[Task, Callable[[Scorer, Any], dict[str, float]]] = {
    Task.minimal_pairs: _minimal_pairs,
    Task.multiple_choice: _multiple_choice,
    Task.cloze: _cloze,
}
