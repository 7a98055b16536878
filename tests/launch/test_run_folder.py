"""An untrusted run folder: nothing is written outside it, and a damaged file gives a short error."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.config.sweep import Job
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.files.atomic_files import delete_drafts, write_atomically
from pretrain.launch.run_folder import (
    MAX_LINE_BYTES,
    check_folder,
    finished_run,
    lines_of,
    opened_to_append,
    read_rows,
    saved_settings,
)
from pretrain.launch.run_lock import only_run_in
from pretrain.launch.run_plan import resolve_run, unused_folder_removed
from pretrain.planning.answer import measured_by
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.launch import launch
from pretrain.training.report import Report

FILES = ["config.yaml", "report.json", "metrics.csv", "ledger.jsonl", "lock"]
FOLDERS = ["checkpoints", "failures", "profile"]
FIGURES = {"steps": 3, "tokens_seen": 384, "parameters": 100, "tokens_per_s": 5.0, "validation": {"val/loss": 2.5}}
LAUGHS = "a: &a [x,x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """Settings of a run, composed once."""
    register_schemas("train", RunConfig)
    found: RunConfig = compose("train", ["model=gpt_nano", "tokenizer=bytes"])
    return found


@pytest.fixture
def run_folder(config: RunConfig, tmp_path: Path) -> Path:
    """What a finished run leaves, but for its checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (folder / "report.json").write_text(json.dumps(FIGURES))
    (folder / "metrics.csv").write_text("step,name,value\n1,speed/tokens_per_s,4.0\n2,speed/tokens_per_s,5.0\n")
    return folder


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, "failures/rank-0.json", "profile/rank-0.txt"])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "FIFO"])
def test_a_run_that_would_write_elsewhere_does_not_begin(
    config: RunConfig, run_folder: Path, tmp_path: Path, name: str, kind: str
):
    precious, place_of_it = tmp_path / "precious", run_folder / name
    place_of_it.parent.mkdir(exist_ok=True)
    place_of_it.unlink(missing_ok=True)
    if name in FOLDERS:
        precious.mkdir()
        (precious / "mine").write_text("mine")
    else:
        precious.write_text("mine")
    if kind == "hard link" and name not in FOLDERS:
        os.link(precious, place_of_it)
    elif kind == "FIFO":
        os.mkfifo(place_of_it)
    else:
        place_of_it.symlink_to(tmp_path / "nowhere" if kind == "dangling" else precious)
    message = rf"{name} is (a link|a FIFO|a regular file of 2 names), and a run writes only to a (regular file|folder)"
    with pytest.raises(CheckpointError, match=message):
        check_folder(run_folder)
    with pytest.raises(CheckpointError, match=message), only_run_in(run_folder):
        pass
    with pytest.raises(CheckpointError, match=message):
        resolve_run(replace(config, paths=replace(config.paths, run_dir=str(run_folder))), [])
    assert (precious / "mine" if name in FOLDERS else precious).read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO", "folder"])
def test_only_a_regular_file_of_the_folder_is_appended_to(tmp_path: Path, kind: str):
    """Where the folder has changed since it was looked at."""
    (tmp_path / "precious").write_text("mine")
    path = tmp_path / "metrics.csv"
    make = {
        "link": lambda: path.symlink_to(tmp_path / "precious"),
        "hard link": lambda: os.link(tmp_path / "precious", path),
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    make[kind]()
    with pytest.raises(CheckpointError, match=r"metrics\.csv is a"), opened_to_append(path) as file:
        file.write("x")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path):
    gone = tmp_path / "gone" / "metrics.csv"
    with pytest.raises(CheckpointError, match=r"metrics\.csv cannot be written: No such file"), opened_to_append(gone):
        pass


def test_a_planted_link_is_not_followed_by_an_atomic_write(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".report.json.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "report.json", b"{}")
    assert ((tmp_path / "precious").read_text(), (tmp_path / "report.json").read_text()) == ("mine", "{}")


def test_only_drafts_of_ours_are_deleted(tmp_path: Path):
    for name in (".report.json.123.tmp", ".mine.tmp", ".a.x.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.tmp").mkdir()
    delete_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.x.tmp", ".folder.1.tmp", ".mine.tmp"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", LAUGHS, r"config\.yaml cannot be read: it holds a YAML alias"),
        ("config.yaml", "a: " + "[" * 200, r"config\.yaml cannot be read: .*nested deeper than 100"),
        ("config.yaml", "- 1", r"config\.yaml holds no settings"),
        ("config.yaml", "seed: [1]", r"config\.yaml: the saved settings do not fit this version"),
        ("config.yaml", "seed: 1.5", r"config\.yaml: the saved settings do not fit this version: Value '1\.5' of type"),
        ("config.yaml", "1: 2", r"config\.yaml: the saved settings do not fit this version"),
        ("config.yaml", "model: 3", r"config\.yaml: the saved settings do not fit this version"),
        ("config.yaml", "model: {kind: [transformer]}", r"config\.yaml: model\.kind=.* is unknown"),
        ("report.json", "[]", r"report\.json cannot be read: it is \[\], which is no object"),
        ("report.json", "{", r"report\.json cannot be read: Expecting property name"),
        ("report.json", "[" * 900 + "]" * 900, r"report\.json cannot be read: it is nested deeper than 100"),
        ("report.json", json.dumps(FIGURES | {"parameters": None}), "it has parameters=None, which is no whole number"),
        ("report.json", json.dumps(FIGURES | {"tokens_per_s": "5"}), "it has tokens_per_s='5', which is no number"),
        ("report.json", json.dumps(FIGURES | {"tokens_seen": 0}), "has no measured speed: it read 0 tokens"),
        ("metrics.csv", "x" * (MAX_LINE_BYTES + 1), r"metrics\.csv cannot be read: it is larger than any that a run"),
        ("metrics.csv", "step,name,value\n1,speed/tokens_per_s,1\n2,speed/tokens_per_s,nan", "has no measured speed"),
    ],
)
def test_a_damaged_file_is_a_short_error(run_folder: Path, name: str, text: str, message: str):
    (run_folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as refusal:
        measured_by(run_folder)
    assert len(str(refusal.value)) < 1000
    if name == "config.yaml":
        with pytest.raises(CheckpointError, match=message):
            list(rows_of_step(run_folder, 1))


@pytest.mark.parametrize("name", ["config.yaml", "report.json", "metrics.csv"])
def test_a_link_is_not_read(run_folder: Path, tmp_path: Path, name: str):
    (run_folder / name).rename(tmp_path / "elsewhere")
    (run_folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: it is a link"):
        measured_by(run_folder)


def test_whole_files_are_read(run_folder: Path):
    found = measured_by(run_folder)
    assert (found.parameters, found.tokens, found.tokens_per_s(), found.memory_gib) == (100, 384, 5.0, None)


def test_whole_numbers_of_saved_settings_may_have_exponents(run_folder: Path, config: RunConfig):
    saved = to_dict(config) | {"seed": 100.0, "batch_size": "1.6e1"}
    saved["data"]["shard_tokens"] = "1e9"  # a float is a text to YAML unless it has a point and a sign
    (run_folder / "config.yaml").write_text(yaml.safe_dump(saved))
    read = saved_settings(run_folder)
    assert (read.seed, read.batch_size, read.data.shard_tokens) == (100, 16, 10**9)
    assert isinstance(read.seed, int)


def test_incomplete_rows_are_skipped(tmp_path: Path):
    table = tmp_path / "metrics.csv"
    assert read_rows(table) == []
    table.write_text("step,name,value\n1,a,2.5\n²,a,1\n2,a,x\n,a,1\n3,a\n" + "9" * 30 + ",a,1\n4,b,inf\n5,a,1.")
    assert [row["step"] for row in read_rows(table)] == ["1", "4", "5"]
    table.write_text("other\n1\n")
    assert read_rows(table) == []


def test_an_oversized_field_of_a_table_is_an_error(tmp_path: Path):
    limit = csv.field_size_limit(1000)
    try:
        (tmp_path / "metrics.csv").write_text("step,name,value\n" + "x" * 2000)
        with pytest.raises(CheckpointError, match=r"metrics\.csv cannot be read: field larger"):
            read_rows(tmp_path / "metrics.csv")
    finally:
        csv.field_size_limit(limit)


def test_a_ledger_that_is_damaged_in_the_middle_is_not_cut_off(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"step":1}\n{"step":2,"sam')
    assert read_lines(path) == [{"step": 1}]
    for bad in ("[]", '{"step":-1}', '{"step":"1"}', '{"step":1,"samples":[1.5]}', "5"):
        path.write_text(f'{{"step":1}}\n{bad}\n{{"step":3}}\n')
        with pytest.raises(CheckpointError, match=r"ledger\.jsonl is damaged in line 2: .*Move it away"):
            read_lines(path)


def test_lines_are_text(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"a\r\nb\n\xff")
    with pytest.raises(CheckpointError, match="file cannot be read: 'utf-8' codec"):
        list(lines_of(tmp_path / "file"))


def test_a_damaged_report_is_made_again(run_folder: Path):
    job = Job([], [], run_folder)
    assert (job.finished, job.loss) == (True, 2.5)
    report = Report(str(run_folder), 3, 1, 1, "causal", {}, {}, 1.0, 0.0, 1.0, {}, 0.0, 0, [], "", "")
    report.save()
    assert (job.finished, job.loss) == (True, 2.5)  # nothing was left to do
    (run_folder / "report.json").write_text('{"steps": "3"}')
    assert (job.finished, job.loss) == (False, None)
    report.save()
    assert finished_run(run_folder) is not None


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    """The class is looked for before the data, which is not read."""
    words = [f"paths.logs_dir={tmp_path}", "callbacks.mine.class_path=nowhere.Mine", "name=x"]
    with pytest.raises(ConfigError, match=r"callbacks\.mine\.class_path=nowhere\.Mine cannot be imported: .*'nowhere'"):
        launch(compose("train", words), words)
    assert list((tmp_path / "x").iterdir()) == []
    one, two = (resolve_run(compose("train", words), words) for _ in range(2))  # in the same second
    assert one.folder != two.folder
    with pytest.raises(KeyError), unused_folder_removed(one), only_run_in(one.folder):
        raise KeyError
    (two.folder / "metrics.csv").touch()
    with pytest.raises(KeyError), unused_folder_removed(two), only_run_in(two.folder):
        raise KeyError
    assert list((tmp_path / "x").iterdir()) == [two.folder]
