"""Seeds out of range are refused where they are given, by every script and from Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.config.seed import MAX_SAMPLING_SEED, MAX_SEED, check_seed
from pretrain.doctor.config import DoctorConfig
from pretrain.errors import ConfigError
from pretrain.inference.config import GenerateConfig
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.planning.config import PlanConfig
from pretrain.training.train import run

SCRIPTS = {"train": RunConfig, "doctor": DoctorConfig, "plan": PlanConfig, "generate": GenerateConfig}


@pytest.mark.parametrize(
    ("script", "seed"),
    [(script, seed) for script in SCRIPTS for seed in (-1, 2**64, 10**30)]
    + [(script, 2**32) for script in ("train", "doctor", "plan")],
)
def test_a_seed_out_of_range_is_refused_with_the_settings(script: str, seed: int):
    register_schemas(script, SCRIPTS[script])
    with pytest.raises(ConfigError, match=rf"seed={seed} is not a whole number from 0 to \d+\. Try seed=0\."):
        compose(script, [f"seed={seed}"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_largest_seed_is_one(script: str):
    register_schemas(script, SCRIPTS[script])
    assert compose(script, [f"seed={MAX_SEED}"]).seed == MAX_SEED


@pytest.mark.parametrize("seed", [-1, MAX_SAMPLING_SEED + 1, 1.5, "7", True, float("nan")])
def test_a_seed_given_in_python(seed: Any):
    with pytest.raises(ConfigError, match=r"seed=.* is not a whole number from 0 to 18446744073709551615"):
        Sampling(seed=seed)
    with pytest.raises(ConfigError, match=r"seed=.* is not a whole number from 0 to 4294967295"):
        check_seed(seed)


def test_sampling_takes_every_seed_of_its_range():
    for seed in (0, MAX_SEED + 1, MAX_SAMPLING_SEED, None, np.int64(3)):
        Sampler(Sampling(seed=seed))


def test_a_run_with_the_largest_seed_trains(tiny: Any):
    report = run(tiny.place(f"seed={MAX_SEED}", "trainer.max_steps=1", "trainer.val_check_interval=100"))
    assert (Path(report.folder) / "report.json").exists()
