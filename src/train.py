"""Pre-train a causal or masked Transformer: `python src/train.py --help`."""

from pretrain.config.cli import main
from pretrain.config.run import RunConfig


def train(config: RunConfig | None, overrides: list[str]) -> None:
    """Run the training that `config` describes."""
    from pretrain.training.launch import launch  # here: reading settings must not load torch

    launch(config, overrides)


if __name__ == "__main__":
    main("train", RunConfig, train)
