"""Loss spikes: detected, traced to their rows, and handled as the settings ask."""

import math
import random
import re
from pathlib import Path

import pytest

from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.data.prepare import prepare, training_rows
from pretrain.data.train_stream import RowOrigin
from pretrain.errors import DivergenceError, Interrupted
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.config import DivergenceConfig, OnSpike
from pretrain.training.divergence import Spikes, named, spike_error
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.train import train

POISONED = (20,)  # of sixty documents


@pytest.fixture
def poisoned(tiny, tmp_path: Path):
    """Return a maker of runs on sixty documents, one of which is noise."""
    folder = tmp_path / "poisoned"
    folder.mkdir()
    for number in range(60):
        draw = random.Random(number)
        words = " ".join(draw.choice(["the", "quick", "brown", "fox", "jumps"]) for _ in range(40))
        noise = "".join(chr(draw.randrange(33, 127)) for _ in range(len(words)))
        (folder / f"{number:02d}.txt").write_text(noise if number in POISONED else words)
    tiny.words += [
        f"data.path={folder}", "data.validation_fraction=0", "model=gpt_nano", "model.d_model=32", "model.dropout=0",
        "trainer.max_steps=150", "divergence.window=16", "divergence.deviations=4", "logging.ledger=true",
        "trainer.val_check_interval=1000",
        "sample.every_n_steps=0", "checkpoint.every_n_steps=20", f"paths.run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    return tiny


def documents(maker, rows: list[str]) -> list[str]:
    """Return the name of each document that has a piece in one of the rows."""
    config = maker.config()
    prepared = prepare(config.data, config.tokenizer, maker.folder / "cache")
    (stream,) = training_rows(prepared, config.data, config.model.context_length, config.seed).streams.values()
    return [name for row in rows for _, name, _, _ in RowOrigin(row, "", stream, int(row)).pieces()]


def test_a_spike_is_far_above_the_losses_before_it():
    spikes = Spikes(DivergenceConfig(on_spike=OnSpike.skip, deviations=3, window=8))
    assert not any(spikes.is_spike(loss) for loss in (9.0, 2.0, 2.2, 2.0))  # half of the window is not known before
    assert spikes.limit() == pytest.approx(3.8 + 3 * math.sqrt((5.2**2 + 1.8**2 * 2 + 1.6**2) / 4))
    assert not any(spikes.is_spike(loss) for loss in [2.0, 2.1] * 8)
    assert spikes.is_spike(2.3)
    assert not spikes.is_spike(2.15)
    assert not spikes.is_spike(float("nan"))
    assert 2.3 not in spikes.losses
    flat = Spikes(DivergenceConfig(on_spike=OnSpike.skip, deviations=3))
    flat.load_state_dict({"losses": [2.0] * 64})
    assert flat.limit() == pytest.approx(2.06)
    ignored = Spikes(DivergenceConfig())
    ignored.load_state_dict(flat.state_dict())
    assert not ignored.is_spike(100.0)


def test_rows_are_named_in_their_order():
    assert named(["b:10", "b:9", "a:100"]) == "a:100, b:9, b:10"
    assert named(["late/10", "late/9", "late/b:2", "3"]) == "3, late/9, late/10, late/b:2"  # of a stage with other rows
    assert named(str(row) for row in range(23)).endswith("18, 19 and 3 more")


def test_the_advice_at_a_spike_is_none_that_was_followed_already():
    lower = r"resume=auto with a lower optimizer\.learning_rate and 'allow_change=\[optimizer\.learning_rate\]'\.$"
    assert re.search(
        rf"rows 7, which are excluded already\. Look .*{lower}", str(spike_error("x", ["7"], OnSpike.rewind))
    )
    told = str(spike_error("x", ["7"], OnSpike.stop))
    assert "rows 7. Look" in told
    assert "resume=auto with divergence.on_spike=rewind, or with a lower" in told


@pytest.mark.long
@pytest.mark.fault("F08")
def test_a_run_rewinds_excludes_the_outliers_and_trains_on(poisoned, capsys, alive_before):
    report = train(poisoned.plan("divergence.on_spike=rewind"))
    assert report.steps == 150
    assert report.skipped_steps == 0
    out = capsys.readouterr().out
    assert "excluding rows" in out
    assert "rewinding to step" in out
    assert f"excluded           {named(report.excluded)} (outlier sequences of spikes)" in str(report)
    assert len(alive_before) > 1
    assert not any(alive_before)  # the model of before a rewind is freed before the next one is built
    assert report.waited_s["rewinds"] > 0
    assert 0 < report.training_s < report.wall_s
    folder = Path(report.folder)
    assert sum(name.endswith("20.txt") for name in documents(poisoned, report.excluded)) > len(report.excluded) / 2
    assert [row.id for row in rows_of_step(folder, 150) if row.excluded] == [
        row.id for row in rows_of_step(folder, 150) if row.id in report.excluded
    ]
    lines = read_lines(folder / "ledger.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 151))
    assert max(float.fromhex(line["loss"]) for line in lines[100:]) < 1.5  # nothing of the noise is read any more


@pytest.mark.long
@pytest.mark.fault("F08")
def test_a_resume_excludes_the_same_rows_and_ends_alike(poisoned, monkeypatch):
    whole = train(poisoned.plan("divergence.on_spike=rewind"))
    again = f"paths.run_dir={poisoned.folder / 'again'}"
    words = ["divergence.on_spike=rewind", again, "resume=auto"]
    original = TrainingModule.training_step
    with monkeypatch.context() as patch:

        def interrupted(self, batch, batch_index):
            if self.global_step == 130:
                self.signal_received = 15
            return original(self, batch, batch_index)

        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            train(poisoned.plan(*words))
    cut = train(poisoned.plan(*words))
    assert cut.excluded == whole.excluded
    one, other = open_checkpoint(Path(whole.folder)), open_checkpoint(Path(cut.folder))
    assert one.progress | {"seconds": 0} == other.progress | {"seconds": 0}
    for part in ("model", "optimizer", "random"):
        assert (one.folder / f"{part}.safetensors").read_bytes() == (other.folder / f"{part}.safetensors").read_bytes()
    assert read_lines(Path(whole.folder) / "ledger.jsonl") == read_lines(Path(cut.folder) / "ledger.jsonl")


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_a_spike_is_skipped_where_that_is_asked_for(poisoned):
    report = train(poisoned.plan("divergence.on_spike=skip"))
    assert report.skipped_steps > 0
    assert f"skipped            {report.skipped_steps} steps" in str(report)
    assert not report.excluded


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_a_spike_ends_the_run_where_that_is_asked_for(poisoned):
    with pytest.raises(
        DivergenceError, match=r"the loss of step \d+ is .*, above .*deviations\. The step read rows \d+"
    ) as e:
        train(poisoned.plan("divergence.on_spike=stop"))
    assert e.value.exit_code == 5


@pytest.mark.slow
def test_a_run_that_always_goes_back_ends(poisoned):
    with pytest.raises(
        DivergenceError, match=r"has gone back 1 times, and now the loss of .*divergence\.max_rewinds=2"
    ):
        train(poisoned.plan("divergence.on_spike=rewind", "divergence.max_rewinds=1"))


@pytest.mark.long
def test_before_the_first_checkpoint_a_run_goes_back_to_its_start(poisoned, capsys):
    report = train(poisoned.plan("divergence.on_spike=rewind", "checkpoint.every_n_steps=1000"))
    assert "rewinding to the start" in capsys.readouterr().out
    assert report.steps == 150
    assert [path.name for path in step_folders(Path(report.folder) / "checkpoints")] == ["step-00000150"]
