"""Models of the Hugging Face hub, fetched only where a setting names one."""

import re
from pathlib import Path

from pretrain.data.sources.source import printable
from pretrain.data.tokenizers.load import NAMES
from pretrain.errors import CheckpointError
from pretrain.interop.folder import CONFIG, INDEX, WEIGHTS

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FILES = [CONFIG, INDEX, WEIGHTS, "model-*.safetensors", *NAMES]


def is_hub_name(path: str) -> bool:
    """Whether a setting means the hub: owner/name or owner/name@revision, with no folder of the owner's name here."""
    return _NAME.fullmatch(path) is not None and not Path(path).exists() and not Path(path.split("/")[0]).exists()


def fetch(path: str) -> Path:
    """Return the folder that the files of a hub model were fetched to, none of them code.

    Raises CheckpointError where it cannot be had.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)} is neither a folder here nor a model to be had from the hub: "
            f"{' '.join(str(error).split())}"
        ) from error
