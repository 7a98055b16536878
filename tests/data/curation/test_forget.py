"""Documents out of a corpus: by every name that they have, whatever kills it, and out of every later curation."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation import forget as forgetting
from pretrain.data.curation import stages
from pretrain.data.curation.curate import curate
from pretrain.data.curation.forget import PENDING, Request, find_documents, finish_forgetting, forget
from pretrain.data.curation.manifest import manifest_bytes, read_manifest
from pretrain.data.curation.reading import RawDocument, read_part
from pretrain.data.curation.tombstones import FORGOTTEN, Tombstones, hashed, read_tombstones
from pretrain.data.curation.verify import verify
from pretrain.errors import ConfigError, DataError


def text_of(number: int) -> str:
    return " ".join(f"w{number * 31 + place}" for place in range(30))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write two files of documents from three hosts."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, numbers in (("a", range(20)), ("b", range(20, 26))):
        rows = [{"text": text_of(n), "url": f"https://{'www.' * (n % 2)}h{n % 3}.org/{n}"} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(raw: Path, output: Path, *more: str) -> dict[str, Any]:
    register_schemas("curate", CurateConfig)
    source = f"sources.web={{kind: jsonl, path: {raw}, license: CC-BY-4.0, url_column: url}}"
    words = [source, "rules=none", "unit_bytes=3000", "workers=1", f"output={output}", *more]
    config: CurateConfig = compose("curate", words)
    return curate(config, report=lambda line: None)


def texts(corpus: Path) -> set[str]:
    return {text for path in (corpus / "data").iterdir() for text in pq.read_table(path)["text"].to_pylist()}


def take_out(corpus: Path, **request: str) -> int:
    """Forget what a request means; return how many documents that were."""
    asked = Request(**request)
    found = find_documents(corpus, asked)
    forget(corpus, found, asked.tombstones())
    return len(found.kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "gone"),
    [
        ({"url": "https://h0.org/0"}, {0}), ({"domain": "h1.org"}, {n for n in range(26) if n % 3 == 1}),
        ({"domain": "www.H1.org"}, {n for n in range(26) if n % 3 == 1 and n % 2}), ({"text": text_of(7)}, {7}),
        ({"file": "web/b.jsonl"}, set(range(20, 26))),
    ],
)  # fmt: skip
def test_every_name_of_a_document_takes_it_out(
    raw: Path, tmp_path: Path, request_: dict[str, str], gone: set[int]
) -> None:
    corpus = tmp_path / "corpus"
    run(raw, corpus)
    assert take_out(corpus, **request_) == len(gone)
    assert texts(corpus) == {text_of(n) for n in range(26) if n not in gone}
    assert verify(corpus).documents == 26 - len(gone)
    manifest = read_manifest(corpus)
    assert manifest["licenses"]["CC-BY-4.0"]["documents"] == 26 - len(gone)
    assert manifest["license_evidence"] == {"source": manifest["licenses"]["CC-BY-4.0"]}
    assert not (corpus / "work" / "stages.json").exists()
    with pytest.raises(ConfigError, match="is no document of"):
        take_out(corpus, **request_)
    again = run(raw, corpus)  # the same command: what was forgotten stays out
    assert texts(corpus) == {text_of(n) for n in range(26) if n not in gone}
    assert again["sources"]["web"]["documents"]["unusable"] == {"forgotten on request": len(gone)}


@pytest.mark.slow
def test_what_else_the_manifest_counts_is_counted_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pages that reserve a use, and by where their licenses are from."""
    reserved = json.dumps({"reservations": ["robots: noai"]})

    def read_pages(*arguments: Any) -> Iterator[RawDocument]:
        for document in read_part(*arguments):
            is_first = str(document.url).startswith("https://h0")
            yield replace(document, metadata=reserved if is_first else None, evidence="source" if is_first else "link")

    monkeypatch.setattr(stages, "read_part", read_pages)
    corpus = tmp_path / "corpus"
    before = run(raw, corpus)
    assert before["reservations"] == {"robots: noai": 5}
    assert verify(corpus).documents == 26
    take_out(corpus, url="https://h0.org/0")
    after = read_manifest(corpus)
    assert after["reservations"] == {"robots: noai": 4}
    assert {name: each["documents"] for name, each in after["license_evidence"].items()} == {"link": 21, "source": 4}
    verify(corpus)
    for name in ("license_evidence", "reservations"):
        contents = {key: value for key, value in after.items() if key not in ("format", "version", "seal")}
        (corpus / "manifest.json").write_bytes(manifest_bytes(contents | {name: before[name]}))
        with pytest.raises(DataError, match=f"the shards hold {name} .* and the manifest says"):
            verify(corpus)
        earlier = contents["removals"][0] | {"version": 1}  # of a release that left them as they were
        (corpus / "manifest.json").write_bytes(manifest_bytes(contents | {name: before[name], "removals": [earlier]}))
        verify(corpus)


@pytest.mark.slow
def test_a_later_corpus_on_this_base_leaves_new_pages_of_a_domain_out(raw: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    run(raw, corpus, "duplicates.near=false")
    take_out(corpus, domain="h1.org")
    rows = [{"text": f"new {text_of(n)}", "url": f"https://sub.h{n % 3}.org/x"} for n in range(30, 36)]
    (raw / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = run(raw, tmp_path / "next", f"base={corpus}", "duplicates.near=false")
    assert texts(tmp_path / "next") == {f"new {text_of(n)}" for n in range(30, 36) if n % 3 != 1}
    assert read_tombstones([tmp_path / "next"]) == read_tombstones([corpus])
    assert manifest["sources"]["web"]["documents"]["unusable"]["forgotten on request"] == 9 + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", ["_rewrite_shard", "_rewrite", "_rewrite_attribution", "_clear_work", "_write_manifest"]
)
def test_a_killed_forget_is_finished(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """Whatever was done before the kill, the end is that of a forget that ran through."""
    through, killed = tmp_path / "through", tmp_path / "killed"
    for corpus in (through, killed):
        run(raw, corpus)
    take_out(through, domain="h1.org")
    original = getattr(forgetting, after)

    def dies(*arguments: Any) -> Any:
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, after, dies)
        with pytest.raises(KeyboardInterrupt):
            take_out(killed, domain="h1.org")
    assert (killed / PENDING).exists()
    assert finish_forgetting(killed)
    assert not finish_forgetting(killed)
    for name in ("data", "index", "decisions"):
        assert [(path.name, path.read_bytes()) for path in sorted((killed / name).iterdir())] == [
            (path.name, path.read_bytes()) for path in sorted((through / name).iterdir())
        ]
    assert read_manifest(killed)["shards"] == read_manifest(through)["shards"]
    assert verify(killed).documents == verify(through).documents


@pytest.mark.slow
def test_lists_of_what_is_forgotten_are_checked(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / FORGOTTEN
    for content in ("{}", "[", '{"format": "pretrain forgotten documents", "version": 1, "texts": [5]}'):
        path.write_text(content)
        with pytest.raises(DataError, match="lists no forgotten documents"):
            run(raw, tmp_path / "corpus", f"forgotten=[{path}]")
    with pytest.raises(DataError, match=r"missing does not exist\. Name a corpus"):
        run(raw, tmp_path / "corpus", f"forgotten=[{tmp_path}/missing]")
    stones = Tombstones(domains=frozenset([hashed("h1.org")]))
    assert stones.hold("", "https://a.b.h1.org:8080/x")
    assert not stones.hold("", "https://xh1.org/")
    assert not stones.hold("", "http://[broken")
    assert not stones.hold("", None)


@pytest.mark.slow
def test_a_corpus_of_which_nothing_is_left_is_to_be_deleted(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "corpus")
    with pytest.raises(DataError, match=r"has no document left\. Delete the folder"):
        take_out(tmp_path / "corpus", domain="org")
