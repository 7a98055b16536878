"""Label probabilities of texts under a classifier, and numbers under a regressor."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import Rows
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.truncation import truncated
from pretrain.errors import ConfigError
from pretrain.models.interface import LanguageModule, hidden_states
from pretrain.objectives.batch import Batch
from pretrain.objectives.classify import Classify, Regress
from pretrain.objectives.fine_tuning_config import ClassifyConfig, RegressConfig
from pretrain.program import command

BATCH_SIZE = 32  # texts
TextOrPair = str | tuple[str, str]


@torch.inference_mode()
def label_probabilities(
    model: LanguageModule, config: ClassifyConfig, tokenizer: Tokenizer, texts: Sequence[TextOrPair]
) -> Tensor:
    """Return the probability of each label for each text, float32 (texts, labels) on the CPU.

    A text is read as in training: with BOS and EOS, cut at the context length; the second text of a pair follows the
    EOS of the first, with token types of its own where the model has them.
    """
    objective = config.build(tokenizer, seed=0)
    assert isinstance(objective, Classify)
    probabilities = torch.zeros(len(texts), len(config.labels))
    for chosen, hidden, batch in _read(model, objective, tokenizer, texts):
        probabilities[chosen] = objective.log_probabilities(hidden, model.head, batch)[:, 0].exp().cpu()
    return probabilities


@torch.inference_mode()
def predicted_numbers(
    model: LanguageModule, config: RegressConfig, tokenizer: Tokenizer, texts: Sequence[TextOrPair]
) -> Tensor:
    """Return the number predicted for each text, float32 (texts,) on the CPU; texts as in `label_probabilities`."""
    objective = config.build(tokenizer, seed=0)
    assert isinstance(objective, Regress)
    numbers = torch.zeros(len(texts))
    for chosen, hidden, batch in _read(model, objective, tokenizer, texts):
        numbers[chosen] = objective.predictions(hidden, model.head, batch)[:, 0].cpu()
    return numbers


def cannot(method: Literal["classify", "regress"]) -> ConfigError:
    """Return the error of a model that was not trained for `method`."""
    use, target = {"classify": ("classify texts", "label"), "regress": ("predict a number of a text", "number")}[method]
    return ConfigError(
        f"this model was not trained to {use}. Fine-tune it: "
        f"{command('train')} experiment={method} init_from=<this model> data.path=<lines of text, tab, {target}>."
    )


def refuse_tokens(head: ClassifyConfig | RegressConfig | None) -> None:
    """Raise ConfigError for a model with a head on texts, which predicts no tokens."""
    if head is not None:
        trained = f"classify texts ({', '.join(head.labels[:5])})" if isinstance(head, ClassifyConfig) else (
            "predict a number of a text"
        )  # fmt: skip
        method = "classify" if isinstance(head, ClassifyConfig) else "regress"
        raise ConfigError(
            f"this model was trained to {trained} and predicts no tokens. "
            f'Use {method}("a text"), or the base model of the fine-tuning.'
        )


def refuse_vectors(head: ClassifyConfig | RegressConfig | None) -> None:
    """Raise ConfigError for a model with a head on texts, which was not trained to embed them."""
    if head is not None:
        trained = "classify texts" if isinstance(head, ClassifyConfig) else "predict a number of a text"
        raise ConfigError(f"this model was trained to {trained}, not to embed them. Use its base model.")


def _read(
    model: LanguageModule, objective: Classify, tokenizer: Tokenizer, texts: Sequence[TextOrPair]
) -> Iterator[tuple[list[int], Tensor, Batch]]:
    """Yield batches of texts of like length: their numbers, hidden states (B, T, d) and batch."""
    device = next(model.parameters()).device
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    documents = [truncated(ids, model.config.context_length) for ids in tokenizer.encode_text_pairs(pairs)]
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))  # by length: little padding
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        rows = _padded([documents[number] for number in chosen], tokenizer.padding_id)
        batch = objective.collate(rows, torch.arange(len(chosen))).to(device)
        yield chosen, hidden_states(
            model, batch.tokens, batch.positions, batch.documents, token_types=batch.token_types
        ), batch  # fmt: skip


def _padded(documents: Sequence[np.ndarray], pad_id: int) -> Rows:
    """Return rows of one document each, without targets; labels and numbers are unknown: 0 everywhere."""
    lengths = np.array([len(document) for document in documents])
    positions = np.broadcast_to(np.arange(lengths.max()), (len(documents), lengths.max()))
    filled = positions < lengths[:, None]
    tokens = np.full(filled.shape, pad_id, np.int64)
    tokens[filled] = np.concatenate(documents)
    zeros = np.zeros(filled.shape, np.int64)
    documents_of = filled.astype(np.int32) - 1
    return Rows(tokens, zeros, np.where(filled, positions, 0), documents_of, zeros, zeros.astype(np.float32))
