"""Compare an exported folder in transformers with the model that it was exported from."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.interop.write import AddedIds
from pretrain.models.pooling import pool
from pretrain.models.transformer import Transformer

TOLERANCE = 1e-4  # of logits in float32 up to MAX_ABSOLUTE_LOGIT; larger ones have TOLERANCE / 10 of the largest
MAX_ABSOLUTE_LOGIT = 10.0  # float32 has seven digits
ROWS, LENGTH = 3, 256
TEXTS = ("The quick brown fox jumps over the lazy dog.", "naïve café – 中文 😀", "def f(x):\n\treturn x  # 1984", "")


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def random_rows(model: Transformer) -> Tensor:
    """Return rows of random tokens, int64 (3, length), longer than a sliding window if the context allows."""
    longest = max((window or 0 for window in model.windows), default=0)
    length = min(model.config.context_length, max(LENGTH, min(2 * longest, 4 * LENGTH)))
    rows = torch.randint(model.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    return without_padding(model, rows)


def without_padding(model: Transformer, rows: Tensor, padding: int | None = None) -> Tensor:
    """Return the rows with another token for `padding`, by default where positions depend on it (RoBERTa's do)."""
    padding = model.config.position_offset - 1 if padding is None else padding
    return rows.where(rows != padding, (padding + 1) % model.vocab_size)


@torch.inference_mode()
def our_outputs(model: Transformer, rows: Tensor, bare: bool, pooling: str | None = None) -> list[Tensor]:
    """Return the logits (length, V) of each row; the last hidden states (length, d_model) for a `bare` model.

    With `pooling`, of a classifier, the logits (C,) of its labels.
    """
    hidden = [model.eval()(row.unsqueeze(0)) for row in rows]
    if pooling is not None:
        one_text = torch.zeros_like(rows[:1])
        return [model.head(pool(states, one_text, 1, pooling)[0, 0]) for states in hidden]
    return [states[0] if bare else model.head(states[0]) for states in hidden]


def compare(folder: Path, architecture: str, rows: Tensor, ours: Sequence[Tensor]) -> float:
    """Return the largest difference between our outputs and those of transformers with the folder.

    Raises CheckpointError if transformers cannot load the folder, reports missing or unexpected weights, or differs by
    more than 1e-4, or 1e-5 of the largest logit if that is above 10.
    """
    theirs = _load(folder, architecture)
    differences = []
    with torch.inference_mode():
        for row, expected in zip(rows.unsqueeze(1), ours, strict=True):
            output = theirs(input_ids=row, attention_mask=torch.ones_like(row))
            actual = output.logits if "logits" in output else output.last_hidden_state
            differences.append((actual[0] - expected).abs().max())
    largest = float(torch.stack(differences).max())  # NaN if any is NaN
    allowed = TOLERANCE * max(1.0, float(max(row.abs().max() for row in ours)) / MAX_ABSOLUTE_LOGIT)
    if not largest <= allowed:
        raise CheckpointError(
            f"transformers computes other outputs with the exported folder: logits differ by up to {largest:.2g}, "
            f"more than {allowed:.2g}. Nothing was exported."
        )
    return largest


def _load(folder: Path, architecture: str) -> Any:
    import transformers

    showed_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, architecture).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # any: the folder cannot be used
        raise _cannot_load(error) from error
    finally:
        if showed_bars:
            transformers.utils.logging.enable_progress_bar()
    wrong = [name for name in (*info["missing_keys"], *info["unexpected_keys"]) if "pooler." not in name]
    if wrong:
        raise CheckpointError(f"transformers and the exported folder disagree on {wrong[:3]}. Nothing was exported.")
    return model.eval()


def _cannot_load(error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(f"transformers cannot load the exported folder: {reason}. Nothing was exported.")


def compare_tokenizers(folder: Path, tokenizer: Tokenizer, added_ids: AddedIds) -> None:
    """Raise CheckpointError if transformers' AutoTokenizer returns other ids than ours, or has other roles."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # any: the folder cannot be used
        raise _cannot_load(error) from error
    masked = [f"The {theirs.mask_token} fox"] if tokenizer.mask_id is not None else []
    for text in (*TEXTS, *masked):
        expected = [*added_ids[0], *tokenizer.encode_prompt(text), *added_ids[1]]
        if theirs(text)["input_ids"] != expected:
            raise CheckpointError(
                f"transformers' tokenizer encodes {text!r} as {theirs(text)['input_ids'][:8]}..., ours as "
                f"{expected[:8]}.... Nothing was exported."
            )
    roles = {role: getattr(theirs, role) for role in tokenizer.roles}
    if roles != tokenizer.roles:
        raise CheckpointError(
            f"transformers' tokenizer has the roles {roles}, ours {tokenizer.roles}. Nothing was exported."
        )
