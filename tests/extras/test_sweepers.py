"""Sweeps by the launchers and sweepers of Hydra's plug-ins. Skipped where the extra `sweep` is not installed."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY = (
    "tokenizer=bytes", "model.n_layers=1", "model.d_model=16", "model.context_length=32", "trainer=cpu",
    "trainer.max_steps=8", "trainer.val_check_interval=2", "schedule.warmup_steps=0", "sample.every_n_steps=0",
    "logger=all",
)  # fmt: skip
RATES = "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("hydra_plugins") is None, reason="pip install -e '.[sweep]'"),
]


def command(corpus: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "src" / "train.py"), "-m", f"data.path={corpus}", *TINY, *words]


def sweep(folder: Path, corpus: Path, *words: str) -> list[list[str]]:
    """Run a sweep and return the rows of its table."""
    found = subprocess.run(
        command(corpus, *words), cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    table = found.stdout.rpartition("val/loss  exit")[2]
    rows = [row.lstrip("* ").split() for row in table.splitlines()[1:]]
    # Ray's workers may still print among them, and the line of the report follows
    rows = [row for row in rows if "_run_job" not in " ".join(row)]
    return [row for row in rows if row and row[-1].startswith("logs/sweep/") and row[0] != "report:"]


def folders(folder: Path) -> list[str]:
    return [f"logs/sweep/{path.parent.name}" for path in (folder / "logs" / "sweep").glob("*/report.json")]


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", ["hydra.launcher.timeout_min=10", "hydra.launcher.mem_gb=2"]),
        ("ray", ["+hydra.launcher.ray.init.num_cpus=2"]),
    ],
)
def test_launchers_of_plugins_train_what_ours_trains(
    tmp_path: Path, corpus: Path, launcher: str, words: list[str]
) -> None:
    """Four jobs, two of which share a process: the same losses as in fresh processes, and the same folders."""
    swept = ["seed=1,2", "optimizer=adamw,muon"]
    theirs = sweep(tmp_path, corpus, *swept, f"hydra/launcher={launcher}", *words)
    (tmp_path / "own").mkdir()
    ours = sweep(tmp_path / "own", corpus, *swept, "hydra.launcher.n_jobs=2")
    assert len(theirs) == 4
    assert sorted(theirs) == sorted(ours)
    for folder in (tmp_path / "logs" / "sweep").glob("seed*"):
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert f"seed-{settings['seed']}_optimizer-{settings['optimizer']['kind']}" in folder.name


def test_optuna_minimizes_the_validation_loss(tmp_path: Path, corpus: Path) -> None:
    rows = sweep(
        tmp_path, corpus, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=2",
        "hydra.launcher.n_jobs=2", "hydra.sweeper.sampler.seed=1", RATES,
    )  # fmt: skip
    best = yaml.safe_load((tmp_path / "logs" / "sweep" / "optimization_results.yaml").read_text())
    assert len(rows) == 8
    assert f"{best['best_value']:.4f}" == min(row[-3] for row in rows)


def states(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "logs" / "sweep" / "optuna.db") as study:
        return [state for (state,) in study.execute("select state from trials")]


def test_a_study_prunes_and_goes_on_after_an_interrupt(tmp_path: Path, corpus: Path) -> None:
    words = ["hydra/sweeper=optuna_pruning", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=2", RATES]
    words += ["hydra.launcher.n_jobs=2", "hydra.sweeper.startup_trials=2", "hydra.sweeper.seed=0"]
    process = subprocess.Popen(command(corpus, *words), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + 300
    while len(folders(tmp_path)) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    interrupted = states(tmp_path)
    assert "RUNNING" in interrupted
    rows = sweep(tmp_path, corpus, *words)
    found = states(tmp_path)
    assert len(found) == 8
    assert set(found) == {"COMPLETE", "PRUNED"}
    ended = len([state for state in interrupted if state != "RUNNING"])
    assert len(rows) == 8 - ended  # those that had ended did not run again
    pruned = [path for path in (tmp_path / "logs" / "sweep").glob("*/report.json") if "pruned" in path.read_text()]
    assert len(pruned) == found.count("PRUNED")
    assert all(json.loads(path.read_text())["steps"] < 8 for path in pruned)


def test_a_small_batch_is_compared_at_the_same_share_of_the_run(tmp_path: Path, corpus: Path) -> None:
    """At the same step it has read less text than a large one, and was pruned whatever became of it."""
    words = ["hydra/sweeper=optuna_pruning", "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=0", "trainer.max_steps=-1"]
    sizes = ["batch_size=choice(1,8)", "micro_batch_size=1", "trainer.max_tokens=2048"]
    sweep(tmp_path, corpus, *words, *sizes, "optimizer.learning_rate=1e-3")
    with sqlite3.connect(tmp_path / "logs" / "sweep" / "optuna.db") as study:
        rows = study.execute("select trial_id, step from trial_intermediate_values order by step").fetchall()
    steps = {trial: [step for each, step in rows if each == trial] for trial, _ in rows}
    assert len(set(map(len, steps.values()))) == 2  # both sizes
    assert set(map(max, steps.values())) == {20}  # twentieths, of 64 steps and of 8


def test_no_trial_of_a_searched_schedule_is_pruned_unless_it_is_asked_for(tmp_path: Path, corpus: Path) -> None:
    words = ["hydra/sweeper=optuna_pruning", "hydra.sweeper.n_trials=2", "hydra.sweeper.startup_trials=0"]
    words += ["hydra.sweeper.n_jobs=1", "schedule=wsd", "schedule.decay_fraction=interval(0.1,0.9)"]
    for word, said in (("hydra.sweeper.seed=0", True), ("hydra.sweeper.warmup_fraction=0", False)):
        found = subprocess.run(
            command(corpus, *words, word), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr[-3000:]
        assert ("no trial is pruned, as schedule.decay_fraction is searched" in found.stdout) == said


@pytest.mark.parametrize(("space", "sweeper"), [("gpt_nano", "optuna_pruning"), ("bert_nano", "optuna")])
def test_a_space_is_searched_by_either_sweeper(tmp_path: Path, corpus: Path, space: str, sweeper: str) -> None:
    words = [word for word in command(corpus, "hydra.sweeper.n_trials=1", f"hydra/sweeper={sweeper}") if word != "-m"]
    found = subprocess.run(
        [*words, f"search={space}"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
