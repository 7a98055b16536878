"""report.html of runs, sweeps and plans: what it shows, what it survives, and that it shows texts as text."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import TinyRun

from pretrain.config.changed_settings import about, compare
from pretrain.config.serialize import to_dict
from pretrain.errors import CheckpointError, Interrupted
from pretrain.launch.run_folder import CONFIG, HISTORY, PAGE, REPORT, SAMPLES, TABLE
from pretrain.reports import write
from pretrain.reports.history import (
    End,
    History,
    Sample,
    Source,
    StageRecord,
    Start,
    append_sample,
    read_history,
    write_history,
)
from pretrain.reports.sweep import SweptJob, read_sweep, write_record
from pretrain.reports.write import write_outside, write_report

HOSTILE = '<script>document.title="it ran"</script><img src=x onerror="document.title=1">\x1b[31m\u202e'
ENDED = End(12, 1.7e9 + 60, "finished", "", 40.0, 60.0, {"validation": 5.0, "checkpoints": 1.0}, ["train resume=a"])
VOID = {"meta"}


class Parsed(HTMLParser):
    """The elements, attributes and text of a page; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.titles: list[str] = []  # of the drawings and of the dots in them
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "title":
            self.titles.append(data)


def leave_run(folder: Path, config: Any, text: str = "words", steps: int = 12, end: End | None = ENDED) -> None:
    """Write what a run leaves, with `text` wherever a text of somebody else's stands."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = to_dict(config) | {"name": text}
    settings["data"]["path"] = text
    (folder / CONFIG).write_text(yaml.safe_dump(settings))
    rows = [f"{step},train/loss,{9 - step / steps}\n{step},optim/learning_rate,0.1\n" for step in range(1, steps + 1)]
    quoted = text.replace('"', '""')
    rows += [f'{steps},val/loss,8.1\n{steps},"val/{quoted}/loss",8.1\n{steps},"{quoted}",3\n1,"{quoted}",4\n{steps},tr']
    (folder / TABLE).write_text("step,name,value\n" + "".join(rows), encoding="utf8")
    environment = {"device": "cpu", text: text}
    history = History(
        name=text,
        objective="causal",
        parameters=1000,
        row_length=32,
        batch_size=4,
        packing=text,
        typed=["model.n_layers=2", f"data.path={text}", "model=gpt_nano"],
        sources=[
            Source(text, 900, 0.75, 30, 2700, 29, 33, 0.97, 90, [1, 10, 40, 100], [5, 20, 5]),
            Source("second", 300, 0.25, 9, 900, 10, 12, 0.9),
        ],
        starts=[
            Start(0, 1.7e9 - 60, "host:1", environment, replace(ENDED, step=6, outcome="interrupted", message=text)),
            Start(6, 1.7e9, "host:2", environment, end and replace(end, commands=[*end.commands, text])),
        ],
    )
    write_history(folder, history)
    (folder / SAMPLES).unlink(missing_ok=True)
    for step in (6, 12):
        append_sample(folder, Sample(step, "samples", f"The {text} at {step}"))


@pytest.mark.slow
def test_text_of_a_later_stage_is_read_from_its_beginning_on(tiny: TinyRun, tmp_path: Path) -> None:
    """Rows of the stages before are no rows of its text."""
    leave_run(tmp_path, tiny.config())
    history = read_history(tmp_path)
    assert history is not None
    stages = [
        StageRecord("web", 0, 4, 512, 4, 32, 0.1, {"data.path": "web"}),
        StageRecord("long", 4, 8, 512, 4, 32, 0.1, {"data.path": "web", "model.rope_base": "1"}),
        StageRecord("books", 8, 12, 512, 4, 32, 0.1, {"data.path": "books"}),
        StageRecord("never", 12, 16, 512, 4, 32, 0.1, {"data.path": "web"}),
    ]
    for changed, read in ((stages, "0.41"), ([replace(each, changes={}) for each in stages], "1.24")):
        write_history(tmp_path, replace(history, stages=changed))
        page = Parsed(write_report(tmp_path).read_text(encoding="utf8"))
        assert re.search(r"3\.00(\d\.\d\d)", page.text)[1] == read  # type: ignore[index]
        assert ("What it has read since step 9, when a stage changed the text" in page.text) is (read == "0.41")


@pytest.mark.slow
def test_a_run_is_shown_with_all_that_it_left(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    leave_run(folder, tiny.config())
    with (folder / SAMPLES).open("a") as file:
        file.write('{"step": 12, "te')  # as a kill leaves it
    path = write_report(folder)
    text = path.read_text(encoding="utf8")
    page = Parsed(text)
    for part in (
        "finished", "8.1000", "validation loss", "Loss", "Learning rate", "resumed", "step 6", "step 12",
        "The words at 12", "75.0%", "Documents by length", "a row: 32 tokens", "97.0%", "steps", "validation",
        "start and end", "model.n_layers",
        "device", "train resume=a", "interrupted", "2023-11-14 22:13 UTC",
    ):  # fmt: skip
        assert part in page.text, part
    assert page.tags.count("svg") >= 6
    assert not re.search(r"https?://|url\(|@import", text)  # nothing that a browser would fetch
    write_report(folder)
    assert path.read_text(encoding="utf8") == text


@pytest.mark.slow
def test_texts_of_others_are_shown_as_text(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    leave_run(folder, tiny.config(), HOSTILE)
    text = write_report(folder).read_text(encoding="utf8")
    page = Parsed(text)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count('<script>document.title="it ran"</script>') > 10
    assert "\\x1b[31m\\u202e" in page.text
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.slow
def test_a_browser_runs_nothing(tiny: TinyRun, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    leave_run(tmp_path / "run", tiny.config(), HOSTILE)
    path = write_report(tmp_path / "run")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom"]
    found = subprocess.run(
        [chromium, *words, path.absolute().as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>&lt;script&gt;" in found.stdout
    assert "<script" not in found.stdout
    assert "<img" not in found.stdout


@pytest.mark.slow
def test_a_run_that_was_killed_or_left_little(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    leave_run(folder, tiny.config(), end=None)
    page = Parsed(write_report(folder).read_text())
    assert "not ended" in page.text
    assert "1 of 2 starts left no record" in page.text
    for name in (HISTORY, SAMPLES, CONFIG):
        (folder / name).unlink()
        assert "8.1000" in write_report(folder).read_text()
    (folder / TABLE).write_text("step,name,value\n")
    assert "There are no curves" in write_report(folder).read_text()


@pytest.mark.slow
def test_what_is_no_run_or_is_damaged_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"path=.*/empty holds no run and no corpus: .* Try path=logs/gpt_nano/<time>"
    ):
        write_report(tmp_path / "empty")
    folder = tmp_path / "run"
    leave_run(folder, tiny.config())
    with pytest.raises(CheckpointError, match=r"cannot be written: No such file or directory. Try another output="):
        write_report(folder, tmp_path / "nowhere" / "a.html")
    for name in (HISTORY, CONFIG, REPORT):
        (folder / name).write_text("{")
        with pytest.raises(CheckpointError, match=name):
            write_report(folder)
        (folder / name).unlink()


@pytest.mark.long
def test_it_is_written_by_a_process_without_torch_that_cannot_fail_the_run(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    leave_run(folder, tiny.config())
    code = "import sys; from pathlib import Path; from pretrain.reports.write import write_report; "
    code += f"write_report(Path({str(folder)!r})); assert not {{'torch', 'lightning'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert write_outside(folder) == ""
    (folder / HISTORY).write_text("{\n<script>\x1b")
    problem = write_outside(folder)
    assert problem.startswith("CheckpointError: ")
    assert "\x1b" not in problem
    assert write_outside(folder, deadline_s=0.01) == "it took longer than 0.01 s"
    monkeypatch.setattr(write.sys, "executable", "/nowhere")
    assert "No such file" in write_outside(folder)


@pytest.mark.slow
def test_a_run_of_a_million_steps_stays_small(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    leave_run(folder, tiny.config())
    with (folder / TABLE).open("a") as file:
        file.write("\n")
        for step in range(13, 1_000_013):
            file.write(f"{step},train/loss,{3 + (step % 97) / 100}\n")
    start = time.monotonic()
    text = write_report(folder).read_text()
    assert len(text) < 3_000_000 / 10
    assert "1,000,012" not in text  # the record says 12 steps
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_settings_are_compared_with_the_presets(tiny: TinyRun) -> None:
    saved = to_dict(tiny.config("model=llama_nano", "model.n_layers=3"))
    found = compare(saved, ["model=llama_nano", "model.n_layers=3"])
    assert found.presets == ["model=llama_nano"]
    by_key = {each.key: each for each in found.changed}
    assert (by_key["model.n_layers"].value, by_key["model.n_layers"].preset) == ("3", "4")
    assert by_key["trainer.max_steps"].about.startswith("Length of the run")
    assert "model.norm" not in by_key
    unknown = compare(saved, ["model=of_a_plugin", "model.n_layers=3", "trainer.max_steps=9"])
    assert not unknown.compared
    assert [(each.key, each.preset) for each in unknown.changed] == [
        ("model.n_layers", None),
        ("trainer.max_steps", None),
    ]
    saved["loggers"] = {"mine": {"kind": "wandb", "project": "a"}}
    assert about("loggers.mine.project", saved) == "Project of the run."
    assert about("loggers.mine.nothing", saved) == about("model.nothing", saved) == about("no.such", saved) == ""


@pytest.mark.slow
def test_a_sweep_is_a_table_with_the_best_run_first(tiny: TinyRun, tmp_path: Path) -> None:
    losses = {"a": 8.5, "b": 7.5, "c": 8.0}
    for name, loss in losses.items():
        leave_run(tmp_path / name, tiny.config(f"seed={ord(name)}"))
        rows = "".join(f"{step},val/loss,{loss + 1 / step}\n" for step in (1, 2, 5, 10))
        (tmp_path / name / TABLE).write_text(f"step,name,value\n{rows}")
    jobs = [SweptJob(name, [f"optimizer.learning_rate={place}", f"model={HOSTILE}{place}"], 0)
            for place, name in enumerate(losses, 1)]  # fmt: skip
    write_record(tmp_path, [*jobs, SweptJob("failed", ["optimizer.learning_rate=9"], 3), SweptJob("../b", [], 0)])
    page = Parsed(write_report(tmp_path).read_text())
    assert "script" not in page.tags
    assert page.tags.count("tr") == 1 + 4 + 4  # the jobs; the models
    for part in ("4 runs", "3 of 4", "lowest validation loss", "7.6000", "One by one", "model", "failed"):
        assert part in page.text, part
    assert next(value for name, value in page.attributes if name == "href") == "./b/report.html"
    assert read_sweep(tmp_path).best == 1
    assert [text for text in page.titles if text.startswith("validation loss")] == [
        "validation loss: 8.6 at 1", "validation loss: 7.6 at 2", "validation loss: 8.1 at 3",
    ]  # fmt: skip

    (tmp_path / "sweep.json").unlink()  # any folder of runs
    page = Parsed(write_report(tmp_path).read_text())
    assert "seed=98" in page.text
    assert "3 of 3" in page.text


@pytest.mark.long
def test_a_run_leaves_its_report_through_a_resume(tiny: TinyRun, capfd: pytest.CaptureFixture[str]) -> None:
    from pretrain.training import train as training

    folder = tiny.folder / "mine"
    words = [
        "logging.report=true",
        f"paths.run_dir={folder}",
        "sample.every_n_steps=4",
        "trainer.val_check_interval=50",
    ]
    training.train(tiny.plan(*words, "trainer.max_steps=6"))
    assert "gpt_nano" in (folder / PAGE).read_text()
    (folder / PAGE).unlink()

    def interrupted(*arguments: Any) -> None:
        training_run(*arguments)
        raise Interrupted("SIGTERM at step 8: saved", 15)

    training_run = training.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.training.history.CLEAN_UP_S", 180.0)  # a busy machine needs more than a signal leaves
        patch.setattr(training, "run", interrupted)
        with pytest.raises(Interrupted):
            training.train(tiny.plan(*words, "trainer.max_steps=8", "resume=auto"))
    history = read_history(folder)
    assert history is not None
    assert [(start.step, start.end.outcome) for start in history.starts if start.end] == [
        (0, "finished"),
        (6, "interrupted"),
    ]
    assert history.sources[0].documents > 10
    assert sum(history.sources[0].length_counts) == history.sources[0].documents
    page = Parsed((folder / PAGE).read_text())
    for part in ("interrupted", "SIGTERM at step 8", "step 4", "step 8", f"resume={folder}", "resumed"):
        assert part in page.text, part
    with pytest.MonkeyPatch.context() as patch:  # what goes wrong is a line of warning
        patch.setattr("pretrain.training.history.write_outside", lambda *_: "it broke")
        training.train(tiny.plan(*words, "trainer.max_steps=10", "resume=auto"))
    assert "warning: report.html was not written: it broke" in capfd.readouterr().out
    assert json.loads((folder / REPORT).read_text())["steps"] == 10
