"""Hugging Face folders for tests, written by us, or by transformers with random weights."""

import json
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.interop.family import Family
from pretrain.interop.write import write_settings, write_tokenizer, write_weights
from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
BYTES = byte_tokenizer()
MARKER = "it ran"


def values_of(model: Transformer) -> Callable[[str, torch.Size], Tensor]:
    """Return the value of each parameter by its name."""
    return lambda name, size: model.get_parameter(name).detach()


def write_ours(folder: Path, family: Family, model: Transformer, max_shard_bytes: int = 10**9) -> Path:
    """Write our model as a Hugging Face folder with the tokenizer of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config: TransformerConfig = model.config
    write_weights(folder, family, model, values_of(model), max_shard_bytes)
    write_settings(folder, family, model, BYTES)
    write_tokenizer(folder, BYTES, ([BYTES.bos_id], [] if family.causal else [BYTES.eos_id]), config)
    return folder


def lively_weights(model: nn.Module, seed: int = 0) -> Any:
    """Give every parameter of a model of transformers, biases and norms too, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
            start = float(parameter[0]) if is_norm else 0.0  # 1, of Gemma's 0
            parameter.normal_(std=0.2, generator=generator)
            parameter += start
    return model.eval()


def write_theirs(folder: Path, model: Any, max_shard_size: str = "1GB") -> Path:
    """Have transformers save a model, and put the tokenizer of bytes beside it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    BYTES.save(folder)
    return folder


@contextmanager
def quiet_transformers() -> Any:
    """Have transformers' warnings pass that are not about our folder."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


class Bomb:
    """Something that leaves a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, MARKER)


def without_mask(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of bytes without its mask token, whose id is the last."""
    state = json.loads(tokenizer._json)
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] != "[MASK]"]
    state["model"]["vocab"].pop("[MASK]", None)
    roles = {role: token for role, token in tokenizer.roles.items() if role != "mask_token"}
    return Tokenizer(type(tokenizer._inner).from_str(json.dumps(state)), roles)
