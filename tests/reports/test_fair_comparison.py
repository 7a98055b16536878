"""What a comparison of runs leaves out, warns of and groups, so that its verdict is about the settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_compare import compared, write_history, write_run

from pretrain.errors import ConfigError
from pretrain.reports.groups import differing, read_groups


def test_a_run_that_ended_in_an_error_is_left_out_of_the_verdict(tmp_path: Path) -> None:
    """Its last good loss, before it diverged, was better than that of runs that ended, with a small p."""
    for seed in (0, 1):
        write_run(tmp_path / "old" / f"s{seed}", [4.0, 2.9 + seed / 100], seed=seed, optimizer={"learning_rate": 0.01})
        write_run(tmp_path / "new" / f"s{seed}", [1.6 + seed / 100], seed=seed, optimizer={"learning_rate": 1.0})
    sides = [str(tmp_path / "old"), str(tmp_path / "new")]
    bad = tmp_path / "new" / "s0"
    (bad / "report.json").unlink()
    write_history(bad, "interrupted")
    assert len(compared(sides).groups[1].runs) == 2  # it may go on
    write_history(bad, "failed")
    found = compared(sides)
    assert [run.seed for run in found.groups[1].runs] == ["1"]
    assert found.warnings == [
        f"1 OF 2 RUNS OF learning_rate=1.0 FAILED BEFORE THEIR END ({bad}): they are left out, so its figures are "
        "better than its settings."
    ]
    with pytest.raises(ConfigError, match=r"runs: .*s0 has failed, and .* has no other run\. Leave it out of runs"):
        compared([sides[0], str(bad)])


def test_a_group_of_failed_runs_does_not_refuse_the_comparison_of_the_others(tmp_path: Path) -> None:
    rates = {"a": 0.1, "b": 0.2, "bad": 9.0}
    folders = {name: write_run(tmp_path / name, [3.0], optimizer={"learning_rate": rates[name]}) for name in rates}
    (folders["bad"] / "report.json").unlink()
    write_history(folders["bad"], "failed")
    found = compared([str(folder) for folder in folders.values()])
    assert [group.name for group in found.groups] == ["learning_rate=0.1", "learning_rate=0.2"]
    assert found.warnings == [
        f"EVERY RUN OF learning_rate=9.0 DIVERGED OR FAILED ({folders['bad']}): the group is left out."
    ]
    assert list(found.settings) == ["optimizer.learning_rate"]
    with pytest.raises(ConfigError, match=r"runs: .*bad has failed, and learning_rate=9\.0 has no other run"):
        compared([str(folders[name]) for name in ("bad", "a", "b")])  # the baseline


def test_losses_of_other_validation_tasks_are_said_loudly(tmp_path: Path) -> None:
    def warnings(*tasks: dict[str, Any], length: int = 32, **options: Any) -> list[str]:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        for number, task in enumerate(tasks):
            folder = write_run(tmp_path / "runs" / str(number), [3.0])
            rows = length if number else 32
            text = {"seed": 0, "objective": task, "model": {"context_length": rows}, "batch_size": number + 1}
            (folder / "config.yaml").write_text(yaml.safe_dump(text))
        return compared([str(tmp_path / "runs" / str(number)) for number in range(len(tasks))], **options).warnings

    masked = {"kind": "masked", "mask_probability": 0.15, "unit": "token", "mean_span": 3.8}
    (found,) = warnings(masked, masked | {"mask_probability": 0.6})
    assert found.startswith("THE TASKS DIFFER (objective.mask_probability=0.15 and 0.6): ")
    same = {"validation_mask_probability": 0.15}
    assert not warnings(masked | same, masked | same | {"mask_probability": 0.6})
    assert not warnings(masked, masked | same | {"mask_probability": 0.6})
    assert not warnings(masked, masked | {"mask_probability": 0.6}, metric="speed/tokens_per_s")
    assert not warnings(masked, masked | {"mean_span": 2.0})  # of spans alone
    (found,) = warnings(masked, masked | {"unit": "span"})
    assert "objective.unit=token and span" in found
    (found,) = warnings({"kind": "causal"}, {"kind": "causal"}, length=128)
    assert "(model.context_length=32 and 128)" in found
    assert not warnings({"kind": "diffusion", "complementary": True}, {"kind": "diffusion"})  # of training alone
    hybrid = {"kind": "hybrid", "mask_probability": 0.15}
    assert warnings(hybrid, hybrid | {"mask_probability": 0.3})
    assert not warnings(hybrid, hybrid | {"mask_probability": 0.3}, metric="val/bits_per_byte")


def test_losses_that_are_bounds_are_said_to_be(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, [3.0], objective="diffusion") for name in ("a", "b")]
    folders += [write_run(tmp_path / "causal", [3.0])]
    for folder in folders[:2]:
        with (folder / "metrics.csv").open("a") as table:
            table.write("10,val/loss_bound,3.0\n")
    said = "val/loss is an upper bound of -log p of the text in each run"
    assert said in compared([str(folder) for folder in folders[:2]]).notes
    assert said not in compared([str(folder) for folder in folders[1:]]).notes


def test_branches_of_runs_that_differ_in_their_seed_are_a_group(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.1), (1, 0.1), (0, 0.2)):
        base = tmp_path / f"base_{seed}_{rate}"
        write_run(base, [4.0], seed=seed, optimizer={"learning_rate": rate})
        for cooldown in (2, 6):
            branch = str(base / "checkpoints" / "step-8")
            write_run(
                tmp_path / "branches" / f"{base.name}_{cooldown}", [3.0], seed=seed, branch=branch, cooldown=cooldown
            )
    groups, _ = read_groups([str(tmp_path / "branches")])
    assert [len(group.members) for group in groups] == [2, 2, 1, 1]
    differs = differing(groups)
    assert differs["branch.optimizer.learning_rate"] == ["0.1", "0.1", "0.2", "0.2"]
    assert "branch" not in differs  # all of step-8
    tuned = [write_run(tmp_path / f"tuned_{seed}", [3.0], seed=seed, init_from=str(tmp_path / f"base_{seed}_0.1"))
             for seed in (0, 1)]  # fmt: skip
    other = write_run(tmp_path / "hub", [3.0], init_from="some/model")
    groups, _ = read_groups([str(each) for each in (*tuned, other)])
    assert [len(group.members) for group in groups] == [2, 1]
    assert groups[1].settings["init_from"] == "some/model"
