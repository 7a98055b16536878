"""A Hugging Face model as a folder holds it: config.json, safetensors and a tokenizer, all of them read as data."""

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
from pretrain.files.untrusted_files import open_regular
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import Family, open_family
from pretrain.interop.names import Stored
from pretrain.interop.record import Record, read_record
from pretrain.models.config import TransformerConfig

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = [CONFIG, INDEX, WEIGHTS, "model-*.safetensors", *NAMES]
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_HINT = "Is config.json that of these weights?"


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A model whose settings and tokenizer have been read, and whose weights are read when they are asked for."""

    folder: Path
    family: Family
    shape: TransformerConfig
    tokenizer: Tokenizer
    files: TensorFiles

    def values(self, model: nn.Module) -> Callable[[str, torch.Size], Tensor]:
        """Return the value of each parameter of `model` by its name, read one at a time.

        Raises CheckpointError naming the first tensor that is missing, has no place, or does not fit.
        """
        parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
        stored = self.family.names.stored(parameters)
        file_names = self._file_names()
        self._check(stored, file_names)
        self._check_copies(file_names)
        by_ours = {name: each for each in stored for name in each.parts}

        def value(name: str, size: torch.Size) -> Tensor:
            each = by_ours[name]
            return each.part(self.files.read(file_names[each.name]), name)

        return value

    def _file_names(self) -> dict[str, str]:
        """Return the name of each tensor in the files by its name in today's spelling."""
        found: dict[str, str] = {}
        for name in self.files.shapes:
            other = found.setdefault(self.family.names.normal(name), name)
            if other != name:
                raise CheckpointError(
                    f"{self.folder} holds {_some([other, name])}, which are two names of one tensor. {_HINT}"
                )
        return found

    def _check(self, stored: list[Stored], file_names: dict[str, str]) -> None:
        wanted = {each.name: each for each in stored}
        lacking = sorted(wanted.keys() - file_names.keys())
        if lacking:
            raise CheckpointError(f"{self.folder} lacks {_some(lacking)}, which its model has. {_HINT}")
        known = {name for name, original in self._copies().items() if original in file_names}
        unknown = [
            name
            for name in sorted(file_names.keys() - wanted.keys() - known)
            if not self.family.names.is_passed_over(name)
        ]
        if unknown:
            raise CheckpointError(f"{self.folder} holds {_some(unknown)}, for which its model has no place. {_HINT}")
        for name, each in wanted.items():
            self.files.check_weight(file_names[name], each.shape, _HINT)

    def _copies(self) -> dict[str, str]:
        """Return the tensors that must hold the same as another one, with that one's name."""
        names = self.family.names
        if not self.shape.tie_embeddings:
            return dict(names.copies)
        head, embedding = names.stored(dict.fromkeys(("head.weight", "embeddings.tokens.weight"), torch.Size()))
        return {**names.copies, head.name: embedding.name}

    def _check_copies(self, file_names: dict[str, str]) -> None:
        """Raise CheckpointError where two tensors differ of which the model has one: transformers would keep both."""
        for copy, original in self._copies().items():
            if copy in file_names and not self._same(file_names[copy], file_names[original]):
                raise CheckpointError(
                    f"{self.folder} holds {_some([copy])} with other values than {_some([original])}, and its config "
                    "says that they are one tensor. Set tie_word_embeddings to false in config.json where the family "
                    f"has heads of their own, or remove {_some([copy])}."
                )

    def _same(self, one: str, other: str) -> bool:
        first, second = self.files.read(one), self.files.read(other)
        return first is second or torch.equal(first.float(), second.float())


def open_folder(folder: Path) -> HuggingFaceFolder:
    """Return the model of a folder.

    Raises CheckpointError, naming the file, for what is missing, damaged, of an unknown architecture or in a format
    that could run code, and where the tokenizer is not the model's.
    """
    record = read_record(folder / CONFIG)
    family = open_family(record, FAMILIES)
    files = TensorFiles(weight_files(folder))
    # of tensors that take room in the file: an empty one may claim any size
    record.largest = max((size for shape in files.shapes.values() if shape.numel() for size in shape), default=1)
    shape = family.read(record)
    if shape.n_layers > len(files.shapes):  # before there is a model of so many
        raise CheckpointError(
            f"{folder / CONFIG} has {shape.n_layers:,} layers, and the files hold {len(files.shapes):,} tensors. "
            f"{_HINT}"
        )
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise CheckpointError(f"{folder} has no tokenizer that can be used: {error}") from error
    shape.vocab_multiple = _vocab_multiple(record, tokenizer)
    return HuggingFaceFolder(folder, family, shape, tokenizer, files)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, one or those that its index names; raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_record(folder / INDEX)
        names = sorted({str(name) for name in index.section("weight_map").values.values()})
        for name in names:
            if not _PLAIN_NAME.fullmatch(name):
                raise CheckpointError(
                    f"{folder / INDEX} names '{printable(repr(name)[1:-1])[:100]}', no safetensors file beside it."
                )
        if names:
            return [_regular(folder / name) for name in names]
    pickled = next((path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED), None)
    if pickled:
        raise CheckpointError(
            f"{folder} holds its weights as {pickled}, a pickle, which can run code and is never read. Where you trust "
            "it, transformers' from_pretrained(...) and save_pretrained(...) make model.safetensors of it."
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}.")


def _regular(path: Path) -> Path:
    try:
        open_regular(path).close()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {printable(str(error))}.") from error
    return path


def _vocab_multiple(record: Record, tokenizer: Tokenizer) -> int:
    """Return the rounding by which our settings come to the rows of the embedding; raises CheckpointError."""
    rows = record.count("vocab_size")
    if rows is None:
        raise CheckpointError(f"{record.where} has no vocab_size, which a model needs.")
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{record.where}: vocab_size={rows:,}, and the tokenizer beside it has ids up to "
            f"{tokenizer.vocab_size - 1:,}: it is not this model's."
        )
    for key in ("bos_token_id", "eos_token_id"):
        said = record.values.get(key)
        numbers = said if isinstance(said, list) else [said]
        if isinstance(numbers[0], int) and not tokenizer.special_ids.intersection(numbers):
            raise record.refuse(key, "is no special token of the tokenizer beside it, which is not this model's")
    spare = rows - tokenizer.vocab_size
    small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
    return min(n for n in (*small, *(rows // n for n in small)) if n > spare)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return printable(repr(", ".join(names[:3]))[1:-1]) + more


def is_hub_name(path: str) -> bool:
    """Whether a path is a hub name: owner/name or owner/name@revision, with no folder of the owner's name here."""
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists() and not Path(path.split("/")[0]).exists()


def fetch(path: str) -> Path:
    """Download the files of a hub model, none of them code, and return their folder.

    Raises CheckpointError where that fails.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)} is neither a folder here nor a model to be had from the hub: "
            f"{' '.join(str(error).split())}"
        ) from error
