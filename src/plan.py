"""Before the run: what it takes, without training: `python src/plan.py --help`."""

from pretrain.config.cli import main
from pretrain.planning.config import PlanConfig


def plan(config: PlanConfig, overrides: list[str]) -> None:
    """Print what the run that `config` describes takes, settings that fit, or forecast against measurement."""
    from pretrain.config.typed_lengths import typed_settings
    from pretrain.errors import printable
    from pretrain.planning.answer import answer  # here: reading settings must not load torch

    print(printable(answer(config, typed_settings(overrides))))


if __name__ == "__main__":
    main("plan", PlanConfig, plan)
