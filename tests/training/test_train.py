"""Complete small runs: interrupted and resumed equals uninterrupted."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from same_state import assert_same_state

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.data.config import Mode
from pretrain.errors import CheckpointError, ConfigError, DataError, DivergenceError, Interrupted
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score_documents
from pretrain.kernels import onednn_linear
from pretrain.language_model import LanguageModel
from pretrain.launch import resume as resuming
from pretrain.launch.run_folder import read_rows
from pretrain.training.callbacks.samples import Samples
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.report import Report
from pretrain.training.train import run

CAUSAL = ["model=gpt_nano"]
MASKED = ["model=bert_nano", "model.attention_dropout=0.1"]
# 128 tokens x 192 x 768: 19 million multiplications
LARGE = ["model=gpt_nano", "model.d_model=192", "trainer.precision=fp32"]


def losses(folder: Path, name: str = "train/loss") -> dict[int, str]:
    return {int(row["step"]): row["value"] for row in read_rows(folder / "metrics.csv") if row["name"] == name}


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of the work that ends `step`."""
    original = Samples.on_train_batch_end

    def sampled(self, trainer, *arguments):
        if trainer.global_step == step - 1:
            os.kill(os.getpid(), number)
        original(self, trainer, *arguments)

    monkeypatch.setattr(Samples, "on_train_batch_end", sampled)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "number", "step"),
    [
        (CAUSAL, signal.SIGTERM, 7),
        (MASKED, signal.SIGINT, 7),
        (CAUSAL, signal.SIGINT, 5),
        (LARGE, signal.SIGHUP, 7),
    ],
    ids=["causal", "masked", "where a validation comes next", "matmuls large enough for oneDNN"],
)
@pytest.mark.fault("F06")
def test_an_interrupted_run_resumed_is_bitwise_the_uninterrupted_one(tiny, monkeypatch, family, number, step):
    if family is LARGE:
        monkeypatch.setattr(onednn_linear, "amd_with_avx512", torch.backends.mkldnn.is_available)
    whole = run(tiny.plan(*family, f"paths.run_dir={tiny.folder / 'whole'}"))
    with monkeypatch.context() as patch:
        send_at(patch, step, number)
        with pytest.raises(Interrupted, match=rf"SIG(TERM|INT|HUP) at step {step}: saved") as caught:
            run(tiny.plan(*family, f"paths.run_dir={tiny.folder / 'cut'}"))
        assert caught.value.exit_code == 128 + number
    cut = run(tiny.plan(*family, f"paths.run_dir={tiny.folder / 'cut'}", "resume=auto"))
    assert_same_state(Path(whole.folder), Path(cut.folder))
    assert losses(Path(whole.folder)) == losses(Path(cut.folder))
    assert len(losses(Path(cut.folder))) == 12
    assert whole.validation == cut.validation
    assert whole.sample == cut.sample
    assert whole.tokens_seen == cut.tokens_seen == 12 * 4 * 32


@pytest.mark.slow
def test_a_hybrid_model_is_trained_scored_and_used_both_ways(tiny):
    words = ["model=hybrid_nano", "trainer.max_steps=40", "trainer.val_check_interval=40", "optimizer=adamw"]
    words += ["optimizer.learning_rate=0.01", "checkpoint.every_n_steps=40"]
    report = run(tiny.plan(*words))
    figures = report.validation
    assert set(figures) == {
        "val/loss", "val/perplexity", "val/accuracy", "val/bits_per_byte", "val/causal/loss",
        "val/causal/bits_per_byte", "val/masked/loss", "val/masked/accuracy",
    }  # fmt: skip
    assert figures["val/bits_per_byte"] == figures["val/causal/bits_per_byte"]
    smaller, larger = sorted((figures["val/causal/loss"], figures["val/masked/loss"]))
    assert smaller < figures["val/loss"] < larger < 5.0  # log 259 = 5.56 nats is chance
    assert "masked           loss" in str(report)
    found = score_documents(EvalConfig(paths=tiny.plan().config.paths), Path(report.folder))
    for name in ("loss", "bits_per_byte", "causal/loss"):
        assert found[name] == pytest.approx(figures[f"val/{name}"], rel=1e-2 if name == "loss" else 1e-5)
    llm = LanguageModel.load(report.folder)
    assert repr(llm).startswith("LanguageModel(hybrid, ")
    assert llm.generate("the quick", max_new_tokens=5, seed=1).startswith("the quick")
    assert len(llm.predict_mask("the qu[MASK]ck fox")[0]) == 5
    assert llm.embed("the fox").shape == (16,)
    samples = report.sample.split("\n\n")
    assert len([sample for sample in samples if "[MASK]" in sample]) >= 2  # two lines of text are held out
    assert len([sample for sample in samples if "[MASK]" not in sample]) >= 2


@pytest.mark.slow
def test_checkpoints_written_in_the_background_are_the_same(tiny, monkeypatch):
    """The weights go on changing while a slow disk takes the copy."""
    written = checkpoint_writing.write

    def slowly(*arguments, **named):
        time.sleep(0.2)
        return written(*arguments, **named)

    words = [*MASKED, "checkpoint.every_n_steps=2", "checkpoint.keep=0"]
    at_once = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'at_once'}"))
    monkeypatch.setattr(checkpoint_writing, "write", slowly)
    words.append("checkpoint.asynchronous=true")
    in_background = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'background'}"))
    folders = [step_folders(Path(report.folder) / "checkpoints") for report in (at_once, in_background)]
    assert [path.name for path in folders[0]] == [path.name for path in folders[1]]
    assert len(folders[0]) == 6
    for one, other in zip(*folders, strict=True):
        assert_same_state(one, other)


@pytest.mark.slow
def test_a_checkpoint_that_fails_in_the_background_ends_the_run(tiny, monkeypatch):
    def fail(*arguments, **named):
        raise CheckpointError("the disk is gone")

    monkeypatch.setattr(checkpoint_writing, "write", fail)
    for every in (4, 12):  # told by the next save, or by the end
        with pytest.raises(CheckpointError, match="the disk is gone"):
            run(tiny.plan(*CAUSAL, f"checkpoint.every_n_steps={every}", "checkpoint.asynchronous=true"))


def assert_tensorboard_shows_curves_text_and_settings(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, validation = (EventAccumulator(str(path)).Reload() for path in (folder, folder / "validation"))
    tags = events.Tags()
    assert {"loss", "optim/learning_rate", "optim/grad_norm", "speed/tokens_per_s"} <= set(tags["scalars"])
    assert sorted(tags["scalars"])[0] == "loss"  # TensorBoard's first chart
    assert "optim/skipped_steps" not in tags["scalars"]  # always 0
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in validation.Scalars("loss")] == [5, 10, 12]  # in the same chart
    assert {"loss/bits_per_byte", "loss/perplexity", "loss/accuracy"} <= set(validation.Tags()["scalars"])
    assert {"config/text_summary", "samples/text_summary"} <= set(tags["tensors"])
    assert any("hparams" in tag for tag in events.summary_metadata)


def assert_the_report_says_where_the_time_went(report: Report) -> None:
    assert report.training_s + sum(report.waited_s.values()) < report.wall_s
    assert set(report.waited_s) == {"validation", "checkpoints", "samples"}
    assert min(report.waited_s.values()) > 0
    assert f"goodput            {report.training_s / report.wall_s:.1%} of" in str(report)
    assert "at a failure a day, one in" in str(report)


def assert_the_trace_shows_two_steps(folder: Path) -> None:
    events = json.loads((folder / "rank-0.pt.trace.json").read_text())["traceEvents"]
    names = {str(event.get("name")) for event in events}
    assert {name for name in names if name.startswith("ProfilerStep#")} == {"ProfilerStep#4", "ProfilerStep#5"}
    assert "aten::scaled_dot_product_attention" in names
    assert "aten::mm" in (folder / "rank-0.txt").read_text()


@pytest.mark.slow
def test_a_finished_run_can_be_read_continued_and_started_from(tiny):
    first = run(tiny.plan(*CAUSAL, "trainer.profile_steps=2"))
    folder = Path(first.folder)
    assert_the_trace_shows_two_steps(folder / "profile")
    assert folder.parent == tiny.folder / "logs" / "gpt_nano"
    assert [path.name for path in step_folders(folder / "checkpoints")] == ["step-00000008", "step-00000012"]
    assert json.loads((folder / "report.json").read_text())["steps"] == 12
    assert {"val/loss", "val/bits_per_byte", "val/perplexity", "optim/grad_norm", "speed/tokens_per_s"} <= {
        row["name"] for row in read_rows(folder / "metrics.csv")
    }
    assert list(folder.glob("events.out.tfevents.*"))

    assert_tensorboard_shows_curves_text_and_settings(folder)
    assert_the_report_says_where_the_time_went(first)

    told = [(folder / name).read_bytes() for name in ("report.json", "metrics.csv")]
    again = run(tiny.plan(*CAUSAL, "resume=auto"))
    assert again.steps == 12
    assert again.folder == first.folder
    assert again.validation == first.validation
    assert "12 steps, 1,536 tokens; nothing was left to do" in str(again)
    assert [(folder / name).read_bytes() for name in ("report.json", "metrics.csv")] == told
    (folder / "report.json").write_text("{")
    run(tiny.plan(*CAUSAL, "resume=auto"))
    assert json.loads((folder / "report.json").read_text())["validation"] == first.validation

    longer = run(tiny.plan(*CAUSAL, f"resume={folder}", "trainer.max_steps=16"))
    assert longer.steps == 16
    assert sorted(losses(folder)) == list(range(1, 17))

    start = run(tiny.plan(*CAUSAL, f"init_from={folder}", "trainer.max_steps=1", "seed=5"))
    assert start.folder != first.folder
    assert losses(Path(start.folder))[1] != losses(folder)[1]

    llm = LanguageModel.load(folder)
    assert llm.generate("the quick", max_new_tokens=5, seed=1).startswith("the quick")
    with pytest.raises(ConfigError, match="cannot fill masks"):
        llm.predict_mask("the [MASK] fox")


@pytest.mark.slow
@pytest.mark.parametrize("family", [CAUSAL, MASKED], ids=["causal", "masked"])
@pytest.mark.fault("F11")
def test_micro_batches_do_not_change_the_result(tiny, family):
    """Rows hold unequal numbers of targets, so a mean of means would differ."""
    words = [*family, "model.dropout=0", "trainer.max_steps=6", "checkpoint.every_n_steps=100"]
    words += ["model.attention_dropout=0", "optimizer=adamw", "data.validation_fraction=0"]
    one = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'one'}"))
    four = run(tiny.plan(*words, "micro_batch_size=1", f"paths.run_dir={tiny.folder / 'four'}"))
    a, b = losses(Path(one.folder)), losses(Path(four.folder))
    assert a.keys() == b.keys()
    assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], abs=1e-5)
    assert one.validation == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", [CAUSAL, MASKED, ["model=modernbert_nano"]], ids=["gpt", "bert", "modernbert"])
def test_bf16_trains_without_a_warning_and_close_to_fp32(tiny, family):
    words = [*family, "model.dropout=0", "trainer.max_steps=4", "checkpoint.every_n_steps=100"]
    words += ["model.attention_dropout=0"]
    exact = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'fp32'}"))
    short = run(tiny.plan(*words, "trainer.precision=bf16", f"paths.run_dir={tiny.folder / 'bf16'}"))
    a, b = losses(Path(exact.folder)), losses(Path(short.folder))
    assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], rel=5e-3)
    assert a != b


@pytest.mark.slow
def test_a_run_ends_by_the_clock_decayed_and_continues_with_more_time(tiny):
    words = [*CAUSAL, "trainer.max_steps=-1", "trainer.val_check_interval=50", "checkpoint.every_n_steps=10000"]
    words += ["schedule=linear", "schedule.warmup_tokens=640", f"paths.run_dir={tiny.folder / 'run'}"]
    started = time.perf_counter()
    first = run(tiny.plan(*words, "trainer.max_time=0.05"))
    assert time.perf_counter() - started < 60  # 5 s where nobody else is busy
    saved = open_checkpoint(Path(first.folder))
    assert saved.step == first.steps > 20
    assert 2.5 < saved.progress["seconds"] < 6.0  # 3.0, and the last step of a busy machine
    rates = [float(rate) for rate in losses(Path(first.folder), "optim/learning_rate").values()]
    assert rates.index(max(rates)) < 10
    assert rates[-1] < 0.1 * max(rates)
    assert first.longer == "trainer.max_time=0.1"
    again = run(tiny.plan("resume=auto", *words, "trainer.max_time=0.05"))
    assert again.steps == first.steps  # its time is over
    longer = run(tiny.plan("resume=auto", *words, "trainer.max_time=0.07"))
    assert longer.steps > first.steps
    assert 3.7 < open_checkpoint(Path(first.folder)).progress["seconds"] < 8.0  # 4.2


@pytest.mark.slow
@pytest.mark.fault("F11")
def test_prefetch_changes_nothing(tiny):
    words = [*MASKED, "trainer.max_steps=4", "checkpoint.every_n_steps=100"]
    none = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'none'}"))
    two = run(tiny.plan(*words, "data.prefetch=2", f"paths.run_dir={tiny.folder / 'two'}"))
    assert losses(Path(none.folder)) == losses(Path(two.folder))


@pytest.mark.slow
def test_settings_that_change_the_result_are_refused_on_resume(tiny):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.plan(*words, "trainer.max_steps=4"))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.\d+ in the run, 0\.5 now"):
        tiny.plan(*words, "resume=auto", "optimizer.learning_rate=0.5")
    with pytest.raises(ConfigError, match=r"model\.n_layers: 2 in the run, 1 now"):
        tiny.plan(*words, "resume=auto", "model.n_layers=1")
    allowed = tiny.plan(*words, "resume=auto", "optimizer.learning_rate=0.5", "allow_change=[optimizer.learning_rate]")
    assert allowed.config.optimizer.learning_rate == 0.5
    with pytest.raises(CheckpointError, match="already holds the checkpoints of a run"):
        tiny.plan(*words)


@pytest.mark.slow
def test_a_setting_that_is_newer_than_the_run_resumed_has_its_usual_value(tiny, monkeypatch):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.plan(*words, "trainer.max_steps=2"))
    saved = open_checkpoint(tiny.folder / "run")
    del saved.config["data"]["mode"]
    monkeypatch.setattr(resuming, "newest", lambda folder: (saved, []))
    assert tiny.plan(*words, "resume=auto").config.data.mode is Mode.prepare
    with pytest.raises(ConfigError, match=r"data\.mode: prepare in the run, stream now"):
        tiny.plan(*words, "resume=auto", "data.mode=stream")


@pytest.mark.slow
@pytest.mark.fault("F03")
def test_resume_skips_damaged_checkpoints_and_never_starts_over(tiny, capsys):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.plan(*words))
    folders = step_folders(tiny.folder / "run" / "checkpoints")
    weights = folders[-1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert tiny.plan(*words, "resume=auto").resumed.step == 8
    assert "resume=auto skips" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        tiny.plan(*words, f"resume={folders[-1]}")
    (folders[0] / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="all are damaged"):
        tiny.plan(*words, "resume=auto")
    assert tiny.plan(*CAUSAL, "resume=auto").resumed is None


@pytest.mark.slow
@pytest.mark.fault("F10")
@pytest.mark.parametrize("mode", ["prepare", "stream"])
def test_changed_data_is_refused_on_resume(tiny, tmp_path, mode):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five " * 200)
    words = [*CAUSAL, f"data.path={text}", f"data.mode={mode}", f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.plan(*words, "trainer.max_steps=2"))
    text.write_text("six seven eight nine ten " * 200)
    with pytest.raises(DataError, match="was trained with data_fingerprint"):
        run(tiny.plan(*words, "resume=auto", "trainer.max_steps=4"))


@pytest.mark.slow
@pytest.mark.fault("F10")
def test_init_from_another_tokenizer_is_refused(tiny):
    first = run(tiny.plan(*CAUSAL, "trainer.max_steps=2"))
    words = [*CAUSAL, f"init_from={first.folder}", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    with pytest.raises(ConfigError, match="was trained with another tokenizer"):
        run(tiny.plan(*words))


def plant_nan(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    original = TrainingModule.training_step

    def planted(self, batch, batch_index):
        loss = original(self, batch, batch_index)
        return loss * float("nan") if self.global_step in steps else loss

    monkeypatch.setattr(TrainingModule, "training_step", planted)


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tiny, monkeypatch):
    plant_nan(monkeypatch, range(3, 5))
    report = run(tiny.plan(*CAUSAL))
    saved = open_checkpoint(Path(report.folder))
    assert saved.progress["skipped_steps"] == 2
    assert all(tensor.isfinite().all() for part in ("model", "optimizer") for tensor in saved.tensors(part).values())
    assert losses(Path(report.folder), "optim/skipped_steps")[12] == "2.0"


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(tiny, monkeypatch):
    plant_nan(monkeypatch, range(2, 100))
    with pytest.raises(
        DivergenceError, match=r"10 steps in a row were skipped.*the gradient was not finite\. The last"
    ) as caught:
        run(tiny.plan(*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}", "checkpoint.every_n_steps=2"))
    assert caught.value.exit_code == 5
    saved = open_checkpoint(tiny.folder / "run")
    assert all(tensor.isfinite().all() for tensor in saved.tensors("model").values())


@pytest.mark.fault("F05")
def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tiny):
    (tiny.folder / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        tiny.plan(*CAUSAL, f"paths.run_dir={tiny.folder / 'file' / 'run'}")


@pytest.mark.slow
@pytest.mark.fault("F04")
def test_a_disk_too_full_for_a_checkpoint_is_refused_before_the_run(tiny, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 100_000, 100_000))
    with pytest.raises(CheckpointError, match=r"too full for a checkpoint: it needs 0\.1 MiB, and 0\.1 MiB are free"):
        run(tiny.plan(*CAUSAL))


@pytest.mark.long
def test_warnings_about_the_plan_come_before_the_first_step(tiny, capsys):
    run(tiny.plan(*CAUSAL, "trainer.max_steps=2", "model.d_model=32", "schedule.warmup_steps=1"))
    out = capsys.readouterr().out
    assert "parameters, the data" in out
    assert "decay" not in out
    assert "export" not in out
    reaching = ("schedule.warmup_steps=9", "schedule.decay_fraction=0.5")
    run(tiny.plan(*CAUSAL, "trainer.max_steps=10", "model.d_model=32", *reaching))
    told = "decay_fraction=0.5 asks for 5 steps of decay, and the warm-up of 9 steps leaves 1 of 10: "
    assert told in capsys.readouterr().out
    run(tiny.plan(*CAUSAL, "trainer.max_steps=1", "batch_size=2000"))
    assert "epochs" in capsys.readouterr().out
    run(tiny.plan(*CAUSAL, "trainer.max_steps=1", "schedule.warmup_steps=1"))
    assert "the warm-up takes 1 steps and the run 1: the learning rate never decays" in capsys.readouterr().out


@pytest.mark.long
def test_the_last_validation_is_logged_once(tiny):
    for steps, folder in ((4, "at_the_end"), (3, "before_it")):
        words = (f"trainer.max_steps={steps}", "trainer.val_check_interval=2", f"paths.run_dir={tiny.folder / folder}")
        report = run(tiny.plan(*words))
        rows = [row for row in read_rows(tiny.folder / folder / "metrics.csv") if row["name"] == "val/loss"]
        assert [int(row["step"]) for row in rows] == [2, steps]
        assert float(rows[-1]["value"]) == pytest.approx(report.validation["val/loss"])
