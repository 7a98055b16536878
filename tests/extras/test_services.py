"""Runs logged by the real libraries of the extras, offline. Skipped if they are not installed."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import ConfigError
from pretrain.training.train import run

SECRET = "canary5ecret"
TINY = ("model=gpt_nano", "trainer.max_steps=4", "trainer.val_check_interval=2", "sample.every_n_steps=2")
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "COMET_API_KEY"):
        monkeypatch.setenv(name, SECRET * 4)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("MY_OWN_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))


def refuses_secret(folder: Path) -> None:
    """Fail where a file of a run holds a value of the environment."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_wandb_offline(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    words = (*TINY, "logger=[csv,wandb]", "loggers.wandb.mode=offline", "loggers.wandb.log_checkpoints=true")
    report = run(tiny.plan(*words))
    first = json.loads(next((Path(report.folder) / "checkpoints").glob("step-*4/manifest.json")).read_text())
    run_id = first["progress"]["logger_ids"]["wandb"]
    (file,) = (path for path in Path(report.folder).rglob(f"*{run_id}.wandb") if "latest-run" not in path.parts)
    until, names = (
        time.monotonic() + 20,
        (b"train/loss", b"val/loss", b"trainer/global_step", b"samples", b"checkpoint-"),
    )
    while time.monotonic() < until and not all(name in file.read_bytes() for name in names):
        time.sleep(0.1)  # another process of wandb's writes it
    assert [name for name in names if name not in file.read_bytes()] == []
    run(tiny.plan(*words, f"resume={report.folder}", "trainer.max_steps=6"))
    assert len(list(Path(report.folder).glob(f"wandb/offline-run-*-{run_id}"))) >= 1  # the same run goes on
    refuses_secret(Path(report.folder))


def test_mlflow_with_a_local_store(tiny: Any, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    words = (*TINY, "logger=[csv,mlflow]", "loggers.mlflow.log_checkpoints=true")
    report = run(tiny.plan(*words))
    run(tiny.plan(*words, f"resume={report.folder}", "trainer.max_steps=6"))
    client = mlflow.MlflowClient(f"sqlite:///{tiny.folder / 'logs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pretrain")
    (found,) = client.search_runs([experiment.experiment_id])  # one run, though it was resumed
    assert (found.info.status, found.data.params["model.n_layers"]) == ("FINISHED", "2")
    assert {"train/loss", "val/loss", "optim/learning_rate"} <= found.data.metrics.keys()
    assert [each.step for each in client.get_metric_history(found.info.run_id, "val/loss")] == [2, 4, 6]
    names = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert names == {"checkpoints", "config", "samples", "samples.json"}
    with sqlite3.connect(tiny.folder / "logs" / "mlflow.db") as store:
        assert SECRET not in "".join(store.iterdump())
    refuses_secret(tiny.folder / "logs")


def test_comet_offline(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("comet_ml")
    report = run(tiny.plan(*TINY, "logger=[csv,comet]", "loggers.comet.online=false"))
    (archive,) = (Path(report.folder) / "comet").glob("*.zip")
    import zipfile

    with zipfile.ZipFile(archive) as file:
        texts = b"".join(file.read(name) for name in file.namelist())
    assert b"val/loss" in texts
    assert SECRET.encode() not in texts
    refuses_secret(Path(report.folder))


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_missing_library_is_named_with_its_extra(tiny: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.training.logger_config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"loggers\.{kind} needs the package {PACKAGES[kind]}, .*'\.\[{kind}\]'"):
        run(tiny.plan(*TINY, f"logger={kind}"))
