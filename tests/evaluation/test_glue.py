"""GLUE: files as published, metrics as defined, and fine-tunings that a restart does not repeat."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import shape
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import binary_f1_score, binary_matthews_corrcoef

from pretrain.commands import glue
from pretrain.commands.from_python import train as run_from_python
from pretrain.config.compose import compose, register_schemas
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.agreement import binary_f1, matthews, pearson, spearman
from pretrain.evaluation.config import GLUE_TASKS, EvalConfig, GlueConfig, Task
from pretrain.evaluation.glue import LabeledText, glue_metrics, read_split
from pretrain.training.config import PathsConfig
from pretrain.training.train import run


def test_metrics_are_those_of_torchmetrics() -> None:
    draw = np.random.default_rng(0)
    for share in (0.5, 0.9, 0.3):
        predicted, truth = draw.random(200) < share, draw.random(200) < 0.6
        both = torch.from_numpy(predicted).int(), torch.from_numpy(truth).int()
        assert matthews(predicted, truth) == pytest.approx(float(binary_matthews_corrcoef(*both)), abs=1e-6)
        assert binary_f1(predicted, truth) == pytest.approx(float(binary_f1_score(*both)), abs=1e-6)
        guessed, numbers = draw.normal(size=200).round(1), draw.normal(size=200).round(1) + share * predicted
        both = torch.from_numpy(guessed), torch.from_numpy(numbers)  # with ties, as STS-B has them
        assert pearson(guessed, numbers) == pytest.approx(float(pearson_corrcoef(*both)), abs=1e-6)
        assert spearman(guessed, numbers) == pytest.approx(float(spearman_corrcoef(*both)), abs=1e-6)
    assert pearson(np.ones(3), np.arange(3)) == spearman(np.arange(3), np.ones(3)) == pearson(*np.ones((2, 1))) == 0.0
    nothing = np.zeros(3, np.bool_)
    assert (matthews(nothing, nothing), binary_f1(nothing, nothing)) == (0.0, 0.0)
    found = glue_metrics("MRPC", ["1", "1", "0"], ["1", "0", "0"])
    assert found == pytest.approx({"f1": 2 / 3, "accuracy": 2 / 3, "score": 2 / 3})
    assert glue_metrics("CoLA", ["1", "0"], ["1", "0"]) == {"matthews": 1.0, "score": 1.0}
    found = glue_metrics("STS-B", [1.0, 2.0, 4.0], ["0.0", "1.000", "5"])
    assert found == pytest.approx({"pearson": 0.9897, "spearman": 1.0, "score": 0.9949}, abs=1e-4)
    assert glue_metrics("RTE", ["a", "b"], ["a", "a"]) == {"accuracy": 0.5, "score": 0.5}


def test_the_published_files_are_read(assets: Path) -> None:
    folder = assets / "eval" / "glue"
    sizes = {task: len(read_split(folder, task, "dev")) for task in GLUE_TASKS}
    assert sizes == {"CoLA": 1043, "MRPC": 408, "RTE": 277, "STS-B": 1500, "SST-2": 872}
    first = read_split(folder, "MRPC", "train")[0]
    assert first.text[0].startswith('Amrozi accused his brother , whom he called " the witness " , of')
    assert first.label == "1"
    assert read_split(folder, "STS-B", "dev")[0] == LabeledText(
        ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing."), "5.000"
    )


def test_a_heading_may_be_missing(tmp_path: Path) -> None:
    """As in the files of SST-2's whole sentences, which may replace GLUE's phrases."""
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text("a stirring film\t1\na dull one\t0\n")
    assert [row.label for row in read_split(tmp_path, "SST-2", "dev")] == ["1", "0"]
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\na stirring film\t1\na dull one\t0\n")
    assert [row.label for row in read_split(tmp_path, "SST-2", "dev")] == ["1", "0"]


def test_what_is_not_glue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev\.tsv cannot be read: .* Give the folder that holds GLUE's folders"):
        read_split(tmp_path, "RTE", "dev")
    (tmp_path / "RTE").mkdir()
    path = tmp_path / "RTE" / "dev.tsv"
    path.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\n")
    with pytest.raises(DataError, match=r"dev\.tsv:2 has 3 fields, and RTE has its label in field 4\. Take the files"):
        read_split(tmp_path, "RTE", "dev")
    path.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tc\n")
    with pytest.raises(DataError, match=r"dev\.tsv has not the two labels of RTE\. Take the files as GLUE"):
        read_split(tmp_path, "RTE", "dev")
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "dev.tsv").write_text("\t" * 7 + "a\tb\thigh\n")
    with pytest.raises(DataError, match=r"dev\.tsv:1 has the score high, no number\. Take the files as GLUE"):
        read_split(tmp_path, "STS-B", "dev")
    for settings, message in (
        ({"tasks": ["RTF"]}, r"glue\.tasks=\[RTF\] must name tasks of CoLA, MRPC, RTE, STS-B, SST-2\. Try 'glue"),
        ({"seeds": [1, 1]}, r"glue\.seeds=\[1, 1\] must be a list of one or more different values"),
        ({"learning_rates": [0.0]}, r"glue\.learning_rates=\[0\.0\] must be above 0\. Try \[2e-5,5e-5\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            GlueConfig(**settings)
    register_schemas("eval", EvalConfig)
    with pytest.raises(ConfigError, match=r"task=glue needs the folder of GLUE's tasks\. Give it: path="):
        compose("eval", ["task=glue"])
    with pytest.raises(ConfigError, match=r"dtype=int8 has no use in task=glue"):
        compose("eval", ["task=glue", "path=glue", "dtype=int8"])
    (tmp_path / glue.RESULTS).write_text("{}\n")
    with pytest.raises(DataError, match=r"results\.jsonl:1 is no result of task=glue\. Remove the line"):
        glue.Results(tmp_path / glue.RESULTS)


def test_a_result_that_a_killed_process_began_is_left_out(tmp_path: Path) -> None:
    path, one = tmp_path / glue.RESULTS, glue.Try("RTE", 1e-4, 0, "f00d")
    glue.Results(path).add("held_out", one, {"score": 0.5})
    whole = path.read_text()
    path.write_text(whole + whole[:-9])
    again = glue.Results(path)
    assert again.found == {("held_out", one): {"score": 0.5}}
    assert ("held_out", replace(one, text="beef")) not in again.found  # of files that have changed
    again.add("dev", one, {"score": 0.75})
    assert glue.Results(path).found == {("held_out", one): {"score": 0.5}, ("dev", one): {"score": 0.75}}


def test_the_table_has_a_line_for_each_metric() -> None:
    figures = {"checkpoint": "a", "task": "glue", "CoLA/learning_rate": "2e-05", "CoLA/matthews": 0.25,
               "CoLA/matthews_deviation": 0.5, "CoLA/score": 0.25, "RTE/learning_rate": "1",
               "RTE/accuracy": 0.75, "RTE/accuracy_deviation": 0.0, "mean_score": 0.5, "seeds": 2}  # fmt: skip
    assert glue.glue_table(figures).splitlines() == [
        "checkpoint  a",
        "task   metric        dev   deviation   rate",
        "CoLA   matthews   0.2500 ± 0.5000      2e-05",
        "RTE    accuracy   0.7500 ± 0.0000      1",
        "mean score  0.5000 (2 seeds; deviations are of single runs)",
    ]


def test_the_held_out_tenth_is_never_trained_on() -> None:
    rows = [LabeledText(str(number), "a") for number in range(57)]
    part, held_out = glue.split_train(rows)
    assert (len(part), len(held_out)) == (52, 5)
    assert sorted(int(row.text) for row in [*part, *held_out]) == list(range(57))
    assert glue.split_train(rows, 10) == (part[:10], held_out)


@pytest.mark.parametrize(("family", "length"), [("llama", 160), ("bert", 8192)])
def test_a_step_has_about_as_many_examples_as_asked_of_any_context(
    family: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 tokens each; a row of 8,192 tokens would hold 1,638 of them. Learned positions keep their length."""
    base = SimpleNamespace(folder=tmp_path, shape=shape(family, context_length=8192), tokenizer=byte_tokenizer())
    typed: list[str] = []
    monkeypatch.setattr(glue, "open_model", lambda path: base)
    monkeypatch.setattr(glue, "train", lambda *words: typed.extend(words))
    tuning = glue.Glue(EvalConfig(task=Task.glue, path="glue", paths=PathsConfig(logs_dir=str(tmp_path))), tmp_path)
    tuning._train(glue.Try("CoLA", 1e-4, 0, "text"), [LabeledText("abc", "01"[n % 2]) for n in range(400)])
    assert {f"model.context_length={length}", "batch_size=1", "schedule.warmup_fraction=0.06"} <= {*typed}
    pairs = [LabeledText(("a" * 99, "b" * 50), "1"), LabeledText(("a", "b"), "0")]
    assert glue.row_size(tmp_path, pairs, 1).length == (2 * 152 if family == "llama" else 8192)


def entailments(path: Path, count: int, seed: int) -> None:
    """Write pairs whose label is told by one word of the second text."""
    draw = random.Random(seed)
    lines = ["index\tsentence1\tsentence2\tlabel\n"]
    for number in range(count):
        word, label = draw.choice([("yes", "entailment"), ("not", "not_entailment")])
        lines.append(f'{number}\ta "film {number}\t{word} {draw.randrange(99)}\t{label}\n')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


@pytest.mark.long
def test_a_base_is_tuned_at_every_rate_and_a_restart_trains_nothing_again(tiny, tmp_path, monkeypatch, capsys):
    base = Path(run(tiny.plan("model=bert_nano", "model.context_length=64", "model.dropout=0.0")).folder)
    entailments(tmp_path / "glue/RTE/train.tsv", 200, 1)
    entailments(tmp_path / "glue/RTE/dev.tsv", 40, 2)
    words = [f"path={tmp_path / 'glue'}", "glue.tasks=[RTE]", "glue.seeds=[0,1]", "glue.learning_rates=[1e-9,0.01]"]
    words += ["task=glue", "glue.epochs=8", "glue.batch_examples=8"]
    words += [f"paths.logs_dir={tmp_path / 'logs'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    register_schemas("eval", EvalConfig)
    config = compose("eval", words)
    capsys.readouterr()
    found = glue.score_glue(config, base)
    said = capsys.readouterr()
    assert said.out == ""  # the figures alone go there
    assert said.err.count("fine-tuning RTE-") == 4
    assert found["RTE/learning_rate"] == "0.01"
    assert found["RTE/score"] == found["mean_score"] > 0.9
    assert found["RTE/score_deviation"] < 0.1
    (folder,) = (tmp_path / "logs" / "glue").iterdir()
    assert {path.name for path in folder.iterdir()} == {"RTE.jsonl", glue.RESULTS}  # the runs are gone
    splits = [line.split('"')[3] for line in (folder / glue.RESULTS).read_text().splitlines()]
    assert splits == ["held_out"] * 4 + ["dev"] * 2  # dev is read once, at the chosen rate
    monkeypatch.setattr(glue, "train", lambda *words: pytest.fail("trained again"))
    assert glue.score_glue(config, base) == found
    path = folder / glue.RESULTS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # killed within the fourth of the six
    monkeypatch.setattr(glue, "train", lambda *words: trained.append(words) or run_from_python(*words))
    trained: list[tuple[str, ...]] = []
    again = glue.score_glue(config, base)
    assert again["RTE/score"] == pytest.approx(found["RTE/score"], abs=0.05)
    assert len(trained) == 2  # the fourth, and for dev the first of the best rate, whose run is gone
    assert glue.Glue(config, base).folder == folder
    moved = replace(config, path=str((tmp_path / "glue").rename(tmp_path / "moved")))
    assert glue.Glue(moved, base).folder == folder  # the same text elsewhere
    weights = next(base.glob("checkpoints/*/manifest.json"))
    weights.write_text(weights.read_text() + " ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue, "open_model", lambda base: SimpleNamespace(folder=weights.parent))
        assert glue.Glue(config, base).folder != folder  # another base in the same folder
