"""Adapters as a folder of the PEFT library: adapter_config.json and adapter_model.safetensors, both of them data.

Where several of our matrices are one of theirs, as GPT-2's query, key and value, the adapters are one as well: their
`a` stacked, their `b` on the diagonal of a matrix of zeros, of the sum of the ranks.
Source of the names: https://github.com/huggingface/peft, src/peft/tuners/lora.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.safetensors_file import TensorFiles, write_tensors
from pretrain.errors import CheckpointError, ConfigError, printable
from pretrain.interop.config_json import ConfigJson, read_config_json
from pretrain.interop.family import Family
from pretrain.interop.names import Stored
from pretrain.models.lora import A, B, adapted, is_adapter
from pretrain.models.lora_config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_PLAIN_NAME = re.compile(r"\^?[\w.-]+")  # of a module; PEFT takes it for a regular expression
_ONLY_NULL = (
    "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip
_INITS = (True, False, None, "gaussian")  # others change the weights of the base too

Sizes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class _Matrix:
    """One of their matrices, and those of our matrices in it that have an adapter."""

    stored: Stored
    modules: list[str]  # ours with an adapter

    @property
    def module(self) -> str:
        """Their name of the module."""
        return self.stored.name.removesuffix(".weight")

    def rows(self, module: str) -> slice:
        """Return the rows of their output that are those of one of our modules."""
        first = 0
        for name, shape in self.stored.parts.items():
            if name == f"{module}.weight":
                return slice(first, first + shape[0])
            first += shape[0]
        raise KeyError(module)

    @property
    def outputs(self) -> int:
        return sum(shape[0] for shape in self.stored.parts.values())


def _matrices(family: Family, sizes: Sizes) -> list[_Matrix]:
    """Return their matrices that hold a matrix of ours with an adapter; `sizes` are of all parameters."""
    plain = {name: size for name, size in sizes.items() if not is_adapter(name)}
    ours = set(adapted(sizes.keys()))
    parts = [
        (
            stored,
            [module for name in stored.parts if (module := name.removesuffix(".weight")) in ours and name != module],
        )
        for stored in family.names.stored(plain)
    ]
    matrices = [_Matrix(stored, modules) for stored, modules in parts if modules]
    for matrix in matrices:
        if matrix.module.endswith(family.names.by_head):
            raise ConfigError(
                f"lora.targets adapts {matrix.modules[0]}, and {family.architecture} keeps queries, keys and values "
                "of each head together, for which no adapter is written or read. Try lora.targets=[blocks.*.output, "
                "blocks.*.feed_forward.*], or adapters=false, which merges the adapters."
            )
    return matrices


def write_adapters(folder: Path, saved: TensorFiles, family: Family, config: LoraConfig, base: str | None) -> None:
    """Write the adapters of a checkpoint's tensors into an empty folder; `base` is the name of the base model."""
    tensors: dict[str, Tensor] = {}
    matrices = _matrices(family, saved.shapes)
    for matrix in matrices:
        b = torch.zeros(matrix.outputs, config.rank * len(matrix.modules))
        for index, module in enumerate(matrix.modules):
            b[matrix.rows(module), index * config.rank : (index + 1) * config.rank] = saved.read(module + B)
        tensors[f"{_PREFIX}{matrix.module}{_A}"] = torch.cat(
            [saved.read(module + A).float() for module in matrix.modules]
        )
        tensors[f"{_PREFIX}{matrix.module}{_B}"] = b
    write_tensors(folder / WEIGHTS, tensors)
    everything = [stored.name.removesuffix(".weight") for stored in family.names.stored(
        {name: size for name, size in saved.shapes.items() if not is_adapter(name)})]  # fmt: skip
    targets = _targets(matrices, everything)
    fused = {name: count for name, count in targets.items() if count > 1}
    record = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if family.causal else None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(targets),
        "rank_pattern": {name: config.rank * count for name, count in fused.items()},
        "alpha_pattern": {name: config.alpha * count for name, count in fused.items()},
        "fan_in_fan_out": all(matrix.stored.transposed for matrix in matrices),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _targets(matrices: list[_Matrix], everything: list[str]) -> dict[str, int]:
    """Return the names of the adapted modules with the number of our adapters in each.

    All modules of one last name are named by that if all of them have an adapter, as in "q_proj".
    """
    counts = {matrix.module: len(matrix.modules) for matrix in matrices}
    named: dict[str, int] = {}
    for module, count in counts.items():
        last = module.rpartition(".")[2]
        alike = {counts.get(other) for other in everything if other == last or other.endswith(f".{last}")}
        named[last if alike == {count} else module] = count
    return named


def read_adapters(folder: Path, sizes: Sizes, config: LoraConfig, family: Family) -> Callable[[str, Tensor], Tensor]:
    """Return a function from the name and first value of an adapter's parameter to its value in a PEFT folder.

    An adapter of a smaller rank fills a part of ours, so that both compute the same. Raises CheckpointError for a
    folder that is damaged or adapts more than matrices, ConfigError where `config` has no room for its adapters.
    """
    record = read_config_json(folder / CONFIG)
    _check_kind(record)
    files = TensorFiles([_weights(folder)])
    matrices = {matrix.module: matrix for matrix in _matrices(family, sizes)}
    _check_names(folder, files, matrices)
    of_ours = {module: matrix for matrix in matrices.values() for module in matrix.modules}

    def load(name: str, first: Tensor) -> Tensor:
        module = name.removesuffix(A).removesuffix(B)
        matrix = of_ours[module]
        theirs = f"{_PREFIX}{matrix.module}"
        if theirs + _A not in files:
            return first
        a, b = files.read(theirs + _A).float(), files.read(theirs + _B).float()[matrix.rows(module)]
        used = b.any(0) if len(matrix.stored.parts) > 1 else torch.ones(len(a), dtype=torch.bool)
        if (rank := int(used.sum())) > config.rank:
            raise ConfigError(
                f"lora.init_from={folder} has adapters of rank {rank}, and lora.rank={config.rank} is below that. "
                f"Try lora.rank={rank}."
            )
        if name.endswith(A):
            return torch.cat([a[used], first[rank:]])
        padding = first.new_zeros(len(first), config.rank - rank)
        return torch.cat([b[:, used] * (_scale(record, matrix.module, len(a)) / config.scale), padding], 1)

    _check_shapes(files, matrices)
    _check_parts(folder, files, matrices.values())
    return load


def _weights(folder: Path) -> Path:
    if not (folder / WEIGHTS).is_file():
        reason = "holds adapter_model.bin, a pickle, which can run code and is never read" if (
            (folder / "adapter_model.bin").exists()) else f"has no {WEIGHTS}"  # fmt: skip
        raise CheckpointError(f"{printable(str(folder))} {reason}. Save it by save_pretrained(...) of peft.")
    return folder / WEIGHTS


def _check_kind(record: ConfigJson) -> None:
    """Raise CheckpointError for adapters that compute something else than LoRA."""
    if record.text("peft_type", "LORA") != "LORA":
        raise record.error("peft_type", "is not supported, only LORA")
    for key in ("use_dora", "lora_bias", "use_qalora"):
        if record.flag(key, False):
            raise record.error(key, "is not supported, only false")
    if record.text("bias", "none") != "none":
        raise record.error("bias", 'is not supported, only "none"')
    for key in _ONLY_NULL:
        if record.values.get(key):
            raise record.error(key, "is not supported, only null")
    for name in record.section("alpha_pattern").values:
        if not _PLAIN_NAME.fullmatch(name):
            raise record.error("alpha_pattern", f"holds the pattern {_shown(name)}, and only names of modules or their "
                               "ends are read, such as q_proj")  # fmt: skip
    init = record.values.get("init_lora_weights")
    if not (isinstance(init, bool | None) or init in _INITS):
        raise record.error("init_lora_weights", "may have changed the base, and only true, false and gaussian do not")


def _check_names(folder: Path, files: TensorFiles, matrices: Mapping[str, _Matrix]) -> None:
    """Raise for a tensor that is not of an adapter, or of a matrix without one of ours."""
    for name in files:
        module = name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B)
        if not name.startswith(_PREFIX) or not name.endswith((_A, _B)):
            raise CheckpointError(f"{printable(str(folder))} holds {_shown(name)}, which is no adapter of a matrix.")
        if module not in matrices:
            raise ConfigError(
                f"lora.init_from={printable(str(folder))} adapts {_shown(module)}, and no matrix of this run that "
                "lora.targets names is in it. Try 'lora.targets=[blocks.*]', and the base that it was trained on."
            )
        if name.replace(_A, _B) not in files or name.replace(_B, _A) not in files:
            raise CheckpointError(f"{printable(str(folder))} holds only one half of the adapter of {_shown(module)}.")


def _check_shapes(files: TensorFiles, matrices: Mapping[str, _Matrix]) -> None:
    hint = "Is it of this base?"
    for module, matrix in matrices.items():
        theirs = f"{_PREFIX}{module}"
        if theirs + _A in files:
            rank = files.shapes[theirs + _A][0] if files.shapes[theirs + _A] else 0
            inputs = next(iter(matrix.stored.parts.values()))[1]
            files.check_weight(theirs + _A, torch.Size([rank, inputs]), hint)
            files.check_weight(theirs + _B, torch.Size([matrix.outputs, rank]), hint)


def _check_parts(folder: Path, files: TensorFiles, matrices: Iterable[_Matrix]) -> None:
    """Raise ConfigError for an adapter that changes rows of a fused matrix that are of none of our adapters."""
    for matrix in matrices:
        parts = [name.removesuffix(".weight") for name in matrix.stored.parts]
        name = f"{_PREFIX}{matrix.module}{_B}"
        if name not in files or len(parts) == len(matrix.modules):
            continue
        b = files.read(name)
        lost = [module for module in parts if module not in matrix.modules and bool(b[matrix.rows(module)].any())]
        if lost:
            raise ConfigError(
                f"lora.init_from={printable(str(folder))} adapts {_shown(matrix.module)}, in which {', '.join(lost)} "
                "is changed too, and lora.targets leaves that out. Try 'lora.targets=[blocks.*]'."
            )


def _scale(record: ConfigJson, module: str, rank: int) -> float:
    """Return the factor of an adapter's output: the first name in `alpha_pattern` that is the module's or its end."""
    patterns = record.section("alpha_pattern")
    alpha = next((patterns.positive(name) for name in patterns.values if _is_named(module, name)), None)
    alpha = record.positive("lora_alpha", 8.0) if alpha is None else alpha
    assert alpha is not None
    return alpha / (rank**0.5 if record.flag("use_rslora", False) else rank)


def _is_named(module: str, name: str) -> bool:
    """Whether a name in `alpha_pattern` is a module's, or, without "^", the end of a module's."""
    return module == name.removeprefix("^") or module.endswith(f".{name}")


def _shown(name: str) -> str:
    return printable(repr(name)[:100])
