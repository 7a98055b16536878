"""A base is fine-tuned to predict a number of a pair of texts."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from pretrain.config.compose import compose
from pretrain.config.scripts import ExportConfig
from pretrain.data.fine_tuning_config import LabeledTextConfig
from pretrain.data.prepare import prepare
from pretrain.data.token_store.annotations import Annotations
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.reports.write import write_report
from pretrain.training.train import run

DEGREES = {"poor": 0.5, "fair": 1.75, "good": 3.0, "superb": 4.25}


def rated(path: Path, count: int, seed: int) -> Path:
    """Write pairs whose number is told by one word of the second text."""
    draw, lines = random.Random(seed), []
    for number in range(count):
        word = draw.choice(list(DEGREES))
        record = {"text": f"film {number}", "second": f"{word} {draw.randrange(99)}", "label": DEGREES[word]}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.long
def test_a_base_learns_numbers_of_pairs(tiny, tmp_path):
    base = Path(run(tiny.plan("model=bert_nano", "model.context_length=64", "model.dropout=0.0")).folder)
    train, dev = rated(tmp_path / "train.jsonl", 160, 1), rated(tmp_path / "dev.jsonl", 30, 2)
    keep = [word for word in tiny.words if word.startswith(("paths.", "sample.", "trainer.", "batch_size"))]
    tiny.words = [*keep, "experiment=regress", f"init_from={base}", "schedule.warmup_steps=2"]
    words = [f"data.path={train}", f"data.validation_path={dev}", "data.pair_column=second"]
    plan = tiny.plan(*words, "optimizer.learning_rate=0.01", "trainer.max_steps=90", "checkpoint.every_n_steps=90")
    report = run(plan)
    assert set(report.validation) == {"val/loss", "val/pearson", "val/spearman"}
    assert report.validation["val/pearson"] > 0.9
    assert "Spearman" in str(report)
    assert "(the document has '" in report.sample
    assert "Squared error" in write_report(Path(report.folder)).read_text()

    llm = LanguageModel.load(report.folder)
    rows = [json.loads(line) for line in dev.read_text().splitlines()]
    numbers = llm.regress([(row["text"], row["second"]) for row in rows])
    truth = [row["label"] for row in rows]
    assert llm.regress((rows[0]["text"], rows[0]["second"])) == pytest.approx(numbers[0], rel=1e-4)
    both = torch.tensor(numbers), torch.tensor(truth)
    assert report.validation["val/loss"] == pytest.approx(float((both[0] - both[1]).square().mean()), rel=0.05)  # bf16
    assert report.validation["val/pearson"] == pytest.approx(float(pearson_corrcoef(*both)), abs=1e-2)
    assert report.validation["val/spearman"] == pytest.approx(float(spearman_corrcoef(*both)), abs=5e-2)
    assert "predicts a number" in repr(llm)
    refused(llm, Path(report.folder), tmp_path, train)
    words = ["experiment=instruct", f"init_from={report.folder}", f"data.path={instructions(tmp_path)}"]
    tiny.words = keep
    with pytest.raises(ConfigError, match=r"predicts numbers of texts and has no head over the vocabulary"):
        run(tiny.plan(*words, "objective=causal"))


def refused(llm: LanguageModel, folder: Path, tmp_path: Path, texts: Path) -> None:
    """Ask for what a model of numbers cannot do."""
    with pytest.raises(ConfigError, match=r"was trained to predict a number of a text and predicts no tokens\. Use"):
        llm.score("a")
    with pytest.raises(ConfigError, match=r"was trained to predict a number of a text, not to embed them"):
        llm.embed("a")
    with pytest.raises(ConfigError, match=r"this model was not trained to classify texts"):
        llm.classify("a")
    with pytest.raises(ConfigError, match=r"predicts a number of a text, and eval scores .* Its correlations are in"):
        score(EvalConfig(path=str(texts)), folder)
    with pytest.raises(ConfigError, match=r"predicts numbers of texts, and transformers has no such head .*regress"):
        export_model(ExportConfig(output=str(tmp_path / "out")), folder)
    base = LanguageModel.load(open_model(folder).run.init_from)
    with pytest.raises(ConfigError, match=r"was not trained to predict a number of a text\. Fine-tune it: .*=regress"):
        base.regress("a")


def instructions(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    return path


@pytest.mark.slow
def test_numbers_are_read_from_lines_and_columns(tiny, tmp_path):
    """What is no finite number is skipped and counted."""
    path = tmp_path / "rated.tsv"
    path.write_text("fine\t3.5\nworse\t-2\nno\tnan\nlong\t1e999\nword\tgood\n")
    columns = tmp_path / "rated.jsonl"
    records = [("a", 3.5), ("b", "-2"), ("c", None), ("d", "good"), ("e", 10**400)]
    columns.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in records))
    for file in (path, columns):
        data = LabeledTextConfig(path=str(file), numeric_labels=True, validation_fraction=0.0)
        prepared = prepare(data, tiny.config().tokenizer, tmp_path / "cache", report=lambda line: None)
        annotations = prepared.train[""].annotations
        assert annotations is not None
        assert (annotations.kind, [annotations.shown(n) for n in range(2)]) == ("number", ["3.5", "-2"])
        assert len(annotations.values) == 2
        assert prepared.labels == []


@pytest.mark.slow
def test_a_damaged_number_is_found(tiny, tmp_path):
    path = tmp_path / "rated.tsv"
    path.write_text("fine\t3.5\nworse\t-2\n")
    data = LabeledTextConfig(path=str(path), numeric_labels=True, validation_fraction=0.0)
    store = prepare(data, tiny.config().tokenizer, tmp_path / "cache", report=lambda line: None).train[""]
    file = store.folder / "annotations.bin"
    file.write_bytes(b"\xff" * 8)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest["annotations"]["sha256"] = hashlib.sha256(b"\xff" * 8).hexdigest()
    with pytest.raises(DataError, match=r"annotations\.bin is damaged: it has a number that is not finite"):
        Annotations.load(store.folder, manifest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=regress"], r"objective=regress predicts numbers of texts, and data\.kind=python_docs has none"),
        (
            ["objective=regress", "data=labeled", "data.path=x"],
            r"objective=regress predicts numbers, and data\.numeric_labels=false\. Try data\.numeric_labels=true, or",
        ),
        (
            ["objective=classify", "data=labeled", "data.path=x", "data.numeric_labels=true"],
            r"objective=classify predicts labels, and data\.numeric_labels=true\. Try objective=regress, or",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", words)
