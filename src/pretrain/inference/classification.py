"""Label probabilities of texts under a classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import Rows
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.models.interface import LanguageModule, hidden_states
from pretrain.objectives.classify import Classify
from pretrain.objectives.fine_tuning_config import ClassifyConfig

BATCH_SIZE = 32  # texts
TextOrPair = str | tuple[str, str]


@torch.inference_mode()
def label_probabilities(
    model: LanguageModule, config: ClassifyConfig, tokenizer: Tokenizer, texts: Sequence[TextOrPair]
) -> Tensor:
    """Return the probability of each label for each text, float32 (texts, labels) on the CPU.

    A text is read as in training: with BOS and EOS, cut at the context length; the second text of a pair follows the
    EOS of the first.
    """
    objective = config.build(tokenizer, seed=0)
    assert isinstance(objective, Classify)
    device = next(model.parameters()).device
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    documents = [ids[: model.config.context_length] for ids in tokenizer.encode_text_pairs(pairs)]
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))  # by length: little padding
    probabilities = torch.zeros(len(documents), len(config.labels))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        rows = _padded([documents[number] for number in chosen], tokenizer.padding_id)
        batch = objective.collate(rows, torch.arange(len(chosen))).to(device)
        hidden = hidden_states(model, batch.tokens, batch.positions, batch.documents)
        probabilities[chosen] = objective.log_probabilities(hidden, model.head, batch)[:, 0].exp().cpu()
    return probabilities


def _padded(documents: Sequence[np.ndarray], pad_id: int) -> Rows:
    """Return rows of one document each, without targets; labels are unknown: 0 everywhere."""
    lengths = np.array([len(document) for document in documents])
    positions = np.broadcast_to(np.arange(lengths.max()), (len(documents), lengths.max()))
    filled = positions < lengths[:, None]
    tokens = np.full(filled.shape, pad_id, np.int64)
    tokens[filled] = np.concatenate(documents)
    zeros = np.zeros(filled.shape, np.int64)
    return Rows(tokens, zeros, np.where(filled, positions, 0), filled.astype(np.int32) - 1, zeros)
