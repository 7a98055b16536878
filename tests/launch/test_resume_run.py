"""The same command resumes a run; which run `auto` means follows from the times that runs have recorded."""

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.read import latest_run, open_checkpoint, step_folders
from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.config import TextFilesConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.inference.config import GenerateConfig
from pretrain.launch.run_plan import RunPlan, from_record, resolve_run, to_record
from pretrain.optim.config import MatrixPrecision
from pretrain.training.auto_settings import resolve_auto_settings
from pretrain.training.config import Precision
from pretrain.training.train import run


@pytest.fixture
def once(tiny):
    """Return what trains for two steps with these words, in a folder of its own, and returns it."""

    def trained(*words: str, folder: str = "run") -> Path:
        typed = [*words, f"paths.run_dir={tiny.folder / folder}"]
        return Path(run(tiny.plan("model=gpt_nano", "trainer.max_steps=2", *typed)).folder)

    return trained


def forget(folder: Path, *keys: str) -> None:
    """Take keys out of the manifests of a run, as an earlier version would not have written them."""
    for path in folder.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        kept = {key: value for key, value in manifest.items() if key not in (*keys, "record_sha256")}
        path.write_text(json.dumps(kept))


SAME_WORDS = ["model=gpt_nano", "trainer=cpu", "trainer.precision=auto", "optimizer=muon", "schedule=cosine"]


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["recorded", "from before words were recorded"])
def test_the_same_command_again_resumes(tiny, old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """What was resolved in between (a number format, a compiler, devices) is no change."""
    words = [*SAME_WORDS, f"paths.run_dir={tiny.folder / 'run'}", "resume=auto"]
    words += [word for word in tiny.words if not word.startswith("trainer.precision")]
    config = compose("train", words)
    first = resolve_run(config, words)
    first.config.trainer.max_steps = 2
    first = replace(first, config=resolve_auto_settings(first.config))
    run(first)
    saved = open_checkpoint(first.folder)
    assert saved.config["trainer"]["precision"] in ("fp32", "bf16")
    assert set(saved.typed) == {word for word in words if not word.startswith(("paths.run_dir", "resume"))}
    if old:
        forget(first.folder, "typed", "saved_at", "working_folder")
    capsys.readouterr()
    again = resolve_run(compose("train", words), words)
    assert again.resumed is not None
    assert again.config.trainer.precision is Precision[saved.config["trainer"]["precision"]]
    assert again.config.optimizer.newton_schulz_precision is not MatrixPrecision.auto
    assert again.config.parallel.compile is False
    told = capsys.readouterr().out.splitlines()[1:]
    assert told == ["  trainer.max_steps: 2 before, 12 from here on"]
    assert from_record(json.loads(json.dumps(to_record(again)))) == again


@pytest.mark.slow
def test_a_preset_typed_again_takes_nothing_back_that_was_typed_beside_it(tiny, once) -> None:
    folder = once("trainer=cpu", "optimizer=adamw", "optimizer.beta1=0.8", "trainer.profile_steps=0")

    def resumed(*words: str) -> RunConfig:
        typed = [f"paths.cache_dir={tiny.folder / 'cache'}", f"resume={folder}", *words]
        return resolve_run(compose("train", typed), typed).config

    again = resumed("trainer=cpu", "optimizer=adamw")
    assert (again.trainer.max_steps, again.optimizer.beta1) == (2, 0.8)
    other = resumed("trainer=debug")  # ten steps, but for what was typed
    assert (other.trainer.max_steps, other.trainer.val_check_interval) == (2, 5)
    with pytest.raises(ConfigError, match=r"optimizer\.kind: adamw in the run, muon now"):
        resumed("optimizer=muon")
    with pytest.raises(ConfigError, match=r"experiment=novels_small sets many settings.* without an experiment"):
        resumed("experiment=novels_small", "data.path=x")


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_earlier_checkpoint_takes_none_of_the_course_it_left(
    tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=gpt_nano", "checkpoint.keep=2"]
    folder = Path(run(tiny.plan(*words, "checkpoint.keep=3", f"paths.run_dir={tiny.folder / 'run'}")).folder)
    left = open_checkpoint(folder).tensors("model")
    early = [f"resume={folder}/checkpoints/step-00000004", "optimizer.learning_rate=0.5"]
    report = run(tiny.plan(*words, *early, "allow_change=[optimizer.learning_rate]"))
    assert report.steps == 12
    told = capsys.readouterr().out
    assert "later checkpoints are set aside, free to delete: step-00000008.left, step-00000012.left" in told
    assert [path.name for path in step_folders(folder / "checkpoints")] == ["step-00000008", "step-00000012"]
    newest = open_checkpoint(folder).tensors("model")
    assert any(not torch.equal(newest[name], left[name]) for name in left)
    assert open_checkpoint(folder).config["optimizer"]["learning_rate"] == 0.5
    done = run(tiny.plan(*words, f"resume={folder}/checkpoints/step-00000008", "trainer.max_steps=8"))
    assert done.steps == 8  # nothing was left to do, so nothing is set aside
    assert open_checkpoint(folder).step == 12


@pytest.mark.slow
def test_what_a_resume_cannot_have_is_refused_and_devices_change_nothing_else(tiny) -> None:
    tiny.words = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    first = tiny.plan("model=gpt_nano", f"paths.run_dir={tiny.folder / 'run'}")
    first.config.trainer.max_steps = 2  # as a rule or a recipe decided it
    folder = run(first).folder

    def resumed(*words: str) -> RunConfig:
        typed = [f"paths.cache_dir={tiny.folder / 'cache'}", f"resume={folder}", *words]
        return resolve_run(compose("train", typed), typed).config

    trainer = resumed("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2").trainer
    assert (trainer.max_steps, trainer.strategy.name, trainer.devices) == (2, "ddp", 2)
    with pytest.raises(ConfigError, match=r"paths\.run_dir=.*other is not the folder of resume=.*Leave paths"):
        resumed(f"paths.run_dir={tiny.folder / 'other'}")
    (tiny.folder / "exported").mkdir()
    (tiny.folder / "exported" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"exported is a model of Hugging Face.*weights: init_from=.*exported"):
        resumed(f"resume={tiny.folder / 'exported'}")
    with pytest.raises(ConfigError, match=r"recipe=gpt_small sets many settings.* without a recipe"):
        resumed("recipe=gpt_small")


@pytest.mark.long
def test_init_from_with_resume_auto_starts_and_then_resumes(tiny, once) -> None:
    base = once("optimizer=adamw")
    words = ["model=imported", f"init_from={base}", f"paths.run_dir={tiny.folder / 'tuned'}", "resume=auto"]
    words += [word for word in tiny.words if not word.startswith(("model.", "tokenizer", "trainer.max_steps"))]

    def placed(*more: str) -> RunPlan:
        typed = [*words, "trainer.max_steps=2", *more]
        return resolve_run(compose("train", typed), typed)

    first = placed()
    assert first.resumed is None
    assert first.config.model.d_model == 16  # the base's
    run(first)
    again = placed()
    assert again.resumed is not None
    assert again.config.init_from == str(base)
    assert placed(f"init_from={os.path.relpath(base)}").resumed is not None  # the same base, named otherwise
    assert placed("init_from=null").config.init_from == str(base)
    other = shutil.copytree(base, tiny.folder / "other")
    with pytest.raises(ConfigError, match=r"init_from: .*run in the run, .*other now"):
        placed(f"init_from={other}")
    shutil.rmtree(base)  # it goes on where the base is gone
    assert placed().resumed is not None
    with pytest.raises(ConfigError, match=r"resume=a continues a run .* give only one, or resume=auto"):
        compose("train", ["resume=a", "init_from=b"])


@pytest.mark.slow
def test_auto_is_the_run_saved_last_by_its_own_record(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by name, not by what a copy did to the files' times, and not by a clock that was set back meanwhile."""
    logs = tiny.folder / "logs"
    first = Path(run(tiny.plan("model=gpt_nano", "trainer.max_steps=1")).folder)
    first = first.rename(first.with_name("z_best"))
    real, behind = time.time, 86_400.0
    monkeypatch.setattr(time, "time", lambda: real() - behind)
    second = Path(run(tiny.plan("model=gpt_nano", "trainer.max_steps=1", "seed=1")).folder)
    second = second.rename(second.with_name("a"))
    monkeypatch.undo()
    for path in first.rglob("manifest.json"):
        os.utime(path)  # as a copy of it would be newer
    assert latest_run(logs) == second
    assert tiny.plan("model=gpt_nano", "seed=1", "resume=auto").folder == second
    assert tiny.plan("model=gpt_nano", "resume=auto", f"paths.run_dir={first}").folder == first
    assert tiny.plan("model=bert_nano", "resume=auto").resumed is None  # no run of this name
    bare = ["resume=auto", f"paths.logs_dir={logs}", "trainer.max_steps=3"]  # says nothing of what is trained
    assert resolve_run(compose("train", bare), bare).folder == second
    second = second.rename(tiny.folder / "logs" / "other_name")
    assert resolve_run(compose("train", bare), bare).folder == second
    assert tiny.plan("model=gpt_nano", "resume=auto").folder == first
    for folder in (first, second):
        forget(folder, "saved_at")  # of an earlier version: the times of their manifests
    (step,) = step_folders(second / "checkpoints")
    os.utime(step / "manifest.json", (1e9, 1e9))
    assert latest_run(logs) == first
    (step / "manifest.json").write_text("{")  # a stranger's, say
    os.utime(step / "manifest.json", (2e9, 2e9))
    assert latest_run(logs) == second
    shutil.rmtree(logs)
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint was found below"):
        latest_run(logs)


@pytest.mark.long
def test_a_run_resumes_from_any_working_folder(tiny, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative paths are those of where it was typed; the text may also have moved."""
    home, elsewhere = tiny.folder / "a", tiny.folder / "b"
    (home / "texts").mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copy(corpus / "00.txt", home / "texts" / "t.txt")
    (home / "texts" / "t.txt").write_text("one two three four five " * 200)
    monkeypatch.chdir(home)
    words = [word for word in tiny.words if not word.startswith(("data", "paths"))]
    typed = [*words, "model=gpt_nano", "data=text_files", "data.path=texts/*.txt", "trainer.max_steps=1"]
    typed += ["paths.run_dir=logs/r"]
    run(resolve_run(compose("train", typed), typed))

    def resumed(*words: str) -> RunConfig:
        typed = [f"resume={home / 'logs' / 'r'}", "trainer.max_steps=2", *words]
        return resolve_run(compose("train", typed), typed).config

    monkeypatch.chdir(elsewhere)
    data = resumed().data
    assert isinstance(data, TextFilesConfig)
    assert data.path == str(home / "texts" / "*.txt")
    assert len(list(rows_of_step(home / "logs" / "r", 1))) == 4
    assert run(
        resolve_run(config := resumed(f"data.path={home / 'texts' / 't.txt'}"), [f"resume={home / 'logs' / 'r'}"])
    )
    assert config.data.path == str(home / "texts" / "t.txt")
    with pytest.raises(ConfigError, match=r"data\.separator: null in the run, x now"):
        resumed("data.separator=x")  # a setting of the run's kind of data, which need not be named again
    monkeypatch.chdir(tiny.folder)
    home.rename(tiny.folder / "moved")  # the whole project
    home = tiny.folder / "moved"
    assert resumed().data.path == str(home / "texts" / "*.txt")


@pytest.mark.slow
def test_the_commands_to_type_next_are_typed_as_they_stand(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any folder, by the script that ran, and quoted once for the shell."""
    register_schemas("generate", GenerateConfig)
    folder = tiny.folder / "my runs" / "é = $x 😀, it's"
    report = run(tiny.plan("model=bert_nano", "trainer.max_steps=1", f"paths.run_dir={folder}"))
    assert report.folder == str(folder)

    def commands() -> list[list[str]]:
        return [shlex.split(line) for line in str(report).partition("\nNext\n")[2].splitlines()]

    (_, script, *words), tensorboard, (_, training, *longer) = commands()
    assert (Path(script).name, Path(training).name) == ("generate.py", "train.py")
    assert Path(script).is_file()
    assert Path(training).is_file()
    used: GenerateConfig = compose("generate", words)
    assert (used.checkpoint, used.prompt) == (str(folder), "The quick [MASK] fox jumps over the lazy dog.")
    assert tensorboard == ["tensorboard", "--logdir", str(folder.parent)]
    assert resolve_run(compose("train", longer), longer).config.trainer.max_steps == 2
    beside, mine = Path(script).absolute(), tiny.folder / "my script.py"
    mine.touch()
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setattr(sys, "argv", [str(mine)])  # one that registers plugins
    assert [command[1] for command in commands()] == [str(beside), "--logdir", "my script.py"]
    worker = tiny.folder / "site-packages" / "default_worker.py"  # that of a cluster's library
    worker.parent.mkdir()
    worker.touch()
    monkeypatch.setattr(sys, "argv", [str(worker)])
    assert [Path(command[1]).name for command in commands()] == ["generate.py", "--logdir", "train.py"]
