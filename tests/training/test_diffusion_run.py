"""Small runs of a masked diffusion: resumed equals uninterrupted, and every figure of a bound is named one."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from same_state import assert_same_state
from test_train import losses, send_at

from pretrain.errors import Interrupted
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.examples import read_examples
from pretrain.evaluation.run import score, score_documents
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_examples
from pretrain.language_model import LanguageModel
from pretrain.reports.write import write_report
from pretrain.training.train import run

DIFFUSION = ["model=diffusion_nano", "optimizer=adamw", "optimizer.learning_rate=0.01"]
ALL = ["objective.complementary=true", "objective.random_length_rows=0.5", "objective.min_masked_fraction=0.2",
       "objective.validation_draws=2"]  # fmt: skip
BOUNDS = {"val/loss", "val/loss_bound", "val/perplexity_bound", "val/bits_per_byte_bound", "val/accuracy"}


@pytest.mark.long
def test_a_diffusion_run_is_scored_by_its_bound(tiny, capsys):
    words = ["trainer.max_steps=40", "trainer.val_check_interval=40", "trainer.enable_progress_bar=true"]
    report = run(tiny.plan(*DIFFUSION, *words, "ema.decay=0.9"))
    figures = report.validation
    assert set(figures) == BOUNDS | {"val/loss_ema"}
    assert figures["val/loss"] == figures["val/loss_bound"] < 5.4  # log 259 = 5.56 nats is chance
    assert set(losses(Path(report.folder), "val/loss_bound")) == {40}
    printed = capsys.readouterr()
    of_average = f"of the average of the weights {figures['val/loss_ema']:.4f}  bits per byte at most"
    assert f"validation loss {figures['val/loss']:.4f} (bound), {of_average}" in printed.out + printed.err
    assert f"{figures['val/loss']:.4f} (an upper bound" in str(report)
    assert "bits/byte (bound)" in str(report)
    page = write_report(Path(report.folder)).read_text(encoding="utf8")
    for named in (
        "validation loss (bound)",
        "loss of the average (bound)",
        "bits per byte (bound)",
        "validation (bound)",
    ):
        assert named in page
    found = score_documents(EvalConfig(paths=tiny.plan().config.paths), Path(report.folder))
    assert found["accuracy"] > 0
    assert found["loss"] == found["loss_bound"] == pytest.approx(figures["val/loss"], rel=0.1)  # with other masks
    assert "bits_per_byte" not in found
    more, single = (
        score_documents(EvalConfig(paths=tiny.plan().config.paths, draws_per_row=draws), Path(report.folder))
        for draws in (16, 1)
    )
    assert "loss_standard_error" not in single
    assert 0 < more["loss_standard_error"] < found["loss_standard_error"]
    deviation = (found["loss_standard_error"] ** 2 + more["loss_standard_error"] ** 2) ** 0.5
    assert abs(found["loss"] - more["loss"]) < 4 * deviation
    assert found["targets"] == sum(report.validation_targets.values())
    pairs = tiny.folder / "pairs.jsonl"
    sentences = [("the fox jumps", "the fox jump"), ("a dog", "dog a")]
    records = [{"sentence_good": good, "sentence_bad": bad, "UID": "one"} for good, bad in sentences]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = EvalConfig(paths=tiny.plan().config.paths, task=Task.minimal_pairs, path=str(pairs))
    as_masked = score(replace(task, pseudo_likelihood=True), Path(report.folder))
    assert set(score(task, Path(report.folder))) - set(as_masked) == {"undecided"}
    llm = LanguageModel.load(report.folder)
    expected = score_examples(Scorer(llm.model, llm.tokenizer), read_examples(Task.minimal_pairs, str(pairs)))
    assert expected.items() <= as_masked.items()


@pytest.mark.slow
def test_an_interrupted_diffusion_resumed_is_bitwise_the_uninterrupted_one(tiny, monkeypatch):
    """With all that training draws: pairs of masks, borders, and a floor of the hidden share."""
    whole = run(tiny.plan(*DIFFUSION, *ALL, f"paths.run_dir={tiny.folder / 'whole'}"))
    cut = f"paths.run_dir={tiny.folder / 'cut'}"
    with monkeypatch.context() as patch:
        send_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM at step 7: saved"):
            run(tiny.plan(*DIFFUSION, *ALL, cut))
    resumed = run(tiny.plan(*DIFFUSION, *ALL, cut, "resume=auto"))
    assert_same_state(Path(whole.folder), Path(resumed.folder))
    assert losses(Path(whole.folder)) == losses(Path(resumed.folder))
    assert whole.validation == resumed.validation
    assert 0 < whole.validation["val/loss_standard_error"] < 1
    assert whole.tokens_seen == resumed.tokens_seen == 12 * 4 * 32  # each token once, though two passes read it


@pytest.mark.slow
def test_hybrid_rows_of_a_diffusion_are_scored_apart(tiny):
    report = run(tiny.plan("model=hybrid_nano", "objective.bidirectional=diffusion", "trainer.max_steps=4"))
    figures = report.validation
    assert set(figures) == {
        "val/loss", "val/loss_bound", "val/perplexity_bound", "val/accuracy", "val/bits_per_byte", "val/causal/loss",
        "val/causal/bits_per_byte", "val/diffusion/loss", "val/diffusion/loss_bound",
        "val/diffusion/bits_per_byte_bound",
    }  # fmt: skip
    assert figures["val/bits_per_byte"] == figures["val/causal/bits_per_byte"]  # exact ones alone


@pytest.mark.slow
def test_a_diffusion_may_learn_responses(tiny):
    """Prompts are never hidden: see `test_what_counts_are_the_targets_of_the_causal_objective`."""
    assert tiny.config("data=pairs", "data.path=x", "model=diffusion_nano").objective.denoises
