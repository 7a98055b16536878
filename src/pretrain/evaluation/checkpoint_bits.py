"""Bits per byte of many texts under a checkpoint, with equal numbers in any process of one machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xxhash

from pretrain.errors import ConfigError
from pretrain.language_model import LanguageModel

DIGITS = 6  # after the point


@cache
def _model(path: str, device: str) -> LanguageModel:
    model = LanguageModel.load(path, device)
    model.check_predicts_tokens()
    if not model.causal:
        raise ConfigError(
            f"quality.checkpoint={path} is no causal model, which reads a text once. Name a run of objective=causal."
        )
    return model


@cache
def checkpoint_record(path: str, device: str) -> dict[str, Any]:
    """Return name, step, tokenizer and hash of the weights of a checkpoint.

    Raises CheckpointError if there is none or it is damaged; ConfigError for a device that is not there or for a model
    that is not causal.
    """
    model, digest = _model(path, device), xxhash.xxh3_128()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {
        "checkpoint": Path(path).name, "step": model.trained.get("step"), "tokenizer": model.tokenizer.fingerprint,
        "weights_xxh3_128": digest.hexdigest(),
    }  # fmt: skip


def bits_per_byte(path: str, device: str) -> Callable[[list[str]], list[float]]:
    """Return what gives the bits per byte of texts, NaN for one without a token to predict."""

    def score(texts: list[str]) -> list[float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums of another number of threads differ, and a task is one of many side by side
        try:
            return [round(each.bits_per_byte, DIGITS) for each in _model(path, device).score(texts)]
        finally:
            torch.set_num_threads(threads)

    return score
