"""An average of checkpoints holds the mean of their weights, and reads as a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.checkpoint.average import _check_same_model, average, last_checkpoints
from pretrain.checkpoint.read import latest_run, open_checkpoint, run_meant_by_auto, step_folders
from pretrain.commands.tasks import average as average_command
from pretrain.config.scripts import AverageConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.training.train import run


def test_what_is_no_run_is_refused_by_its_name(tmp_path: Path) -> None:
    for name, message in (
        ("typo", r"typo does not exist\. Name a run's folder"),
        (".", r"holds no model, and no folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            average_command(AverageConfig(run=str(tmp_path / name), output=str(tmp_path / "out")), [])


def test_a_folder_of_runs_means_its_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs" / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"last=2 checkpoints are to be averaged, and .*/logs/run has 1\. Train with"):
        average_command(AverageConfig(run=str(tmp_path / "logs"), last=2, output=str(tmp_path / "out")), [])
    assert "taking the newest run below" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_checkpoints_of_a_run_are_averaged(tiny, capsys: pytest.CaptureFixture[str]) -> None:
    base, output = tiny.folder / "base", tiny.folder / "elsewhere" / "averaged"
    run(tiny.plan("model=gpt_nano", f"paths.run_dir={base}", "checkpoint.keep=3"))
    average_command(AverageConfig(run=str(base), last=3, output=str(output)), [])
    assert "averaged 3 checkpoints" in capsys.readouterr().out
    found = open_checkpoint(output)
    assert found.manifest["average_of"] == [4, 8, 12]
    one, two, three = (open_checkpoint(folder).tensors("model") for folder in step_folders(base / "checkpoints"))
    weights = found.tensors("model")
    assert set(weights) == set(one)
    for name, value in weights.items():
        expected = (one[name].double() + two[name].double() + three[name].double()) / 3
        assert torch.equal(value, expected.float()), name
    assert found.run_config() == open_checkpoint(base).run_config()
    assert LanguageModel.load(output).generate("to", max_new_tokens=3) is not None
    newly = tiny.plan(
        "model=gpt_nano", "trainer.max_steps=1", f"init_from={output}", f"paths.run_dir={tiny.folder / 'n'}"
    )
    run(newly)

    beside = base.parent / "zz_averaged"  # later in order than the run, and of the same time
    average_command(AverageConfig(run=str(base), last=2, output=str(beside)), [])
    assert latest_run(base.parent) == run_meant_by_auto(None, str(base.parent), None) != beside
    assert latest_run(beside.parent / "zz_averaged") == beside

    with pytest.raises(ConfigError, match=r"is an average of weights.*init_from="):
        tiny.plan(f"resume={output}")
    with pytest.raises(ConfigError, match=r"last=5 checkpoints are to be averaged, and .* has 3\. Try last=3"):
        last_checkpoints(base, 5)
    with pytest.raises(ConfigError, match="1 checkpoint is no average"):
        average([base], output)
    with pytest.raises(CheckpointError, match="already holds the checkpoints of a run"):
        average([base, base], output)
    other = tiny.folder / "other"
    run(tiny.plan("model=gpt_nano", f"paths.run_dir={other}", "trainer.max_steps=1", "model.d_model=32"))
    bytes_ = tiny.folder / "bytes"
    run(
        tiny.plan(
            "model=gpt_nano",
            f"paths.run_dir={bytes_}",
            "trainer.max_steps=1",
            "tokenizer=bpe",
            "tokenizer.vocab_size=261",
        )
    )
    with pytest.raises(ConfigError, match=r"have different tokenizers, so that the same row of their embeddings"):
        average([base, bytes_], Path(tiny.folder / "x"))
    with pytest.raises(ConfigError, match=r"last=2 checkpoints are to be averaged, and .* has 1\. Train with a larger"):
        last_checkpoints(other, 2)
    with pytest.raises(ConfigError, match=r"are of different models: .* differs"):
        average([base, other], Path(tiny.folder / "x"))
    heads = tiny.folder / "heads"  # as many weights of each shape, and other outputs
    run(tiny.plan("model=gpt_nano", f"paths.run_dir={heads}", "trainer.max_steps=1", "model.n_heads=1"))
    with pytest.raises(ConfigError, match=r"are of different models: model\.n_heads differs, 1 and \d\. Average"):
        average([heads, base], Path(tiny.folder / "x"))


def test_causal_and_bidirectional_attention_are_different_models(tiny) -> None:
    saved: list[Any] = []
    for objective in ("causal", "masked"):
        config = tiny.config("model=gpt_nano", f"objective={objective}")
        saved.append(SimpleNamespace(folder=objective, run_config=lambda config=config: config))
    _check_same_model(saved[0], saved[0])
    with pytest.raises(ConfigError, match=r"causal and masked are of different models: causal attention differs, true"):
        _check_same_model(*saved)


@pytest.mark.slow
def test_adapters_are_merged_before_the_mean(tiny) -> None:
    """The mean of products is not the product of means; ranks, scales and matrices may differ."""
    base = Path(run(tiny.plan("model=gpt_nano", "trainer.max_steps=1")).folder)
    words = ["model=imported", f"init_from={base}", "trainer.max_steps=4", "optimizer.learning_rate=0.1"]
    few = "lora.targets=[*.query.weight]"
    one, two = (
        Path(
            run(
                tiny.plan(*words, f"lora.rank={rank}", f"lora.alpha={alpha}", more, f"paths.run_dir={base}-{rank}")
            ).folder
        )
        for rank, alpha, more in ((1, 8.0, few), (2, 2.0, "seed=1"))
    )
    for folders in ([one, two], [two, base]):
        output = average(folders, tiny.folder / f"mean-{folders[0].name}").parent.parent
        weights, models = open_checkpoint(output).tensors("model"), [open_model(each).load() for each in folders]
        named = [dict(model.named_parameters()) for model in models]
        assert set(weights) == set(named[0])
        for name, value in weights.items():
            expected = sum(each[name].detach().double() for each in named) / len(named)
            assert torch.equal(value, expected.float()), name
        found = open_checkpoint(output)
        assert not found.run_config().lora.is_on
        assert found.progress["parameters"] == sum(parameter.numel() for parameter in models[0].parameters())
        assert LanguageModel.load(output).generate("to", max_new_tokens=3) is not None
    padded = run(tiny.plan("model=gpt_nano", "trainer.max_steps=1", "model.vocab_multiple=64")).folder
    message = r"are of different models: embeddings\.tokens\.weight differs, \(320, 16\) and \(259, 16\)\. Average"
    with pytest.raises(ConfigError, match=message):
        average([Path(padded), base], tiny.folder / "x")
