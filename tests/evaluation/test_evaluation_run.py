"""Scoring a run or a folder from the command line: every task, its metrics and its errors."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.commands.output_file import write_output
from pretrain.commands.tasks import evaluate
from pretrain.data.config import Format
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.evaluation import scorer
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.run import score
from pretrain.evaluation.scorer import Progress
from pretrain.language_model import LanguageModel
from pretrain.training.config import PathsConfig
from pretrain.training.train import run

SCRIPT = Path(__file__).parents[2] / "src" / "eval.py"
PAIRS = [
    {"sentence_good": "the fox jumps", "sentence_bad": "the fox jump", "UID": "agreement"},
    {"sentence_good": "birds sing", "sentence_bad": "birds sings", "UID": "agreement"},
    {"sentence_good": "a dog", "sentence_bad": "dog a", "UID": "order"},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def settings(tiny: Any, **changes: Any) -> EvalConfig:
    return EvalConfig(paths=PathsConfig(cache_dir=str(tiny.folder / "cache")), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt_nano", "bert_nano", "hybrid_nano"])
def test_a_run_is_scored_on_pairs(tiny: Any, pairs: Path, model: str) -> None:
    report = run(tiny.plan(f"model={model}"))
    found = score(settings(tiny, task=Task.minimal_pairs, path=str(pairs), batch_tokens=40), report.folder)
    llm = LanguageModel.load(report.folder)
    correct = [
        llm.score(pair["sentence_good"]).log_likelihood > llm.score(pair["sentence_bad"]).log_likelihood
        for pair in PAIRS
    ]
    assert found["agreement/accuracy"] == sum(correct[:2]) / 2
    assert found["order/accuracy"] == correct[2]
    assert found["accuracy"] == pytest.approx((sum(correct[:2]) / 2 + correct[2]) / 2)
    assert found["objective"] == {"gpt_nano": "causal", "bert_nano": "masked", "hybrid_nano": "hybrid"}[model]
    assert found["checkpoint"].startswith(report.folder)
    assert found["task"] == "minimal_pairs"
    assert found["elapsed_s"] > 0
    with pytest.raises(DataError, match="path=nowhere does not exist"):
        score(settings(tiny, task=Task.minimal_pairs, path="nowhere"), report.folder)
    hidden = settings(tiny, task=Task.minimal_pairs, path=str(pairs), pseudo_likelihood=True)
    if model == "gpt_nano":
        with pytest.raises(ConfigError, match=r"pseudo_likelihood=true hides tokens, .* not learned to fill masks"):
            score(hidden, report.folder)
        return
    masked = scorer.Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, pseudo_likelihood=True)
    good, bad = (masked.texts([pair[f"sentence_{which}"] for pair in PAIRS]) for which in ("good", "bad"))
    correct = [first.log_likelihood > second.log_likelihood for first, second in zip(good, bad, strict=True)]
    assert score(hidden, report.folder)["agreement/accuracy"] == sum(correct[:2]) / 2


def test_a_task_without_pseudo_likelihoods_says_so(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="for task=minimal_pairs, multiple_choice and bias, not task=cloze"):
        settings(tiny, task=Task.cloze, path="lambada.jsonl", pseudo_likelihood=True)


@pytest.mark.slow
def test_what_a_run_has_memorized(tiny: Any) -> None:
    report = run(tiny.plan("model=gpt_nano", "data.validation_fraction=0.2"))
    found = score(settings(tiny, task=Task.memorization, prompt_tokens=8, new_tokens=4), report.folder)
    kinds = {name.split("/")[0] for name in found if "/" in name}
    assert kinds == {"train", "validation"}
    assert found["train/documents"] + found["validation/documents"] <= 60
    for kind in kinds:
        assert 0 <= found[f"{kind}/exact_match"] <= 1
        assert 0 <= found[f"{kind}/verbatim_tokens"] <= 4
    assert found["train/times_read"] > 0
    fewer = score(settings(tiny, task=Task.memorization, prompt_tokens=8, new_tokens=4, max_examples=3), report.folder)
    assert (fewer["train/documents"], fewer["validation/documents"]) == (3, 3)
    with pytest.raises(ConfigError, match=r"prompt_tokens=30 and new_tokens=4 do not fit into .* of 32 tokens\. Try"):
        score(settings(tiny, task=Task.memorization, prompt_tokens=30, new_tokens=4), report.folder)
    with pytest.raises(ConfigError, match="task=pseudo_perplexity needs a masked model, and this one is causal"):
        score(settings(tiny, task=Task.pseudo_perplexity), report.folder)
    with pytest.raises(ConfigError, match=r"device=nothing cannot be used here: .* Try device=cpu\."):
        score(settings(tiny, task=Task.memorization, device="nothing"), report.folder)


@pytest.mark.slow
def test_documents_too_short_to_continue_are_refused(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    for number in range(9):
        (tmp_path / "short" / f"{number}.txt").write_text(f"fox {number}")
    words = ["model=gpt_nano", f"data.path={tmp_path / 'short'}", "data.validation_fraction=0"]
    report = run(tiny.plan(*words))
    with pytest.raises(DataError, match=r"no training document is longer than prompt_tokens=8 plus new_tokens=4\."):
        score(settings(tiny, task=Task.memorization, prompt_tokens=8, new_tokens=4), report.folder)
    found = score(settings(tiny, task=Task.memorization, prompt_tokens=2, new_tokens=2), report.folder)
    assert "validation/documents" not in found
    with pytest.raises(DataError, match=r"the run has no validation documents\. Give files: path=<file>\."):
        score(settings(tiny), report.folder)


@pytest.mark.slow
def test_a_streamed_run_has_its_documents_in_eras(tiny: Any) -> None:
    words = ["model=gpt_nano", "data.mode=stream", "data.era_tokens=4000", "data.validation_fraction=0.2"]
    report = run(tiny.plan(*words))
    found = score(settings(tiny, task=Task.memorization, prompt_tokens=8, new_tokens=4), report.folder)
    assert found["train/documents"] > 5


@pytest.mark.long
def test_the_pseudo_perplexity_of_documents(tiny: Any, tmp_path: Path) -> None:
    report = run(tiny.plan("model=bert_nano", "data.validation_fraction=0.2"))
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog sings while birds jump over old trees")
    found = score(settings(tiny, task=Task.pseudo_perplexity, path=str(text)), report.folder)
    rows = tmp_path / "rows"
    rows.write_text("body,id\na dog,1\na fox,2\n")
    with pytest.raises(
        DataError, match=r"looks like CSV, not like plain text\. Read .* by format=csv, or .* by format=text"
    ):
        score(settings(tiny, path=str(rows)), report.folder)
    with pytest.raises(DataError, match=r"rows has no text_column=text\. Try one of its columns: body, id"):
        score(settings(tiny, path=str(rows), format=Format.csv), report.folder)
    assert score(settings(tiny, path=str(rows), format=Format.csv, text_column="body"), report.folder)["documents"] == 2
    expected = LanguageModel.load(report.folder).score(text.read_text())
    assert found["pseudo_loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["pseudo_perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
    assert (found["documents"], found["tokens"]) == (1, expected.tokens)
    held_out = score(settings(tiny, task=Task.pseudo_perplexity, max_examples=2), report.folder)
    assert held_out["documents"] == 2
    with pytest.raises(ConfigError, match="needs a causal model"):
        score(settings(tiny, task=Task.memorization, prompt_tokens=4, new_tokens=4), report.folder)
    assert "perplexity" in score(settings(tiny), report.folder)


@pytest.mark.slow
def test_predictions_from_the_position_before_have_no_pseudo_likelihood(tiny: Any, pairs: Path) -> None:
    report = run(tiny.plan("model=diffusion_nano", "objective.shift=true", "trainer.max_steps=1"))
    message = (
        r"reads each prediction at the masked token, .* objective\.shift=true\. Take task=documents, which returns"
    )
    with pytest.raises(ConfigError, match=message):
        score(settings(tiny, task=Task.pseudo_perplexity), report.folder)
    by_bound = settings(tiny, task=Task.minimal_pairs, path=str(pairs))
    assert "accuracy" in score(by_bound, report.folder)
    with pytest.raises(ConfigError, match=r"objective\.shift=true\. Leave it out, for scores by its bound"):
        score(replace(by_bound, pseudo_likelihood=True), report.folder)


@pytest.mark.slow
def test_documents_of_special_tokens_alone_have_no_pseudo_perplexity(tiny: Any, assets: Path, tmp_path: Path) -> None:
    folder = assets / "tokenizers" / "bert-base-uncased"
    words = ["model=bert_nano", "tokenizer=pretrained", f"tokenizer.path={folder}", "trainer.max_steps=1"]
    report = run(tiny.plan(*words))
    (tmp_path / "text.txt").write_text("\u200b\u200b")  # the tokenizer's normalizer removes both characters
    with pytest.raises(DataError, match=r"the 1 documents to score hold special tokens alone, .* path=<file>\."):
        score(settings(tiny, task=Task.pseudo_perplexity, path=str(tmp_path / "text.txt")), report.folder)


def test_a_model_made_elsewhere_has_no_documents_of_its_own(tiny: Any, assets: Path) -> None:
    folder = assets / "models" / "stories260K" / "hf"
    with pytest.raises(DataError, match=r"its documents are unknown\. Score a run's folder"):
        score(settings(tiny, task=Task.memorization), folder)
    with pytest.raises(CheckpointError):
        score(settings(tiny, task=Task.memorization), tiny.folder)


@pytest.mark.long
def test_the_command_prints_a_table_and_writes_figures_with_settings(
    tiny: Any, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tiny.plan("model=gpt_nano"))
    output = tiny.folder / "scores.json"
    words = [f"checkpoint={report.folder}", "task=minimal_pairs", f"path={pairs}", f"output={output}", "max_examples=2"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    capsys.readouterr()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    written = json.loads(output.read_text(), parse_constant=pytest.fail)  # strict JSON: a figure that is none is null
    assert lines["pairs"] == "2"
    assert lines["accuracy"] == f"{written['accuracy']:.4f}"
    assert written["settings"]["task"] == "minimal_pairs"
    assert written["settings"]["max_examples"] == 2

    text = tiny.folder / "text.txt"
    text.write_text("the lazy dog sings")
    logs = Path(report.folder).parent
    monkeypatch.setattr(sys, "argv", ["eval.py", f"checkpoint={logs}", f"path={text}",
                                      f"paths.cache_dir={tiny.folder / 'cache'}"])  # fmt: skip
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr()
    assert f"taking the newest run below {logs}: {report.folder}\n" in shown.err
    assert f"checkpoint       {report.folder}" in shown.out
    assert "tokenized 1 documents\n" in shown.out
    assert "to train on" not in shown.out
    monkeypatch.setattr(sys, "argv", ["eval.py", f"checkpoint={logs}/nothing"])
    with pytest.raises(SystemExit, match="4"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "nothing does not exist. Name a run's folder" in capsys.readouterr().err


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(scorer.time, "perf_counter", lambda: now[0])
    report = Progress("pairs")
    for second in range(0, 31, 5):
        now[0] = float(second)
        report(10 * second + 10, 400)
    assert capsys.readouterr().err.splitlines() == [
        "pairs 28%  0:26 left",
        "pairs 52%  0:18 left",
        "pairs 78%  0:08 left",
    ]


def test_progress_is_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = Progress("pairs")
    report(50, 100)
    report(100, 100)
    assert "pairs: 100%" in capsys.readouterr().err
    assert report.bar is None


@pytest.mark.slow
def test_a_device_that_is_there_is_used(tiny: Any, pairs: Path) -> None:
    report = run(tiny.plan("model=gpt_nano"))
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    found = score(settings(tiny, task=Task.minimal_pairs, path=str(pairs), device=chosen), report.folder)
    assert found["pairs"] == 3


@pytest.mark.slow
def test_what_8_bits_cost_can_be_scored(tiny: Any, pairs: Path, tmp_path: Path) -> None:
    report = run(tiny.plan("model=gpt_nano"))
    with pytest.raises(ConfigError, match=r"dtype=int4 is not a number format .* one of: fp32, bf16, int8\."):
        score(settings(tiny, dtype="int4"), report.folder)
    try:
        held = LanguageModel.load(report.folder, dtype="int8")
    except ConfigError:
        pytest.skip("this processor has no int8 matmul")
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog sings")
    exact, found = (score(settings(tiny, dtype=each, path=str(text)), report.folder) for each in ("fp32", "int8"))
    assert found["loss"] != exact["loss"]
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.01)
    each = score(settings(tiny, dtype="int8", task=Task.minimal_pairs, path=str(pairs)), report.folder)
    correct = [
        held.score(pair["sentence_good"]).log_likelihood > held.score(pair["sentence_bad"]).log_likelihood
        for pair in PAIRS
    ]
    assert each["order/accuracy"] == correct[2]


def test_an_output_that_cannot_be_written_is_refused_before_hours_of_scores(tmp_path: Path) -> None:
    for output, message in (
        (tmp_path / "no" / "scores.json", r"output=.*: there is no folder .*no\. Try output=scores\.json"),
        (tmp_path, r"output=.* cannot be written: Is a directory\. Name a new file in a folder of yours"),
    ):
        config = EvalConfig(checkpoint=str(tmp_path / "nothing"), output=str(output))
        with pytest.raises(ConfigError, match=message):
            evaluate(config, [])
    with pytest.raises(ConfigError, match=r"output=.*no/scores\.json cannot be written: No such file"):
        write_output("output", tmp_path / "no" / "scores.json", "{}")
