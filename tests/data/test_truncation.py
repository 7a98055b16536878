"""Documents of several texts are shortened so that something of every text is left."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.config import BytesTokenizerConfig
from pretrain.data.fine_tuning_config import LabeledTextConfig, RelatedTextsConfig
from pretrain.data.prepare import prepare
from pretrain.data.train_stream import ShuffledRows
from pretrain.data.truncation import truncated

BOS, EOS = 90, 91


def document(sizes: list[int]) -> np.ndarray:
    """Return texts of 1, 2, 3, ...; each of `sizes` ids between BOS and EOS."""
    return np.concatenate([[BOS, *([number] * size), EOS] for number, size in enumerate(sizes, 1)]).astype(np.uint32)


@pytest.mark.parametrize(
    ("sizes", "length", "left"),
    [
        ([3, 4], 11, [3, 4]),  # fits
        ([3, 9], 12, [3, 5]),
        ([9, 3], 12, [5, 3]),
        ([9, 9, 9], 12, [2, 2, 2]),
        ([9, 9, 9], 13, [3, 2, 2]),
        ([9], 5, [3]),
        ([4, 4, 4], 4, [0, 0]),  # not two ids are left for the third
        ([4], 1, None),
    ],
)
def test_the_longest_texts_lose_their_ends_first(sizes: list[int], length: int, left: list[int] | None) -> None:
    expected = document(left) if left is not None else np.array([EOS])
    np.testing.assert_array_equal(truncated(document(sizes), length), expected)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(2, 60))
def test_every_text_that_has_room_keeps_its_beginning_and_its_end(sizes: list[int], length: int) -> None:
    ids = truncated(document(sizes), length)
    assert len(ids) <= length
    found = [text[:-1] for text in np.split(ids, np.flatnonzero(ids == EOS) + 1)[:-1]]
    assert len(found) == min(len(sizes), max(1, length // 2))
    kept = [int((text == number).sum()) for number, text in enumerate(found, 1)]
    assert all(count <= size for count, size in zip(kept, sizes, strict=False))
    whole = [size + 2 for size in sizes[: len(found)]]
    assert len(ids) == min(length, sum(whole))
    cut = [count for count, size in zip(kept, sizes, strict=False) if count < size]
    assert not cut or max(kept) <= min(cut) + 1  # none is longer than one that was cut, but by the last id


@pytest.mark.parametrize("related", [False, True])
def test_rows_hold_something_of_every_text(tmp_path: Path, related: bool) -> None:
    text = tmp_path / "texts.csv"
    first, second = "a" * 80, "b" * 30
    text.write_text(f"anchor,positive,label\n{first},{second},yes\n{'c' * 5},{'d' * 5},no\n")
    columns = {"pair_column": "positive", "text_column": "anchor"} if not related else {}
    kind = RelatedTextsConfig if related else LabeledTextConfig
    config = kind(path=str(text), validation_fraction=0.0, **columns)
    prepared = prepare(config, BytesTokenizerConfig(), tmp_path / "cache", lambda message: None)
    (store,) = prepared.train.values()
    stream = ShuffledRows(store, config, 32, prepared.tokenizer.padding_id, seed=0)
    assert stream.truncated_documents() == 1
    rows = stream.rows(np.arange(len(stream)))
    of_first, of_second = (prepared.tokenizer.encode(letter)[0] for letter in "ab")
    long = next(row for row in rows.tokens if (row == of_first).any())
    ends = 4 if related else 3
    assert int((long == of_first).sum()) + int((long == of_second).sum()) == 32 - ends
    assert abs(int((long == of_first).sum()) - int((long == of_second).sum())) <= 1
    read = stream.tokens_of(0, 0, 32) if store.document(0)[1] == of_first else stream.tokens_of(1, 0, 32)
    np.testing.assert_array_equal(long, read)
