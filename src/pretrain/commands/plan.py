"""`pretrain plan`: what a run takes, without training."""

from pretrain.config import cli
from pretrain.planning.config import PlanConfig


def plan(config: PlanConfig, overrides: list[str]) -> None:
    """Print what the run that `config` describes takes, settings that fit, or forecast against measurement."""
    from pretrain.config.typed_lengths import typed_settings
    from pretrain.errors import printable
    from pretrain.planning.answer import answer  # here: reading settings must not load torch

    print(printable(answer(config, typed_settings(overrides))))


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("plan", PlanConfig, plan, subcommand=subcommand)
