"""The largest sizes that settings may ask for: beyond what any run needs, and too small to fill memory by themselves.

They hold for what is typed and for what a run folder of a stranger holds, before anything is counted or built.
"""

from __future__ import annotations

from typing import Any

from pretrain.errors import ConfigError

# by setting: the most, and a usual value
LARGEST = {
    "batch_size": (1 << 20, 256),
    "data.prefetch": (256, 8),
    "model.context_length": (1 << 24, 2048),
    "model.n_layers": (10_000, 24),
    "model.d_model": (1 << 20, 1024),
    "model.n_heads": (1 << 16, 16),
    "model.head_dim": (1 << 16, 64),
    "model.d_ff": (1 << 24, 4096),
    "model.token_types": (1 << 16, 2),
    "model.vocab_multiple": (1 << 20, 128),
    "trainer.devices": (1024, 8),
    "trainer.num_nodes": (1 << 16, 2),
    "sample.max_new_tokens": (1 << 24, 200),
}


TOKENS_PER_STEP = 1 << 28  # a step of the largest runs reads a quarter of it


def check_sizes(settings: Any) -> None:
    """Raise ConfigError for the first setting of a run that is larger than any run needs, or a step of too many tokens.

    A setting that the run's kinds do not have is passed over.
    """
    for key, (most, usual) in LARGEST.items():
        value = settings
        for name in key.split("."):
            value = getattr(value, name, None)
        if isinstance(value, int) and value > most:
            raise ConfigError(f"{key}={value} is above {most}, more than any run needs. Try {key}={usual}.")
    rows, length = settings.batch_size, settings.model.context_length
    if rows * length > TOKENS_PER_STEP:
        raise ConfigError(
            f"batch_size={rows} rows of model.context_length={length} are {rows * length} tokens in one step, above "
            f"{TOKENS_PER_STEP}, more than any run needs. Try batch_size={max(1, TOKENS_PER_STEP // length // 256)}."
        )
