"""The ledger lists what every step read, and `inspect` finds the same rows from the settings alone."""

import subprocess
import sys
from pathlib import Path

import forked_process
import numpy as np
import pytest
import yaml

from pretrain.config.serialize import to_dict
from pretrain.data.prepare import prepare, training_rows
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.launch.run_folder import TABLE, read_rows
from pretrain.training.callbacks.ledger import Ledger, read_lines
from pretrain.training.train import run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.fault("F01")
def test_the_ledger_lists_every_step_and_inspect_finds_its_rows(tiny):
    report = run(tiny.plan("model=gpt_nano", "logging.ledger=true", "micro_batch_size=2"))
    folder = Path(report.folder)
    lines = read_lines(folder / "ledger.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [sample for line in lines for sample in line["samples"]] == list(range(48))
    config = tiny.config("model=gpt_nano")
    prepared = prepare(config.data, config.tokenizer, tiny.folder / "cache")
    stream = training_rows(prepared, config.data, 32, config.seed)
    for line in (lines[0], lines[11]):
        rows = list(rows_of_step(folder, line["step"]))
        assert [row.sample for row in rows] == line["samples"]
        read = stream.rows(np.array(line["samples"]))
        for row, tokens, documents in zip(rows, read.tokens, read.documents, strict=True):
            text = prepared.tokenizer.decode(tokens[documents >= 0].tolist())
            assert "".join(piece.text for piece in row.pieces) == text
            assert all(piece.name.endswith(".txt") for piece in row.pieces)
            assert not row.excluded


@pytest.mark.long
@pytest.mark.parametrize("words", [[], ["data.mode=stream", "data.era_tokens=1024"]], ids=["prepared", "streamed"])
def test_a_changed_batch_size_continues_after_the_last_row_read(tiny, words: list[str]):
    """By steps, by tokens and back: no row is passed over, none read twice, and what is reported is what was read."""
    folder = tiny.folder / "run"
    words = ["model=gpt_nano", "logging.ledger=true", f"paths.run_dir={folder}", *words]
    run(tiny.plan(*words, "trainer.max_steps=6", "schedule.warmup_tokens=1280"))
    allowed = [*words, "resume=auto", "allow_change=[batch_size]", "micro_batch_size=2"]
    # 24 rows of 32 tokens were read; 5 steps of 8 more, and one would be too much
    report = run(tiny.plan(*allowed, "batch_size=8", "trainer.max_steps=-1", "trainer.max_tokens=2100"))
    assert (report.steps, report.tokens_seen) == (11, 2048)
    assert report.longer == "trainer.max_tokens=4200"
    report = run(tiny.plan(*allowed, "batch_size=2", "trainer.max_steps=13", "trainer.max_tokens=null"))
    assert (report.steps, report.tokens_seen) == (13, 2176)
    lines = read_lines(folder / "ledger.jsonl")
    assert [len(line["samples"]) for line in lines] == [4] * 6 + [8] * 5 + [2] * 2
    assert [sample for line in lines for sample in line["samples"]] == list(range(68))
    for line in lines:
        assert [row.sample for row in rows_of_step(folder, line["step"])] == line["samples"]
    rates = [float(row["value"]) for row in read_rows(folder / TABLE) if row["name"] == "optim/learning_rate"]
    assert rates[5] < rates[7] == max(rates)  # 24 rows of the warm-up's 40, and 16 more in two steps


@pytest.mark.slow
def test_a_changed_order_is_reported_and_ends_earlier_inspection(tiny, capsys: pytest.CaptureFixture[str]):
    folder = tiny.folder / "run"
    words = ["model=gpt_nano", f"paths.run_dir={folder}"]
    run(tiny.plan(*words, "trainer.max_steps=2"))
    run(tiny.plan(*words, "resume=auto", "seed=3", "allow_change=[seed]", "trainer.max_steps=3"))
    told = "the order of rows changes from here on: until the epoch ends, some are read twice and some not at all"
    assert capsys.readouterr().out.count(told) == 1
    assert len(list(rows_of_step(folder, 3))) == 4
    with pytest.raises(ConfigError, match=r"step=2 read rows in another order: after step 2 .* Try step=3 or later"):
        list(rows_of_step(folder, 2))


def test_a_ledger_continues_from_the_step_of_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"step":1}\n{"step":2}\n{"step":3}\n{"st')
    Ledger(path, resumed_at=2).drop_later_lines()
    assert path.read_text() == '{"step":1}\n{"step":2}\n'
    assert read_lines(tmp_path / "none") == []


@pytest.mark.slow
def test_steps_that_cannot_be_inspected_are_refused(tiny):
    with pytest.raises(CheckpointError, match=r"run=.* is not a run folder\. Try run=auto"):
        list(rows_of_step(tiny.folder, 1))
    run(tiny.plan("model=gpt_nano", "trainer.max_steps=1", f"paths.run_dir={tiny.folder / 'run'}"))
    with pytest.raises(ConfigError, match=r"step=0 is below 1, the first step of a run\. Try step=1"):
        list(rows_of_step(tiny.folder / "run", 0))


@pytest.mark.slow
def test_a_step_beyond_the_text_read_so_far_cannot_be_inspected(tiny):
    """Inspecting reads the first era of a stream and waits for no other."""
    config = to_dict(tiny.config("model=gpt_nano", "data.mode=stream", "data.era_tokens=2048"))
    (tiny.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(list(rows_of_step(tiny.folder, 1))) == 4
    with pytest.raises(ConfigError, match=r"step=1000 reads text that the stream has not produced yet\. Try"):
        list(rows_of_step(tiny.folder, 1000))


@pytest.mark.long
def test_inspect_from_the_command_line(tiny):
    report = run(tiny.plan("model=gpt_nano", "trainer.max_steps=3"))

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "src" / "prepare.py"), "inspect", *words]
        return forked_process.run(command, cwd=tiny.folder, capture_output=True, text=True, check=False)

    found = typed(f"run={report.folder}", "step=3", "characters=10")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\nrow ") == 4
    assert ".txt)" in found.stdout
    assert "..." in found.stdout
    for words, message in (
        (["step=1", "characters=-1"], "characters=-1 is negative. Try characters=200."),
        ([f"run={report.folder}"], "step has no value"),
        (["steps=1"], "steps is not a setting. Did you mean step?"),
    ):
        found = typed(*words)
        assert found.returncode == 2
        assert message in found.stderr
