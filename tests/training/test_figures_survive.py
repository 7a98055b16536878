"""A resumed run logs the metrics of an uninterrupted one: each step once, none missing."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.config.compose import register_schemas
from pretrain.config.run import RunConfig
from pretrain.errors import Interrupted
from pretrain.launch.run_folder import read_rows
from pretrain.stop_signals import AskedToStop
from pretrain.training.callbacks import samples, scores
from pretrain.training.callbacks.ledger import Ledger
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.csv_table import LongCSVLogger, has_figures
from pretrain.training.loggers.tensorboard import RunTensorBoard
from pretrain.training.train import run, train


@pytest.mark.parametrize("kind", ["ledger", "figures"])
def test_a_resume_that_is_killed_at_once_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / kind
    lines = {
        "ledger": '{"step":1,"samples":[0]}\n{"step":2,"samples":[1]}\n',
        "figures": "step,name,value\r\n1,train/loss,2.5\r\n2,train/loss,2.25\r\n",
    }[kind]
    path.write_text(lines, encoding="utf8", newline="")

    def resume() -> None:
        if kind == "figures":
            LongCSVLogger(path, resumed_at=1)
        else:
            Ledger(path, resumed_at=1).drop_later_lines()

    def killed(*_: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(SystemExit, match="killed"):
            resume()
    assert path.read_bytes().decode() == lines
    resume()
    assert path.read_bytes().decode() == "".join(
        line for line in lines.splitlines(keepends=True) if "2" not in line[:10]
    )


WORK = {
    "training": (TrainingModule, "training_step", 4),
    "validating": (TrainingModule, "validation_step", 5),
    "scoring": (scores, "score_tasks", 5),
    "sampling": (samples, "sample_text", 5),
    "saving": (checkpoint_writing, "write", 5),
    "validating at the end": (TrainingModule, "validation_step", 12),
    "scoring at the end": (scores, "score_tasks", 12),
}
FINISHED = ("training", "saving")  # a signal waits for the end of these


@contextmanager
def stopping() -> Iterator[None]:
    """Have a signal raise AskedToStop where nothing else takes it, as a script's process does."""

    def stop(number: int, frame: Any) -> None:
        raise AskedToStop(number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        assert signal.getsignal(signal.SIGTERM) is stop  # given back by the run
        signal.signal(signal.SIGTERM, previous)


class CutOff:
    """Ends a run after a step, in one kind of its work: by a kill, or by a signal."""

    def __init__(self, patch: pytest.MonkeyPatch, work: str, killed: bool) -> None:
        self.calls = 0  # of the work, from that step on
        self.done = 0  # those of them that came to their end
        self.reached = 0  # the newest step whose figures are there
        owner, name, step = WORK[work]
        original, log = getattr(owner, name), RunTensorBoard.log_metrics

        def logged(logger: Any, figures: Any, step: int) -> None:
            self.reached = step
            log(logger, figures, step)

        def ends(*arguments: Any, **named: Any) -> Any:
            if self.reached < step:
                return original(*arguments, **named)
            self.calls += 1
            if killed:
                raise KeyError("the power is gone")
            signal.raise_signal(signal.SIGTERM)
            found = original(*arguments, **named)
            self.done += 1
            return found

        patch.setattr(RunTensorBoard, "log_metrics", logged)
        patch.setattr(owner, name, ends)


@pytest.fixture(scope="module")
def shared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Return a maker of runs with several batches of validation, scores and samples; `whole` was left alone."""
    register_schemas("train", RunConfig)
    made = TinyRun(corpus, tmp_path_factory.mktemp("shared"))
    pairs = made.folder / "pairs.jsonl"
    pairs.write_text(2 * (json.dumps({"sentence_good": "a fox", "sentence_bad": "fox a", "UID": "order"}) + "\n"))
    made.words += ["scores.every_n_steps=5", f"scores.minimal_pairs=[{pairs}]", "sample.every_n_steps=5"]
    made.words += ["batch_size=2", "data.validation_fraction=0.2", "checkpoint.every_n_steps=100"]
    run(made.plan(f"paths.run_dir={made.folder / 'whole'}"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "killed"), [("validating", True), ("scoring", True), *((work, False) for work in WORK)]
)
def test_an_interrupted_run_makes_up_for_missing_work(
    shared: TinyRun, monkeypatch: pytest.MonkeyPatch, work: str, killed: bool
) -> None:
    """Killed, or told by a signal to stop in the middle of its work, a run saves, stops, and ends as one left alone."""
    cut, whole = shared.folder / f"{work} {killed}".replace(" ", "-"), shared.folder / "whole"
    step, often = 12 if WORK[work][2] == 12 else 5, killed or work == "saving"
    with monkeypatch.context() as patch:
        cut_off = CutOff(patch, work, killed)
        with pytest.raises((KeyError, Interrupted)) as caught, stopping():
            train(shared.plan(f"paths.run_dir={cut}", *(["checkpoint.every_n_steps=5"] if often else [])))
    assert cut_off.calls == 1
    if not killed:
        assert str(caught.value) == f"SIGTERM at step {step}: saved; go on with resume=auto"
        assert cut_off.done == (work in FINISHED)
    assert [path.name for path in step_folders(cut / "checkpoints")] == [f"step-{step:08d}"]
    leftover = cut / ".metrics.csv.123.tmp"
    leftover.touch()
    missing = "eval/" if work.startswith(("scoring", "sampling")) else "val/"
    assert not has_figures(cut / "metrics.csv", step, missing)
    report = run(shared.plan(f"paths.run_dir={cut}", "resume=auto"))
    assert report.first_validation == {}
    assert not leftover.exists()
    found, expected = figures(cut), figures(whole)
    assert found == expected
    for name in ("val/loss", "eval/pairs/accuracy"):
        assert {step for step, figure in expected if figure == name} == {5, 10, 12}
    for part in ("model", "optimizer", "random"):
        one, other = (open_checkpoint(folder).tensors(part) for folder in (cut, whole))
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.slow
def test_a_mean_loss_counts_the_steps_before_a_resume(tiny: TinyRun) -> None:
    words = ["trainer.log_every_n_steps=5", "checkpoint.every_n_steps=4", "checkpoint.keep=0"]
    folder = tiny.folder / "run"
    run(tiny.plan(f"paths.run_dir={folder}", *words))
    whole = figures(folder)
    assert (10, "train/loss") in whole
    run(tiny.plan(f"resume={folder / 'checkpoints' / 'step-00000004'}", *words))
    assert figures(folder) == whole
    run(tiny.plan(f"resume={folder / 'checkpoints' / 'step-00000008'}", *words))
    assert figures(folder) == whole


def figures(folder: Path) -> dict[tuple[int, str], float]:
    """Return the figures that depend on nothing but the weights; each stands in the table once."""
    rows = [row for row in read_rows(folder / "metrics.csv") if row["name"].split("/")[0] in ("train", "val", "eval")]
    found = {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    return found
