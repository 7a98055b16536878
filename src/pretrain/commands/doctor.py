"""`pretrain doctor`: prove on this machine, at small size, what a training run relies on."""

import sys

from pretrain.config import cli
from pretrain.doctor.config import DoctorConfig


def doctor(config: DoctorConfig, overrides: list[str]) -> None:
    """Print a row for each check of the run that `config` describes; exit with 1 where one fails."""
    from pretrain.doctor.examination import examine  # here: reading settings must not load torch

    if not examine(config.run_config(), config.doctor):
        sys.exit(1)


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("doctor", DoctorConfig, doctor, subcommand=subcommand)
