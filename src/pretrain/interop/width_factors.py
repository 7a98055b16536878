"""Export of a muP model: its factors go into the weights, and the standard parametrization computes the same."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pretrain.interop.family import Family
from pretrain.interop.load import LoadParameter, ModelFolder
from pretrain.models.choices import Head, NormPosition, Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.interface import LanguageModule


def standard_shape(shape: TransformerConfig) -> TransformerConfig:
    """Return the shape in the standard parametrization, in which it computes the same from other weights."""
    return replace(shape, parametrization=Parametrization.standard, base_width=None, base_head_dim=None)


def in_standard(source: ModelFolder, family: Family) -> ModelFolder:
    """Return a model in the standard parametrization, with the same outputs in this family; unchanged if it is in it.

    The factor of the attention scores goes into the queries, that of the logits into the last norm before them, and
    that of `scale_embeddings` into the token embeddings; a model that is exported without a head keeps its hidden
    states.
    """
    shape = source.shape.transformer
    if shape is None or shape.parametrization is Parametrization.standard:
        return source
    plain, is_classifier = standard_shape(shape), source.objective.n_labels is not None
    scores, logits = shape.score_scale / plain.score_scale, 1.0 / shape.width_multiplier
    of_tokens = shape.width_multiplier**-0.5 if shape.scale_embeddings else 1.0
    if shape.tie_embeddings and not is_classifier:
        logits /= of_tokens  # the head multiplies by the token embeddings too
    of_scores = "attention.query_norm." if shape.qk_norm else "attention.query."
    of_logits = "head.weight" if is_classifier else _last_norm(shape)
    has_head = is_classifier or family.class_of(plain) != family.bare

    def factor(name: str) -> float:
        if of_scores in name:
            return scores
        if name == "embeddings.tokens.weight":
            return of_tokens
        return logits if has_head and name.startswith(of_logits) else 1.0

    def values(model: LanguageModule) -> LoadParameter:
        return _multiplied(source.values(model), factor, shape.norm_unit_offset)

    return replace(source, shape=plain, values=values)


def _last_norm(shape: TransformerConfig) -> str:
    """Return the beginning of the names of the norm that the logits are computed from."""
    if shape.head is Head.mlm:
        return "head.norm."
    if shape.norm_position is NormPosition.post:
        return f"blocks.{shape.n_layers - 1}.feed_forward_norm."
    return "final_norm."


def _multiplied(values: LoadParameter, factor: Callable[[str], float], unit_offset: bool) -> LoadParameter:
    """Return parameters times their factors; with `unit_offset` norms multiply by 1 plus their weight."""

    def value(name: str, size: torch.Size) -> Tensor:
        weight, times = values(name, size), factor(name)
        if times == 1.0:
            return weight
        offset = float(unit_offset and "norm" in name and name.endswith("weight"))
        return ((weight.float() + offset) * times - offset).to(weight.dtype)

    return value
