"""Runs compared: statistics against scipy's values, groups of seeds, what makes a comparison unfair, and its page."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.commands import tasks
from pretrain.config.command_line import as_list
from pretrain.config.compose import compose
from pretrain.config.serialize import to_dict
from pretrain.errors import CheckpointError, ConfigError
from pretrain.reports import groups
from pretrain.reports import sweep as sweep_reports
from pretrain.reports.compare import CompareOptions, Comparison, compare, rises
from pretrain.reports.comparison_page import in_words, verdict, write_comparison
from pretrain.reports.groups import Curves, read_groups
from pretrain.reports.significance import Difference, holm, interval_of_mean, quantile, two_sided, welch
from pretrain.reports.sweep import SweptJob, read_sweep, sweep_page, write_record
from pretrain.reports.write import write_report

# scipy 1.17: stats.t.ppf of 0.9, 0.975 and 0.995; 2 * stats.t.sf of 0.1, 1, 2.5 and 8
SCIPY = {
    1: ((3.0776835371752544, 12.706204736174694, 63.656741162871526),
        (0.936548965138893, 0.5, 0.24223788318168682, 0.07916684832113109)),
    2: ((1.8856180831641272, 4.302652729749462, 9.924843200918287),
        (0.9294654384141402, 0.4226497308103742, 0.12961172022151082, 0.01526807216533814)),
    3.7: ((1.5575658388615072, 2.8675207071911895, 4.8692522532278275),
          (0.9255252674701903, 0.37814139976045247, 0.07182202291182678, 0.0018250909626747335)),
    10: ((1.372183641110336, 2.228138851986274, 3.16927267261695),
         (0.9223207185644082, 0.34089313230206, 0.03144684423660882, 1.1774942789666167e-05)),
    57.3: ((1.2965014257009264, 2.002238268231336, 2.6643894364923972),
           (0.92069338535315, 0.32151490490373136, 0.015305367923802443, 6.637311218811308e-11)),
}  # fmt: skip
OLD, NEW = (3.271, 3.268, 3.275), (3.262, 3.255, 3.259, 3.266)


@pytest.mark.parametrize("freedom", SCIPY)
def test_students_t_is_that_of_scipy(freedom: float) -> None:
    quantiles, tails = SCIPY[freedom]
    assert [quantile(share, freedom) for share in (0.9, 0.975, 0.995)] == pytest.approx(quantiles, rel=1e-9)
    assert [two_sided(t, freedom) for t in (0.1, 1.0, 2.5, 8.0)] == pytest.approx(tails, rel=1e-9)
    assert two_sided(0.0, freedom) == 1.0


def test_welchs_test_is_that_of_scipy() -> None:
    """stats.ttest_ind(NEW, OLD, equal_var=False) and its confidence_interval(0.95)."""
    found = welch(NEW, OLD, 0.95)
    assert found.p == pytest.approx(0.017223235685162035, rel=1e-9)
    assert found.interval == pytest.approx((-0.018777842495385385, -0.002888824171281116), rel=1e-9)
    assert interval_of_mean(OLD, 0.95) == pytest.approx((3.262609328398198, 3.2800573382684686), rel=1e-9)
    assert welch(OLD, (3.0,), 0.95).p is None
    assert interval_of_mean((3.0,), 0.95) is None
    for values in ((1.0, 1.0), (2.0, 2.0)):  # two runs each that agree are no proof, as p = 0 would say
        assert welch(values, (1.0, 1.0), 0.95) == Difference(values[0] - 1.0, None, None)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def write_run(folder: Path, losses: list[float], *, seed: int = 0, **settings: Any) -> Path:
    """Write what a run of validations every 10 steps leaves: 100 tokens a step, at 1,000 tokens/s."""
    folder.mkdir(parents=True)
    tokenizer = settings.pop("tokenizer", {"kind": "bytes"})
    config = {"seed": seed, "tokenizer": tokenizer, "objective": {"kind": settings.pop("objective", "causal")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings | {"paths": {"run_dir": str(folder)}}))
    rows = ["step,name,value"]
    for number, loss in enumerate(losses, start=1):
        step = 10 * number
        rows += [f"{step},progress/tokens,{100 * step}", f"{step},speed/tokens_per_s,1000"]
        rows += [f"{step},val/loss,{loss}", f"{step},val/bits_per_byte,{loss / 2}"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    report = {
        "steps": 10 * len(losses), "tokens_seen": 1000 * len(losses), "parameters": 5, "tokens_per_s": 1000.0,
        "validation": {"val/loss": losses[-1]},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def write_history(folder: Path, outcome: str, **environment: str) -> None:
    end = {"step": 10, "time": 1.0, "outcome": outcome, "message": "", "training_s": 1.0, "wall_s": 1.0}
    end |= {"waited_s": {}, "commands": []}
    start = {"step": 0, "time": 0.0, "process": "a 1", "environment": environment, "end": end}
    history = {"name": "b", "objective": "causal", "parameters": 5, "row_length": 8, "batch_size": 1, "packing": "",
               "typed": [], "sources": [], "starts": [start]}  # fmt: skip
    (folder / "history.json").write_text(json.dumps(history))


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    """Return a folder of three old runs, and four new ones, of which one is markup."""
    for seed, final in enumerate(OLD):
        write_run(tmp_path / "old" / f"s{seed}", [4.0, 3.5, final], seed=seed, optimizer={"learning_rate": 0.01})
    for seed, final in enumerate(NEW):
        name = "<script>alert(1)</script>"
        write_run(tmp_path / "new" / f"s{seed}", [4.0, 3.272, final], seed=seed, optimizer={"kind": name})
    return [str(tmp_path / "old"), str(tmp_path / "new")]


def compared(paths: list[str], **options: Any) -> Comparison:
    groups, left_out = read_groups(paths)
    return compare(groups, CompareOptions(**options), left_out)


def test_seeds_are_grouped_and_tested(sides: list[str]) -> None:
    found = compared(sides, target=3.273)
    old, new = found.groups
    assert (len(old.runs), len(new.runs)) == (3, 4)
    assert new.difference == welch(NEW, OLD, 0.95)
    assert found.settings["optimizer.learning_rate"] == ["0.01", "-"]
    assert "seed" not in found.settings
    assert "paths.run_dir" not in found.settings
    assert [run.reached and run.reached.step for run in old.runs] == [30, 30, None]
    assert old.mean_to_target("step") is None  # not every run met it
    assert [new.mean_to_target(name) for name in ("step", "tokens", "seconds")] == [20.0, 2000.0, pytest.approx(2.0)]
    assert "better, -0.0108 (95% interval -0.0188 to -0.0029, p = 0.017, 4 and 3 runs)" in verdict(found, new)
    strict = compared(sides, confidence=0.99)
    assert "no difference shown" in verdict(strict, strict.groups[1])
    stricter = compared(sides, confidence=0.999)
    assert "(99.9% interval " in verdict(stricter, stricter.groups[1])  # not 100%
    assert strict.target == max(OLD)
    assert strict.groups[0].mean_to_target("step") == 30.0  # the worst final value is met by all


def test_single_runs_of_one_setting_are_a_group_unless_their_seeds_are_equal(tmp_path: Path) -> None:
    paths = [
        str(write_run(tmp_path / name / str(seed), [loss], seed=seed))
        for name, loss in (("before", 3.0), ("after", 2.9))
        for seed in (0, 1)
    ]
    groups, _ = read_groups(paths)
    assert [[each.run.folder.parent.name for each in group.members] for group in groups] == [
        ["before", "before"],
        ["after", "after"],
    ]
    with pytest.raises(ConfigError, match=r"runs: 2 of one experiment, and a comparison takes two experiments\. Name"):
        compared(paths[:2])
    with pytest.raises(ConfigError, match="runs: there is none, and a comparison takes two experiments"):
        compared([])
    found = compared([paths[0], paths[2]])
    assert "not tested" in verdict(found, found.groups[1])
    assert any("2 of 2 groups have one run" in line for line in found.notes)
    assert len(read_groups([paths[0], paths[0]])[0]) == 1  # the same run twice is one run


def test_runs_of_an_earlier_sweep_in_the_folder_are_left_out_with_a_word(tmp_path: Path) -> None:
    for name, rate in (("old", 0.1), ("new", 0.2), ("newer", 0.4)):
        write_run(tmp_path / name, [rate], optimizer={"learning_rate": rate})
    write_record(tmp_path, [SweptJob("new", ["optimizer.learning_rate=0.2"], 0), SweptJob("newer", [], 0)])
    found = compared([str(tmp_path)])
    assert len(found.groups) == 2
    line = f"{tmp_path} holds runs beside those of its newest sweep; left out: 1. Name their folders to add them"
    assert line in found.notes
    assert line not in compared([str(tmp_path / name) for name in ("old", "new")]).notes
    write_record(tmp_path, [SweptJob("new", [], 0)])
    with pytest.raises(ConfigError, match=r"a comparison takes two exp.* holds runs beside .* left out: 2"):
        compared([str(tmp_path)])


def test_a_folder_of_several_experiments_is_split(tmp_path: Path) -> None:
    for rate in (0.1, 0.2, 0.4):
        for seed in (0, 1):
            run = tmp_path / "sweep" / f"{rate}-{seed}"
            write_run(run, [3 + rate + 0.01 * seed], seed=seed, optimizer={"learning_rate": rate})
    (tmp_path / "sweep" / "broken").mkdir()
    (tmp_path / "sweep" / "broken" / "config.yaml").write_text("[")
    found = compared([str(tmp_path / "sweep")])
    assert [group.name for group in found.groups] == [f"learning_rate={rate}" for rate in (0.1, 0.2, 0.4)]
    assert "of all comparisons" in verdict(found, found.groups[2])
    certain = replace(found.groups[2], p_holm=0.0)  # smaller than any number of 64 bits
    assert "p < 0.0001 of all comparisons" in verdict(found, certain)
    assert any("broken is left out: it holds no run that can be read" in line for line in found.notes)
    assert found.groups[2].p_holm == pytest.approx(2 * (found.groups[2].difference.p or 0))  # type: ignore[union-attr]


def test_what_makes_figures_unfair_is_said_loudly(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [4.0], data={"path": "one.txt"})
    b = write_run(tmp_path / "b", [2.0], data={"path": "one.txt"}, tokenizer={"kind": "bpe"})
    c = write_run(tmp_path / "c", [4.0, 3.0], data={"path": "two.txt"}, objective="masked")
    found = compared([str(a), str(b)])
    assert found.metric == "val/bits_per_byte"
    assert found.groups[0].mean == 2.0
    assert found.warnings[0].startswith("THE TOKENIZERS DIFFER: ")
    assert "WARNING: THE TOKENIZERS DIFFER" in in_words(found)
    assert "compare them by metric=val/bits_per_byte" in compared([str(a), str(b)], metric="val/loss").warnings[0]
    bad = write_run(tmp_path / "bad", [4.0], seed=1, data={"path": "one.txt"})
    report = json.loads((bad / "report.json").read_text())
    diverged = {"val/loss": None, "val/bits_per_byte": None}
    (bad / "report.json").write_text(json.dumps(report | {"validation": diverged}))
    assert compared([str(a), str(b), str(bad)]).metric == "val/bits_per_byte"  # one that diverged changes nothing
    found = compared([str(a), str(c)])
    assert [line.partition(":")[0].partition(" (")[0] for line in found.warnings[:2]] == [
        "THE TEXT DIFFERS",
        "THE OBJECTIVES DIFFER",
    ]
    assert any("differ in length, from 1 k to 2 k tokens" in line for line in found.notes)


def test_a_diverged_run_is_left_out_loudly_and_never_the_best(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", [4.0, 2.9], optimizer={"learning_rate": 0.01})
    bad, _ = (
        write_run(tmp_path / "new" / f"s{seed}", [4.0, loss], seed=seed, optimizer={"learning_rate": 1.0})
        for seed, loss in enumerate((2.0, 3.0))
    )
    report = json.loads((bad / "report.json").read_text())
    (bad / "report.json").write_text(json.dumps(report | {"validation": {"val/loss": None}}))
    found = compared([str(old), str(tmp_path / "new")])
    assert [group.mean for group in found.groups] == [2.9, 3.0]
    assert found.warnings[0].startswith("1 OF 2 RUNS OF ")
    assert f"DIVERGED ({bad})" in found.warnings[0]
    assert "WARNING: 1 OF 2 RUNS OF " in in_words(found)
    assert len(found.warnings) == len(found.notes) == 1  # single runs have no interval
    same = compared([str(write_run(tmp_path / name, [4.0, 2.9], seed=1, x=name)) for name in "ab"])
    assert "+0.0000 against" in verdict(same, same.groups[1])
    assert ", equal in 1 and 1 runs; not tested" in verdict(same, same.groups[1])
    with pytest.raises(ConfigError, match=r"s0 has diverged, its val/loss is no number, and .* has no other run"):
        compared([str(old), str(bad)])
    sweep = read_sweep(tmp_path / "new")
    assert sweep.best == 1
    assert "diverged" in sweep_page(sweep)
    (bad / "report.json").write_text(json.dumps(report | {"steps": 10, "validation": {"val/loss": None}}))
    assert compared([str(old), str(bad)]).groups[1].mean == 2.0  # it has gone on since


def test_a_finished_run_that_goes_on_counts_as_far_as_it_is(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", [4.0, 3.0], optimizer={"learning_rate": 0.01})
    longer = write_run(tmp_path / "longer", [4.0, 3.0, 2.5], optimizer={"learning_rate": 0.02})
    report = json.loads((longer / "report.json").read_text())
    (longer / "report.json").write_text(json.dumps(report | {"steps": 20, "validation": {"val/loss": 3.0}}))
    found = compared([str(done), str(longer)])
    (run,) = found.groups[1].runs
    assert (run.final, run.steps, run.tokens, run.finished) == (2.5, 30, 3000.0, False)
    assert found.groups[0].runs[0].finished
    assert any("differ in length, from 2 k to 3 k tokens" in line for line in found.notes)
    assert any(line.startswith(f"not finished: {longer}") for line in found.notes)


def test_two_commits_are_told_apart_by_their_folders_and_a_newer_setting_has_its_default(tmp_path: Path) -> None:
    settings = to_dict(compose("train", ["model=gpt_nano"]))
    assert settings["model"]["attention_gate"] == "none"
    for side, commit in (("before", {"commit": "b", "commit of pretrain": "a"}), ("now", {"commit": "b"})):
        for seed in (0, 1):
            folder = write_run(tmp_path / side / f"s{seed}", [3.0 + 0.01 * seed])
            (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"seed": seed}))
            write_history(folder, "finished", **commit)
        settings["model"] = {key: value for key, value in settings["model"].items() if key != "attention_gate"}
    sides = [str(tmp_path / side) for side in ("before", "now")]
    found = compared(sides)
    assert ([group.name for group in found.groups], found.settings) == (sides, {})
    assert found.environment == {"commit": ["a", "b"]}
    for seed in (0, 1):
        path = tmp_path / "other" / f"s{seed}" / "config.yaml"
        write_run(path.parent, [2.0])
        path.write_text(yaml.safe_dump(settings | {"seed": seed, "batch_size": 4}))
    found = compared([*sides, str(tmp_path / "other")])
    assert [group.name for group in found.groups] == ["batch_size=8 (before)", "batch_size=8 (now)", "batch_size=4"]


def test_a_job_that_failed_on_its_way_is_never_the_best(tmp_path: Path) -> None:
    for name, losses in (("a", [4.0, 3.0]), ("b", [2.0]), ("c", [2.5])):
        write_run(tmp_path / name, losses)
        if name != "a":
            (tmp_path / name / "report.json").unlink()
    jobs = [SweptJob(name, [f"seed={name}"], code) for name, code in (("a", 0), ("b", 5), ("c", None))]
    write_record(tmp_path, jobs)
    assert [trial.loss for trial in read_sweep(tmp_path).trials] == [3.0, None, 2.5]  # c goes on
    (tmp_path / "sweep.json").unlink()
    write_history(tmp_path / "b", "failed")
    assert [trial.loss for trial in read_sweep(tmp_path).trials] == [3.0, None, 2.5]


def test_the_page_of_a_sweep_links_its_runs_from_any_folder_and_counts_those_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write_run(tmp_path / "logs" / name, [3.0], seed=ord(name))
    inside = write_report(tmp_path / "logs").read_text()
    outside = write_report(tmp_path / "logs", tmp_path / "page.html").read_text()
    assert ('href="./a/report.html"' in inside, 'href="logs/a/report.html"' in outside) == (True, True)
    monkeypatch.setattr(sweep_reports, "MAX_RUNS", 2)
    monkeypatch.setattr(groups, "MAX_RUNS", 2)
    assert "the first 2 of 3 runs" in sweep_page(read_sweep(tmp_path / "logs"))
    logs = tmp_path / "logs"
    assert read_groups([str(logs)])[1] == [f"{logs} holds more than 2 runs; the rest is left out"]
    monkeypatch.setattr(sweep_reports, "MAX_RUNS", 3)
    assert not read_groups([str(logs)])[1]


def test_more_is_better_for_correlations_and_phenomena(tmp_path: Path) -> None:
    names = ("val/spearman", "eval/sts-test/pearson", "eval/blimp/phenomenon/islands", "eval/foxes/ndcg@10")
    names += ("speed/tokens_per_s", "speed/mfu")
    assert all(rises(name) for name in names)
    assert not any(
        rises(name) for name in ("speed/memory_gib", "val/loss", "eval/lambada/perplexity", "eval/a/stereotype_percent")
    )
    for name, value in (("a", 0.5), ("b", 0.8)):
        folder = write_run(tmp_path / name, [3.0], optimizer={"learning_rate": value})
        with (folder / "metrics.csv").open("a") as file:
            file.write(f"10,val/spearman,{value}\n")
    found = compared([str(tmp_path / "a"), str(tmp_path / "b")], metric="val/spearman")
    assert not found.falls
    assert found.target == 0.5


def test_runs_on_different_text_compare_on_one_validation_text(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, [3.0], data={"path": f"{name}.txt", "validation_path": "v.txt"})
    assert not any("TEXT" in line for line in compared([str(tmp_path / "one"), str(tmp_path / "two")]).warnings)


def test_runs_without_checkpoints_compare_with_those_that_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints of one run were deleted to save space: its tokenizer and its text are still the same."""
    paths = [write_run(tmp_path / name, [3.0], x=name, data={"path": "one.txt"}) for name in "abc"]
    for path in paths[1:]:
        (path / "checkpoints" / "step-00000010").mkdir(parents=True)
    progress = {path: {"tokenizer_fingerprint": "t", "data_fingerprint": "d"} for path in paths}
    monkeypatch.setattr(groups, "read_manifest", lambda folder: {"progress": progress[folder.parent.parent]})
    found = compared([str(path) for path in paths])
    assert found.metric == "val/loss"
    assert not any("DIFFER" in line for line in found.warnings)
    progress[paths[1]]["data_fingerprint"] = "other"
    assert any(line.startswith("THE TEXT DIFFERS") for line in compared([str(path) for path in paths[1:]]).warnings)
    progress[paths[1]]["tokenizer_fingerprint"] = "other"
    assert compared([str(path) for path in paths]).warnings[0].startswith("THE TOKENIZERS DIFFER")


def test_wrong_words_are_refused(tmp_path: Path, sides: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"metric=val/f2 is missing in .*s0 and 6 more\. All runs have: val/bits_per_"
    ):
        compared(sides, metric="val/f2")
    with pytest.raises(CheckpointError, match=r"runs=nowhere holds no run: neither it nor a folder in it has a config"):
        compared(["nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"output=.*file/x\.html cannot be written: .* Try output=compare\.html"):
        write_comparison(sides, CompareOptions(), tmp_path / "file" / "x.html")


def test_words_without_a_key_are_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("logs/lr=0.1").mkdir(parents=True)
    assert as_list(["logs/lr=0.1", "target=3", f"metric={'m' * 300}"], "runs") == [
        "target=3", f"metric={'m' * 300}", "runs=['logs/lr=0.1']",
    ]  # fmt: skip
    assert as_list(["logs/a", "metric=val/loss", "logs/b c"], "runs") == [
        "metric=val/loss",
        "runs=['logs/a','logs/b c']",
    ]
    assert as_list(["--config-dir", "mine", "a"], "runs") == ["--config-dir", "mine", "runs=['a']"]
    assert as_list(["--info", "defaults"], "runs") == ["--info", "defaults"]
    assert as_list(["logs/a"], "") == ["logs/a"]


def test_runs_validated_at_other_steps_have_no_curve(sides: list[str], tmp_path: Path) -> None:
    """As those that end by the clock: their means at each step would be of one run here and of another there."""
    for name, lengths in (("a", (1, 2)), ("b", (3, 4))):
        for seed, length in enumerate(lengths):
            folder = write_run(tmp_path / name / str(seed), [3.0] * length, seed=seed, optimizer={"kind": name})
            lines = (folder / "metrics.csv").read_text().splitlines()
            (folder / "metrics.csv").write_text("\n".join([lines[0], *lines[-4:]]) + "\n")
    page = tmp_path / "x.html"
    for paths, has_curves in ((sides, True), ([str(tmp_path / "a"), str(tmp_path / "b")], False)):
        write_comparison(paths, CompareOptions(), page)
        assert ("<h2>Curves</h2>" in page.read_text()) is has_curves


@pytest.mark.slow
def test_the_command_writes_page_and_data(
    sides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "found.html"
    monkeypatch.setattr(sys, "argv", ["compare.py", *sides, f"output={output}"])
    tasks.main("compare")
    shown = capsys.readouterr().out
    assert "better, -0.0108" in shown
    assert f"report      {output}" in shown
    data = json.loads(output.with_suffix(".json").read_text())
    assert [group["mean"] for group in data["groups"]] == pytest.approx([sum(OLD) / 3, sum(NEW) / 4])
    assert data["groups"][1]["difference"]["p"] == pytest.approx(0.0172, abs=1e-4)
    page = output.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 2  # wide and narrow
    for word, error in (
        ("output=found.txt", "output=found.txt is no .html file, beside which .json fits. Try output=compare.html."),
        ("target=nan", "target=nan is not a finite number. Try target=3.28."),
    ):
        monkeypatch.setattr(sys, "argv", ["compare.py", *sides, word])
        with pytest.raises(SystemExit) as ended:
            tasks.main("compare")
        assert ended.value.code == 2
        assert error in capsys.readouterr().err


def test_steps_between_logged_ones_are_in_proportion(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [4.0, 3.0])
    with (folder / "metrics.csv").open("a") as file:
        file.write("15,val/loss,3.5\n20,val/loss,nan\n20,val/lo")
    curves = Curves.read(folder, ["val/loss", "progress/tokens", "speed/tokens_per_s"])
    reached = curves.first("val/loss", 3.6, falls=True)
    assert reached is not None
    assert (reached.step, reached.tokens, reached.seconds) == (15, 1500.0, pytest.approx(1.5))
    assert curves.first("val/loss", 1.0, falls=True) is None
    assert Curves().seconds_at(5) is None
    assert Curves().tokens_at(5) is None
