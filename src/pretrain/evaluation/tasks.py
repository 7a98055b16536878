"""Tasks with correct answers: minimal pairs, multiple choice, cloze; and pairs that show a bias."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.evaluation.bias import score_stereotypes
from pretrain.evaluation.bound import BoundEstimate, undecided, undecided_pairs, variance_of_mean
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import Cloze, ExampleSet, MinimalPair, MultipleChoice
from pretrain.evaluation.likelihood import BATCH_TOKENS
from pretrain.evaluation.scorer import ContinuationScore, Scorer
from pretrain.models.interface import LanguageModule

PHENOMENON = "phenomenon/"  # in the names of metrics
LOSS_ERROR = "loss_standard_error"


def score_tasks(
    model: LanguageModule,
    tokenizer: Tokenizer,
    tasks: Sequence[ExampleSet],
    batch_tokens: int = BATCH_TOKENS,
    bound: BoundEstimate | None = None,
) -> dict[str, float]:
    """Return each task's metrics as `eval/<file name>/<metric>`, without counts, errors, paradigms and kinds of bias.

    The model is scored in evaluation mode and returned to its mode. Raises ConfigError for a task that it cannot do.
    """
    was_training = model.training
    model.eval()
    try:
        scorer = Scorer(model, tokenizer, batch_tokens=batch_tokens, bound=bound)
        metrics = {task.name: score_examples(scorer, task) for task in tasks}
    finally:
        model.train(was_training)
    return {
        f"eval/{task}/{name}": value
        for task, values in metrics.items()
        for name, value in values.items()
        if name.startswith(PHENOMENON) or ("/" not in name and name not in _NOT_CURVES)
    }


def score_examples(scorer: Scorer, examples: ExampleSet) -> dict[str, float]:
    """Return the metrics of a set of examples, then those of its parts as `<part>/<metric>`.

    Raises ConfigError for a task that the model cannot do.
    """
    return _SCORED[examples.task](scorer, cast(Any, examples.examples))


def _minimal_pairs(scorer: Scorer, pairs: Sequence[MinimalPair]) -> dict[str, float]:
    """Return the share of pairs whose good sentence is more likely: the mean over paradigms, of all and by phenomenon.

    The share of each paradigm follows.

    A tie is not correct; sentences with the same ids tie exactly. The bounds of a diffusion model's two sentences are
    of the same masks, and `undecided` is the share of all pairs that other masks could reverse.
    Source: Warstadt et al. 2020, https://arxiv.org/abs/1912.00582, section 4.1.
    """
    scores = scorer.texts([text for pair in pairs for text in (pair.good, pair.bad)], group_size=2)
    good, bad = (np.array([score.log_likelihood for score in scores[start::2]]) for start in (0, 1))
    paradigms = defaultdict[tuple[str, str], list[bool]](list)
    for pair, correct in zip(pairs, (good > bad).tolist(), strict=True):
        paradigms[pair.paradigm, pair.phenomenon].append(correct)
    phenomena, shares = defaultdict[str, list[float]](list), dict[str, float]()
    for (paradigm, phenomenon), answers in sorted(paradigms.items()):
        shares[paradigm] = float(np.mean(answers))
        phenomena[phenomenon].append(shares[paradigm])
    ties = int((good == bad).sum())
    metrics = {"accuracy": float(np.mean(list(shares.values()))), **undecided_pairs(scores)}
    metrics |= {"pairs": len(pairs), "ties": ties}
    metrics |= {f"{PHENOMENON}{name}": float(np.mean(of_its)) for name, of_its in sorted(phenomena.items()) if name}
    return metrics | {f"{name}/accuracy": share for name, share in shares.items() if name}


def _multiple_choice(scorer: Scorer, examples: Sequence[MultipleChoice]) -> dict[str, float]:
    """Return the share of queries whose correct choice is the most likely: in total, and per byte of the choice.

    They are lm-eval's acc and, for choices in ASCII, acc_norm. A masked model reads the query and the rest of the
    choice while each token of the choice is masked in turn. Also returned are the bits per byte of the correct choices,
    and of a diffusion model the share of queries whose most likely choice, in total, other masks could change.
    """
    sizes = [len(example.continuations) for example in examples]
    scores = iter(scorer.continuations([pair for example in examples for pair in example.pairs()], sizes))
    correct = correct_per_byte = 0
    gold, compared = list[ContinuationScore](), []
    for example in examples:
        choices = [next(scores) for _ in example.continuations]
        gold.append(choices[example.gold])
        likelihoods = np.array([choice.log_likelihood for choice in choices])
        best = int(likelihoods.argmax())
        compared.append([choice.draws for choice in (choices[best], *choices[:best], *choices[best + 1 :])])
        correct += best == example.gold
        correct_per_byte += int((likelihoods / np.array(example.choice_bytes)).argmax()) == example.gold
    count = len(examples)
    metrics = {"accuracy": correct / count, "accuracy_per_byte": correct_per_byte / count}
    return metrics | undecided(compared) | _bits_per_byte(scorer, gold) | {"questions": count}


def _cloze(scorer: Scorer, examples: Sequence[Cloze]) -> dict[str, float]:
    """Return the share of continuations that greedy decoding generates, their mean loss in nats, and perplexity.

    Loss and perplexity are means over continuations, each counting once however many tokens it has, as in lm-eval.
    Those of a diffusion model are bounds, given the length of the continuation, and named so; the standard error of
    its loss is of the masks that were drawn, not of the examples.
    """
    if not scorer.causal and scorer.bound is None:
        raise ConfigError(
            "task=cloze needs a causal model, and this one was trained to fill masks. Score it with "
            "task=minimal_pairs or task=multiple_choice."
        )
    scores = scorer.continuations([pair for example in examples for pair in example.pairs()], needs_greedy=True)
    loss, suffix = -float(np.mean([score.log_likelihood for score in scores])), "_bound" * (scorer.bound is not None)
    error = math.sqrt(sum(variance_of_mean(score.draws) for score in scores if score.draws is not None)) / len(scores)
    return {
        "accuracy": float(np.mean([score.greedy for score in scores])),
        f"loss{suffix}": loss,
        **({} if scorer.bound is None else {LOSS_ERROR: error}),
        f"perplexity{suffix}": math.exp(min(loss, 700.0)),
        **_bits_per_byte(scorer, scores),
        "passages": len(examples),
    }


def _bits_per_byte(scorer: Scorer, answers: Sequence[ContinuationScore]) -> dict[str, float]:
    """Return the bits of all correct answers over their bytes, by a name that says how the model scores them.

    It falls smoothly where the accuracy of a small model stays at chance (Schaeffer et al. 2023,
    https://arxiv.org/abs/2304.15004). The delimiter before an answer is predicted and counted with it.
    """
    name = "bits_per_byte" if scorer.causal else "pseudo_bits_per_byte"
    if scorer.bound is not None:
        name = "bits_per_byte_bound"
    nats = -sum(answer.log_likelihood for answer in answers)
    return {name: nats / (math.log(2) * sum(answer.text_bytes for answer in answers))}


_NOT_CURVES = ("pairs", "ties", "questions", "passages", "undecided", LOSS_ERROR)
_SCORED: dict[Task, Callable[[Scorer, Any], dict[str, float]]] = {
    Task.minimal_pairs: _minimal_pairs,
    Task.multiple_choice: _multiple_choice,
    Task.cloze: _cloze,
    Task.bias: score_stereotypes,
}
