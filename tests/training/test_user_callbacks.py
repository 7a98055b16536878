"""Callbacks and loggers of the settings: built, saved, resumed; a class that only a file names is not imported."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from pretrain.checkpoint.read import open_checkpoint
from pretrain.checkpoint.write import sealed
from pretrain.config.compose import compose
from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows
from pretrain.launch.run_plan import RunPlan, from_record, resolve_run, to_record
from pretrain.reports.history import read_samples
from pretrain.training.callbacks.plain_state import from_plain, to_plain
from pretrain.training.train import run
from pretrain.training.user_callbacks import UserCallbacks

GPT = ("model=gpt_nano", "optimizer=adamw", "trainer.val_check_interval=2", "checkpoint.every_n_steps=2",
       "checkpoint.keep=0", "logger=csv")  # fmt: skip
WORSE = ("callbacks=early_stopping", "callbacks.early_stopping.mode=max", "callbacks.early_stopping.patience=3")
MODULE = """
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
class Counter(Callback):
    def __init__(self, start=0):
        self.steps = start
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
    def state_dict(self):
        return {"steps": self.steps}
    def load_state_dict(self, state):
        self.steps = state["steps"]
class Plain:
    pass
class Raising(Callback):
    def __init__(self):
        raise KeyError("x")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working directory, not imported yet."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_callbacks.py").write_text(MODULE)
    (tmp_path / "own" / "broken_callbacks.py").write_text("class Mine(:")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.delitem(sys.modules, "own_callbacks", raising=False)
    return "own_callbacks"


def state_at(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = open_checkpoint(folder / "checkpoints" / f"step-{step:08}").progress["callbacks"]
    return found


@pytest.mark.long
def test_early_stopping_ends_a_run_alike_whether_resumed_or_not(tiny, tmp_path: Path) -> None:
    words = (*GPT, *WORSE, f"paths.run_dir={tmp_path / 'run'}")
    report = run(tiny.plan(*words))
    assert report.steps == 8  # the first validation is the best one, and three more follow
    assert "callbacks.early_stopping: Monitored metric val/loss did not improve in the last 3 records." in report.ended
    assert "  ended early        callbacks.early_stopping: " in str(report)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["ended"] == report.ended
    assert report.validation["val/loss"] > 0

    cut = tmp_path / "cut"  # as a kill leaves it behind step 4: checkpoint there, validation not counted
    shutil.copytree(tmp_path / "run", cut)
    for step in (6, 8):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:08}")
    again = run(tiny.plan(*GPT, f"resume={cut}"))
    assert (again.steps, again.ended) == (8, report.ended)
    assert state_at(cut, 6) == state_at(tmp_path / "run", 6)
    rows = [[(r["step"], r["value"]) for r in read_rows(f / "metrics.csv") if r["name"] == "val/loss"]
            for f in (cut, tmp_path / "run")]  # fmt: skip
    assert rows[0] == rows[1]

    stopped = run(tiny.plan(*GPT, f"resume={cut}"))  # typed once more: no further step
    assert (stopped.steps, stopped.ended[:25]) == (8, "callbacks.early_stopping:")
    assert stopped.commands()[-1].endswith(f"resume={cut} trainer.max_steps=16 callbacks.early_stopping.patience=6")
    more = run(tiny.plan(*GPT, f"resume={cut}", "callbacks.early_stopping.patience=4"))
    assert more.steps == 10


@pytest.mark.slow
def test_a_branch_of_a_run_that_was_stopped_early_decays(tiny, tmp_path: Path) -> None:
    length = ("schedule=wsd", "schedule.decay_fraction=0.1", "trainer.max_steps=100")
    base = run(tiny.plan(*GPT, *WORSE, *length, f"paths.run_dir={tmp_path / 'base'}"))
    assert (base.steps, base.ended[:25]) == (8, "callbacks.early_stopping:")
    assert base.commands()[-1].endswith("trainer.max_steps=100 callbacks.early_stopping.patience=6")
    assert [sample.step for sample in read_samples(tmp_path / "base")] == [8]  # there is always one at the end
    typed = [f"branch={base.folder}", "cooldown=3", f"paths.run_dir={tmp_path / 'branch'}"]
    typed += [f"paths.cache_dir={tiny.folder / 'cache'}"]
    branch = run(resolve_run(compose("train", typed), typed))
    assert (branch.steps, branch.ended) == (11, "")


@pytest.mark.slow
def test_early_stopping_needs_what_it_watches(tiny) -> None:
    with pytest.raises(ConfigError, match=r"watches monitor=val/los, which the run does not log\. There are: .*val/lo"):
        run(tiny.plan(*GPT, "callbacks.early_stopping.monitor=val/los"))
    with pytest.raises(ConfigError, match=r"callbacks\.early_stopping watches the validation, and the run has no"):
        run(tiny.plan(*GPT, "callbacks=early_stopping", "data.validation_fraction=0"))
    with pytest.raises(ConfigError, match=r"callbacks\.lr_monitor logs curves, and the run has no logger\. Try logger"):
        run(tiny.plan(*GPT, "callbacks=lr_monitor", "logger=none"))


@pytest.mark.long
def test_a_class_of_the_users_own_runs_and_a_resume_must_name_it_again(tiny, tmp_path: Path, package: str) -> None:
    folder, name = tmp_path / "run", f"callbacks.mine.class_path={package}.Counter"
    more = ["callbacks=[lr_monitor,device_stats]", "loggers.second.class_path=lightning.pytorch.loggers.CSVLogger",
            f"loggers.second.init_args.save_dir={tmp_path / 'second'}"]  # fmt: skip
    run(tiny.plan(*GPT, *more, name, "callbacks.mine.init_args.start=100", "trainer.max_steps=4",
                   f"paths.run_dir={folder}"))  # fmt: skip
    assert state_at(folder, 4)["mine"] == {"steps": 104}
    logged = {row["name"] for row in read_rows(folder / "metrics.csv")}
    assert any(each.startswith("lr-") for each in logged)
    assert "train/loss" in next((tmp_path / "second").rglob("metrics.csv")).read_text()

    del sys.modules[package]
    words = [f"resume={folder}", "trainer.max_steps=6", "loggers.second=null"]
    with pytest.raises(ConfigError) as error:
        tiny.plan(*words)
    assert f"{name} is in the saved settings" in str(error.value).replace("\n", " ")
    assert package not in sys.modules
    plan = tiny.plan(*words, name)
    assert from_record(json.loads(json.dumps(to_record(plan)))).classes == plan.classes  # what ranks are handed
    report = run(plan)
    assert str(report).endswith(f"trainer.max_steps=12 {name}")  # the command to type next names it again
    assert "prompt=The 'plugins=[my_plugin]'\n" in str(replace(report, named_again=["plugins=[my_plugin]"]))
    assert state_at(folder, 6)["mine"] == {"steps": 106}
    assert tiny.plan(*words, "callbacks=early_stopping").config.callbacks.keys() == {"early_stopping"}
    assert tiny.plan(*words, "callbacks.mine=null").config.callbacks.keys() == {"lr_monitor", "device_stats"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_callbacks.Nothing", r"own_callbacks\.Nothing cannot be imported: AttributeError: module"),
        ("no_such_package.Mine", r"no_such_package\.Mine cannot be imported: ModuleNotFoundError: No module named 'no"),
        ("broken_callbacks.Mine", r"broken_callbacks\.Mine cannot be imported: SyntaxError: .*Install its package, or"),
        ("own_callbacks.Raising", r"init_args=\{\} does not fit own_callbacks\.Raising: KeyError: 'x'\. Try callbacks"),
        ("own_callbacks.Plain", r"Plain is no subclass of Lightning's Callback\. Try a class of your own"),
        ("os.system", r"os\.system is no subclass of Lightning's Callback"),
    ],
)
def test_only_callbacks_of_lightning_are_built(tiny, package: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny.plan(*GPT, f"callbacks.mine.class_path={path}"))
    with pytest.raises(ConfigError, match=r"init_args=\{.no.: 1\} does not fit own_callbacks\.Counter"):
        run(tiny.plan(*GPT, "callbacks.mine={class_path: own_callbacks.Counter, init_args: {no: 1}}"))


class Opaque(Callback):
    """Has a state that is no plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"file": object()}


class Refusing(Callback):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise KeyError("other")


def test_states_are_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    state = {"best": torch.tensor(float("inf")), "rows": [1, 2.5, None, True], "grid": torch.ones(2, 2).half()}
    found = from_plain(json.loads(json.dumps(to_plain(state), allow_nan=False)))
    assert torch.equal(found["grid"], state["grid"])
    assert (found["best"], found["rows"]) == (state["best"], state["rows"])
    with pytest.raises(ValueError, match="it has 10,002 values"):
        to_plain({"many": [0] * 10_000})
    with pytest.raises(ValueError, match="damaged tensor"):
        from_plain({"__tensor__": [1], "dtype": "os.system"})
    opaque = UserCallbacks({"mine": Opaque()})
    assert opaque.state_dict() == opaque.state_dict() == {}
    assert capsys.readouterr().out.count("the state of callbacks.mine is not saved") == 1
    refusing = UserCallbacks({"mine": Refusing()})
    refusing.load_state_dict({"callbacks": {"mine": {"a": 1}}})
    with pytest.raises(CheckpointError, match=r"the saved state of callbacks\.mine does not fit its class: KeyError"):
        refusing.restore()


@pytest.mark.slow
def test_a_class_or_plugin_in_a_hostile_folder_is_imported_by_nobody(
    tiny, tmp_path: Path, package: str, monkeypatch
) -> None:
    folder = tmp_path / "run"
    plain = ("model=gpt_nano", "trainer.max_steps=2", "logger=csv", f"paths.run_dir={folder}")
    run(tiny.plan(*plain))
    entry = {"kind": "class_path", "class_path": f"{package}.Counter", "init_args": {"start": 1}}
    manifest = folder / "checkpoints" / "step-00000002" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["config"] |= {"callbacks": {"x": entry}, "loggers": {"y": dict(entry, class_path="os.system")}}
    record["config"]["plugins"] = [package]
    record["typed"] += [
        f"callbacks.x.class_path={package}.Counter",
        "loggers.y.class_path=os.system",
        f"plugins=[{package}]",
    ]
    manifest.write_text(json.dumps(sealed(record)))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"callbacks": {"x": entry}, "plugins": [package]}))

    imported: list[str] = []
    monkeypatch.setattr("pretrain.training.import_class.import_named", imported.append)
    model = LanguageModel.load(folder)
    assert model.generate("The", max_new_tokens=2)
    assert score(EvalConfig(checkpoint=str(folder)), folder)["loss"] > 0
    assert list(rows_of_step(folder, 1))
    export_model(ExportConfig(checkpoint=str(folder), output=str(tmp_path / "exported")), folder)
    with pytest.raises(ConfigError, match=r"callbacks\.x\.class_path=own_callbacks\.Counter is in the saved settings"):
        tiny.plan(f"resume={folder}", "trainer.max_steps=4")
    config = open_checkpoint(folder).run_config()  # nor where a plan is made of saved settings alone
    with pytest.raises(ConfigError, match=r"loggers\.y\.class_path=os\.system is in the saved settings"):
        run(RunPlan(config, folder, None))
    assert not imported
    assert package not in sys.modules
