"""`pretrain train`: pre-train a causal or masked Transformer."""

from pretrain.config import cli
from pretrain.config.run import RunConfig


def train(config: RunConfig | None, overrides: list[str]) -> float | None:
    """Run the training that `config` describes; return its validation loss, which a sweeper minimizes."""
    from pretrain.training.launch import launch  # here: reading settings must not load torch

    return launch(config, overrides)


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("train", RunConfig, train, subcommand=subcommand)
