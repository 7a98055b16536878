"""Write a Hugging Face folder: config.json, safetensors (sharded above a size), tokenizer, generation settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.safetensors_file import write_each
from pretrain.data.tokenizers.load import MAX_JSON_BYTES
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.files.untrusted_files import read_json
from pretrain.interop.family import Family
from pretrain.interop.folder import CONFIG, INDEX, WEIGHTS
from pretrain.interop.names import Stored
from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Transformer

AddedIds = tuple[list[int], list[int]]  # ids before and after every text
_BYTES = 4  # of a float32


def write_settings(
    folder: Path, family: Family, model: Transformer, tokenizer: Tokenizer, generation: Mapping[str, Any] | None = None
) -> None:
    """Write config.json and, for a causal model, generation_config.json, with the keys of `generation` that are set."""
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id
    }  # fmt: skip
    shape = family.write(model.config)
    if shape.get("pad_token_id", tokenizer.pad_id) != tokenizer.pad_id:
        pad = tokenizer.pad_id
        raise ConfigError(
            f"model.position_offset={model.config.position_offset} and the tokenizer's padding token {pad} do not "
            f"fit: {family.architecture} counts positions from the padding token's id plus 1. Train with "
            + ("a tokenizer that has a padding token." if pad is None else f"model.position_offset={pad + 1}.")
        )
    record = shape | ids | {"vocab_size": model.vocab_size, "dtype": "float32"}
    if not family.causal:
        record |= {"cls_token_id": tokenizer.bos_id, "sep_token_id": tokenizer.eos_id}
        record |= {} if tokenizer.mask_id is None else {"mask_token_id": tokenizer.mask_id}
    _write_json(folder / CONFIG, record)
    if family.auto_class(model.config) == "AutoModelForCausalLM":
        more = {key: value for key, value in (generation or {}).items() if value is not None}
        _write_json(folder / "generation_config.json", ids | {"pad_token_id": tokenizer.padding_id} | more)


def write_weights(
    folder: Path,
    family: Family,
    model: Transformer,
    values: Callable[[str, torch.Size], Tensor],
    max_shard_bytes: int,
) -> None:
    """Write the weights as float32, tensor by tensor; `model` may be on the meta device."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    shards = _shards(family.names.stored(shapes, model.config.n_heads), max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    by_name = {stored.name: stored for shard in shards for stored in shard}

    def value(theirs: str) -> Tensor:
        return by_name[theirs].join(lambda ours: values(ours, shapes[ours]).float())

    for name, shard in zip(names, shards, strict=True):
        formats = {stored.name: (torch.float32, stored.shape) for stored in shard}
        write_each(folder / name, formats, value, metadata={"format": "pt"})  # required by transformers
    if len(shards) > 1:
        weight_map = {stored.name: name for name, shard in zip(names, shards, strict=True) for stored in shard}
        total = sum(_size(stored) for shard in shards for stored in shard)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: Sequence[Stored], max_bytes: int) -> list[list[Stored]]:
    """Return the tensors in order, in lists of at most `max_bytes`; a larger tensor is alone."""
    shards: list[list[Stored]] = [[]]
    left = max_bytes
    for stored in tensors:
        if shards[-1] and _size(stored) > left:
            shards.append([])
            left = max_bytes
        shards[-1].append(stored)
        left -= _size(stored)
    return shards


def _size(stored: Stored) -> int:
    return stored.shape.numel() * _BYTES


def write_tokenizer(folder: Path, tokenizer: Tokenizer, added_ids: AddedIds, config: TransformerConfig) -> None:
    """Write the tokenizer's files, so that transformers adds `added_ids` to every text.

    For a model with several token types it also numbers the texts of a pair, 0 and 1, as BERT's does.
    """
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path, MAX_JSON_BYTES) | {"model_max_length": config.context_length}
    has_types = config.token_types > 1
    if has_types:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    _write_json(path, settings)
    if added_ids != tokenizer.added_ids:
        path = folder / "tokenizer.json"
        state = read_json(path, MAX_JSON_BYTES)
        text = json.dumps(
            state | {"post_processor": _template(tokenizer, added_ids, has_types)},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        path.write_text(text + "\n", encoding="utf-8")


def _template(tokenizer: Tokenizer, added_ids: AddedIds, has_types: bool) -> dict[str, Any]:
    """Return the post-processor of tokenizer.json that adds these ids; `has_types`: text B of a pair has type 1."""
    before, after = ([tokenizer.token(number) for number in ids] for ids in added_ids)

    def template(sequence: str, first: bool) -> list[dict[str, Any]]:
        kind = 0 if first else int(has_types)
        parts = [{"SpecialToken": {"id": token, "type_id": kind}} for token in before if first]
        parts.append({"Sequence": {"id": sequence, "type_id": kind}})
        return parts + [{"SpecialToken": {"id": token, "type_id": kind}} for token in after]

    numbers = dict(zip([*before, *after], [*added_ids[0], *added_ids[1]], strict=True))
    return {
        "type": "TemplateProcessing",
        "single": template("A", first=True),
        "pair": template("A", first=True) + template("B", first=False),
        "special_tokens": {t: {"id": t, "ids": [number], "tokens": [t]} for t, number in numbers.items()},
    }


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
