"""The figures of a run that was cut off and resumed are those of one that was not: each step once, none missing."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.checkpoint import open_checkpoint
from pretrain.errors import Interrupted
from pretrain.training.callbacks.ledger import Ledger
from pretrain.training.callbacks.scores import Scores
from pretrain.training.loggers import LongCSVLogger, has_figures, read_rows
from pretrain.training.module import TrainingModule
from pretrain.training.run import run


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
            trainer: Any = SimpleNamespace(is_global_zero=True)
            Ledger(path, resumed_at=1).on_train_start(trainer, None)  # type: ignore[arg-type]

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


CUT_OFF = ["validating", "scoring", "signal"]


@pytest.fixture
def cut_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a run end after the checkpoint of step 5 and before its figures: killed while it makes them, or told to."""
    kind = request.param
    owner, name = {
        "validating": (TrainingModule, "validation_step"),
        "scoring": (Scores, "_score"),
        "signal": (TrainingModule, "training_step"),
    }[kind]
    original = getattr(owner, name)

    def ends(self: Any, *arguments: Any) -> Any:
        trainer = arguments[0] if kind == "scoring" else self.trainer
        if kind == "signal" and trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind != "signal" and trainer.global_step == 5:
            raise KeyError("the power is gone")
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, ends)
        yield patch


@pytest.mark.parametrize("cut_off", CUT_OFF, indirect=True)
def test_a_validation_that_was_cut_off_is_made_up_for(tiny: Any, tmp_path: Path, cut_off: pytest.MonkeyPatch) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(2 * (json.dumps({"sentence_good": "a fox", "sentence_bad": "fox a", "UID": "order"}) + "\n"))
    usual = ["checkpoint.every_n_steps=5", "scores.every_n_steps=5", f"scores.minimal_pairs=[{pairs}]"]

    def at(name: str) -> list[str]:
        return [*usual, f"paths.run_dir={tiny.folder / name}"]

    with pytest.raises((KeyError, Interrupted)):
        run(tiny.place(*at("cut")))
    cut_off.undo()
    assert open_checkpoint(tiny.folder / "cut").step == 5
    killed = tiny.folder / "cut" / ".metrics.csv.123.tmp"
    killed.touch()
    assert not has_figures(tiny.folder / "cut" / "metrics.csv", 5, "val/")
    resumed = run(tiny.place(*at("cut"), "resume=auto"))
    whole = run(tiny.place(*at("whole")))
    assert not killed.exists()
    found, expected = (figures(tiny.folder / name) for name in ("cut", "whole"))
    assert found == expected
    assert {step for step, name in expected if name == "val/loss"} == {5, 10, 12}
    assert resumed.first_validation == whole.first_validation == {}
    for part in ("model", "optimizer", "random"):
        one, other = (open_checkpoint(tiny.folder / name).tensors(part) for name in ("cut", "whole"))
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def figures(folder: Path) -> dict[tuple[int, str], float]:
    """Return the figures that depend on nothing but the weights; each stands in the table once."""
    rows = [row for row in read_rows(folder / "metrics.csv") if row["name"].split("/")[0] in ("train", "val", "eval")]
    found = {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    return found
