"""Embeddings of texts: batches of like lengths, the hidden states of each pooled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DivergenceError, nearest
from pretrain.models.interface import LanguageModule, hidden_states
from pretrain.models.pooling import pool
from pretrain.objectives.fine_tuning_config import Pooling

BATCH_TOKENS = 8192  # of a forward pass, padding included


def chosen_pooling(pooling: Pooling | str, reads_both_ways: bool) -> Pooling:
    """Return the pooling of this name, auto resolved; raises ConfigError for one that the attention rules out."""
    name = pooling.value if isinstance(pooling, Pooling) else pooling
    names = [known.value for known in Pooling]
    if name not in names:
        raise ConfigError(f"pooling={name!a} is none of {', '.join(names)}. {nearest(str(name), names)}")
    if name == "auto":
        return Pooling.mean if reads_both_ways else Pooling.last
    if name == "first" and not reads_both_ways:
        raise ConfigError(
            "pooling=first takes a position that attends to nothing of the text in a causal model. Try pooling=last."
        )
    return Pooling(name)


@dataclass(frozen=True)
class Framing:
    """The ids before and after a text that is embedded."""

    tokenizer: Tokenizer
    before: Sequence[int]
    after: Sequence[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, is_published: bool) -> "Framing":
        """Return BOS and EOS, as in training, or what the tokenizer of a published model adds in other programs."""
        return cls(tokenizer, *(tokenizer.added_ids if is_published else ([tokenizer.bos_id], [tokenizer.eos_id])))

    def whole(self, texts: Sequence[str], context_length: int) -> list[np.ndarray]:
        """Return the ids of each text; raises ConfigError for one that is empty or longer than the context."""
        encoded, most = self._encoded(texts), context_length - len(self.before) - len(self.after)
        for ids in encoded:
            if not 0 < len(ids) <= most:
                raise ConfigError(
                    f"a text of {len(ids)} tokens cannot be embedded: between 1 and {most} fit. Try a shorter text, or "
                    "embed its parts."
                )
        return [self._framed(ids) for ids in encoded]

    def beginnings(self, texts: Sequence[str], context_length: int) -> list[np.ndarray]:
        """Return the ids of each text, cut so that they fit the context."""
        most = context_length - len(self.before) - len(self.after)
        return [self._framed(ids[:most]) for ids in self._encoded(texts)]

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [ids[1:-1] for ids in self.tokenizer.encode_documents(texts)]

    def _framed(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([np.array(self.before, np.uint32), ids, np.array(self.after, np.uint32)])


@torch.inference_mode()
def text_vectors(
    model: LanguageModule,
    tokenizer: Tokenizer,
    documents: Sequence[np.ndarray],
    pooling: Pooling,
    reads_both_ways: bool,
) -> Tensor:
    """Return a vector for each row of ids, float32 (documents, d_model) on the CPU.

    Raises DivergenceError where a vector is not finite.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))  # by length: little padding
    found: list[tuple[list[int], Tensor]] = []
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(documents[order[end]]) <= BATCH_TOKENS:
            end += 1
        chosen = order[start:end]
        tokens, texts = _padded([documents[number] for number in chosen], tokenizer.padding_id)
        tokens, texts = tokens.to(device), texts.to(device)
        bidirectional = (
            torch.zeros(len(chosen), dtype=torch.bool, device=device) if model.causal and reads_both_ways else None
        )
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        hidden = hidden_states(model, tokens, positions, texts, bidirectional)
        found.append((chosen, pool(hidden, texts, 1, pooling.value)[:, 0].cpu()))
        start = end
    vectors = torch.empty(len(documents), found[0][1].shape[1])
    for chosen, values in found:
        vectors[chosen] = values
    if not bool(vectors.isfinite().all()):
        raise DivergenceError(
            "an embedding is not finite: the model's weights have diverged. Take an earlier checkpoint."
        )
    return vectors


def _padded(documents: Sequence[np.ndarray], padding_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (N, T), and 0 where there is one and -1 in padding, int32 (N, T)."""
    lengths = np.array([len(document) for document in documents])
    filled = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(filled.shape, padding_id, np.int64)
    tokens[filled] = np.concatenate(documents)
    return torch.from_numpy(tokens), torch.from_numpy(filled.astype(np.int32) - 1)
