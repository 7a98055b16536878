"""The range of every seed."""

import operator

from pretrain.errors import ConfigError

MAX_SEED = 2**32 - 1  # of NumPy's global generator, which a run seeds beside those of Python and torch


MAX_SAMPLING_SEED = 2**64 - 1  # of a torch.Generator, which chooses the tokens of a text


def check_seed(seed: int, most: int = MAX_SEED) -> None:
    """Raise ConfigError unless `seed` is a whole number from 0 to `most`, both included."""
    try:
        fits = 0 <= operator.index(seed) <= most and not isinstance(seed, bool)
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"seed={str(seed)[:80]} is not a whole number from 0 to {most}. Try seed=0.")
