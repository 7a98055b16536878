"""Prompt lengths and labels of documents reach the targets; damaged annotations are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pretrain.data.collate import IGNORE, read_rows
from pretrain.data.config import BPETokenizerConfig, BytesTokenizerConfig, Packing
from pretrain.data.fine_tuning_config import LabeledTextConfig, PairsConfig
from pretrain.data.packing import best_fit, whole
from pretrain.data.prepare import Prepared, find_prepared, prepare
from pretrain.data.token_store.annotations import FILE, TARGETS, TargetSpans
from pretrain.data.token_store.format import fingerprint_of
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows, bits_per_byte_of_a_nat
from pretrain.errors import DataError
from pretrain.files.records import sealed

PAIRS = [("The quick brown", "fox"), ("The quick brown fox", "jumps"), ("", "Hello"), ("Why?" * 20, "So.")]


def silent(line: str) -> None:
    pass


def pairs(folder: Path, records: list[tuple[str, str]] = PAIRS) -> PairsConfig:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in records))
    return PairsConfig(path=str(path), validation_fraction=0.0)


def labeled(folder: Path, lines: str = "good film\tpos\nbad film\tneg\nso so\tmixed\nfine\tpos\n") -> LabeledTextConfig:
    path = folder / "texts.tsv"
    path.write_text(lines)
    return LabeledTextConfig(path=str(path), validation_fraction=0.0)


def made(config: PairsConfig | LabeledTextConfig, folder: Path, bpe: bool = False) -> Prepared:
    tokenizer = BPETokenizerConfig(vocab_size=280) if bpe else BytesTokenizerConfig()
    return prepare(config, tokenizer, folder / "cache", report=silent)


@pytest.mark.parametrize("bpe", [False, True])
def test_only_responses_and_the_end_after_them_are_targets(tmp_path: Path, bpe: bool) -> None:
    prepared = made(pairs(tmp_path), tmp_path, bpe)
    tokenizer, store = prepared.tokenizer, prepared.train[""]
    stream = ShuffledRows(store, pairs(tmp_path), 128, tokenizer.padding_id, seed=0)
    rows = stream.read(np.arange(len(stream)))
    learnt = []
    for row in range(len(stream)):
        for number in range(rows.documents[row].max() + 1):
            at = rows.documents[row] == number
            targets = rows.next_tokens[row][at]
            tokens = rows.tokens[row][at]
            kept = targets != IGNORE
            first = int(np.argmax(kept))
            assert kept[first:-1].all()  # from the response on, all that follows
            assert not kept[-1]
            assert_array_equal(targets[first:-1], tokens[first + 1 :])
            assert targets[-2] == tokenizer.eos_id
            prompt = tokenizer.decode(tokens[1 : first + 1])
            assert tokens[1 : first + 1].tolist() == tokenizer.encode_prompt(prompt)  # as generation will read it
            learnt.append((prompt, tokenizer.decode(targets[first:-2])))
    assert sorted(learnt) == sorted((prompt, f"\n{response}") for prompt, response in PAIRS)
    assert (rows.documents[:, 0] == 0).all()
    assert rows.labels is None


def test_a_prompt_is_tokenized_apart_where_its_response_would_change_it(tmp_path: Path) -> None:
    records = [("ab", "cd"), *[("x", "abcd abcd abcd abcd")] * 1, ("y", "abcd abcd"), ("z", "abcdabcd")]
    config = pairs(tmp_path, records)
    config.template = "{prompt}{response}"
    prepared = made(config, tmp_path, bpe=True)
    tokenizer, store = prepared.tokenizer, prepared.train[""]
    assert len(tokenizer.encode("abcd")) == 1  # so that "ab" is no beginning of the whole's tokens
    assert store.annotations is not None
    first = store.document(0)
    assert tokenizer.decode(first[1:-1]) == "abcd"
    prompt_length = int(store.annotations.values[0])
    assert first[1:prompt_length].tolist() == tokenizer.encode("ab")


def test_labels_are_sorted_and_reach_every_token(tmp_path: Path) -> None:
    prepared = made(labeled(tmp_path), tmp_path)
    assert prepared.labels == ["mixed", "neg", "pos"]
    store = prepared.train[""]
    rows = ShuffledRows(store, labeled(tmp_path), 64, prepared.tokenizer.padding_id, seed=0).rows(np.arange(1))
    assert rows.labels is not None
    assert_array_equal(rows.labels == IGNORE, rows.documents < 0)
    of = {"good film": "pos", "bad film": "neg", "so so": "mixed", "fine": "pos"}
    for number in range(4):
        at = rows.documents[0] == number
        (label,) = set(rows.labels[0][at].tolist())
        assert prepared.labels[label] == of[prepared.tokenizer.decode(rows.tokens[0][at])]
    assert bits_per_byte_of_a_nat(store) is None  # the loss is not one of the text
    again = find_prepared(labeled(tmp_path), BytesTokenizerConfig(), tmp_path / "cache")
    assert again is not None
    assert again.fingerprint == prepared.fingerprint


def test_another_label_is_another_corpus(tmp_path: Path) -> None:
    one = made(labeled(tmp_path), tmp_path)
    other = made(labeled(tmp_path, "good film\tneg\nbad film\tneg\nso so\tmixed\nfine\tpos\n"), tmp_path)
    assert one.fingerprint != other.fingerprint
    assert one.train[""].manifest["shards"] == other.train[""].manifest["shards"]  # the tokens are the same


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 1 label in its training documents \(pos\)"):
        made(labeled(tmp_path, "a\tpos\nb\tpos\n"), tmp_path)
    held_out = tmp_path / "dev.tsv"
    held_out.write_text("c\tpos\nd\tother\n")
    config = labeled(tmp_path, "a\tpos\nb\tneg\n")
    config.validation_path = str(held_out)
    with pytest.raises(
        DataError, match=r"dev\.tsv:2 has the label 'other', which no training document has\. .*neg, pos\. Leave"
    ):
        made(config, tmp_path)


def test_a_label_that_the_hashes_hold_out_altogether_is_trained_on(tmp_path: Path) -> None:
    lines = [f"text {n}\t{'neg' if n % 2 else 'pos'}" for n in range(40)] + [f"rare {n}\tr{n}" for n in range(40)]
    config = labeled(tmp_path, "\n".join(lines))
    config.validation_fraction = 0.3
    prepared = made(config, tmp_path)
    assert prepared.labels == sorted(["neg", "pos", *(f"r{n}" for n in range(40))])
    stores = prepared.train[""], prepared.validation[""]
    assert sum(store.n_documents for store in stores) == 80
    assert {store.annotations.labels for store in stores if store.annotations} == {tuple(prepared.labels)}
    assert set(stores[1].annotations.values.tolist()) <= {0, 1}  # type: ignore[union-attr]


def test_a_document_longer_than_a_row_is_read_from_its_beginning(tmp_path: Path) -> None:
    plan = whole(np.array([5, 40, 9, 7]), 16)
    assert plan.lengths.max() == 16
    assert not plan.offsets.any()
    assert sorted(plan.documents.tolist()) == [0, 1, 2, 3]
    assert_array_equal(whole(np.array([5, 9, 7]), 16).documents, best_fit(np.array([5, 9, 7]), 16).documents)
    store = made(pairs(tmp_path), tmp_path).train[""]
    rows = read_rows(store, whole(store.document_lengths(), 16), np.arange(3), pad_id=0)
    assert_array_equal((rows.next_tokens != IGNORE).sum(1)[rows.documents.max(1) == 0] <= 16, True)
    assert Packing.whole.value == "whole"


def changed(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a function that edits a store's manifest and renews its hashes."""

    def edit(store: Path) -> None:
        manifest = json.loads((store / "manifest.json").read_text())
        change(manifest)
        manifest["fingerprint"] = fingerprint_of(manifest)
        (store / "manifest.json").write_text(json.dumps(sealed(manifest)))

    return edit


def flip(store: Path) -> None:
    data = bytearray((store / FILE).read_bytes())
    data[0] ^= 1
    (store / FILE).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / FILE).unlink(), r"annotations\.bin has 0 bytes, but 16 in the store's manifest"),
        (lambda store: (store / FILE).write_bytes(b"\0" * 12), r"annotations\.bin has 12 bytes"),
        (flip, r"annotations\.bin is damaged: its sha256"),
        (changed(lambda m: m["annotations"]["labels"].pop()), r"has a label 2, but the store has 2 labels"),  # type: ignore[index]
        (changed(lambda m: m.update(annotations=[])), r"manifest\.json: annotations is \[\], which is no object"),
        (changed(lambda m: m["annotations"].update(labels=[1])), r"annotations has labels=1, which is no text"),  # type: ignore[index]
        (changed(lambda m: m["annotations"].update(kind="x")), r"annotations of the unknown kind 'x'"),  # type: ignore[index]
    ],
)
@pytest.mark.fault("F09")
def test_damaged_annotations_are_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = made(labeled(tmp_path), tmp_path).train[""].folder
    damage(folder)
    with pytest.raises(DataError, match=message):
        Store(folder)


def test_a_pair_of_texts_is_read_with_a_separator(tmp_path: Path) -> None:
    """Pairs that share their first text are no duplicates, and each has the ids of both texts."""
    path = tmp_path / "pairs.jsonl"
    rows = [("a", "b", 0), ("a", "c", 1), ("a", "b", 0)]
    path.write_text("".join(json.dumps({"text": a, "other": b, "label": y}) + "\n" for a, b, y in rows))
    config = LabeledTextConfig(path=str(path), pair_column="other", validation_fraction=0.0)
    prepared = made(config, tmp_path)
    (store,), tokenizer = prepared.train.values(), prepared.tokenizer
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    found = [store.document(number).tolist() for number in range(store.n_documents)]
    assert found == [[bos, ord("a"), eos, ord(second), eos] for second in "bc"]
    assert store.annotations is not None
    assert store.annotations.values.tolist() == [0, 1]


@pytest.mark.parametrize("values", [[1, 1, 0, 2, 3], [1, 0, 5, 2], [1, 1, 4, 2, 3, 3]], ids=["few", "back", "empty"])
def test_targets_that_are_no_spans_are_refused(tmp_path: Path, values: list[int]) -> None:
    path, data = tmp_path / TARGETS, np.array(values, "<u4").tobytes()
    path.write_bytes(data)
    message = r"targets\.bin is damaged: its spans are not those of 2 documents\."
    with pytest.raises(DataError, match=message):
        TargetSpans.load(path, 2, hashlib.sha256(data).hexdigest())
    right = TargetSpans.of_documents([[(0, 2)], [(2, 3)]])
    found = TargetSpans.load(path, 2, right.save(tmp_path))
    assert_array_equal(found.spans, right.spans)
