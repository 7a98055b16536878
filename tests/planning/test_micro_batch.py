"""micro_batch_size=auto is the most rows whose dry run fits the GPU, a number that the run keeps."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose
from pretrain.config.run import AUTO
from pretrain.data.prepare import prepare
from pretrain.errors import ConfigError
from pretrain.launch.run_plan import resolve_run
from pretrain.planning.answer import answer
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import Target, forecast
from pretrain.planning.hardware import GIB, Hardware
from pretrain.planning.micro_batch import USABLE, largest_micro_batch, with_chosen_micro_batch
from pretrain.training.auto_settings import resolve_auto_settings
from pretrain.training.config import Precision
from pretrain.training.launch import launch
from pretrain.training.train import run

Plan = Callable[..., PlanConfig]
WORDS = ("model=gpt_nano", "model.context_length=128", "batch_size=24", "micro_batch_size=auto")


PROCESSOR = Target(Hardware("a processor", 1e11, 1e11, 16 * GIB, gpu=False), Precision.fp32, 2048, data=None)


def gpu(mib: float) -> Target:
    """Return a GPU with so much memory, none of which is reserved."""
    return Target(Hardware("a GPU", 1e12, 1e12, int(mib * 2**20), gpu=True), Precision.fp32, vocab_size=2048, data=None)


@pytest.mark.long
def test_the_largest_micro_batch_that_fits_is_chosen(plan: Plan) -> None:
    config, chosen = plan(*WORDS), []
    for mib in (80, 160, 100_000):
        found, line = largest_micro_batch(config, gpu(mib))
        rows = found.rows_per_micro_batch()
        peak = forecast(found, gpu(mib), simulate=True).peak
        assert found.micro_batch_size == rows
        assert 24 % rows == 0
        assert peak <= USABLE * mib * 2**20
        assert line.startswith(f"micro_batch_size={rows} of auto: ")
        if rows < 24:
            more = replace(config, micro_batch_size=next(n for n in range(rows + 1, 25) if 24 % n == 0))
            assert forecast(more, gpu(mib), simulate=True).peak > USABLE * mib * 2**20
        chosen.append(rows)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == 24


@pytest.mark.slow
def test_a_batch_that_grows_is_shared_by_its_micro_batches(plan: Plan) -> None:
    words = ("batch_warmup_rows=3", "batch_warmup_tokens=100000", "dry_run=false")
    found, _ = largest_micro_batch(plan(*WORDS, *words), gpu(100))
    assert 3 % found.accumulation_steps() == 0


@pytest.mark.slow
def test_the_plan_of_a_gpu_says_what_a_run_would_choose(plan: Plan) -> None:
    found = answer(plan(*WORDS, "device=h100", "dry_run=false", "vocab_size=2048"))
    assert found.startswith("micro_batch_size=24 of auto: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "on", "message"),
    [
        ((), PROCESSOR, r"micro_batch_size=auto .* the device is a processor\. Try micro_batch_size=24, all rows"),
        (("dry_run=false",), gpu(1), r"not even one row of .* fits 85% of 1\.00 MiB\. Try parallel\.activation_che"),
        (("stages.long.until_fraction=1.0", "stages.long.model.context_length=256"), gpu(1000),
         r"one length, and stages change it\. Try micro_batch_size=24, and stages\.<name>\.micro_batch_size"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused(plan: Plan, words: tuple[str, ...], on: Target, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        largest_micro_batch(plan(*WORDS, *words), on)


@pytest.mark.slow
def test_a_word_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_size=most is neither .* auto\. Try micro_batch_size=8\."):
        compose("train", ["batch_size=8", "micro_batch_size=most"])


@pytest.mark.slow
def test_a_run_keeps_the_number_that_was_chosen_on_a_gpu(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume has no GPU here, and would be refused if it chose anew."""
    memory = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    words = [*tiny.words, "micro_batch_size=auto", f"paths.run_dir={tiny.folder / 'run'}", "resume=auto"]
    first = resolve_run(compose("train", words), words)
    assert first.config.micro_batch_size == AUTO
    config = resolve_auto_settings(first.config)
    prepared = prepare(config.data, config.tokenizer, tiny.folder / "cache", print)
    config, _ = with_chosen_micro_batch(config, prepared, torch.device("cuda"))
    config.trainer.max_steps = 2
    run(replace(first, config=config))
    saved = open_checkpoint(first.folder).config["micro_batch_size"]
    assert saved == config.rows_per_micro_batch() == config.batch_size
    again = resolve_run(compose("train", words), words)
    assert again.resumed is not None
    assert again.config.micro_batch_size == saved


@pytest.mark.slow
def test_a_run_on_a_processor_is_refused(tiny) -> None:
    words = [*tiny.words, "micro_batch_size=auto"]
    with pytest.raises(ConfigError, match="by the memory of a GPU, and the device is cpu"):
        launch(compose("train", words), words)
