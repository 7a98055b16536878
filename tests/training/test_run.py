"""Whole runs, small: what is interrupted and resumed ends as what was never interrupted."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import open_checkpoint, step_folders
from pretrain.data.config import Mode
from pretrain.errors import CheckpointError, ConfigError, DataError, DivergenceError, Interrupted
from pretrain.language_model import LanguageModel
from pretrain.training import launch
from pretrain.training.callbacks.samples import Samples
from pretrain.training.loggers import read_rows
from pretrain.training.module import TrainingModule
from pretrain.training.run import run

CAUSAL = ["model=gpt_nano"]
MASKED = ["model=bert_nano", "model.attention_dropout=0.1"]


def losses(folder: Path, name: str = "train/loss") -> dict[int, str]:
    return {int(row["step"]): row["value"] for row in read_rows(folder / "metrics.csv") if row["name"] == name}


def assert_same_state(one: Path, other: Path) -> None:
    first, second = open_checkpoint(one), open_checkpoint(other)
    assert first.step == second.step
    assert first.progress == second.progress
    for part in ("model", "optimizer", "random"):
        a, b = first.tensors(part), second.tensors(part)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of the work that ends `step`."""
    original = Samples.on_train_batch_end

    def sampled(self, trainer, *arguments):
        if trainer.global_step == step - 1:
            os.kill(os.getpid(), number)
        original(self, trainer, *arguments)

    monkeypatch.setattr(Samples, "on_train_batch_end", sampled)


@pytest.mark.parametrize(
    ("family", "number"), [(CAUSAL, signal.SIGTERM), (MASKED, signal.SIGINT)], ids=["causal", "masked"]
)
def test_an_interrupted_run_resumed_is_bitwise_the_uninterrupted_one(tiny, monkeypatch, family, number):
    whole = run(tiny.place(*family, f"paths.run_dir={tiny.folder / 'whole'}"))
    with monkeypatch.context() as patch:
        send_at(patch, 6, number)
        with pytest.raises(Interrupted, match=r"SIG(TERM|INT) at step 6: saved") as caught:
            run(tiny.place(*family, f"paths.run_dir={tiny.folder / 'cut'}"))
        assert caught.value.exit_code == 128 + number
    cut = run(tiny.place(*family, f"paths.run_dir={tiny.folder / 'cut'}", "resume=auto"))
    assert_same_state(Path(whole.folder), Path(cut.folder))
    assert losses(Path(whole.folder)) == losses(Path(cut.folder))
    assert len(losses(Path(cut.folder))) == 12
    assert whole.validation == cut.validation
    assert whole.sample == cut.sample
    assert whole.tokens_seen == cut.tokens_seen == 12 * 4 * 32


def assert_tensorboard_shows_curves_text_and_settings(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "val/bits_per_byte", "optim/learning_rate", "speed/mfu"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert {"config/text_summary", "samples/text_summary"} <= set(tags["tensors"])
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_a_finished_run_can_be_read_continued_and_started_from(tiny):
    first = run(tiny.place(*CAUSAL))
    folder = Path(first.folder)
    assert folder.parent == tiny.folder / "logs" / "gpt_nano"
    assert [path.name for path in step_folders(folder / "checkpoints")] == ["step-00000008", "step-00000012"]
    assert json.loads((folder / "report.json").read_text())["steps"] == 12
    assert {"val/loss", "val/bits_per_byte", "val/perplexity", "optim/grad_norm", "speed/tokens_per_s"} <= {
        row["name"] for row in read_rows(folder / "metrics.csv")
    }
    assert list(folder.glob("events.out.tfevents.*"))

    assert_tensorboard_shows_curves_text_and_settings(folder)

    again = run(tiny.place(*CAUSAL, "resume=auto"))
    assert again.steps == 12
    assert again.folder == first.folder

    longer = run(tiny.place(*CAUSAL, f"resume={folder}", "trainer.max_steps=16"))
    assert longer.steps == 16
    assert sorted(losses(folder)) == list(range(1, 17))

    start = run(tiny.place(*CAUSAL, f"init_from={folder}", "trainer.max_steps=1", "seed=5"))
    assert start.folder != first.folder
    assert losses(Path(start.folder))[1] != losses(folder)[1]

    llm = LanguageModel.load(folder)
    assert llm.generate("the quick", max_new_tokens=5, seed=1).startswith("the quick")
    with pytest.raises(ConfigError, match="cannot fill masks"):
        llm.predict_mask("the [MASK] fox")


@pytest.mark.parametrize("family", [CAUSAL, MASKED], ids=["causal", "masked"])
def test_micro_batches_do_not_change_the_result(tiny, family):
    """Rows hold unequal numbers of targets, so a mean of means would differ."""
    words = [*family, "model.dropout=0", "trainer.max_steps=6", "checkpoint.every_n_steps=100"]
    words += ["model.attention_dropout=0", "optimizer=adamw", "data.validation_fraction=0"]
    one = run(tiny.place(*words, f"paths.run_dir={tiny.folder / 'one'}"))
    four = run(tiny.place(*words, "micro_batch_size=1", f"paths.run_dir={tiny.folder / 'four'}"))
    a, b = losses(Path(one.folder)), losses(Path(four.folder))
    assert a.keys() == b.keys()
    assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], abs=1e-5)
    assert one.validation == {}


@pytest.mark.parametrize("family", [CAUSAL, MASKED, ["model=modernbert_nano"]], ids=["gpt", "bert", "modernbert"])
def test_bf16_trains_without_a_warning_and_close_to_fp32(tiny, family):
    words = [*family, "model.dropout=0", "trainer.max_steps=4", "checkpoint.every_n_steps=100"]
    words += ["model.attention_dropout=0"]
    exact = run(tiny.place(*words, f"paths.run_dir={tiny.folder / 'fp32'}"))
    short = run(tiny.place(*words, "trainer.precision=bf16", f"paths.run_dir={tiny.folder / 'bf16'}"))
    a, b = losses(Path(exact.folder)), losses(Path(short.folder))
    assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], rel=5e-3)
    assert a != b


def test_two_workers_change_nothing(tiny):
    words = [*MASKED, "trainer.max_steps=4", "checkpoint.every_n_steps=100"]
    none = run(tiny.place(*words, f"paths.run_dir={tiny.folder / 'none'}"))
    two = run(tiny.place(*words, "data.num_workers=2", f"paths.run_dir={tiny.folder / 'two'}"))
    assert losses(Path(none.folder)) == losses(Path(two.folder))


def test_settings_that_change_the_result_are_refused_on_resume(tiny):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.place(*words, "trainer.max_steps=4"))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.\d+ in the run, 0\.5 now"):
        tiny.place(*words, "resume=auto", "optimizer.learning_rate=0.5")
    with pytest.raises(ConfigError, match=r"model\.n_layers: 2 in the run, 1 now"):
        tiny.place(*words, "resume=auto", "model.n_layers=1")
    allowed = tiny.place(*words, "resume=auto", "optimizer.learning_rate=0.5", "allow_change=[optimizer.learning_rate]")
    assert allowed.config.optimizer.learning_rate == 0.5
    with pytest.raises(CheckpointError, match="already holds the checkpoints of a run"):
        tiny.place(*words)


def test_a_setting_that_is_newer_than_the_run_resumed_has_its_usual_value(tiny, monkeypatch):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.place(*words, "trainer.max_steps=2"))
    saved = open_checkpoint(tiny.folder / "run")
    del saved.config["data"]["mode"]
    monkeypatch.setattr(launch, "newest", lambda folder: (saved, []))
    assert tiny.place(*words, "resume=auto").config.data.mode is Mode.prepare
    with pytest.raises(ConfigError, match=r"data\.mode: prepare in the run, stream now"):
        tiny.place(*words, "resume=auto", "data.mode=stream")


def test_resume_passes_over_damaged_checkpoints_and_never_starts_over_in_silence(tiny, capsys):
    words = [*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.place(*words))
    folders = step_folders(tiny.folder / "run" / "checkpoints")
    weights = folders[-1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert tiny.place(*words, "resume=auto").resumed.step == 8
    assert "passes over" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        tiny.place(*words, f"resume={folders[-1]}")
    (folders[0] / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none verifies"):
        tiny.place(*words, "resume=auto")
    assert tiny.place(*CAUSAL, "resume=auto").resumed is None


def test_changed_data_is_refused_on_resume(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five " * 200)
    words = [*CAUSAL, f"data.path={text}", f"paths.run_dir={tiny.folder / 'run'}"]
    run(tiny.place(*words, "trainer.max_steps=2"))
    text.write_text("six seven eight nine ten " * 200)
    with pytest.raises(DataError, match="was trained with data_fingerprint"):
        run(tiny.place(*words, "resume=auto", "trainer.max_steps=4"))


def test_init_from_another_tokenizer_is_refused(tiny):
    first = run(tiny.place(*CAUSAL, "trainer.max_steps=2"))
    words = [*CAUSAL, f"init_from={first.folder}", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    with pytest.raises(ConfigError, match="was trained with another tokenizer"):
        run(tiny.place(*words))


def plant_nan(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    original = TrainingModule.training_step

    def planted(self, batch, batch_index):
        loss = original(self, batch, batch_index)
        return loss * float("nan") if self.global_step in steps else loss

    monkeypatch.setattr(TrainingModule, "training_step", planted)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tiny, monkeypatch):
    plant_nan(monkeypatch, range(3, 5))
    report = run(tiny.place(*CAUSAL))
    saved = open_checkpoint(Path(report.folder))
    assert saved.progress["skipped_steps"] == 2
    assert all(tensor.isfinite().all() for part in ("model", "optimizer") for tensor in saved.tensors(part).values())
    assert losses(Path(report.folder), "optim/skipped_steps")[12] == "2.0"


def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(tiny, monkeypatch):
    plant_nan(monkeypatch, range(2, 100))
    with pytest.raises(DivergenceError, match="not finite in 10 steps in a row") as caught:
        run(tiny.place(*CAUSAL, f"paths.run_dir={tiny.folder / 'run'}", "checkpoint.every_n_steps=2"))
    assert caught.value.exit_code == 5
    saved = open_checkpoint(tiny.folder / "run")
    assert all(tensor.isfinite().all() for tensor in saved.tensors("model").values())


def test_a_folder_that_cannot_be_written_is_told_before_the_run(tiny):
    (tiny.folder / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        tiny.place(*CAUSAL, f"paths.run_dir={tiny.folder / 'file' / 'run'}")


def test_doubts_about_the_plan_come_before_the_first_step(tiny, capsys):
    run(tiny.place(*CAUSAL, "trainer.max_steps=1", "model.d_model=32"))
    out = capsys.readouterr().out
    assert "parameters, the data" in out
    run(tiny.place(*CAUSAL, "trainer.max_steps=1", "batch_size=2000"))
    assert "epochs" in capsys.readouterr().out
