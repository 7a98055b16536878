"""How much of documents a model repeats word for word once it has read their beginning."""

from collections.abc import Sequence

import numpy as np

from pretrain.data.token_store.store import Store
from pretrain.errors import ConfigError
from pretrain.evaluation.examples import spaced
from pretrain.evaluation.likelihood import Ints, Passage
from pretrain.evaluation.scorer import Scorer


def verbatim_figures(scorer: Scorer, documents: Sequence[Ints], new_tokens: int) -> dict[str, float]:
    """Return the share of documents whose last `new_tokens` the model repeats, and how many it repeats at first.

    Each document is cut to its beginning: what is prompted and, behind it, what is compared. Taking the likeliest token
    each time, a model goes on word for word exactly as long as each next token of the document is the likeliest one
    behind those before it, so one reading tells all. Source: Carlini et al. 2022, https://arxiv.org/abs/2202.07646.
    """
    if not scorer.causal:
        raise ConfigError(
            "task=memorisation continues documents, and this model was trained to fill masks. "
            "Take a causal model, or score this one with task=pseudo_perplexity."
        )
    found = scorer.predictions([Passage(tokens, len(tokens) - new_tokens) for tokens in documents])
    repeated = np.array([int(each.predictions.long().cumprod(0).sum()) for each in found])
    return {
        "exact_match": float((repeated == new_tokens).mean()),
        "verbatim_tokens": float(repeated.mean()),
        "documents": len(documents),
    }


def beginnings(stores: Sequence[Store], tokens: int, count: int) -> list[Ints]:
    """Return the first `tokens` ids of documents that have more, at most `count` of them, evenly spaced."""
    long_enough = [
        (store, int(start))
        for store in stores
        for start in store.document_starts()[store.document_lengths() > tokens]  # the last id ends the document
    ]
    return [store.read(np.array([start]), np.array([tokens])) for store, start in spaced(long_enough, count)]
