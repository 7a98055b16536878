"""A folder with a pretrain.yaml: `train` reads the config that it names, and commands that use a model never do."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.cli import main
from pretrain.config.preset_folders import chosen_settings
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig, PrepareConfig
from pretrain.doctor.config import DoctorConfig
from pretrain.planning.config import PlanConfig


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two primary configs and a model of the user's own."""
    folder = tmp_path / "configs"
    (folder / "model").mkdir(parents=True)
    for name, seed in (("my_run", 5), ("other", 6)):
        base = "train" if name == "my_run" else "my_run"
        (folder / f"{name}.yaml").write_text(f"defaults:\n  - {base}\n  - _self_\nseed: {seed}\n")
    with (folder / "my_run.yaml").open("a") as file:
        file.write("plugins: [own_plugin]\n")
    (tmp_path / "own_plugin.py").touch()
    (folder / "model" / "my_model.yaml").write_text("defaults:\n  - gpt_nano\n  - _self_\nn_layers: 3\n")
    (tmp_path / "pretrain.yaml").write_text("config_dir: configs\ntrain: my_run\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(monkeypatch: pytest.MonkeyPatch, name: str, config_class: type, *words: str) -> Any:
    """Return the settings that a command comes to; None where it printed something instead of a run."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["pretrain", name, *words])
    main(name, config_class, lambda config, _: seen.append(config), subcommand=name)
    return seen[0] if seen else None


@pytest.mark.long
def test_a_command_in_the_folder_reads_the_projects_configs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(monkeypatch, "train", RunConfig, "model=my_model")
    assert (config.seed, config.model.n_layers) == (5, 3)
    assert sys.modules.pop("own_plugin", None)
    assert chosen_settings(["model=my_model"]).items() >= {"seed": "5", "model": "my_model"}.items()  # which auto keeps
    assert capsys.readouterr().out == "pretrain.yaml: reads configs/my_run.yaml\n"
    assert settings(monkeypatch, "train", RunConfig, "seed=7").seed == 7
    assert settings(monkeypatch, "train", RunConfig, "--config-name", "other").seed == 6
    assert "own_plugin" in sys.modules  # which other.yaml has from my_run.yaml
    assert settings(monkeypatch, "prepare", PrepareConfig).data.kind == "python_docs"
    assert "pretrain.yaml: reads the presets in configs\n" in capsys.readouterr().out
    planned = settings(monkeypatch, "plan", PlanConfig, "model=my_model", "device=h100")
    assert (planned.seed, planned.model.n_layers, planned.device.name) == (5, 3, "h100")  # the run that would train
    assert settings(monkeypatch, "doctor", DoctorConfig, "doctor=resume").seed == 5
    assert capsys.readouterr().out == "pretrain.yaml: reads configs/my_run.yaml\n" * 2
    assert settings(monkeypatch, "train", RunConfig, "--cfg", "job") is None
    assert "seed: 5" in (shown := capsys.readouterr().out)
    assert "pretrain.yaml" not in shown  # what is printed can be read as YAML
    (project / "empty").mkdir()
    assert settings(monkeypatch, "train", RunConfig, "--config-dir", "empty").seed == 0
    monkeypatch.chdir(project / "empty")  # folders above are not searched
    assert settings(monkeypatch, "train", RunConfig).seed == 0


@pytest.mark.slow
def test_a_file_may_name_the_home_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell writes it out and YAML does not: the run was in a folder called ~."""
    monkeypatch.setenv("HOME", "/home/ada")
    with (project / "configs" / "my_run.yaml").open("a") as file:
        file.write("paths: {logs_dir: ~/runs, run_dir: ~/runs/a, cache_dir: '~/tokens'}\n")
    paths = settings(monkeypatch, "train", RunConfig).paths
    assert (paths.logs_dir, paths.run_dir, paths.cache_dir) == (
        "/home/ada/runs", "/home/ada/runs/a", "/home/ada/tokens",
    )  # fmt: skip


def test_a_command_that_uses_a_model_does_not_read_the_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is typed in a downloaded folder, nothing that the folder names is imported."""
    (project / "own_code.py").write_text("raise AssertionError('imported')\n")
    (project / "configs" / "export.yaml").write_text("defaults: [ExportConfig, _self_]\nplugins: [own_code]\n")
    (project / "pretrain.yaml").write_text("config_dir: configs\nexport: export\n")
    assert settings(monkeypatch, "export", ExportConfig, "output=x").plugins == []
    assert "own_code" not in sys.modules


def test_a_preset_that_ones_own_config_misspells_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / "configs" / "my_run.yaml"
    file.write_text("defaults:\n  - train\n  - override /schedule: cosin\n  - _self_\n")
    with pytest.raises(SystemExit) as stopped:
        settings(monkeypatch, "train", RunConfig)
    assert stopped.value.code == 2
    assert "schedule=cosin is not a preset. Did you mean cosine?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config-dir: configs\n", "config-dir in pretrain.yaml is nothing it can say. Did you mean config_dir?"),
        ("train: [a]\n", "train: ['a'] in pretrain.yaml is not a name. Write train: my_train."),
        ("config_dir: 3\n", "config_dir: 3 in pretrain.yaml is not a name. Write config_dir: configs."),
        ("- a\n", "pretrain.yaml holds list, and must hold lines such as train: my_run."),
        ("a: [\n", "pretrain.yaml cannot be read: while parsing a flow"),
        ("config_dir: nowhere\n", "--config-dir nowhere is no folder."),
        ("train: nothing\n", "--config-name nothing names no file of settings."),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (project / "pretrain.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        settings(monkeypatch, "train", RunConfig)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"ConfigError: {message}")
