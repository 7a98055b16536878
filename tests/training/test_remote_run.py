"""A run whose copy is in an object storage goes on exactly where its own folder is lost, and back."""

import json
import shutil
from pathlib import Path

import pytest
from faulty_storage import URL, FaultyStorage, steps_at
from fsspec.implementations.memory import MemoryFileSystem
from same_state import assert_same_state

from pretrain.checkpoint.read import open_checkpoint
from pretrain.checkpoint.remote import local_copy
from pretrain.commands import tasks
from pretrain.config.scripts import AverageConfig, CompareConfig, ReportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files.object_storage import RemoteFolder
from pretrain.inference.config import GenerateConfig
from pretrain.launch.remote_runs import fetch_files, local_figures
from pretrain.launch.run_plan import from_record, to_record
from pretrain.training.config import PathsConfig
from pretrain.training.train import train

HERE = f"storage.url={URL}"
_OF_STARTS = ("logger_ids",)


def uninterrupted(tiny) -> Path:
    folder = tiny.folder / "uninterrupted"
    train(tiny.plan(f"paths.run_dir={folder}"))
    return folder


def lose(tiny) -> None:
    """Delete every run folder below logs_dir, as a machine that is gone."""
    shutil.rmtree(tiny.folder / "logs")


@pytest.mark.slow
def test_a_run_moves_from_the_storage_to_a_folder_and_back_bit_for_bit(tiny, storage: FaultyStorage) -> None:
    tiny.words.append("schedule=constant")  # whose rate does not depend on the length of the run
    expected = uninterrupted(tiny)
    train(tiny.plan(HERE, "name=a", "trainer.max_steps=4"))
    assert steps_at() == [4]
    lose(tiny)

    plan = tiny.plan(f"resume={URL}", "trainer.max_steps=8")  # goes on where it was, without storage.url
    assert plan.start == 4
    assert plan.remote is not None
    assert plan.remote.startswith(f"{URL}/a/")
    assert plan.folder.parent == tiny.folder / "logs" / "a"
    train(plan)
    assert steps_at() == [4, 8]

    below = tiny.plan(f"resume={plan.remote}", HERE, "trainer.max_steps=8", f"paths.run_dir={tiny.folder / 'x'}")
    assert below.remote == plan.remote  # it goes on in its copy, wherever the folder is
    shutil.rmtree(tiny.folder / "x")
    deep = f"{URL}/a".rpartition("/")[0]
    placed = tiny.plan(f"resume={plan.remote}", f"storage.url={deep}", "trainer.max_steps=8")
    assert (placed.folder, placed.remote) == (plan.folder, plan.remote)

    moved = tiny.folder / "moved"
    shutil.copytree(plan.folder, moved)
    lose(tiny)
    local = tiny.plan(f"resume={moved}", "trainer.max_steps=10")  # here alone
    assert local.remote is None
    train(local)
    assert steps_at() == [4, 8]

    back = tiny.plan(f"resume={moved}", HERE, "trainer.max_steps=12")
    assert back.remote == f"{URL}/moved"
    train(back)
    assert_same_state(moved, expected, but=_OF_STARTS)
    assert_same_state(local_copy(f"{URL}/moved", tiny.folder / "cache"), expected, but=_OF_STARTS)
    rows = (moved / "metrics.csv").read_text().splitlines()
    assert sorted({int(row.split(",")[0]) for row in rows[1:] if ",train/loss," in row}) == list(range(1, 13))


@pytest.mark.long
def test_auto_takes_the_copy_where_it_was_saved_last(tiny, storage: FaultyStorage) -> None:
    words = (HERE, "name=a", "resume=auto")
    first = tiny.plan(*words, "trainer.max_steps=4")  # nothing to resume, anywhere
    assert first.resumed is None
    train(first)
    lose(tiny)
    second = tiny.plan(*words, "trainer.max_steps=8")
    assert (second.start, second.folder, second.remote) == (4, first.folder, first.remote)
    train(second)
    count = len(storage.requests)
    third = tiny.plan(*words, "trainer.max_steps=12")  # the folder is as new: nothing is copied
    assert third.start == 8
    assert not [path for request, path in storage.requests[count:] if "safetensors" in path and request != "find"]
    lose(tiny)
    again = tiny.plan(*words, f"paths.run_dir={first.folder}")
    assert (again.start, again.folder) == (8, first.folder)
    assert tiny.plan(HERE, "name=b", "resume=auto").resumed is None


@pytest.mark.long
def test_a_newer_checkpoint_of_the_folder_is_not_lost(tiny, storage: FaultyStorage) -> None:
    plan = tiny.plan(HERE, "name=a", "trainer.max_steps=4")
    train(plan)
    train(tiny.plan(f"resume={plan.folder}", "trainer.max_steps=8"))  # not copied
    rows = (plan.folder / "metrics.csv").read_bytes()
    newer = tiny.plan(f"resume={plan.remote}", "trainer.max_steps=8")
    assert newer.start == 8
    assert (plan.folder / "metrics.csv").read_bytes() == rows
    train(newer)
    assert steps_at() == [4, 8]
    older = tiny.plan(f"resume={plan.remote}/checkpoints/step-00000004", "trainer.max_steps=8")
    assert older.start == 4
    assert older.remote == plan.remote
    with pytest.raises(CheckpointError, match=r"step-00000006 does not exist.*There are: step-00000004, step-00000008"):
        tiny.plan(f"resume={plan.remote}/checkpoints/step-00000006")


def test_a_plan_for_other_processes_keeps_the_address(tiny, storage: FaultyStorage) -> None:
    plan = tiny.plan(HERE, "name=a")
    assert from_record(json.loads(json.dumps(to_record(plan)))).remote == plan.remote


@pytest.mark.slow
def test_a_run_outlives_its_storage_and_is_copied_again(
    tiny, storage: FaultyStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny.plan(HERE, "name=a", "storage.retry_s=0", "trainer.max_steps=8")
    storage.refuse(OSError("503 slow down"))
    with pytest.raises(CheckpointError, match=r"all of the run is in \S+, but not in memory://.*503 slow down"):
        train(plan)
    assert "warning: step-00000004 is not in the object storage" in capsys.readouterr().out
    assert open_checkpoint(plan.folder).step == 8
    storage.heal()
    assert steps_at() == []
    train(tiny.plan(f"resume={plan.folder}", HERE, "trainer.max_steps=8"))
    assert steps_at() == [8]
    assert (plan.folder / "report.json").read_bytes() == MemoryFileSystem().cat_file(f"{plan.remote}/report.json")


@pytest.mark.slow
def test_an_error_of_the_run_stays_the_error(
    tiny, storage: FaultyStorage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.plan(HERE, "name=a", "storage.retry_s=0", "trainer.max_steps=4")

    def fail(*arguments: object) -> None:
        raise ConfigError("of the run")

    monkeypatch.setattr("pretrain.training.train._build_report", fail)
    storage.refuse(OSError("503 slow down"))
    with pytest.raises(ConfigError, match="of the run"):
        train(plan)
    assert "warning: all of the run is in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_storage_that_refuses_is_found_before_anything_is_made(tiny, storage: FaultyStorage) -> None:
    storage.refuse(PermissionError("access denied"))
    with pytest.raises(CheckpointError, match=r"cannot write memory://bucket/logs/\.probe: access denied\."):
        tiny.plan(HERE)
    assert not (tiny.folder / "logs").exists()
    with pytest.raises(ConfigError, match=r"storage\.url=http://a/b is no address"):
        tiny.config("storage.url=http://a/b")
    with pytest.raises(ConfigError, match="resume=http://a/b is no address"):
        tiny.plan("resume=http://a/b")


@pytest.mark.slow
def test_commands_read_a_run_in_the_storage(
    tiny, storage: FaultyStorage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.folder)
    plan = tiny.plan(HERE, "name=a", "schedule=wsd", "schedule.decay_fraction=0.1", "trainer.max_steps=8")
    train(plan)
    lose(tiny)
    paths = PathsConfig(cache_dir=str(tiny.folder / "cache"))
    tasks.generate(GenerateConfig(checkpoint=URL, prompt="the", max_new_tokens=3, paths=paths), [])
    tasks.report(ReportConfig(path=str(plan.remote), output="report.html", paths=paths), [])
    assert "8" in Path("report.html").read_text()
    tasks.compare(CompareConfig(runs=[str(plan.remote), f"{URL}/a"], output="compare.html", paths=paths), [])
    tasks.average(AverageConfig(run=str(plan.remote), last=2, output="averaged", paths=paths), [])
    assert open_checkpoint(Path("averaged")).manifest["average_of"] == [4, 8]
    assert tiny.plan(f"init_from={plan.remote}", "model=imported", "name=b").config.model.d_model == 16
    tiny.words.remove("trainer.max_steps=12")
    branch = tiny.plan(f"branch={plan.remote}/checkpoints/step-00000004", "cooldown=2", "name=c")
    assert branch.start == 4
    with pytest.raises(CheckpointError, match=r"memory://bucket/none holds no run: there is no config\.yaml"):
        local_figures("memory://bucket/none", "cache")
    assert "taking the newest run below" in capsys.readouterr().err


def test_files_of_a_run_that_cannot_be_copied_are_named(tmp_path: Path, storage: FaultyStorage) -> None:
    MemoryFileSystem().pipe_file(f"{URL}/a/config.yaml", b"seed: 1")
    (tmp_path / "file").touch()
    message = r"file/run/config\.yaml cannot be written: .*directory.* Try another paths\.run_dir=<folder>\."
    with pytest.raises(CheckpointError, match=message):
        fetch_files(RemoteFolder(f"{URL}/a"), tmp_path / "file" / "run")
    message = r"file/remote/\S+/config\.yaml cannot be written: .*directory.* Try another paths\.cache_dir=<folder>\."
    with pytest.raises(CheckpointError, match=message):
        local_figures(f"{URL}/a", tmp_path / "file")
    assert (local_figures(f"{URL}/a", tmp_path / "cache") / "config.yaml").read_bytes() == b"seed: 1"


@pytest.mark.slow
def test_nothing_of_a_run_without_a_copy_changes(tiny, storage: FaultyStorage) -> None:
    plan = tiny.plan("trainer.max_steps=4")
    train(plan)
    assert not storage.requests
    assert plan.uploads is None
