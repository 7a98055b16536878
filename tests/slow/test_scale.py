"""A ladder of two sizes and two lengths, trained, fitted, and typed again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job import ROOT

WORDS = [
    "data=text_files", "tokenizer=bytes", "model.context_length=32", "batch_size=4", "trainer.precision=fp32",
    "trainer.enable_progress_bar=false", "sample.max_new_tokens=1", "logging.report=false", "logger=csv",
    "ladder.sizes=[1x16,2x32]", "ladder.tokens=[1280,2560]", "ladder.held_out=2x48", "ladder.samples=20",
]  # fmt: skip


def scaled(folder: Path, corpus: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src" / "scale.py"), *WORDS, f"data.path={corpus}", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.long
@pytest.mark.parametrize("model", ["gpt_nano", "bert_nano", "diffusion_nano"])
def test_a_ladder_is_trained_fitted_and_not_trained_again(tmp_path: Path, corpus: Path, model: str) -> None:
    found = scaled(tmp_path, corpus, f"model={model}")
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "logs" / "scale" / model
    data = json.loads((folder / "scale.json").read_text())
    assert [run["steps"] for run in data["runs"]] == [10, 20, 10, 20]
    assert [run["size"] for run in data["runs"]] == ["1x16", "1x16", "2x32", "2x32"]
    assert "those of Hoffmann et al. 2022 are taken" in found.stdout
    written = (folder / "prediction.json").read_bytes()
    prediction = json.loads(written)
    assert prediction["parameters"] == data["held_out"]["run"]["parameters"]  # counted before it was trained
    reports = {path: path.stat().st_mtime_ns for path in folder.rglob("report.json")}
    assert len(reports) == 5
    size = data["recommended"]["size"].split("x")
    preset = (folder / "configs" / "experiment" / "recommended.yaml").read_text()
    assert f"n_layers: {size[0]}" in preset
    removed = min(reports)
    removed.unlink()  # as if it had been interrupted
    again = scaled(tmp_path, corpus, f"model={model}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 4
    assert {path for path, time in reports.items() if path.stat().st_mtime_ns != time} == {removed}
    assert (folder / "prediction.json").read_bytes() == written
    assert not json.loads((folder / "scale.json").read_text())["held_out"]["is_late"]
    if model == "gpt_nano":
        (folder / "prediction.json").unlink()  # as another ladder with the same held-out run would find it
        assert scaled(tmp_path, corpus, f"model={model}").returncode == 0
        assert json.loads((folder / "scale.json").read_text())["held_out"]["is_late"]
        assert "predicted after its start" in (folder / "scale.html").read_text()


@pytest.mark.long
def test_a_failed_run_ends_the_ladder_with_its_code(tmp_path: Path, corpus: Path) -> None:
    found = scaled(tmp_path, corpus, "data.validation_path=nowhere")
    assert found.returncode == 3
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("JobError: a run of the ladder ended with exit code 3; the lines above say why. Typed again")
    shown = scaled(tmp_path, corpus, "data.validation_fraction=0", "ladder.held_out=null")
    assert shown.returncode == 4
    assert "has no validation loss to fit. Try a larger data.validation_fraction" in shown.stderr


@pytest.mark.long
def test_an_interrupted_ladder_says_how_to_go_on(tmp_path: Path, corpus: Path) -> None:
    words = [*WORDS, f"data.path={corpus}", "model=gpt_nano", "ladder.tokens=[12800000,25600000]"]
    command = [sys.executable, str(ROOT / "src" / "scale.py"), *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not any(tmp_path.glob("logs/scale/gpt_nano/**/metrics.csv")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    last = errors.strip().splitlines()[-1]
    assert (process.returncode, last) == (130, "Interrupted: the ladder was interrupted; type it again to go on")
