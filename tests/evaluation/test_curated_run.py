"""A run on a curated corpus: its score on clean items, its card, and which steps read a document that is forgotten."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from tiny_run import TinyRun

from pretrain.commands.tasks import forget
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig, ForgetConfig
from pretrain.config.scripts import ExportConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import read_manifest
from pretrain.data.curation.tombstones import FORGOTTEN
from pretrain.data.curation.verify import verify
from pretrain.data.prepare import prepare
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.training.config import PathsConfig
from pretrain.training.train import run as train

SCRIPTS = Path(__file__).parents[2] / "src"


def words(seed: int, count: int) -> str:
    chosen = random.Random(seed)
    return " ".join("".join(chosen.choices("abcdefghij", k=5)) for _ in range(count))


def config_of(raw: Path, output: Path, *more: str) -> CurateConfig:
    register_schemas("curate", CurateConfig)
    source = f"{{kind: jsonl, path: {raw}/web.jsonl, license: CC-BY-4.0, url_column: url}}"
    found: CurateConfig = compose(
        "curate", [f"sources.web={source}", "rules=none", "workers=1", "unit_bytes=4000", f"output={output}", *more]
    )
    return found


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write 60 documents of three hosts, of which the last is almost the first, and pairs of which one is in a text."""
    folder = tmp_path / "raw"
    folder.mkdir()
    texts = [words(n, 40) for n in range(59)]
    texts.append(texts[0].rpartition(" ")[0])
    pairs = [{"sentence_good": words(100 + n, 14), "sentence_bad": words(200 + n, 14), "UID": "x"} for n in range(6)]
    texts[5] = f"{words(300, 10)} {pairs[0]['sentence_good']} {words(301, 10)}"
    pairs[5]["sentence_good"] = "too short"
    rows = [{"text": text, "url": f"https://a{n % 3}.org/{n}"} for n, text in enumerate(texts)]
    for name, records in (("web", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


def run_forget(corpus: Path, tiny: TinyRun, *more: str, code: int = 0) -> str:
    """Return what `forget.py` prints."""
    command = [sys.executable, str(SCRIPTS / "forget.py"), f"path={corpus}", f"paths.cache_dir={tiny.folder}/cache",
               f"paths.logs_dir={tiny.folder}/logs", *more]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def steps_in(printed: str) -> list[int]:
    (line,) = [line for line in printed.splitlines() if line.startswith("read by")]
    found: list[int] = []
    for part in line.rpartition("steps ")[2].split(", "):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def holds(folder: Path, text: str) -> list[Path]:
    """Return the files of a corpus that hold a text, in whatever form they store it."""

    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data = str(pq.read_table(path).to_pylist()).encode()
        elif path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
        if text.encode() in data:
            found.append(path)
    return found


@pytest.mark.long
def test_clean_scores_and_forgotten_documents(raw: Path, tiny: TinyRun) -> None:
    corpus = tiny.folder / "corpus"
    curate(config_of(raw, corpus, f"decontaminate.sets=[{raw}/pairs.jsonl]"), lambda line: None)
    plan = tiny.plan("data=curated", f"data.path={corpus}", "data.validation_fraction=0.1", "batch_size=64")
    report = train(plan)
    _check_scores(raw, corpus, tiny, report.folder)
    _check_forgotten(raw, corpus, tiny, report.folder)


def _check_scores(raw: Path, corpus: Path, tiny: TinyRun, run: str) -> None:
    paths = PathsConfig(cache_dir=f"{tiny.folder}/cache")
    pairs = f"{raw}/pairs.jsonl"
    found = score(EvalConfig(task=Task.minimal_pairs, path=pairs, paths=paths), run)
    counts = {name: found[f"items/{name}"] for name in ("clean", "contaminated", "not_checkable", "not_compared")}
    assert counts == {"clean": 4, "contaminated": 1, "not_checkable": 1, "not_compared": 0}
    assert (found["pairs"], found["clean/pairs"]) == (6, 4)
    clean = raw / "clean.jsonl"
    clean.write_text("".join((raw / "pairs.jsonl").read_text().splitlines(keepends=True)[1:5]))
    alone = score(EvalConfig(task=Task.minimal_pairs, path=str(clean), paths=paths, contamination=None), run)
    assert (alone["accuracy"], "clean/accuracy" in alone) == (found["clean/accuracy"], False)
    named = score(EvalConfig(task=Task.minimal_pairs, path=str(clean), paths=paths, contamination=str(corpus)), run)
    assert named["items/clean"] == 4
    (raw / "scores.json").write_text(json.dumps(found | {"settings": {}}))
    export = ExportConfig(output=f"{tiny.folder}/logs/exported", evaluations=[f"{raw}/scores.json"])
    card = str(export_model(export, run).card)
    assert "| pairs | 6 | 1 | 1 | 1 | 1 | 1 | 1 |" in card
    assert f"| clean/accuracy | {found['clean/accuracy']:,.4f} |" in card
    assert "## Scores: minimal_pairs" in card
    assert "GPT-3: no run of 13 words of them stands in the curated training data" in card
    plain = tiny.folder / "plain"
    curate(config_of(raw, plain), lambda line: None)
    with pytest.raises(DataError, match="was compared with no evaluation set"):
        score(EvalConfig(task=Task.minimal_pairs, path=pairs, paths=paths, contamination=str(plain)), run)
    (corpus / "contaminated_items.parquet").rename(corpus / "gone")
    with pytest.raises(DataError, match=r"contaminated_items\.parquet cannot be read"):
        score(EvalConfig(task=Task.minimal_pairs, path=pairs, paths=paths), run)
    (corpus / "gone").rename(corpus / "contaminated_items.parquet")


def _names_of_steps(run: str, last: int) -> dict[str, list[int]]:
    """Return the steps that read each document, as `inspect` lists them."""
    found: dict[str, list[int]] = {}
    for step in range(1, last + 1):
        names = {piece.name for row in rows_of_step(run, step) for piece in row.pieces}
        for name in names:
            found.setdefault(name, []).append(step)
    return found


def _id_of(corpus: Path, text: str) -> str:
    from pretrain.data.curation.statistics import text_key

    assert holds(corpus, text)
    return text_key(text).hex()


def _check_forgotten(raw: Path, corpus: Path, tiny: TinyRun, run: str) -> None:
    texts = [json.loads(line)["text"] for line in (raw / "web.jsonl").read_text().splitlines()]
    steps = _names_of_steps(run, 12)
    first, second = _id_of(corpus, texts[0]), _id_of(corpus, texts[7])
    before = read_manifest(corpus)
    printed = run_forget(corpus, tiny, "url=https://a0.org/0", "dry_run=true")
    assert read_manifest(corpus) == before
    assert "1 texts that left the corpus before" in printed
    assert steps_in(printed) == steps[first]
    assert 1 < len(steps[first]) < 12
    printed = run_forget(corpus, tiny, "url=https://a0.org/0")
    assert "forgotten   1 documents" in printed
    assert not holds(corpus, texts[0])
    assert not holds(corpus, texts[59])  # a copy of it, removed before
    manifest = read_manifest(corpus)
    assert manifest["documents"] == before["documents"] - 1
    assert manifest["sources"]["web"]["documents"]["forgotten"] == 1
    assert manifest["removals"][0]["before"] == before["fingerprint"] != manifest["fingerprint"]
    assert read_manifest(corpus)["fingerprint"] in (corpus / "report.html").read_text()
    assert verify(corpus).documents == manifest["documents"]
    assert "stays: " in printed
    assert _names_of_steps(run, 12) == steps  # of the tokens that the run read, which are still there

    printed = run_forget(corpus, tiny, f"id={second[:12]}", "delete_stores=true")  # the run read what was then there
    assert steps_in(printed) == steps[second]
    saved = sorted(int(path.name[5:]) for path in (Path(run) / "checkpoints").glob("step-*"))
    shown = [int(line.rpartition("-")[2]) for line in printed.splitlines() if line.startswith("  checkpoint")]
    assert shown == [step for step in saved if step >= steps[second][0]] != []
    assert "  exported   " in printed
    assert "was deleted" in printed
    assert not [path for path in (tiny.folder / "cache").rglob("*.names") if second.encode() in path.read_bytes()]
    with pytest.raises(DataError, match=r"the text of the run has changed.*Restore the text"):
        next(rows_of_step(run, 1))

    again = curate(config_of(raw, tiny.folder / "again", f"forgotten=[{corpus}]"), lambda line: None)
    counts = again["sources"]["web"]["documents"]
    assert counts["unusable"] == {"forgotten on request": 3}
    assert not holds(tiny.folder / "again", texts[0])
    assert holds(tiny.folder / "again", texts[1])
    assert (tiny.folder / "again" / FORGOTTEN).read_bytes() == (corpus / FORGOTTEN).read_bytes()
    message = run_forget(corpus, tiny, "domain=b.org", code=2)
    assert "domain=b.org is no document of" in message
    assert "delete_stores=true alone" in message
    _check_forgotten_before(corpus, tiny, texts[12])


def _check_forgotten_before(corpus: Path, tiny: TinyRun, text: str) -> None:
    """The tokens of a document can be deleted later than its text."""
    config, cache = tiny.config("data=curated", f"data.path={corpus}"), tiny.folder / "cache"
    prepare(config.data, config.tokenizer, cache)
    tables = map(pq.read_table, sorted(corpus.glob("data/*.parquet")))
    (origin,) = [row["origin"] for table in tables for row in table.to_pylist() if row["text"] == text]
    assert "forgotten   1 documents" in run_forget(corpus, tiny, f"file={origin}")
    assert list(cache.rglob("*.names"))
    assert "was deleted" in run_forget(corpus, tiny, "delete_stores=true")
    assert not list(cache.rglob("*.names"))
    assert "forgot" in run_forget(corpus.parent / "plain", tiny, "delete_stores=true", code=2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({}, "there are 0"), ({"id": "a" * 8, "url": "b"}, "there are 2"), ({"id": "abc"}, "id=abc has fewer than 8")],
)
def test_what_to_forget_is_said_once(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ForgetConfig(path="corpus", **settings)


@pytest.mark.long
def test_a_document_of_a_grown_corpus_is_forgotten(
    raw: Path, tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps are named, its text is gone from both folders, and nothing that is added later brings it back."""
    corpus, addition = tiny.folder / "corpus", tiny.folder / "addition"
    texts = [json.loads(line)["text"] for line in (raw / "web.jsonl").read_text().splitlines()]
    for name, rows in (("more", range(40, 60)), ("web", range(40))):
        records = [{"text": texts[n], "url": f"https://a{n % 3}.org/{n}"} for n in rows]
        (raw / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    curate(config_of(raw, corpus), lambda line: None)
    source = f"sources={{more: {{kind: jsonl, path: {raw}/more.jsonl, license: CC-BY-4.0, url_column: url}}}}"
    curate(config_of(raw, addition, source, f"base={corpus}", "append=true"), lambda line: None)
    before = read_manifest(corpus)
    plan = tiny.plan("data=curated", f"data.path={corpus}", "data.validation_fraction=0.05", "batch_size=64")
    report = train(plan)
    forgotten = _id_of(corpus, texts[50])
    steps = _names_of_steps(report.folder, 12)[forgotten]
    for folder in (corpus, addition):
        paths = PathsConfig(cache_dir=f"{tiny.folder}/cache", logs_dir=f"{tiny.folder}/logs")
        forget(ForgetConfig(path=str(folder), url="https://a2.org/50", paths=paths), [])
        assert steps_in(capsys.readouterr().out) == steps
        assert not holds(folder, texts[50])
    assert holds(corpus, texts[51])
    manifest = read_manifest(corpus)
    assert manifest["documents"] == before["documents"] - 1
    assert [each["fingerprint"] for each in manifest["grown"]] == [each["fingerprint"] for each in before["grown"]]
    assert verify(corpus).documents == manifest["documents"]
    again = config_of(raw, tiny.folder / "again", source, f"base={corpus}", "append=true")
    with pytest.raises(DataError, match="nothing is new"):
        curate(again, lambda line: None)
    assert not holds(corpus, texts[50])
