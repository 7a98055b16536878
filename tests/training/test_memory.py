"""A micro-batch that cannot fit is refused before anything is read."""

from pathlib import Path

import pytest
import torch

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.training import memory
from pretrain.training.launch import train_to_end
from pretrain.training.memory import check_memory

CPU = torch.device("cpu")


def settings(*words: str) -> RunConfig:
    found: RunConfig = compose("train", ["model.context_length=256", "model.d_model=128", "model.n_layers=4", *words])
    return found


@pytest.mark.slow
def test_a_batch_beyond_the_memory_names_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: 2**30)  # a row's block inputs are 2**19 bytes
    check_memory(settings("batch_size=2048"), CPU)
    with pytest.raises(ConfigError, match=r"batch_size=3072 .* 2 GiB, and the device has 1\. .*micro_batch_size=64,"):
        check_memory(settings("batch_size=3072"), CPU)
    with pytest.raises(ConfigError, match=r"micro_batch_size=4096 puts 4,096 rows of 256 tokens"):
        check_memory(settings("batch_size=8192", "micro_batch_size=4096"), CPU)
    check_memory(settings("batch_size=8192", "micro_batch_size=64"), CPU)


@pytest.mark.slow
def test_a_row_that_devices_share_takes_a_part_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one row alone would be too much: context parallelism is for such rows."""
    monkeypatch.setattr(memory, "memory_of", lambda device: 2**19)
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=fp32"]
    check_memory(settings("batch_size=2", "parallel.context_parallel=2", "micro_batch_size=2", *two), CPU)
    check_memory(settings("batch_size=4", *two[:3], "trainer.precision=bf16"), CPU)  # FSDP2's inputs are of 16 bits
    split = ["parallel.tensor_parallel=2", "parallel.sequence_parallel=true"]
    check_memory(settings("batch_size=2", *split, *two), CPU)
    for words in (["batch_size=4"], ["batch_size=2", "parallel.tensor_parallel=2"]):
        with pytest.raises(ConfigError, match=r"batch_size=\d puts 2 rows"):
            check_memory(settings(*words, *two), CPU)


@pytest.mark.slow
def test_it_is_told_before_the_text_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs"
    words = [f"paths.logs_dir={logs}", f"paths.cache_dir={tmp_path / 'cache'}", "batch_size=4096"]
    monkeypatch.setattr(memory, "memory_of", lambda device: 2**30)
    with pytest.raises(ConfigError, match=r"batch_size=4096 .* Try micro_batch_size="):
        train_to_end(settings(*words), words)
    assert not list(logs.glob("*/*"))
    assert not (tmp_path / "cache").exists()
    words[-1] = "optimizer.groups.a={match: [nothing], weight_decay: 0}"
    with pytest.raises(ConfigError, match=r"groups\.a\.match=nothing matches no trained parameter"):
        train_to_end(settings(*words), words)
    assert not list(logs.glob("*/*"))
    assert not (tmp_path / "cache").exists()
    words[-1] = "trainer.accelerator=gpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"accelerator=gpu finds no such device here"):
        train_to_end(settings(*words), words)
    assert not (tmp_path / "cache").exists()
