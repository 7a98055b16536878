"""Pre-train a causal or masked Transformer: `python src/train.py --help`.

It runs under @hydra.main, so that Hydra's flags, launchers, sweepers and shell completion work.
"""

from pretrain.config.cli import main
from pretrain.config.run import RunConfig


def train(config: RunConfig | None, overrides: list[str]) -> float | None:
    """Run the training that `config` describes; return its validation loss, which a sweeper minimizes."""
    from pretrain.training.launch import launch  # here: reading settings must not load torch

    return launch(config, overrides)


if __name__ == "__main__":
    main("train", RunConfig, train)
