"""A job of a sweep that ended before is not run again, and one that diverged is no success."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode

from pretrain.config.hydra_job import HydraJob
from pretrain.config.launcher import _is_done, _returned
from pretrain.config.pruning_sweeper import _diverged
from pretrain.config.run import RunConfig
from pretrain.config.sweep import Job, job_of, leave_report
from pretrain.errors import DataError, DivergenceError


@pytest.mark.parametrize(
    ("validation", "exit_code", "told"),
    [
        ({"val/loss": 2.5}, 0, "finished before, in"),
        ({"not": None}, 0, "finished before, in"),  # without a validation
        ({"val/loss": None}, 5, "diverged before, in"),
    ],
)
def test_what_ended_before_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: dict[str, float | None], exit_code: int, told: str
) -> None:
    report = {"steps": 10, "tokens_seen": 100, "parameters": 5, "tokens_per_s": 1.0, "validation": validation}
    if "not" in validation:
        report |= {"validation": {"val/loss": None}, "not_validated": {"": "no document was held out"}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    job = Job(["seed=1"], ["seed=1"], tmp_path)
    assert _is_done(job, 1)
    assert told in capsys.readouterr().out
    assert job.exit_code == exit_code
    result = _returned(job)
    assert (result.status.name == "FAILED") == (exit_code != 0)
    assert not _is_done(Job(["seed=2"], ["seed=2"], tmp_path / "other"), 2)


@pytest.mark.parametrize(
    ("loss", "sweeper", "error"),
    [
        (None, "basic", "seed=1 diverged before, in .*; delete the folder to train it again"),
        (None, "optuna", "seed=1 diverged before"),
        (2.5, "optuna", None),
        ("none", "listed", None),  # nothing compares its jobs
        ("none", "optuna", "seed=1 has no validation loss for the sweeper to compare jobs by"),
    ],
)
def test_under_launchers_of_others_a_job_that_diverged_is_no_success_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any, sweeper: str, error: str | None
) -> None:
    choices = {"hydra/sweeper": sweeper}
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=["seed=1"]), runtime=SimpleNamespace(choices=choices)
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    report: dict[str, Any] = {"steps": 10, "tokens_seen": 100, "parameters": 5, "tokens_per_s": 1.0}
    report["validation"] = {} if loss == "none" else {"val/loss": loss}
    folder = job_of(["seed=1"], ("seed",), tmp_path).folder
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    job = HydraJob("train", RunConfig, print, ["seed=1"], [], swept=("seed",), logs_folder=tmp_path, records=tmp_path)
    if error is None:
        assert job(None) == (None if loss == "none" else loss)
    else:
        with pytest.raises(DivergenceError if loss is None else Exception, match=error):
            job(None)
    assert [each.exit_code for each in job.recorded()] == [5 if loss is None else 0]


def test_a_search_goes_on_behind_a_divergence_under_any_launcher() -> None:
    for error, expected in ((DivergenceError("NaN"), True), (DataError("no text"), False), (ValueError(), False)):
        result = JobReturn()
        result.return_value = error
        assert _diverged(result) is expected


def test_a_report_of_a_sweep_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    leave_report([Job(["seed=1"], ["seed=1"], tmp_path / "file" / "sweep" / "seed-1")], deadline_s=5.0)
    assert capsys.readouterr().out == f"warning: {tmp_path}/file/sweep/sweep.json was not written: Not a directory\n"
    leave_report([Job(["seed=1"], ["seed=1"], tmp_path / "sweep" / "seed-1")], deadline_s=0.0)
    assert capsys.readouterr().out.startswith("warning: no report: ")
    assert (tmp_path / "sweep" / "sweep.json").exists()
