"""A job of a sweep that ended before is not run again, and one that diverged is no success."""

import json
from pathlib import Path

import pytest

from pretrain.config.launcher import _is_done, _returned
from pretrain.config.sweep import Job


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
