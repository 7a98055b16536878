"""The README's table of measurements, and how a result becomes one of its lines."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import comparison
import table
from comparison import RESULTS, Result, take_turns


def test_the_readme_has_the_table_that_the_results_make() -> None:
    text = table.README.read_text(encoding="utf8")
    assert f"{table.BEGIN}\n{table.table()}\n{table.END}" in text


def test_every_kept_result_says_how_it_is_repeated() -> None:
    for path in RESULTS.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf8"))
        for line in found.get("lines", []):
            assert found["repeat"].startswith(("python benchmarks/", "OMP_NUM_THREADS=1 python benchmarks/")), path
            assert line["lowest"] <= line["ratio"] <= line["highest"], path


@pytest.mark.parametrize("name", ["start_up", "checkpointing", "data_loading", "tokenising", "masked_head"])
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


def test_every_contender_has_its_turn_in_every_round() -> None:
    order: list[str] = []
    found = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, warm_up=1)  # type: ignore[misc]
    assert order == ["c", "a", "b", "a", "b", "c", "b", "c", "a"]
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in found.values())
