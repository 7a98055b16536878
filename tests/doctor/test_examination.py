"""The doctor command: rows of the table, exit codes, and the overrides of src/train.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forked_process
import pytest
import yaml

from pretrain.config.compose import compose, register_schemas
from pretrain.config.preset_folders import CONFIG_FOLDER
from pretrain.doctor import examination, machine
from pretrain.doctor.check import Check, CheckResult, NotApplicableError, Verdict, captured, run_checks
from pretrain.doctor.config import DoctorConfig, Part
from pretrain.doctor.examination import checks, examine
from pretrain.errors import ConfigError, DataError, Interrupted

ROOT = Path(__file__).parents[2]


def fail_with(error: Exception):
    def test() -> CheckResult:
        print("what the run said")
        os.write(2, b"what its processes said\n")
        raise error

    return test


def test_what_raises_has_failed_and_the_others_still_run(tmp_path, capfd):
    found = run_checks(
        [
            Check(Part.machine, "sound", lambda: CheckResult(True, "0 differ")),
            Check(Part.machine, "unsound", lambda: CheckResult(False, "1 differs")),
            Check(Part.machine, "idle", fail_with(NotApplicableError("a=b has none"))),
            Check(Part.machine, "raising", fail_with(DataError("the text\nis gone."))),
            Check(Part.machine, "broken", fail_with(ValueError("no"))),
        ],
        tmp_path / "log",
    )
    rows = [str(outcome) for outcome in found]
    assert [row.split()[0] for row in rows] == ["pass", "FAIL", "skip", "FAIL", "FAIL"]
    assert rows[3].splitlines()[0].endswith("the text is gone.  (0.0 s)")
    assert "ValueError: no" in rows[4]
    assert rows[4].splitlines()[1:] == ["        | what the run said", "        | what its processes said"]
    assert "what" not in rows[2]
    assert capfd.readouterr() == ("", "")


def test_without_a_corpus_what_needs_it_is_skipped(tmp_path):
    found = run_checks(
        [
            Check(Part.data, "corpus", fail_with(DataError("no")), needs_corpus=False, makes_corpus=True),
            Check(Part.machine, "needing", lambda: CheckResult(True, "")),
            Check(Part.resume, "not needing", lambda: CheckResult(True, ""), needs_corpus=False),
        ],
        tmp_path / "log",
    )
    assert [outcome.verdict for outcome in found] == [Verdict.failed, Verdict.skipped, Verdict.passed]


def test_an_interrupt_ends_it(tmp_path):
    rows = run_checks([Check(Part.machine, "run", fail_with(Interrupted("SIGINT at step 1", 2)))], tmp_path / "log")
    with pytest.raises(Interrupted, match="SIGINT at step 1"):
        next(rows)


def test_what_is_printed_goes_to_the_log_and_the_terminal_comes_back(tmp_path, capfd):
    with captured(tmp_path / "log"):
        print("one")
        subprocess.run(["echo", "two"], check=True)
    print("three")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert capfd.readouterr().out == "three\n"


@pytest.mark.slow
def test_every_part_has_its_checks(context):
    found = checks(context(), Part.all)
    assert len(found) == len({check.name for check in found}) == 21
    for part in (Part.data, Part.machine, Part.mup, Part.resume, Part.parallel):
        own = checks(context(), part)
        assert {check.part for check in own} == {part, Part.data}
        assert [check.name for check in own if check.part is not part] == (
            [] if part is Part.data else ["the corpus is prepared"]
        )


@pytest.mark.slow
def test_the_corpus_of_a_stage_with_other_rows_is_checked(context, corpus, tiny, capfd):
    (tiny.folder / "other.txt").write_text("\n".join(f"line {number}" for number in range(200)))
    words = ["tokenizer=bpe", "tokenizer.vocab_size=300", "stages.a.until_steps=2", "stages.b.until_steps=3"]
    words += ["stages.b.optimizer.learning_rate=1e-4", f"stages.other.data.path={tiny.folder / 'other.txt'}"]
    assert examine(context(*words).config, Part.data)
    printed = capfd.readouterr().out
    assert len(re.findall(r"^pass  data      other: \S", printed, re.MULTILINE)) == 6
    assert not re.search(r" [ab]: ", printed)
    assert "0 failed, 2 skipped" in printed  # the two of mixtures


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "verdict"), [(1e-3, True), (0.0, False)])
def test_an_examination_prints_rows_and_sums_up(context, tmp_path, monkeypatch, capfd, limit, verdict):
    monkeypatch.setattr(examination.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "FP32_ERROR", limit)
    assert examine(context("trainer=cpu", "trainer.precision=fp32").config, Part.machine) is verdict
    printed = capfd.readouterr().out
    assert len(re.findall(r"^(pass|FAIL|skip)  (machine |data    )  \S", printed, re.MULTILINE)) == 5
    assert re.search(rf"\n{5 if verdict else 4} passed, {0 if verdict else 1} failed, 0 skipped", printed)
    assert ("failed: gradients match float64 eager ones" in printed) is not verdict
    assert not list(tmp_path.glob("doctor-*"))


@pytest.mark.slow
def test_the_words_are_those_of_a_run():
    one, other = (yaml.safe_load((CONFIG_FOLDER / f"{name}.yaml").read_text()) for name in ("train", "doctor"))
    ours = [word for word in one["defaults"] if word != {"search": None}]  # a sweep is of runs
    assert [("DoctorConfig" if word == "RunConfig" else word) for word in ours] == other["defaults"]
    register_schemas("doctor", DoctorConfig)
    words = ["model=bert_nano", "optimizer=adamw", "trainer.max_steps=7"]
    config = compose("doctor", [*words, "doctor=resume"])
    assert config.doctor is Part.resume
    assert config.run_config() == compose("train", words)
    with pytest.raises(
        ConfigError, match=r"doctor=model does not fit: .* one of \[all, data, machine, mup, resume, parallel\]"
    ):
        compose("doctor", ["doctor=model"])


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return forked_process.run(
        [sys.executable, str(ROOT / "src" / "doctor.py"), *words],
        cwd=folder, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_the_command_line_examines_a_model_and_tells_wrong_settings(tmp_path, corpus):
    words = ["data=text_files", f"data.path={corpus}", "tokenizer=bytes", "doctor=machine"]
    found = call(tmp_path, *words)
    assert (found.returncode, found.stderr) == (0, ""), found
    assert "pass  machine   gradients match float64 eager ones" in found.stdout
    wrong = call(tmp_path, *words, "model.n_layer=2")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "ConfigError: model.n_layer is not a setting. Did you mean model.n_layers?\n"
    absent = call(tmp_path, *words[:1], "data.path=nowhere", "doctor=data")
    assert absent.returncode == 1, absent
    assert re.search(r"FAIL  data      the corpus is prepared +data.path=nowhere", absent.stdout)
    assert absent.stdout.count("needs a prepared corpus") == 6


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["model=gpt_nano"],
        ["model=bert_nano", "doctor=resume"],
        ["model=llama_nano", "doctor=machine"],
    ],
)
def test_everything_passes_in_three_minutes(tmp_path, words):
    command = [sys.executable, str(ROOT / "src" / "doctor.py"), *words]
    with forked_process.popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        output, errors = process.communicate(timeout=850)
    print(output, f"{process.processor_s:.0f} s of processors in all")
    assert (process.returncode, errors) == (0, ""), output
    assert "FAIL" not in output
    assert process.processor_s < 300  # three minutes of two processors, less a minute of imports that a fork has done
