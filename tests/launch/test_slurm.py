"""Processes that srun started get their ranks in the run."""

import os
import re

import pytest

from pretrain.errors import ConfigError
from pretrain.launch.slurm import adopt_slurm, first_machine

STEP = {
    "SLURM_JOB_ID": "1234567", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(os, "environ", dict(STEP))
    return os.environ  # type: ignore[return-value]


def test_slurms_words_become_those_of_torchrun(environment):
    adopt_slurm()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [environment[name] for name in names] == ["11", "3", "16", "8", "1", "gpu07", "30067"]


@pytest.mark.parametrize(
    "change", [{"TORCHELASTIC_RUN_ID": "x"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": ""}]
)
def test_processes_of_torchrun_and_single_ones_are_left_alone(environment, change):
    environment |= change
    if not environment["SLURM_STEP_NUM_TASKS"]:
        del environment["SLURM_STEP_NUM_TASKS"]  # in the script of a job, outside of srun
    before = dict(environment)
    adopt_slurm()
    assert environment == before


def test_machines_with_unequal_numbers_of_processes_are_refused(environment):
    environment["SLURM_STEP_TASKS_PER_NODE"] = "9,7"
    with pytest.raises(ConfigError, match=r"srun started 9,7 processes on 2 machines.* Try srun --ntasks-per-node=8"):
        adopt_slurm()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", "many"), ("SLURM_STEP_NUM_TASKS", "-2"), ("SLURM_STEP_NUM_NODES", "x"),
        ("SLURM_STEP_NUM_NODES", "0"), ("SLURM_PROCID", "16"), ("SLURM_PROCID", "1.5"), ("SLURM_LOCALID", "-1"),
        ("SLURM_NODEID", "2"), ("SLURM_JOB_ID", "\x1b[31m"),
    ],
)  # fmt: skip
def test_nonsense_is_named(environment, name: str, value: str):
    environment[name] = value
    with pytest.raises(ConfigError, match=rf"{name}={re.escape(repr(value))}, which is no whole number.*unset {name}"):
        adopt_slurm()


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST"]
)
def test_a_slurm_step_with_a_missing_variable_is_refused(environment, name: str):
    del environment[name]
    with pytest.raises(ConfigError, match=rf"SLURM_STEP_NUM_TASKS=16.*no {name}.*unset SLURM_STEP_NUM_TASKS"):
        adopt_slurm()


def test_a_rank_left_over_is_at_odds_with_slurms(environment):
    environment |= {"RANK": "3", "WORLD_SIZE": "4"}  # scripts often set the second, which srun's number replaces
    with pytest.raises(ConfigError, match=r"RANK='3' and SLURM_PROCID=11.*unset RANK"):
        adopt_slurm()
    environment["RANK"] = "11"
    adopt_slurm()
    assert environment["WORLD_SIZE"] == "16"


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("cpu1", "cpu1"),
        ("cpu1,cpu2", "cpu1"),
        ("gpu[03-07,12],cpu1", "gpu03"),
        ("a[1,3]-ib", "a1-ib"),
        ("10.0.0.1", "10.0.0.1"),
        ("rack[2-3]node[05,07-09]x,cpu1", "rack2node05x"),
    ],
)
def test_the_first_machine_of_a_shortened_list(names: str, first: str):
    assert first_machine(names) == first


def test_a_list_without_machines_is_refused():
    with pytest.raises(ConfigError, match=r"SLURM_STEP_NODELIST=\[1-2\] names no machine\. Try torchrun"):
        first_machine("[1-2]")
