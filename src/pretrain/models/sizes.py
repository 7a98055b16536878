"""A ladder of shapes from nano to small, onto which any family's preset can be scaled."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from pretrain.models.config import TransformerConfig

HEAD_WIDTH = 64  # channels of a head


class Size(Enum):
    """Shape of the model, for the family chosen; auto: the largest that text and time can train."""

    auto = "auto"
    nano = "nano"
    micro = "micro"
    mini = "mini"
    midi = "midi"
    maxi = "maxi"
    small = "small"


@dataclass(frozen=True)
class Shape:
    """Numbers of one size, and the rows of a step that suit it."""

    n_layers: int
    d_model: int
    context_length: int
    batch_size: int

    @property
    def n_heads(self) -> int:
        """Heads of 64 channels."""
        return self.d_model // HEAD_WIDTH


# nano and small are those of gpt_nano and gpt_small; each step between has about 2.5 times the parameters of the last
SHAPES = {
    Size.nano: Shape(4, 128, 256, 8),
    Size.micro: Shape(4, 192, 256, 8),
    Size.mini: Shape(6, 256, 256, 16),
    Size.midi: Shape(8, 384, 512, 16),
    Size.maxi: Shape(8, 512, 512, 32),
    Size.small: Shape(12, 768, 1024, 64),
}


def scaled(
    model: TransformerConfig, shape: Shape, typed: Collection[str] = (), head_width: int = HEAD_WIDTH
) -> TransformerConfig:
    """Return a family's model in another shape; `typed` are the names of settings that stay as they are.

    Heads have `head_width` channels, or those of `head_dim` where that is set. Grouped heads and the width of the
    feed-forward layer keep their proportions, up to rounding.
    """
    width = model.d_model if "d_model" in typed else shape.d_model
    heads = model.n_heads if "n_heads" in typed else max(1, width // (model.head_dim or head_width))
    heads = heads if model.head_dim or width % heads == 0 else model.n_heads
    numbers: dict[str, Any] = {
        "n_layers": shape.n_layers, "d_model": width, "n_heads": heads, "context_length": shape.context_length,
    }  # fmt: skip
    if model.n_kv_heads is not None:
        most = max(1, heads * model.n_kv_heads // model.n_heads)
        numbers["n_kv_heads"] = next(n for n in range(most, 0, -1) if heads % n == 0)
    if model.d_ff is not None:
        numbers["d_ff"] = max(8, round(model.d_ff / model.d_model * width / 8) * 8)
    return replace(model, **{name: value for name, value in numbers.items() if name not in typed})
