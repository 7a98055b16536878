"""Held-out documents: chosen by the hash of the text, and never none, even in a small corpus."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config import BytesTokenizerConfig, TextFilesConfig
from pretrain.data.fine_tuning_config import LabeledTextConfig, PairsConfig
from pretrain.data.prepare import Prepared, find_prepared, prepare
from pretrain.data.sources.source import Document, Source
from pretrain.data.sources.splits import ExactDuplicates, is_held_out, split_document, split_of, split_rules
from pretrain.data.token_store.build import with_splits
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError


class Listed(Source):
    """A source of texts that are given."""

    def __init__(self, texts: list[str], share: float = 0.05) -> None:
        super().__init__(TextFilesConfig(path="given", validation_fraction=share))
        self.texts = texts

    def read(self, place: object = None) -> Iterator[Document]:
        return (Document(text, str(number)) for number, text in enumerate(self.texts))

    def origin(self) -> str:
        return "given"


def held_out(source: Source) -> tuple[list[str], list[str]]:
    found: dict[str, list[str]] = {"train": [], "validation": []}
    for split, document in with_splits(source, source.config):
        found[split].append(document.text)
    return found["train"], found["validation"]


def lines(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return "".join(f"{draw.random()}\n" for _ in range(count))


def test_a_corpus_of_enough_documents_is_split_as_it_always_was() -> None:
    texts = [f"text {number}" for number in range(200)]
    train, validation = held_out(Listed(texts))
    assert validation == [text for text in texts if split_of(Document(text, ""), 0.05) == "validation"]
    assert train == [text for text in texts if split_of(Document(text, ""), 0.05) == "train"]
    assert len(validation) == 15
    alone = lines(1, 100)
    train, validation = held_out(Listed([alone]))
    assert train + validation == [alone[: len(train[0])], alone[len(train[0]) :]]
    assert len(train[0]) == alone.find("\n", int(len(alone) * 0.95)) + 1  # as before


@pytest.mark.parametrize("count", [2, 3])
def test_of_few_documents_the_end_of_the_longest_is_held_out(count: int) -> None:
    texts = [lines(number, 30 if number else 200) for number in range(count)]
    assert {split_of(Document(text, ""), 0.05) for text in texts} == {"train"}
    train, validation = held_out(Listed(texts))
    assert train[0] + validation[0] == texts[0]
    assert train[0].endswith("\n")
    assert train[1:] == texts[1:]
    total = sum(map(len, texts))
    assert 0.03 < len(validation[0]) / total < 0.06
    again = held_out(Listed([*texts, texts[0]]))  # a copy of it must not be trained on
    assert set(again[0]) == set(train)


@pytest.mark.slow
def test_a_document_of_about_the_right_size_is_held_out_whole() -> None:
    texts = [lines(number, 30 + number) for number in range(1000)]
    train = [text for text in texts if split_of(Document(text, ""), 0.05) == "train"][:20]
    found, validation = held_out(Listed(train))
    assert len(validation) == 1
    assert sorted(found + validation) == sorted(train)
    assert held_out(Listed(train[::-1]))[1] == validation  # whatever their order


def test_where_all_fall_in_there_is_something_to_train_on() -> None:
    texts = [lines(number, 30) for number in range(1000)]
    fallen = [text for text in texts if split_of(Document(text, ""), 0.05) == "validation"][:2]
    for few in (fallen[:1], fallen):
        train, validation = held_out(Listed(few))
        assert len(train) == len(few)
        assert len(validation) == 1


@pytest.mark.parametrize("size", [30, 1])
def test_a_large_share_leaves_one_document_to_train_on(size: int) -> None:
    """Where the hash of all says validation; before, only the end of one was held out."""
    texts = [lines(number, 30 * size if number else 40) for number in range(4, 1000)]
    fallen = [text for text in texts if split_of(Document(text, ""), 0.8) == "validation"][:5]
    train, validation = held_out(Listed(fallen, share=0.8))
    assert len(train) == 1
    assert sorted(train + validation) == sorted(fallen)
    assert sorted(held_out(Listed(fallen[::-1], share=0.8))[1]) == sorted(validation)
    assert held_out(Listed([*fallen, *train], share=0.8))[0] == train * 2  # all copies of it


def test_a_share_of_less_than_one_part_holds_out_by_the_rest_of_the_key() -> None:
    keys = np.array([0, 1, 10_000, 10_000 * 2**48, 2**64 - 1, 2**63], np.uint64)
    found = {share: is_held_out(keys, share).tolist() for share in (0.0, 1e-10, 4e-5, 1e-4, 3e-4)}
    assert not any(found[0.0])
    assert found[1e-10] == [True, False, True, False, False, False]
    assert found[4e-5] == [True, False, True, True, False, False]
    assert found[1e-4] == [key % 10_000 < 1 for key in keys.tolist()]
    assert found[3e-4] == [key % 10_000 < 3 for key in keys.tolist()]  # as ever, though 3e-4 * 10_000 is below 3
    draws = np.random.default_rng(0).integers(0, 2**64, 4_000_000, np.uint64)
    assert 120 < is_held_out(draws, 4e-5).sum() < 200
    one = Document("a", "", split_key=10_000 * 2**48)
    assert [split_of(one, share) for share in (1e-10, 4e-5)] == ["train", "validation"]


def test_keys_of_caches_stay_unless_the_split_is_another() -> None:
    assert not any(split_rules(share) for share in (0.0, 6e-5, 1e-4, 0.05, 0.5))
    assert split_rules(4e-5) != split_rules(0.6) != []


def test_nothing_is_held_out_where_that_is_asked_for() -> None:
    texts = [lines(1, 30), lines(2, 30)]
    assert held_out(Listed(texts, share=0.0)) == (texts, [])


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="ab \n", min_size=1, max_size=60).filter(lambda text: bool(text.strip())),
    st.floats(1e-6, 0.999),
)
def test_both_parts_of_a_document_make_it_up_and_hold_text(text: str, share: float) -> None:
    parts = dict(split_document(Document(text, "x"), share))
    assert "".join(part.text for part in parts.values()) == text
    assert all(part.text.strip() for split, part in parts.items() if split == "validation")
    assert parts.keys() == {"train", "validation"} or len(text.rstrip()) <= 2 or share < 0.05


def test_one_line_with_its_end_is_cut_within_it() -> None:
    """The only end of a line is that of the text: nothing stands after it."""
    train, validation = held_out(Listed(["word " * 100 + "\n"]))
    assert len(train) == len(validation) == 1
    assert validation[0].strip()


def pairs(folder: Path, count: int) -> PairsConfig:
    path = folder / f"{count}.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(n), "response": "x"}) + "\n" for n in range(count)))
    return PairsConfig(path=str(path))


@pytest.mark.parametrize(("count", "out"), [(1, 0), (2, 0), (9, 0), (10, 1)])
def test_of_pairs_one_is_held_out_where_it_is_not_too_large_a_part(tmp_path: Path, count: int, out: int) -> None:
    train, validation = held_out(pairs(tmp_path, count).open())
    assert (len(train), len(validation)) == (count - out, out)


def test_the_only_text_of_a_label_is_not_held_out(tmp_path: Path) -> None:
    chosen = 0
    for other in range(40):  # whichever has the smallest hash
        texts = [f"text {other} {n}" for n in range(12)]
        if {split_of(Document(text, ""), 0.05) for text in texts} != {"train"}:
            continue
        chosen += 1
        path = tmp_path / f"{other}.tsv"
        path.write_text("".join(f"text {other} {n}\t{'rare' if n == 0 else 'usual'}\n" for n in range(12)))
        train, validation = held_out(LabeledTextConfig(path=str(path)).open())
        assert texts[0] in train
        assert len(validation) == 1
    assert chosen > 12  # of which one in twelve would be the rare one


def prepared(config: TextFilesConfig, cache: Path) -> Prepared:
    return prepare(config, BytesTokenizerConfig(), cache, report=lambda line: None)


@pytest.fixture
def two_files(tmp_path: Path) -> TextFilesConfig:
    folder = tmp_path / "two"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.txt").write_text(lines(number, 100))
    return TextFilesConfig(path=str(folder))


def _delete_manifest(folder: Path) -> None:
    (folder / "validation" / "manifest.json").unlink()


def _delete_store(folder: Path) -> None:
    for path in sorted((folder / "validation").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "validation").rmdir()


def _delete_train(folder: Path) -> None:
    (folder / "train" / "manifest.json").unlink()


def _spoil_record(folder: Path) -> None:
    (folder / "done.json").write_text("[1]")


@pytest.mark.parametrize("damage", [_delete_manifest, _delete_store, _delete_train, _spoil_record])
def test_a_store_that_is_gone_is_never_passed_over(
    two_files: TextFilesConfig, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = tmp_path / "cache"
    found = prepared(two_files, cache)
    assert found.validation[""].n_documents == 1
    folder = found.corpora[""].folder
    damage(folder)
    with pytest.raises(DataError, match=rf"Delete {folder}: it is made again from the same text"):
        prepared(two_files, cache)
    with pytest.raises(DataError, match="it is made again from the same text"):
        find_prepared(two_files, BytesTokenizerConfig(), cache)


@pytest.mark.parametrize(
    ("files", "told", "skipped", "in_both"),
    [
        (
            [0, 0, 0],
            "1 documents to train on and 1 to validate on (the end of one of them)",
            {"exact duplicates": 2},
            1,
        ),
        ([0, 1, 0, 1, 0], "2 documents to train on and 1 to validate on (the end", {"exact duplicates": 3}, 1),
        ([None, 0, None], "1 documents to train on and 1 to validate on (the end", {"empty": 2}, 1),
    ],
)
def test_documents_read_are_documents_kept_and_skipped(
    tmp_path: Path, files: list[int | None], told: str, skipped: dict[str, int], in_both: int
) -> None:
    """A document that is cut in two is one document, and so is its duplicate."""
    texts = {None: " ", 0: lines(0, 200), 1: lines(1, 200)}
    (tmp_path / "corpus").mkdir()
    for number, name in enumerate(files):
        (tmp_path / "corpus" / f"{number}.txt").write_text(texts[name])
    reported: list[str] = []
    data = TextFilesConfig(path=str(tmp_path / "corpus"), separator=None)
    found = prepare(data, BytesTokenizerConfig(), tmp_path / "cache", reported.append)
    assert any(told in line for line in reported), reported
    (corpus,) = found.corpora.values()
    done = json.loads((corpus.folder / "done.json").read_text())
    stores = [store for store in (corpus.train, corpus.validation) if store is not None]
    for store in stores:
        assert isinstance(store, Store)
        counts = store.manifest["provenance"]["documents"]
        assert counts == {key: done["documents"].get(key, 0) for key in counts}
        assert store.n_documents == counts[store.manifest["provenance"]["split"]]
        assert store.manifest["provenance"]["skipped"] == done["skipped"]
    assert {reason: count for reason, count in done["skipped"].items() if count} == skipped
    assert counts["in both splits"] == in_both
    assert len(files) == counts["train"] + counts["validation"] - in_both + sum(skipped.values())


@pytest.mark.parametrize(
    ("known", "new", "duplicates", "in_both"),
    [([], 2, 0, 1), (["beginning"], 1, 0, 0), (["end"], 1, 0, 0), (["end", "beginning"], 0, 1, 0)],
)
def test_a_cut_document_is_a_duplicate_where_both_parts_came_before(
    known: list[str], new: int, duplicates: int, in_both: int
) -> None:
    parts = [part for _, part in split_document(Document("a b\n" * 50, ""), 0.1)]
    found = ExactDuplicates()
    for name in known:
        text = parts[name == "end"].text
        assert found.is_new(Document(text, name), text.encode())
    assert sum(found.is_new(part, part.text.encode()) for part in parts) == new
    assert (found.count, found.in_both_splits) == (duplicates, in_both)
