"""Continuations behind their contexts as tokens; examples that a model cannot score, refused by file and line."""

from collections.abc import Sequence

import numpy as np

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import DataError
from pretrain.evaluation.examples import ExampleSet, MinimalPair
from pretrain.evaluation.likelihood import Ints


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ints, int]]:
    """Return the ids of each (context, continuation), nothing added, and how many of them are the context's.

    The two are tokenized as one text, and spaces at the end of a context count as the continuation's, as in lm-eval.
    Where that leaves the continuation no token, as a last token of the context spells it too, both are tokenized apart.
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
        check_room(len(tokens) - context, context_length if causal else context_length - 2, continuation, place)


def check_room(new: int, most: int, continuation: str, place: str = "") -> None:
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
