"""A branch of a run equals, bit for bit, an uninterrupted run that decays at the same step."""

import shutil
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose
from pretrain.errors import CheckpointError, ConfigError
from pretrain.launch.branch import cooldown_steps
from pretrain.launch.run_plan import RunPlan, resolve_run
from pretrain.training.train import run

WSD = ["model=gpt_nano", "optimizer=adamw", "schedule=wsd", "logger=csv", "checkpoint.keep=9"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    saved = open_checkpoint(folder)
    return {
        f"{part}/{name}": value
        for part in ("model", "optimizer", "random")
        for name, value in saved.tensors(part).items()
    }


def resolve(*words: str) -> RunPlan:
    return resolve_run(compose("train", list(words)), list(words))


@pytest.mark.slow
def test_a_branch_equals_an_uninterrupted_run_and_resumes(
    tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.folder / "base"
    usual, warmup = tiny.words, "schedule.warmup_fraction=0.05"  # 2 of 40 steps
    tiny.words = [word for word in usual if not word.startswith("schedule.warmup_steps")]
    run(tiny.plan(*WSD, f"paths.run_dir={base}", "trainer.max_steps=40", "schedule.decay_fraction=0.5", warmup))
    tiny.words = usual
    uninterrupted = tiny.folder / "uninterrupted"
    words = ["trainer.max_steps=11", f"schedule.decay_fraction={3 / 11!r}", "schedule.decay=one_minus_sqrt"]
    run(tiny.plan(*WSD, f"paths.run_dir={uninterrupted}", *words))
    capsys.readouterr()
    typed = [f"branch={base}/checkpoints/step-00000008", "cooldown=3", "schedule.decay=one_minus_sqrt"]
    typed += [f"paths.run_dir={tiny.folder / 'branch'}", f"paths.cache_dir={tiny.folder / 'cache'}", "resume=auto"]

    first = resolve(*typed)
    assert "branching from step 8: the rate decays over 3 steps, to step 11" in capsys.readouterr().out
    assert first.config.trainer.max_steps == 11
    assert (first.config.schedule.warmup_steps, first.config.schedule.warmup_fraction) == (2, None)  # as it was
    again = resolve(*typed)  # killed before it saved anything
    assert again.config == first.config
    run(again)
    ours, theirs = tensors(tiny.folder / "branch"), tensors(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (base / "checkpoints/step-00000011").exists()
    ended = resolve(*typed)  # of its own run: no change
    assert (ended.start, ended.config.trainer.max_steps) == (11, 11)

    late, early = f"branch={base}", f"branch={base}/checkpoints/step-00000008"
    own = [f"paths.cache_dir={tiny.folder / 'cache'}", f"paths.logs_dir={tiny.folder / 'elsewhere'}", "cooldown=3"]
    for words, told in (
        ([late], r"is at step 40, where the rate is 0\.05 .*checkpoint of the steps 2 to 20"),
        ([early, "schedule.decay_fraction=0.01"], r"decay_fraction=0\.01 and cooldown=3 both say how long"),
        ([early, "trainer.max_steps=12"], r"trainer\.max_steps=12 and cooldown=3 both say when"),
        ([early, "resume=auto", f"paths.run_dir={base}"], "which is no branch of"),
        ([early, "optimizer.learning_rate=0.5"], r"would change the result .*\n.*optimizer\.learning_rate"),
    ):
        with pytest.raises(ConfigError, match=told):
            resolve(*own, *words)
    for name, lengths in (
        ("clock", ["trainer.max_time=0.02"]),
        ("both", ["trainer.max_time=0.02", "trainer.max_tokens=1000000000"]),
        ("epochs", ["trainer.max_epochs=0.1"]),
    ):
        ended = tiny.folder / name
        run(tiny.plan(*WSD, f"paths.run_dir={ended}", "trainer.max_steps=-1", *lengths,
                      "schedule.decay_fraction=0.9", "schedule.warmup_steps=0"))  # fmt: skip
        with pytest.raises(ConfigError, match=r"where the rate is 0\.\d+ of its peak\. Branch from a checkpoint of"):
            resolve(*own, f"branch={ended}")
    ended = tiny.folder / "short"
    run(tiny.plan(*WSD, f"paths.run_dir={ended}", "trainer.max_steps=4", "schedule.warmup_steps=8",
                  "schedule.decay_fraction=0.5"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"constant at no step, .* takes 8 and .* after 3\. .*warmup_steps=1, or a"):
        resolve(*own, f"branch={ended}")
    assert not (tiny.folder / "elsewhere").exists()  # refused before a folder was made
    monkeypatch.setattr(shutil, "copytree", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be copied to .*full\. Free some space"):
        resolve(*own, early)


def full_disk(*_: object) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["branch=logs/a"], r"branch=logs/a needs the other of branch and cooldown\. Add cooldown=0\.2"),
        (["cooldown=0.5"], r"cooldown=0\.5 needs the other of branch and cooldown\. Add branch=logs"),
        (["branch=logs/a", "cooldown=2.5"], r"cooldown=2\.5 is neither a whole number of steps nor below 1"),
        (["branch=logs/a", "cooldown=0"], r"cooldown=0.* is not a number"),
        (["branch=logs/a", "cooldown=5", "resume=auto"], r"needs the folder of the branch.*paths\.run_dir=logs/branch"),
    ],
)
def test_half_a_branch_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        compose("train", words)


def test_a_cooldown_is_a_number_of_steps_or_its_part_of_all() -> None:
    assert [cooldown_steps(each, 80) for each in (20.0, 0.2, 0.001)] == [20, 20, 1]


@pytest.mark.slow
def test_only_the_stable_phase_of_wsd_has_branches(tiny) -> None:
    folder = tiny.folder / "cosine"
    run(tiny.plan("model=gpt_nano", "schedule=cosine", "trainer.max_steps=4", f"paths.run_dir={folder}"))
    words = [f"paths.cache_dir={tiny.folder / 'cache'}", f"paths.logs_dir={tiny.folder / 'logs'}", "cooldown=3"]
    with pytest.raises(ConfigError, match=r"is of a run with schedule=cosine, .* Branch a run with schedule=wsd"):
        resolve(*words, f"branch={folder}")
    with pytest.raises(CheckpointError):
        resolve(*words, "branch=nowhere")
