"""Read a Hugging Face folder: config.json, safetensors and a tokenizer, all of them data, never code."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.data.tokenizers.load import NAMES
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, DataError, printable
from pretrain.files.untrusted_files import open_regular, read_json
from pretrain.interop.config_json import ConfigJson, read_config_json
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import OBJECTIVE, Family, open_family
from pretrain.interop.names import Stored
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config import CausalConfig, DiffusionConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.fine_tuning_config import Pooling

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
POOLING = "1_Pooling/config.json"  # of sentence-transformers
MODULES = "modules.json"
_COMPUTED_MODULES = ("Transformer", "Pooling", "Normalize")
POOLING_MODES = {Pooling.first: "cls_token", Pooling.last: "lasttoken", Pooling.mean: "mean_tokens"}
_HUB_FILES = [CONFIG, INDEX, WEIGHTS, "model-*.safetensors", POOLING, MODULES, *NAMES]
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_HINT = "Is config.json that of these weights?"


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A model with its settings and tokenizer; its weights are read on demand."""

    folder: Path
    family: Family
    shape: TransformerConfig
    tokenizer: Tokenizer
    files: TensorFiles
    objective: ObjectiveConfig  # the default of its family, or that of our own key in config.json

    def values(self, model: nn.Module) -> Callable[[str, torch.Size], Tensor]:
        """Return a function that reads the value of a parameter of `model` by its name.

        Raises CheckpointError naming the first tensor that is missing, unexpected, or of another shape.
        """
        parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
        stored = self.family.names.stored(parameters, self.shape.n_heads)
        file_names = self._file_names()
        self._check(stored, file_names)
        self._check_copies(file_names)
        by_parameter = {name: tensor for tensor in stored for name in tensor.parts}

        def value(name: str, size: torch.Size) -> Tensor:
            tensor = by_parameter[name]
            return tensor.part(self.files.read(file_names[tensor.name]), name)

        return value

    def _file_names(self) -> dict[str, str]:
        """Return the name of each tensor in the files by its canonical name."""
        names: dict[str, str] = {}
        for name in self.files.shapes:
            other = names.setdefault(self.family.names.canonical(name), name)
            if other != name:
                raise CheckpointError(
                    f"{self.folder} holds {_some([other, name])}, which are two names of one tensor. {_HINT}"
                )
        return names

    def _check(self, stored: list[Stored], file_names: dict[str, str]) -> None:
        """Raise CheckpointError for tensors that are missing, unexpected, or of another shape or format."""
        expected = {tensor.name: tensor.shape for tensor in stored}
        missing = sorted(expected.keys() - file_names.keys())
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_some(missing)}, which its model has. {_HINT}")
        copies = {name for name, original in self._copies().items() if original in file_names}
        extra = sorted(file_names.keys() - expected.keys() - copies)
        unexpected = [name for name in extra if not self.family.names.is_ignored(name)]
        if unexpected:
            raise CheckpointError(f"{self.folder} holds {_some(unexpected)}, which its model does not have. {_HINT}")
        for name, size in expected.items():
            self.files.check_weight(file_names[name], size, _HINT)

    def _copies(self) -> dict[str, str]:
        """Return the tensors that must be equal to another one, with the name of that one."""
        names = self.family.names
        if not self.shape.tie_embeddings:
            return dict(names.copies)
        head, embedding = names.stored(dict.fromkeys(("head.weight", "embeddings.tokens.weight"), torch.Size()))
        return {**names.copies, head.name: embedding.name}

    def _check_copies(self, file_names: dict[str, str]) -> None:
        """Raise CheckpointError if a tied tensor differs from its original: transformers would use both."""
        for copy, original in self._copies().items():
            if copy in file_names and not self._same(file_names[copy], file_names[original]):
                raise CheckpointError(
                    f"{self.folder} holds {_some([copy])} with other values than {_some([original])}, and its config "
                    "ties the two. Set tie_word_embeddings to false in config.json if the family supports it, "
                    f"or remove {_some([copy])}."
                )

    def _same(self, one: str, other: str) -> bool:
        first, second = self.files.read(one), self.files.read(other)
        return first is second or torch.equal(first.float(), second.float())


def open_folder(folder: Path) -> HuggingFaceFolder:
    """Return the model of a folder, its weights unread.

    Raises CheckpointError naming the file that is missing, damaged, of an unknown architecture or in a format that can
    run code, or the tokenizer of another model.
    """
    record = read_config_json(folder / CONFIG)
    family = open_family(record, FAMILIES)
    files = TensorFiles(weight_files(folder))
    # an empty tensor takes no bytes and may have any dimension
    record.largest = max((size for shape in files.shapes.values() if shape.numel() for size in shape), default=1)
    shape = family.read(record)
    if shape.n_layers > len(files.shapes):  # before a model of so many layers is built
        raise CheckpointError(
            f"{folder / CONFIG} has {shape.n_layers:,} layers, and the files hold {len(files.shapes):,} tensors. "
            f"{_HINT}"
        )
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise CheckpointError(f"{folder} has no usable tokenizer: {error}") from error
    shape.vocab_multiple = _vocab_multiple(record, tokenizer)
    return HuggingFaceFolder(folder, family, shape, tokenizer, files, _objective(record, family, tokenizer))


def _objective(record: ConfigJson, family: Family, tokenizer: Tokenizer) -> ObjectiveConfig:
    """Return what a model was trained for; transformers has one class for masked models and masked diffusion."""
    if not record.text(OBJECTIVE, ""):
        return CausalConfig() if family.causal else MaskedConfig()
    if family.causal or record.values[OBJECTIVE] != DiffusionConfig.kind:
        raise record.error(OBJECTIVE, 'is not supported, only "diffusion" of a masked model')
    if tokenizer.mask_id is None:
        raise record.error(OBJECTIVE, "needs a mask token, and the tokenizer beside it has none")
    return DiffusionConfig()


@dataclass(frozen=True)
class StatedVectors:
    """What the modules of sentence-transformers beside a model make of its hidden states."""

    pooling: Pooling | None  # None: in a way, or in several, that we do not have
    unknown: str = ""  # what of it is not computed here, such as 2_Dense; empty: nothing

    def check(self) -> None:
        """Raise CheckpointError if our vectors would be other ones than those of the folder."""
        if self.unknown:
            raise CheckpointError(
                f"the folder of this model makes its vectors by {printable(self.unknown)}, which is not computed here. "
                "Take its hidden states: embed(text, pooling='mean')."
            )


def stated_vectors(folder: Path) -> StatedVectors | None:
    """Return how the modules of sentence-transformers beside a model embed texts; None without such modules."""
    if not (folder / POOLING).is_file():
        return None
    if (unknown := _other_module(folder)) is not None:
        return StatedVectors(_pooling(folder), unknown)
    pooling = _pooling(folder)
    return StatedVectors(pooling, "" if pooling else f"the pooling of {POOLING}")


def _other_module(folder: Path) -> str | None:
    """Return the first of the listed modules that is neither the model, its pooling nor a normalization."""
    if not (folder / MODULES).is_file():
        return None
    try:
        modules = read_json(folder / MODULES)
        kinds = {str(module["path"] or module["name"]): str(module["type"]) for module in modules}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / MODULES} is no list of modules: {printable(str(error))[:100]}.") from error
    return next((name for name, kind in kinds.items() if kind.rpartition(".")[2] not in _COMPUTED_MODULES), None)


def _pooling(folder: Path) -> Pooling | None:
    record = read_config_json(folder / POOLING)
    chosen = [key.removeprefix("pooling_mode_") for key, value in record.values.items() if value is True]
    known = {mode: pooling for pooling, mode in POOLING_MODES.items()}
    modes = [mode for mode in chosen if mode in known or mode.endswith("_tokens")]  # include_prompt is another key
    return known.get(modes[0]) if len(modes) == 1 else None


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors file of a folder, or those in its index; raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_config_json(folder / INDEX)
        names = sorted({str(name) for name in index.section("weight_map").values.values()})
        for name in names:
            if not _PLAIN_NAME.fullmatch(name):
                raise CheckpointError(
                    f"{folder / INDEX} names '{printable(repr(name)[1:-1])[:100]}', which is not the name of a "
                    "safetensors file beside it, such as model-00001-of-00002.safetensors."
                )
        if names:
            return [_regular(folder / name) for name in names]
    pickled = next((path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED), None)
    if pickled:
        raise CheckpointError(
            f"{folder} holds its weights as {pickled}, a pickle, which can run code and is never read. If you trust "
            "it, convert it by from_pretrained(...) and save_pretrained(...) of transformers."
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}.")


def _regular(path: Path) -> Path:
    try:
        open_regular(path).close()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {printable(str(error))}.") from error
    return path


def _vocab_multiple(record: ConfigJson, tokenizer: Tokenizer) -> int:
    """Return `model.vocab_multiple` that gives the embedding its number of rows; raises CheckpointError."""
    rows = record.count("vocab_size")
    if rows is None:
        raise CheckpointError(f"{record.location} has no vocab_size, which a model needs.")
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{record.location}: vocab_size={rows:,}, and the tokenizer beside it has ids up to "
            f"{tokenizer.vocab_size - 1:,}: it is not this model's."
        )
    for key in ("bos_token_id", "eos_token_id"):
        value = record.values.get(key)
        ids = {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
        if ids and not tokenizer.special_ids & ids:
            raise record.error(key, "is no special token of the tokenizer beside it, which is not this model's")
    spare = rows - tokenizer.vocab_size
    small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
    return min(n for n in (*small, *(rows // n for n in small)) if n > spare)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return printable(repr(", ".join(names[:3]))[1:-1]) + more


def is_hub_name(path: str) -> bool:
    """Whether a path is owner/name or owner/name@revision of the hub, and no folder here has the owner's name."""
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists() and not Path(path.split("/")[0]).exists()


def fetch(path: str) -> Path:
    """Download a hub model without code files and return its folder; raises CheckpointError if that fails."""
    from huggingface_hub import snapshot_download

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)} is neither a folder here nor a model that the hub returns: "
            f"{' '.join(str(error).split())}"
        ) from error
