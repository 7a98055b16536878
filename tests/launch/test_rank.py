"""Stale launcher variables in the environment: an error if invalid, and not mistaken for a launcher."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from pretrain.config.cli import main
from pretrain.config.run import RunConfig
from pretrain.doctor.config import DoctorConfig
from pretrain.errors import ConfigError
from pretrain.inference.config import GenerateConfig
from pretrain.launch import rank as launcher
from pretrain.launch.rank import check_agent, check_launcher, rank, under_launcher
from pretrain.training.launch import _print_wait_notice

OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "HOME", "PRETRAIN"))}
    monkeypatch.setattr(os, "environ", kept)
    return kept


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1, WORLD_SIZE=2, as if"),
        ({"RANK": "1"}, "RANK=1, as if.*unset RANK"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8, as if.*unset WORLD_SIZE"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2, as if"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1, as if"),
        ({"RANK": "abc"}, "RANK='abc', which is no whole number from 0 .*unset RANK"),
        ({"RANK": "-1"}, "RANK='-1', which is"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0', which is no whole number from 1"),
        ({"RANK": "9" * 5000}, "RANK='9{80}', which is"),
        ({"RANK": "١"}, "RANK='١', which is"),
        ({"SLURM_PROCID": "abc"}, "SLURM_PROCID='abc', which is"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "TORCHELASTIC_RUN_ID='x'.* no RANK.*unset TORCHELASTIC_RUN_ID"),
        ({**OF_TORCHRUN, "MASTER_ADDR": ""}, "no MASTER_ADDR"),
        ({**OF_TORCHRUN, "MASTER_PORT": "65536"}, "MASTER_PORT='65536', which is no whole number from 1 to 65535"),
        ({**OF_TORCHRUN, "RANK": "4"}, "RANK='4', which is no whole number from 0 to 3"),
        ({**OF_TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK='2', which is no whole number from 0 to 1"),
        ({**OF_TORCHRUN, "LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE='5', which is no whole number from 1 to 4"),
        ({**OF_TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE=4 and LOCAL_WORLD_SIZE=3: a run needs the same"),
        ({**OF_TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT='x', which is"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS='many', which is"),
    ],
)
def test_invalid_variables_end_a_run_before_anything_is_written(
    environment: dict[str, str], monkeypatch, capsys, tmp_path: Path, change: dict[str, str], named: str
):
    environment |= change
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "data=text_files", "data.path=x"])
    with pytest.raises(SystemExit) as ended:
        main("train", RunConfig, lambda config, words: pytest.fail("it went on"))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    with pytest.raises(ConfigError, match=named):
        raise ConfigError(printed.err)
    assert not list(tmp_path.iterdir())


def test_one_process_that_is_called_one_is_alone(environment: dict[str, str]):
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": "", "SLURM_PROCID": "3"}
    environment |= {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "29500", "SLURM_NTASKS": "16"}
    check_launcher()
    assert not under_launcher()
    assert rank() == 0
    assert not environment.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID"}


def test_variables_of_torchrun_stay(environment: dict[str, str]):
    environment |= OF_TORCHRUN
    check_launcher()
    assert environment.items() >= OF_TORCHRUN.items()
    assert rank() == 3


def test_a_rank_without_a_launcher_is_none(environment: dict[str, str]):
    environment["RANK"] = "1"
    assert rank() == 0


def test_a_torchrun_that_has_gone_is_not_waited_for(environment: dict[str, str], monkeypatch):
    monkeypatch.setattr(launcher, "AGENT_S", 0.3)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        environment |= {**OF_TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        check_agent()  # the first process will listen there, later
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        with pytest.raises(ConfigError, match=rf"MASTER_PORT={port}.* no torchrun answers there.*unset TORCHELASTIC"):
            check_agent()
        bound.listen()
        check_agent()


def test_only_training_takes_notice_of_a_launcher(environment: dict[str, str], monkeypatch):
    environment |= {**OF_TORCHRUN, "RANK": "abc"}
    monkeypatch.setattr(sys, "argv", ["generate.py", "prompt=x"])
    seen: list[GenerateConfig] = []
    main("generate", GenerateConfig, lambda config, words: seen.append(config))
    assert seen[0].prompt == "x"


def test_the_doctor_is_started_alone(environment: dict[str, str], monkeypatch, capsys):
    environment |= OF_TORCHRUN
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    with pytest.raises(SystemExit) as ended:
        main("doctor", DoctorConfig, lambda config, words: pytest.fail("it went on"))
    assert ended.value.code == 2
    assert "Start it alone: python src/doctor.py" in capsys.readouterr().err


def test_a_long_wait_for_other_processes_prints_a_notice(environment: dict[str, str], capsys):
    environment |= OF_TORCHRUN
    _print_wait_notice("localhost:29500", 1800.0)
    assert re.fullmatch(
        r"rank 3 waits at localhost:29500 for the other processes \(3\) .* unset TORCHELASTIC_RUN_ID RANK\n",
        capsys.readouterr().err,
    )
