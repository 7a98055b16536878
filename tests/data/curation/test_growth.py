"""A corpus that grows: equal eras whenever it grew, exact reading on, and a refusal of one that did anything else."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from curation_documents import lines, settings

from pretrain.data.config import BytesTokenizerConfig, CuratedConfig, Mode
from pretrain.data.curation import growth
from pretrain.data.curation.curate import curate
from pretrain.data.curation.growth import append
from pretrain.data.curation.manifest import manifest_bytes, read_manifest
from pretrain.data.curation.verify import verify
from pretrain.data.curation.writing import ATTRIBUTION
from pretrain.data.prepare import finish_stream, prepare
from pretrain.data.sources import curated
from pretrain.data.streaming.corpus import Stream
from pretrain.data.streaming.producer import StreamJob, produce
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError, DataError

SPLIT = "validation.fraction=0.1"


def add(folder: Path, corpus: Path, number: int, *more: str) -> dict[str, Any]:
    """Curate other documents against a corpus, with some of those there already, and append what is new."""
    text = lines(45, seed=number) + lines(10, seed=0)
    (folder / f"{number}.jsonl").write_bytes(text)
    output = folder / f"addition-{number}"
    words = (SPLIT, "unit_bytes=20000", f"base={corpus}", "append=true", *more)
    return curate(settings(folder / f"{number}.jsonl", output, *words), report=lambda line: None)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Return a folder, and copies of one corpus as it was at first, with one addition, and with two."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "0.jsonl").write_bytes(lines(60, seed=0))
    words = (SPLIT, "unit_bytes=20000")
    curate(settings(folder / "0.jsonl", folder / "corpus", *words), report=lambda line: None)
    copies = []
    for number in range(3):
        if number:
            add(folder, folder / "corpus", number)
        copies.append(folder / f"copy-{number}")
        shutil.copytree(folder / "corpus", copies[-1])
    return folder, copies


def put(source: Path, corpus: Path) -> None:
    """Let a corpus become the other one as an append does it: the new shards, then the manifest."""
    for name in ("data", "index"):
        shutil.copytree(source / name, corpus / name, dirs_exist_ok=True)
    draft = corpus / ".manifest"
    shutil.copyfile(source / "manifest.json", draft)
    draft.replace(corpus / "manifest.json")


def config_of(corpus: Path, growth_timeout_s: float | None = 0.2) -> CuratedConfig:
    return CuratedConfig(
        path=str(corpus), mode=Mode.stream, era_tokens=4096, validation_fraction=0.1, growth_timeout_s=growth_timeout_s
    )


def read(config: CuratedConfig, cache: Path, to_end: bool = True) -> Stream:
    prepared = prepare(config, BytesTokenizerConfig(), cache, lambda line: None)
    if to_end:
        finish_stream(prepared, config, lambda line: None)
    stream = prepared.corpora[""].train
    assert isinstance(stream, Stream)
    return stream


def eras(stream: Stream) -> list[tuple[str, int, dict[str, int]]]:
    return [(era.fingerprint, era.documents, era.reached.skipped) for era in stream.ledger.eras]


# What an append makes


@pytest.mark.slow
def test_a_grown_corpus_is_sound_and_holds_no_document_twice(grown: tuple[Path, list[Path]]) -> None:
    folder, copies = grown
    first, last = read_manifest(copies[0]), read_manifest(copies[2])
    additions = [read_manifest(folder / f"addition-{number}") for number in (1, 2)]
    assert last["documents"] == first["documents"] + sum(each["documents"] for each in additions)
    assert [each["fingerprint"] for each in last["grown"]] == [each["fingerprint"] for each in additions]
    assert last["shards"][: len(first["shards"])] == first["shards"]
    assert last["fingerprint"] != first["fingerprint"]
    found = verify(copies[2])  # hashes, counts, and that no id stands twice
    assert (found.documents, found.shards) == (last["documents"], len(last["shards"]))
    source = last["sources"]["web"]["documents"]
    assert source["read"] == 60 + 2 * 55
    assert named(copies[2]) == {row["id"] for row in rows_of(copies[2])}  # MIT asks for it
    assert source["exact"] >= 12  # those of the base, in each addition; others are near one of it


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((corpus / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def named(corpus: Path) -> set[str]:
    """Return the ids of the documents whose authors are named; none of them twice."""
    with (corpus / ATTRIBUTION).open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    ids = [json.loads(line)["id"] for line in content.splitlines()]
    assert len(ids) == len(set(ids))
    return set(ids)


def test_an_addition_given_again_adds_nothing(grown: tuple[Path, list[Path]]) -> None:
    folder, _ = grown
    before = (folder / "corpus" / "manifest.json").read_bytes()
    add(folder, folder / "corpus", 2)
    assert (folder / "corpus" / "manifest.json").read_bytes() == before


def test_a_killed_append_is_made_good(
    grown: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copies = grown
    corpus = tmp_path / "corpus"
    shutil.copytree(copies[0], corpus)
    number = 1 + int(Path(read_manifest(corpus)["shards"][-1]["file"]).stem)
    (corpus / "data" / f"{number:05d}.parquet").write_bytes(b"half")

    def dies(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # all is written but the manifest
        patch.setattr(growth, "write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            append(corpus, folder / "addition-1")
    append(corpus, folder / "addition-1")
    for name in ("manifest.json", ATTRIBUTION):
        assert (corpus / name).read_bytes() == (copies[1] / name).read_bytes()
    assert not list(corpus.glob(".*"))
    verify(corpus)


@pytest.mark.slow
def test_what_cannot_stand_in_one_corpus_is_refused(grown: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder, copies = grown
    with pytest.raises(DataError, match=r"has changed since .*addition-1 was curated against it"):
        append(copies[2], folder / "addition-1")
    with pytest.raises(DataError, match=r"has grown by [\d,]+ documents of 2 later curations"):
        curate(settings(folder / "0.jsonl", copies[2]), report=lambda line: None)
    with pytest.raises(ConfigError, match=r"append=true puts documents after .* Try base="):
        settings(folder / "0.jsonl", tmp_path / "out", "append=true")
    for change, message in (
        ({"settings": {"validation": {"fraction": 0.3}}}, "append=true with validation="),
        ({"decontamination": {}}, "cannot join the verdicts on evaluation sets"),
        ({"personal_data": {"kinds": ["email"]}}, r"personal_data.kinds=\['email'\] differs"),
        ({"personal_data": {"replacement": "nothing"}}, "personal_data.replacement=nothing differs from"),
        ({"sources": {"web": {"license": "CC0-1.0"}}}, "sources.web.license=CC0-1.0 differs"),
    ):
        addition = tmp_path / "addition"
        shutil.copytree(folder / "addition-1", addition)
        edit(addition, change)
        with pytest.raises(ConfigError, match=message):
            append(copies[0], addition)
        shutil.rmtree(addition)


def edit(corpus: Path, change: dict[str, Any]) -> None:
    """Write another manifest, with a right seal."""
    manifest = read_manifest(corpus)
    for name in ("format", "version", "seal"):
        manifest.pop(name, None)

    def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
        for name, value in more.items():
            if isinstance(value, dict) and name in into:
                merge(into[name], value)
            else:
                into[name] = value

    merge(manifest, change)
    (corpus / "manifest.json").write_bytes(manifest_bytes(manifest))


# What a stream reads of it


@pytest.mark.slow
def test_eras_do_not_depend_on_when_the_corpus_grew(
    grown: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream over a corpus that grows twice meanwhile equals that over the corpus as it is at the end."""
    _, copies = grown
    monkeypatch.setattr(curated, "POLL_S", 0.01)
    whole = eras(read(config_of(copies[2]), tmp_path / "whole"))
    now = tmp_path / "now"
    shutil.copytree(copies[0], now)
    later = iter(copies[1:])
    asked: list[int] = []
    original = curated.Curated._reread

    def reread(source: curated.Curated) -> None:
        asked.append(len(source.manifest["shards"]))
        if len(asked) % 2 == 0 and (more := next(later, None)) is not None:
            put(more, now)
        original(source)

    monkeypatch.setattr(curated.Curated, "_reread", reread)
    assert eras(read(config_of(now), tmp_path / "growing")) == whole
    assert len(whole) > 5
    assert len(set(asked)) == 3  # it really grew twice while it was read


@pytest.mark.slow
def test_a_stream_goes_on_with_what_came_while_nothing_ran(grown: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, copies = grown
    now = tmp_path / "now"
    shutil.copytree(copies[0], now)
    config = config_of(now, growth_timeout_s=3600)
    before = read(config, tmp_path / "cache", to_end=False)
    read_on(before.folder, config)
    half = eras(Stream(before.folder))
    put(copies[1], now)
    read_on(before.folder, config)
    put(copies[2], now)
    read_on(before.folder, config)
    after = Stream(before.folder)
    assert not after.ended()
    whole = eras(read(config_of(copies[2]), tmp_path / "whole"))
    assert len(half) < len(eras(after))
    assert eras(after) == whole[: len(after.ledger.eras)]
    assert len(whole) - len(after.ledger.eras) <= 1  # the last era is not full, and waits
    assert after.provenance["corpus"]["shards_read"]["count"] == len(read_manifest(now)["shards"])


@pytest.mark.slow
def test_an_ended_stream_says_what_came_later_and_how_to_read_it(
    grown: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curated, "POLL_S", 0.01)
    _, copies = grown
    now = tmp_path / "now"
    shutil.copytree(copies[1], now)
    config, said = config_of(now, growth_timeout_s=0.01), list[str]()
    ended = read(config, tmp_path / "cache")
    prepare(config, BytesTokenizerConfig(), tmp_path / "cache", said.append)
    assert not any("has grown" in line for line in said)
    said.clear()
    known, put_there = len(read_manifest(now)["shards"]), read_manifest(copies[2])["shards"]
    put(copies[2], now)
    prepare(config, BytesTokenizerConfig(), tmp_path / "cache", said.append)
    count = sum(shard["documents"] for shard in put_there[known:])
    assert f"{len(put_there) - known} of its {len(put_there)} shards, {count} documents, are not read" in said[0]
    assert "data.era_tokens=4097" in said[0]
    assert Stream(ended.folder).provenance["corpus"]["shards_read"]["count"] <= known
    anew = read(replace(config, era_tokens=4097), tmp_path / "cache")
    assert anew.n_documents > ended.n_documents


def read_on(folder: Path, config: CuratedConfig) -> None:
    """Read until the stream waits for more text, and stop it there."""
    source = config.open()
    stop = threading.Event()
    wait_for_more = source.wait_for_more

    def stop_instead(keep_waiting: Callable[[], bool]) -> bool:
        stop.set()
        return wait_for_more(keep_waiting)

    source.wait_for_more = stop_instead  # type: ignore[method-assign]
    produce(StreamJob(folder, source, byte_tokenizer(), lambda line: None), lambda: False, stop.is_set)
    assert stop.is_set()


def test_a_corpus_that_shrank_or_changed_is_refused(
    grown: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, copies = grown
    monkeypatch.setattr(curated, "POLL_S", 0.01)
    now = tmp_path / "now"
    shutil.copytree(copies[1], now)
    config = config_of(now, growth_timeout_s=3600)
    stream = read(config, tmp_path / "cache", to_end=False)
    read_on(stream.folder, config)
    manifest = read_manifest(now)
    put(copies[0], now)
    with pytest.raises(DataError, match=r"does not begin with the \d shards .* were read before: it has \d"):
        read_on(stream.folder, config)
    put(copies[1], now)
    shards = [dict(shard) for shard in manifest["shards"]]
    shards[1]["sha256"] = "0" * 64
    edit(now, {"shards": shards})
    with pytest.raises(DataError, match=r"shards were deleted or changed\. Restore the corpus"):
        read_on(stream.folder, config)

    put(copies[1], now)
    source = config.open()
    edit(now, {"shards": shards, "fingerprint": "other"})
    with pytest.raises(DataError, match="did not only grow while it was read"):
        source.check_as_opened()


def test_a_corpus_that_grows_needs_a_stream(grown: tuple[Path, list[Path]]) -> None:
    with pytest.raises(ConfigError, match=r"data.growth_timeout_s=5 .* Try data.mode=stream"):
        CuratedConfig(path=str(grown[1][0]), growth_timeout_s=5)
    with pytest.raises(ConfigError, match=r"data.validation_fraction=0.2 is not the validation.fraction=0.1"):
        CuratedConfig(path=str(grown[1][2]), validation_fraction=0.2).open()


def test_all_sizes_of_a_growing_corpus_are_one_stream(grown: tuple[Path, list[Path]]) -> None:
    """And those of a corpus that is read as it is are different ones."""
    fixed = [CuratedConfig(path=str(copy), validation_fraction=0.1).open().fingerprint() for copy in grown[1]]
    growing = [config_of(copy).open().fingerprint() for copy in grown[1]]
    assert (len(set(fixed)), len(set(growing))) == (3, 1)
    assert growing[0] not in fixed
