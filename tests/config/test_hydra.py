"""What users of Hydra expect: their own config folder and primary config, its flags, launchers and sweepers."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import registry
from pretrain.config.cli import main
from pretrain.config.run import RunConfig
from pretrain.stop_signals import AskedToStop

REPOSITORY = Path(__file__).parents[2]
Typed = tuple[RunConfig, list[str]]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of configs of the user's own: a primary config, a model and an experiment."""
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "my_run.yaml").write_text("defaults:\n  - train\n  - _self_\nseed: 5\ntrainer:\n  max_steps: 2e3\n")
    (folder / "model" / "my_model.yaml").write_text("defaults:\n  - gpt_nano\n  - _self_\nn_layers: 3\n")
    (folder / "experiment" / "tried.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: my_model\nbatch_size: 6\n"
    )
    (folder / "bare.yaml").write_text("seed: 1\n")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: str, result: Any = None) -> list[Typed]:
    seen: list[Typed] = []

    def task(config: RunConfig, overrides: list[str]) -> Any:
        seen.append((config, overrides))
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    main("train", RunConfig, task)
    return seen


@pytest.mark.slow
def test_a_config_folder_and_a_primary_config_of_ones_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--config-dir", str(own), "--config-name", "my_run"]
    ((config, words),) = run(monkeypatch, "batch_size=4", *flags, "model=my_model")
    assert (config.seed, config.trainer.max_steps, config.batch_size, config.model.n_layers) == (5, 2000, 4, 3)
    assert words == ["batch_size=4", "model=my_model"]
    ((config, _),) = run(monkeypatch, f"--config-dir={own}", "experiment=tried")
    assert (config.model.n_layers, config.batch_size) == (3, 6)
    ((config, _),) = run(monkeypatch, *flags, "data.path=a.txt")
    assert config.trainer.max_steps == 2000  # the user's own file gives the length, as a word typed would
    (own / "tries.yaml").write_text("defaults:\n  - train\n  - override experiment: lasting\n  - _self_\n")
    (own / "experiment" / "lasting.yaml").write_text("# @package _global_\ntrainer:\n  max_steps: 77\n")
    flags[-1] = "tries"
    assert run(monkeypatch, *flags, "data.path=a.txt")[0][0].trainer.max_steps == 77  # as would its own experiment
    ((config, _),) = run(monkeypatch)  # and nothing of it is left
    assert (config.seed, config.model.n_layers) == (0, run(monkeypatch, "model=gpt_nano")[0][0].model.n_layers)


@pytest.mark.slow
def test_what_is_wrong_in_ones_own_configs_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "broken.yaml").write_text("a: [1\n")
    (own / "listed.yaml").write_text("- a\n")
    (own / "typo.yaml").write_text("defaults:\n  - train\n  - _self_\ntrainer:\n  max_step: 3\n")
    (own / "misnamed.yaml").write_text("defaults:\n  - trian\n")
    (own / "circle.yaml").write_text("defaults:\n  - round\n")
    (own / "round.yaml").write_text("defaults:\n  - circle\n")
    (own / "idle.yaml").write_text("defaults:\n  - train\n  - _self_\nhydra:\n  run:\n    dir: out\n")
    (own / "on_idle.yaml").write_text("defaults:\n  - idle\n")
    (own / "experiment" / "unplaced.yaml").write_text("seed: 4\n")
    (own / "experiment" / "lost.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: my_modle\n")
    for words, message in (
        (
            ["experiment=unplaced"],
            "experiment/unplaced.yaml must begin with the line `# @package _global_`, as experime",
        ),
        (["experiment=lost"], "model=my_modle is not a preset. Did you mean my_model?"),
        (["--config-name", "misnamed"], "trian in misnamed.yaml is no file of settings. Did you mean train?"),
        (["--config-name", "circle"], "circle.yaml is in the defaults list of a file that is in its own."),
        (["--config-name", "on_idle"], "hydra.run.dir=out sets something of Hydra's that has no effect here."),
        (["-m", "model=my_modle,gpt_nano"], "model=my_modle is not a preset. Did you mean my_model?"),
        (["--config-name", "typo"], "trainer.max_step in typo.yaml is not a setting. Did you mean trainer.max_steps?"),
        (["--config-name", "bare"], "bare.yaml does not begin with the settings of this script: defaults: [train, _se"),
        (["--config-name", "broken"], f"{own}/broken.yaml cannot be read: while parsing a flow sequence"),
        (["--config-name", "listed"], f"{own}/listed.yaml holds a list, and must hold settings, such as seed: 1."),
        (["model=my_modle"], "model=my_modle is not a preset. Did you mean my_model?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "--config-dir", str(own), *words)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"ConfigError: {message}")


@pytest.mark.slow
def test_hydras_flags_show_what_a_run_would_read(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--cfg", "job", "--package", "trainer", "trainer.max_steps=7") == []
    shown = capsys.readouterr().out
    assert shown.startswith("# @package trainer\n")
    assert "\nmax_steps: 7\n" in shown
    command = [sys.executable, REPOSITORY / "src" / "train.py", "--config-dir", own, "--info", "searchpath"]
    assert (
        str(own) in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )  # it logs in its own way
    run(monkeypatch, "--cfg", "hydra", "--resolve", "data.path=x")
    shown = capsys.readouterr().out
    assert "pretrain.FreshProcessLauncher" in shown
    assert "data=text_files" in shown  # a path alone is that of text files here too
    run(monkeypatch, "-sc", "install=bash")
    assert "complete" in capsys.readouterr().out


def test_completion_knows_the_presets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "@hydra.main" in (REPOSITORY / "src" / "train.py").read_text()  # bash looks for it
    line = "python src/train.py model=gpt_n"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    run(monkeypatch, "-sc", "query=bash")
    assert capsys.readouterr().out.split() == ["model=gpt_nano"]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from pretrain.config import registry
from pretrain.config.cli import main
from pretrain.config.run import RunConfig
from pretrain.errors import DataError

def task(config, words):
    with open("ran.txt", "a") as file:
        file.write(f"{config.seed} {config.batch_size} {os.environ.get('PRETRAIN_SWEPT')}\\n")
    if config.seed == 2:
        raise DataError("no text for seed 2")
    folder = Path(config.paths.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        '{"steps": 1, "tokens_seen": 1, "parameters": 1, "tokens_per_s": 1.0, "validation": {"val/loss": %f}}'
        % (config.seed / 2)
    )
    return config.seed / 2

main("train", RunConfig, task)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pretrain", "basic"])
def test_a_sweep_runs_every_job_once_and_shows_the_table(tmp_path: Path, own: Path, launcher: str) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    (own / "swept.yaml").write_text(
        "defaults:\n  - my_run\n  - _self_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2,3\n"
    )
    words = ["--config-dir", str(own), "--config-name"]
    if launcher == "pretrain":
        words += ["swept", "hydra.launcher.n_jobs=2"]
    else:
        words += ["my_run", "-m", "seed=1,2,3", f"hydra/launcher={launcher}"]
    command = [sys.executable, "mine.py", *words]

    def ran() -> subprocess.CompletedProcess[str]:
        (tmp_path / "ran.txt").write_text("")
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    first = ran()
    assert first.returncode == 3, first.stderr
    table = [row.split() for row in first.stdout.splitlines() if re.match(r"[ *].* logs/sweep/", row)]
    shown = {(*(word for word in row if "=" in word), row[-2]) for row in table}
    assert "report: logs/sweep/report.html" in first.stdout
    page = (tmp_path / "logs" / "sweep" / "report.html").read_text()
    assert "2 of 3" in page
    assert "0.5000" in page
    lines = sorted((tmp_path / "ran.txt").read_text().splitlines())
    assert shown == {(f"seed={s}", "3" if s == 2 else "0") for s in (1, 2, 3)}
    assert lines == [f"{s} 8 seed" for s in (1, 2, 3)]
    if launcher == "pretrain":
        assert first.stderr == "JobError: seed=2 ended with exit code 3.\n"
        assert len(list((tmp_path / "logs" / "sweep").glob("*/output.log"))) == 3
    ran()
    again = sorted((tmp_path / "ran.txt").read_text().splitlines())
    assert again == [line for line in lines if line.startswith("2 ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model/m", b"n_layers:\t3\n\tfoo: 1\n", "model/m.yaml cannot be read: while scanning for the next token"),
        ("model/m", b"defaults: [gpt_nano]\n n_layers: 3\n", "model/m.yaml cannot be read: while parsing"),
        ("model/m", b"seed: 1\nseed: 2\n", "model/m.yaml cannot be read: while constructing a mapping"),
        ("model/m", b"# caf\xe9\nn_layers: 3\n", "model/m.yaml cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ("model/m", b"- a\n", "model/m.yaml holds a list, and must hold settings, such as seed: 1."),
        ("model/m", b"defaults: gpt_nano\n", "model/m.yaml has defaults: gpt_nano, which is no list of presets"),
        ("model/m", b"defaults: [{a: b, c: d}]\n", "model/m.yaml has defaults: {'a': 'b', 'c': 'd'}, which is no list"),
        ("model/m", b"defaults: [m]\n", "a preset is in the defaults list of a preset that is in its own."),
        ("model/m", b"", "the preset of model chooses no kind of model. Begin its file with `defaults: [Transformer"),
        ("model/m", b"n_layers: 3\n", "model/m.yaml chooses no kind of model. Begin its file with `defaults: [Transf"),
        ("experiment/m", b"# @package _global_\ndefaults: 5\n", "experiment/m.yaml has defaults: 5, which is no list"),
    ],
)
def test_a_file_that_is_no_preset_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, content: bytes,
    message: str,
) -> None:  # fmt: skip
    (own / f"{name}.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--config-dir", str(own), f"{name.partition('/')[0]}=m")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_presets_of_ones_own_may_lie_in_folders_and_have_the_line_ends_of_windows(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "experiment" / "team").mkdir()
    (own / "experiment" / "team" / "first.yaml").write_bytes(b"# @package _global_\r\nseed: 3\r\n")
    ((config, _),) = run(monkeypatch, "--config-dir", str(own), "experiment=team/first")
    assert config.seed == 3
    monkeypatch.setenv("HOME", str(own.parent))
    ((config, _),) = run(monkeypatch, f"--config-dir=~/{own.name}", "experiment=team/first")
    assert config.seed == 3
    (own.parent / "pretrain.yaml").write_bytes(f"config_dir: ~/{own.name}\r\n".encode())
    monkeypatch.chdir(own.parent)
    ((config, _),) = run(monkeypatch, "experiment=team/first")
    assert config.seed == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_size=${nothing}"], "batch_size: Interpolation key 'nothing' not found"),
        (["seed=${batch_size}", "batch_size=${seed}"], "batch_size: Recursive interpolation"),
        (["trainer.max_tokens=1e6", "trainer.max_steps=${nothing}"], "trainer.max_steps: Interpolation key 'nothing'"),
        (["-m", "seed=1,2", "paths.logs_dir=${nothing}"], "paths.logs_dir: Interpolation key 'nothing' not found"),
    ],
)
def test_a_reference_to_nothing_is_named_wherever_it_is_read_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words)
    assert ended.value.code == 2
    assert f"ConfigError: the settings cannot be resolved: {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_hands_its_errors_and_signals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, result=ZeroDivisionError())
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, result=AskedToStop(2))
    assert stopped.value.code == 130


@pytest.mark.slow
def test_plugins_are_named_on_the_command_line_or_in_ones_own_config(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_schedule.py").write_text(
        "from dataclasses import dataclass\n"
        "from pretrain.config.registry import register\n"
        "from pretrain.optim.schedules import ScheduleConfig\n"
        "@dataclass\n"
        "class HalfConfig(ScheduleConfig):\n"
        "    kind: str = 'half'\n"
        "    def after_warmup(self, step, max_steps):\n"
        "        return 0.5\n"
        "register('schedule', HalfConfig)\n"
    )
    (own / "with_plugin.yaml").write_text(
        "defaults:\n  - train\n  - override schedule: half\n  - _self_\nplugins: [half_schedule]\n"
    )
    monkeypatch.chdir(tmp_path)  # which an installed command does not have on its path
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(registry._REGISTERED, "schedule", {})
    ((config, _),) = run(monkeypatch, "--config-dir", str(own), "--config-name", "with_plugin")
    assert (config.schedule.kind, config.plugins) == ("half", ["half_schedule"])
    ((config, _),) = run(monkeypatch, "plugins=[half_schedule]", "schedule=half")
    assert config.schedule.lr_multiplier(90, 100) == 0.5


@pytest.mark.slow
def test_a_signal_as_the_last_job_ends_ends_the_sweep_too(tmp_path: Path) -> None:
    """The job no longer listens as it signals its sweep, which a sweeper with more trials would go on with."""
    signals = "from pretrain.stop_signals import stop_listening\n    stop_listening()\n    os.kill(os.getppid(), 2)\n"
    (tmp_path / "mine.py").write_text(
        SCRIPT.replace("    if config.seed == 2:", f"    {signals}    if config.seed == 2:")
    )
    command = [sys.executable, "mine.py", "-m", "seed=1"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr) == (130, "Interrupted: the sweep was interrupted; type it again to go on\n")
    assert len(list((tmp_path / "logs" / "sweep").glob("*/report.json"))) == 1
