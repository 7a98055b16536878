"""Check on this machine, with small runs, that a training run keeps its promises: `python src/doctor.py --help`."""

import sys

from pretrain.config.cli import main
from pretrain.doctor.config import DoctorConfig


def doctor(config: DoctorConfig, overrides: list[str]) -> None:
    """Print a row for each check of the run that `config` describes; exit with 1 if one fails."""
    from pretrain.doctor.examination import examine  # here: reading settings must not load torch

    if not examine(config.run_config(), config.doctor):
        sys.exit(1)


if __name__ == "__main__":
    main("doctor", DoctorConfig, doctor)
