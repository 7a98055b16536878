"""The tables of measurements, their lines from results, their age, and baselines that end early."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import comparison
import provenance
import table
from comparison import RESULTS, Result, take_turns
from turns import race


@pytest.mark.parametrize("page", table.PAGES, ids=lambda path: path.stem)
def test_the_pages_have_the_tables_that_the_results_make(page: Path) -> None:
    """All but the commits, which a clone without history does not know."""
    assert table.is_current(page)
    assert table.BLOCK.search(page.read_text(encoding="utf8"))


def test_every_result_stands_in_a_page_with_machine_and_command() -> None:
    pages = "".join(page.read_text(encoding="utf8") for page in table.PAGES)
    for path in RESULTS.glob("*.json"):
        text = pages.partition(f"<!-- results: {path.stem} -->\n")[2].partition("<!-- /results -->")[0]
        facts = re.search(
            r"Machine: .*; torch [\d.]+(\+\w+)?, .*python 3\.\d+.*Command: `(.*)`\.\nMeasured at \w", text
        )
        assert facts, path
        assert re.match(r"([A-Z_]+=\w+ )*python benchmarks/", facts[2]), path
        for line in json.loads(path.read_text(encoding="utf8")).get("lines", []):
            assert line["lowest"] <= line["ratio"] <= line["highest"], path


def test_results_name_no_machine_and_no_folder() -> None:
    private = re.compile(
        r"(?<![\w.])/(home|root|tmp|work|usr|mnt|Users)/|https?://(?!aclanthology|arxiv\.org)|@[\w.]+\.\w|localhost"
    )
    for path in [*RESULTS.glob("*.json"), *table.FOLDER.glob("*.md")]:
        assert not private.search(path.read_text(encoding="utf8")), path


def test_a_page_with_another_number_is_not_current(tmp_path: Path) -> None:
    text = (table.FOLDER / "cpu.md").read_text(encoding="utf8")
    (tmp_path / "page.md").write_text(text)
    assert table.is_current(tmp_path / "page.md")
    (tmp_path / "page.md").write_text(text.replace("| 3,888 tokens/s |", "| 3,889 tokens/s |", 1))
    assert not table.is_current(tmp_path / "page.md")
    (tmp_path / "page.md").write_text("<!-- results: nothing -->\n<!-- /results -->\n")
    with pytest.raises(SystemExit, match=r"nothing\.json does not exist, and a page has the mark"):
        table.is_current(tmp_path / "page.md")


def test_every_result_has_a_script_that_names_what_it_measures() -> None:
    for path in RESULTS.glob("*.json"):
        for measured in provenance.measured_paths(provenance.script_of(path)):
            assert (provenance.ROOT / measured).exists(), (path, measured)
    with pytest.raises(SystemExit, match="no script in benchmarks/ has its name"):
        provenance.script_of(RESULTS / "nowhere.json")


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_result_is_marked_once_what_it_measures_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "BENCHMARKS", tmp_path)
    (tmp_path / "speed.py").write_text('"""Measure."""\n\nMEASURES = ("src",)\n')
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "fast.py").write_text("1\n")
    result = tmp_path / "speed.json"
    result.write_text(json.dumps({"old name": 1, "machine": {}, "figure": 1234.5}, indent=1))
    git(tmp_path, "init")
    with pytest.raises(SystemExit, match="git log"):
        provenance.measured_line(result)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "measured")
    unmarked = provenance.measured_line(result)
    assert re.fullmatch(r"Measured at \w+ \(\d{4}-\d\d-\d\d\)\.", unmarked)
    (tmp_path / "src" / "fast.py").write_text("2\n")
    result.write_text(result.read_text().replace("old name", "new name"))  # not a measurement
    git(tmp_path, "commit", "-am", "changed")
    assert provenance.measured_line(result) == f"{unmarked[:-1]} **before the last change** of `src`."
    (tmp_path / "speed.py").write_text("")
    with pytest.raises(SystemExit, match="does not say what it measures"):
        provenance.measured_line(result)


@pytest.mark.parametrize(
    "name", ["start_up", "checkpointing", "data_loading", "masked_loading", "tokenizing", "masked_head"]
)
def test_a_short_form_keeps_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    benchmark = importlib.import_module(name)
    monkeypatch.setattr(benchmark, "measure", lambda *_: Result("kept", "python benchmarks/x.py", {}))
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    for variable in "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS":  # which a benchmark sets for itself
        monkeypatch.setenv(variable, "1")
    for words, kept in ([], True), (["--quick"], False):
        monkeypatch.setattr(sys, "argv", [name, *words])
        benchmark.main()
        assert [path.name for path in tmp_path.iterdir()] == (["kept.json"] if kept else [])
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize(("more_is_better", "ratio"), [(True, 2.0), (False, 0.5)])
def test_a_ratio_above_one_is_in_our_favour(more_is_better: bool, ratio: float) -> None:
    result = Result("x", "python benchmarks/x.py", {})
    rounds = {"ours": [2.0, 4.0, 4.0], "peer": [1.0, 2.0, 4.0], "other": [2.0, 4.0, 4.0]}
    result.add("speed", "tokens/s", rounds, more_is_better=more_is_better, targets={"peer": 1.5})
    peer, other = result.lines
    assert (peer.ours, peer.theirs, peer.ratio, peer.target) == (4.0, 2.0, ratio, 1.5)
    assert {peer.lowest, peer.highest} == ({1.0, 2.0} if more_is_better else {0.5, 1.0})
    assert (other.ratio, other.target) == (1.0, None)


def test_every_baseline_has_its_turn_in_every_round() -> None:
    order: list[str] = []
    found = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, warm_up=1)  # type: ignore[misc]
    assert order == ["c", "a", "b", "a", "b", "c", "b", "c", "a"]
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in found.values())


def test_a_peer_that_fails_is_missing_and_the_others_go_on() -> None:
    calls = {"once": 0}

    def once() -> float:
        calls["once"] += 1
        if calls["once"] > 1:
            raise RuntimeError("no more\nof this")
        return 1.0

    def never() -> float:
        raise ImportError("not here")

    missing: dict[str, str] = {}
    ways = {"ours": lambda: 1.0, "once": once, "never": never, "peer": lambda: 2.0}
    found = take_turns(ways, rounds=2, missing=missing)
    assert found == {"ours": [1.0, 1.0], "peer": [2.0, 2.0]}
    assert missing == {"never": "ImportError: not here", "once": "RuntimeError: no more of this"}
    with pytest.raises(ImportError, match="not here"):
        take_turns({"ours": never, "peer": lambda: 2.0}, rounds=1, missing=missing)


CONTENDER = """
import json, sys
def say(): print(json.dumps({"seconds": 1.5, "peak_mib": 2.0}), flush=True)
turns = int(sys.argv[1])
for _ in range(turns):
    say()
    if sys.stdin.readline().strip() in ("", "0"): sys.exit(0)
sys.exit(7)
"""


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_baseline_whose_process_ends_is_missing(turns: int) -> None:
    """At its start, in the warm-up, or in the middle of the race."""
    commands = {name: [sys.executable, "-c", CONTENDER, str(n)] for name, n in (("ours", 9), ("peer", turns))}
    missing: dict[str, str] = {}
    seconds, peaks = race(commands, rounds=3, steps=1, warm_up=1, missing=missing)
    assert (seconds, peaks) == ({"ours": [1.5] * 3}, {"ours": 2.0})
    assert missing == {"peer": "ended with exit code 7: see above"}
    commands = dict(reversed(commands.items()))
    with pytest.raises(SystemExit, match="baseline peer ended with exit code 7: see above"):
        race(commands, rounds=3, steps=1, warm_up=1, missing={})


def test_make_bench_goes_on_behind_a_script_that_fails(tmp_path: Path) -> None:
    """Every other script is run, and the end says which one failed."""
    shutil.copy(table.README.parent / "Makefile", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    for name in "one", "two", "three":
        text = f"print('ran', {name!r}); raise SystemExit({int(name == 'two')})"
        (tmp_path / "benchmarks" / f"{name}.py").write_text(text)
    command = ["make", "bench", "BENCHMARKS=one two three", "BENCH=", f"RUN={sys.executable}", "PRETRAIN_ASSETS="]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == ["ran one", "ran two", "ran three"]
    assert "these ended with an error: two" in done.stdout
    assert done.returncode != 0
