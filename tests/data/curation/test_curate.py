"""Raw text to a corpus: every document accounted for, equal bytes however it was run, errors that say what to do."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.config import preset_folders
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.config import BytesTokenizerConfig, CuratedConfig, CuratedOnly
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import overview, read_manifest, summary
from pretrain.data.curation.verify import verify
from pretrain.data.prepare import prepare
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.files.records import read_record
from pretrain.interop.model_card import CuratedText, ModelCard

SCRIPT = Path(__file__).parents[3] / "src" / "curate.py"
RIGHTS = ["cc-by-4.0", "cc-by-nc", "https://creativecommons.org/publicdomain/zero/1.0/", 7]
SENTENCE = "the {} of number {} is one that we have with us today, and it ends here."


def text(word: str, number: int, sentences: int = 8) -> str:
    return "\n".join(SENTENCE.format(word, number + place).capitalize() for place in range(sentences))


def lines(*records: Any) -> str:
    return "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write one source of each format; "twin" stands in three of them."""
    folder = tmp_path / "raw"
    folder.mkdir()
    twin = text("twin", 0)
    (folder / "web.jsonl").write_text(
        lines(
            *({"text": text("web", n), "url": f"https://a{n % 3}.org/{n}", "date": f"202{n % 5}-01-02", "rights": own}
              for n, own in zip(range(40), RIGHTS * 10, strict=True)),
            {"text": twin, "url": None, "date": None, "rights": "mit"}, "no json\n", "[1]\n", {"text": 5},
            {"text": "  "}, {"text": "a\0b"}, {"text": "half \ud800"}, {"text": "short"}, "\n",
        )
    )  # fmt: skip
    (folder / "table.csv").write_text(f'name,text\na,"{text("csv", 0)}"\nb,"{twin}"\n')
    (folder / "table.tsv").write_text("text\tname\n" + text("tsv", 0, 1) * 3 + "\tx\n")
    table = pa.table({"body": [text("parquet", n) for n in range(6)] + [twin], "day": list(range(7))})
    table = table.set_column(1, "day", table["day"].cast(pa.int32()).cast(pa.date32()))
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)
    (folder / "book.txt").write_text("<|>".join(text("book", n) for n in range(3)))
    return folder


def words_of(raw: Path, output: Path, *more: str) -> list[str]:
    """Return the words of a command that curates every format."""
    return [
        f"sources.web={{kind: jsonl, path: {raw}/web.jsonl, license: column, license_column: rights, url_column: url, "
        "date_column: date}",
        f"sources.csv={{kind: csv, path: {raw}/table.csv, license: cc-by-sa-4.0, priority: 1}}",
        f"sources.tsv={{kind: tsv, path: {raw}/table.tsv, license: unknown}}",
        f"sources.rows={{kind: parquet, path: {raw}/rows.parquet, license: MIT, text_column: body, date_column: day}}",
        f"sources.book={{kind: text_files, path: {raw}/book.txt, license: CC0-1.0, separator: '<|>', rules: none}}",
        "rules=gopher", "rules.gopher.max_repeated_5_grams=null", "rules.gopher.max_repeated_6_grams=null",
        "rules.gopher.max_repeated_7_grams=null", "rules.gopher.max_repeated_8_grams=null",
        "rules.gopher.max_repeated_9_grams=null", "rules.gopher.max_repeated_10_grams=null", "workers=1",
        "rules.gopher.max_top_2_gram=null", "rules.gopher.max_top_3_gram=null", "rules.gopher.max_top_4_gram=null",
        "unit_bytes=3000", "duplicates.near=false", f"output={output}", *more,
    ]  # fmt: skip


def config_of(*words: str) -> CurateConfig:
    register_schemas("curate", CurateConfig)
    found: CurateConfig = compose("curate", list(words))
    return found


def run(raw: Path, output: Path, *more: str) -> dict[str, Any]:
    return curate(config_of(*words_of(raw, output, *more)), report=lambda line: None)


def documents(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def tree(output: Path) -> dict[str, str]:
    """Return the hash of every file of a corpus but timings, work, and the report that only the command writes."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] != "work"]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name not in ("timings.json", "report.html")
    }


@pytest.mark.slow
def test_every_document_is_accounted_for(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    manifest = run(raw, output)
    counts = {name: source["documents"] for name, source in manifest["sources"].items()}
    assert counts["web"]["read"] == 48
    assert counts["web"]["unusable"] == {
        "not JSON": 1, "not a JSON object": 1, "text is no string": 1, "empty": 1, "NUL character": 1,
        "lone surrogate": 1,
    }  # fmt: skip
    assert counts["web"]["removed"]["gopher.words"] == {"first": 1, "would": 1, "alone": 0, "characters": 5}
    assert (counts["web"]["exact"], counts["rows"]["exact"], counts["csv"]["exact"]) == (1, 1, 0)  # csv has priority
    assert {name: each["kept"] for name, each in counts.items()} == {
        "book": 3,
        "csv": 2,
        "rows": 6,
        "tsv": 1,
        "web": 40,
    }
    kept = documents(output)
    assert [row["source"] for row in kept] == sorted(row["source"] for row in kept)
    (twin,) = [row for row in kept if row["text"] == text("twin", 0)]
    assert (twin["origin"], twin["cluster_size"], twin["license"]) == ("csv/table.csv:10", 3, "CC-BY-SA-4.0")
    first = next(row for row in kept if row["source"] == "web")
    assert (first["license"], first["license_evidence"], first["url"]) == ("CC-BY-4.0", "column", "https://a0.org/0")
    assert manifest["licenses"]["unknown"]["documents"] == 11  # a number is no license
    assert {"CC0-1.0", "LicenseRef-CC-BY-NC", "CC-BY-SA-4.0", "MIT"} <= manifest["licenses"].keys()
    assert manifest["domains_top"] == {"a0.org": 14, "a1.org": 13, "a2.org": 13}
    assert (verify(output).documents, manifest["documents"]) == (52, 52)
    assert any("removed           1    2.1%  gopher.words" in line for line in overview(manifest))
    _check_decisions(output)


def _check_decisions(output: Path) -> None:
    tables = [row for path in sorted((output / "decisions").iterdir()) for row in pq.read_table(path).to_pylist()]
    copies = [row for row in tables if row["removed_by"] == "exact"]
    (twin,) = [row for row in documents(output) if row["cluster_size"] == 3]
    assert [row["duplicate_of"] for row in copies] == [twin["id"]] * 2
    samples = pq.read_table(output / "samples.parquet").to_pylist()
    (short,) = [row for row in samples if row["text"] == "short"]
    assert (short["rule"], short["value"]) == ("gopher.words", 1.0)


@pytest.mark.slow
def test_only_the_first_object_of_a_file_must_have_all_columns(tmp_path: Path) -> None:
    first = {"text": text("web", 0), "url": "https://a.org", "date": "2020"}
    (tmp_path / "web.jsonl").write_text(
        lines(first, *(line for n in range(1, 9) for line in ({"text": text("web", n)}, f"[{n}]\n")))
    )
    source = (
        f"sources.web={{kind: jsonl, path: {tmp_path}/web.jsonl, license: MIT, url_column: url, date_column: date}}"
    )
    found = []
    for size in (1000, 1_000_000):
        words = ("rules=none", "workers=1", "duplicates.near=false", f"unit_bytes={size}", f"output={tmp_path}/{size}")
        found.append(curate(config_of(source, *words), report=lambda line: None))
    assert len(found[0]["shards"]) > len(found[1]["shards"])
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert [row["url"] for row in documents(tmp_path / "1000")] == ["https://a.org", *[None] * 8]


@pytest.mark.slow
def test_the_corpus_does_not_depend_on_how_it_was_cut(raw: Path, tmp_path: Path) -> None:
    small, large = run(raw, tmp_path / "small"), run(raw, tmp_path / "large", "unit_bytes=1000000")
    assert len(small["shards"]) > len(large["shards"])
    assert small["fingerprint"] == large["fingerprint"]
    assert documents(tmp_path / "small") == documents(tmp_path / "large")
    (raw / "moved").mkdir()
    for path in [*raw.glob("*.*")]:
        path.rename(raw / "moved" / path.name)
    assert run(raw / "moved", tmp_path / "moved")["fingerprint"] == small["fingerprint"]


@pytest.mark.slow
def test_a_new_threshold_reads_no_text_again(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    run(raw, output)
    done = {path: path.stat().st_mtime_ns for path in output.glob("work/*/*.done")}
    words, said = ("rules.gopher.min_words=null", "rules.gopher.min_stop_words=null"), list[str]()
    manifest = curate(config_of(*words_of(raw, output, *words)), report=said.append)
    assert [line for line in said if line.startswith("replaced    a corpus of ")], said
    assert manifest["sources"]["web"]["documents"]["kept"] == 41
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    added = {path.parent.name.partition("-")[0] for path in output.glob("work/*/*.done")} - {"files"}
    assert added == {"read", "measure", "decide", "exact", "write"}
    assert len([path for path in output.glob("work/*-*") if path.name.startswith(("read-", "measure-"))]) == 2
    assert verify(output).documents == 53


@pytest.mark.slow
def test_killed_it_comes_to_equal_bytes_in_any_environment(raw: Path, tmp_path: Path) -> None:
    """Another hash seed, time zone, locale without UTF-8, umask and number of processes change nothing."""
    near = ("duplicates.near=true", "duplicates.paragraphs=100")
    run(raw, tmp_path / "whole", *near)
    words = [sys.executable, str(SCRIPT), *words_of(raw, tmp_path / "killed", *near)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    rng = random.Random(0)
    for attempt in range(3):
        environment = os.environ | {"PYTHONHASHSEED": str(attempt + 1), "TZ": "Asia/Tokyo"} | ascii_only
        workers = f"workers={2 if attempt < 2 else 4}"
        process = subprocess.Popen([*words, workers], env=environment, stdout=subprocess.DEVNULL, umask=0o077)
        if attempt < 2:
            _wait_for_a_task(tmp_path / "killed", process, rng.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=120) == (-signal.SIGKILL if attempt < 2 else 0)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("work/*/.*.tmp"))


def _wait_for_a_task(output: Path, process: "subprocess.Popen[bytes]", more_s: float) -> None:
    before = len(list(output.glob("work/*/*.done")))
    for _ in range(600):
        if len(list(output.glob("work/*/*.done"))) > before or process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(more_s)


@pytest.mark.slow
def test_a_failed_task_leaves_nothing_half_written(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.data.curation import curate as driver

    def fails(task: Any) -> dict[str, Any]:
        if task.index == 2:
            task.output("shard.parquet").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return driver_write(task)

    driver_write = driver.write_unit
    monkeypatch.setattr(driver, "write_unit", fails)
    with pytest.raises(
        CheckpointError, match=r"cannot be written to: No space left on device.*it goes on where it was"
    ):
        run(raw, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    assert not list((tmp_path / "corpus").glob("work/*/.*.tmp"))
    with pytest.raises(DataError, match=r"is no finished corpus: it has no manifest\.json"):
        verify(tmp_path / "corpus")
    monkeypatch.undo()
    run(raw, tmp_path / "corpus")
    run(raw, tmp_path / "other")
    assert tree(tmp_path / "corpus") == tree(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "origin"), [("longest", "web/b.jsonl:2"), ("newest", "web/a.jsonl:2"), ("first", "web/a.jsonl:1")]
)
def test_which_of_equal_texts_stays(keep: str, origin: str, tmp_path: Path) -> None:
    """C4 cuts the second line: the texts are equal as they are written, and of different lengths as they are read."""
    (tmp_path / "a.jsonl").write_text(
        lines({"text": "It is so now.", "d": "2020"}, {"text": "It is so now.\nx", "d": "2024-03"})
    )
    (tmp_path / "b.jsonl").write_text(
        lines({"text": "Other text is here.", "d": "2021"}, {"text": "It is so now.\nxyz", "d": None})
    )
    source = f"sources.web={{kind: jsonl, path: '{tmp_path}/*.jsonl', license: MIT, date_column: d}}"
    words = [
        source,
        "rules=none",
        "rules.c4.lines=true",
        f"duplicates.keep={keep}",
        f"output={tmp_path}/out",
        "workers=1",
    ]
    manifest = curate(config_of(*words), report=lambda line: None)
    assert [(row["origin"], row["text"]) for row in documents(tmp_path / "out") if row["cluster_size"] == 3] == [
        (origin, "It is so now.")
    ]
    assert manifest["duplicates"]["exact"] == 2


@pytest.mark.slow
def test_what_may_not_be_used_is_dropped_and_who_must_be_named_is_listed(raw: Path, tmp_path: Path) -> None:
    import zstandard

    manifest = run(raw, tmp_path / "corpus", "licenses=open")
    assert manifest["sources"]["web"]["documents"]["removed"]["license"]["first"] == 21  # by-nc, 7 and "short"
    assert not {"unknown", "LicenseRef-CC-BY-NC"} & manifest["licenses"].keys()
    with (tmp_path / "corpus" / "ATTRIBUTION.jsonl.zst").open("rb") as file:
        text_of = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().decode()
    named = [json.loads(line) for line in text_of.splitlines()]
    assert {row["license"] for row in named} == {"CC-BY-4.0", "CC-BY-SA-4.0", "MIT"}
    assert {row["url"] for row in named if row["license"] == "CC-BY-4.0"} == {
        f"https://a{n % 3}.org/{n}" for n in range(0, 40, 4)
    }


@pytest.mark.slow
def test_hugging_face_folders_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"text": [text("a", 0), text("b", 9)], "rights": ["cc0-1.0", None], "more": [1, 2]}
    )
    rows.save_to_disk(str(tmp_path / "set"))
    source = f"sources.hub={{kind: hugging_face, path: {tmp_path}/set, license: column, license_column: rights}}"
    words = [source, "rules=none", f"output={tmp_path}/out", "workers=1"]
    manifest = curate(config_of(*words), report=lambda line: None)
    assert {name: each["documents"] for name, each in manifest["licenses"].items()} == {"CC0-1.0": 1, "unknown": 1}
    with pytest.raises(DataError, match=r"has no sources\.hub\.text_column=body\. Try one of its columns: more, "):
        curate(config_of(words[0][:-1] + ", text_column: body}", *words[1:]), report=lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=x"], r"sources names no source, and a corpus needs one\. Try 'sources\.web="),
        (["sources.a={kind: wark, path: x, license: MIT}"], r"sources\.a\.kind=wark is unknown\. "),
        (["sources.a={kind: jsonl, path: x}"], r"sources\.a\.license has no value, and needs one"),
        (["sources.a={kind: jsonl, path: x, license: CC-BY-5}"], r"sources\.a\.license=CC-BY-5 is no .* Did you"),
        (["sources.a={kind: jsonl, path: x, license: MIT, rules: gofer}"], r"a\.rules=gofer is not a preset .*gopher"),
        (["licenses.deny=[gpl-9]"], r"licenses\.deny=gpl-9 is no license that is known here"),
        (["rules.gopher.min_wordz=3"], r"min_wordz is not a setting\. Did you mean rules\.gopher\.min_words"),
        (["rules.gopher.max_bullet_lines=2"], r"rules\.gopher\.max_bullet_lines=2.* is not a share from 0 to 1"),
        (["rules=gofer"], r"rules=gofer is not a preset"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(words: list[str], message: str) -> None:
    good = [] if words == ["output=x"] or "sources" in words[0] else ["sources.a={kind: jsonl, path: x, license: MIT}"]
    with pytest.raises(ConfigError, match=message):
        config_of(*good, *words, *([] if words == ["output=x"] else ["output=x"]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("defaults: [gopher]\n", r"has a defaults list, which a preset for one source cannot have\. Leave it out"),
        ("min_words: 5\n", r"cannot be read: Key 'min_words' .*\. Write .* such as min_characters: 150"),
        ("gopher: {\n", r"cannot be read: while parsing a flow .*Write .* such as min_characters: 150"),
        ("- gopher\n", r"cannot be read: .*Write .* such as min_characters: 150"),
    ],
)
def test_a_preset_of_rules_of_ones_own_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "mine.yaml").write_text(text)
    monkeypatch.setattr(preset_folders, "_own_folders", [tmp_path])
    with pytest.raises(ConfigError, match=rf"rules/mine\.yaml {reason}"):
        config_of("sources.a={kind: jsonl, path: x, license: MIT, rules: mine}", "output=x")


@pytest.mark.slow
def test_input_that_cannot_be_used(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    with pytest.raises(DataError, match=r"sources\.web\.path=.*nothing.* does not exist"):
        run(raw, output, f"sources.web={{kind: jsonl, path: {raw}/nothing, license: MIT}}")
    with pytest.raises(DataError, match=r"web\.jsonl has no sources\.web\.text_column=body"):
        run(raw, output, f"sources.web={{kind: jsonl, path: {raw}/web.jsonl, license: MIT, text_column: body}}")
    source = f"sources={{rows: {{kind: parquet, path: {raw}/rows.parquet, license: MIT, text_column: body}}}}"
    words = [source, "rules=none", "rules.min_characters=100000", f"output={tmp_path}/none", "workers=1"]
    with pytest.raises(DataError, match=r"no document is left of 7: olmo3\.characters removed most of them, 7\. Try"):
        curate(config_of(*words), report=lambda line: None)
    run(raw, output)
    (raw / "book.txt").write_text("other words")
    with pytest.raises(
        DataError, match=r"book/book\.txt has changed since this curation began .*choose another output"
    ):
        run(raw, output)
    assert verify(output).documents == 52  # the corpus is as it was


def test_two_do_not_write_one_corpus(raw: Path, tmp_path: Path) -> None:
    from pretrain.data.curation.output_folder import locked

    (tmp_path / "corpus" / "work").mkdir(parents=True)
    with locked(tmp_path / "corpus"), pytest.raises(CheckpointError, match="is being written by another process"):
        run(raw, tmp_path / "corpus")


@pytest.mark.slow
def test_a_damaged_corpus_is_refused(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    run(raw, output)
    shard = next((output / "data").iterdir())
    whole = shard.read_bytes()
    shard.unlink()  # it is a second name of a file in work/
    shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DataError, match="is not the file that the manifest lists"):
        verify(output)
    config = CuratedConfig(path=str(output))
    with pytest.raises(DataError, match="is not the file that the manifest lists"):
        list(config.open().documents())
    shard.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        verify(output)
    path = output / "manifest.json"
    manifest = path.read_text()
    for edited in (
        manifest.replace('"documents": 52', '"documents": 53'),
        "[]",
        '{"format": "pretrain corpus", "version": 9}',
    ):
        path.write_text(edited)
        with pytest.raises(DataError, match="is not the manifest of a corpus"):
            read_manifest(output)


@pytest.mark.slow
def test_training_reads_the_corpus_with_its_provenance(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    manifest = run(raw, output)
    config = CuratedConfig(path=str(output), validation_fraction=0.2)
    prepared = prepare(config, BytesTokenizerConfig(), tmp_path / "cache", report=lambda line: None)
    train, validation = prepared.train[""], prepared.validation[""]
    assert train.n_documents + validation.n_documents == 52
    assert validation.document_name(0) in {row["id"] for row in documents(output) if row["split_key"] % 10_000 < 2000}
    assert prepared.provenance[""] == summary(manifest) == train.provenance["corpus"]
    only = replace(config, only=CuratedOnly(source=["book", "csv"], license=["CC0-1.0"]))
    part = prepare(only, BytesTokenizerConfig(), tmp_path / "cache", report=lambda line: None)
    assert sum(store.n_documents for store in (*part.train.values(), *part.validation.values())) == 3
    assert part.provenance[""]["only"] == {"source": ["book", "csv"], "license": ["CC0-1.0"]}
    with pytest.raises(
        DataError, match=r"data\.only\.source=\[news\] is not in data\.path=.* There are: book, csv, rows"
    ):
        replace(config, only=CuratedOnly(source=["news"])).open()
    _check_card(prepared.provenance[""])


def _check_card(provenance: dict[str, Any]) -> None:
    corpus = read_record(CuratedText, json.loads(json.dumps(provenance)), "corpora")
    card = str(ModelCard("m", "GPT", "AutoModelForCausalLM", 1, 2, None, True, {}, {}, {"": corpus}))
    assert "| web | column | 48 | 40 | unusable: NUL character 1," in card
    assert "gopher.words 1, exact duplicates 1 |" in card
    assert "| CC-BY-SA-4.0 | 2 |" in card


@pytest.mark.slow
def test_the_summary_is_small_whatever_the_corpus_is(raw: Path, tmp_path: Path) -> None:
    manifest = run(raw, tmp_path / "corpus")
    manifest["sources"] = {f"source-{n}": manifest["sources"]["web"] for n in range(2000)}
    manifest["settings"]["rules"] = dict.fromkeys(manifest["sources"], manifest["settings"]["rules"]["web"])
    manifest["licenses"] = {f"LicenseRef-{n}": {"documents": n, "characters": n} for n in range(5000)}
    short = summary(manifest)
    assert len(json.dumps(short)) < 64_000
    assert short["sources"]["all"]["documents"]["read"] == 2000 * 48
