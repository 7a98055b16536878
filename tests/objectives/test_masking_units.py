"""Whole words and spans are masked as units, in the same proportions and as reproducibly as tokens."""

import numpy as np
import pytest
import torch

from pretrain.data.collate import IGNORE, Rows
from pretrain.data.tokenizers.train_bpe import train_bpe
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import MaskedConfig, MaskingUnit
from pretrain.objectives.masked import Masked

VOCAB, MASK = 50, 1
STARTS = np.arange(VOCAB) % 3 == 0  # every third id begins a word


def masked(unit: MaskingUnit, **changes: float) -> Masked:
    config = MaskedConfig(unit=unit, **changes)
    return Masked(config, mask_id=MASK, special_ids=(0, 1), vocab_size=VOCAB, seed=0, word_starts=STARTS)


def rows(tokens: np.ndarray) -> Rows:
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    return Rows(tokens, np.full_like(tokens, IGNORE), positions, np.zeros(tokens.shape, np.int32))


def hidden(batch: Batch, length: int) -> np.ndarray:
    """Return bool (B, T): the positions to predict."""
    assert batch.target_positions is not None
    found = np.zeros((len(batch.tokens), length), bool)
    row, slot = np.nonzero(batch.targets.numpy() != IGNORE)
    found[row, batch.target_positions.numpy()[row, slot]] = True
    return found


def test_a_word_is_hidden_whole_or_not_at_all() -> None:
    tokens = np.random.default_rng(0).integers(2, VOCAB, (300, 100))
    found = hidden(masked(MaskingUnit.whole_word).collate(rows(tokens), torch.arange(300)), 100)
    assert 11 < found.sum(1).mean() <= 15
    assert found.sum(1).min() >= 1
    word = np.cumsum(STARTS[tokens], axis=1)
    for row in range(300):
        for number in np.unique(word[row][found[row]]):
            whole = found[row][word[row] == number]
            assert whole.all() or whole.sum() == found[row].sum() == 15  # of a first word of more than 15 tokens


def test_spans_have_their_mean_length_and_stay_within_documents() -> None:
    tokens = np.full((500, 200), 7)
    tokens[:, ::25] = 0  # a special token ends every span
    objective = masked(MaskingUnit.span, mean_span=3.0, mask_probability=0.15)
    found = hidden(objective.collate(rows(tokens), torch.arange(500)), 200)
    assert not found[tokens == 0].any()
    assert 25 < found.sum(1).mean() <= 29
    runs = np.diff(np.pad(found, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.nonzero(runs.ravel() == -1)[0] - np.nonzero(runs.ravel() == 1)[0]
    assert 2.7 < lengths.mean() < 4.2  # neighbouring spans run together


@pytest.mark.parametrize("unit", [MaskingUnit.whole_word, MaskingUnit.span])
def test_the_draw_is_a_pure_function_of_the_sample(unit: MaskingUnit) -> None:
    tokens = np.random.default_rng(1).integers(2, VOCAB, (4, 60))
    one = masked(unit).collate(rows(tokens), torch.tensor([5, 6, 7, 8]))
    other = masked(unit).collate(rows(tokens[1:3]), torch.tensor([6, 7]))
    assert torch.equal(one.tokens[1:3], other.tokens)
    assert torch.equal(one.targets[1:3], other.targets)


def test_a_word_longer_than_the_share_is_hidden_in_part() -> None:
    tokens = np.full((1, 40), 4)  # no id begins a word: the row is one
    found = hidden(masked(MaskingUnit.whole_word).collate(rows(tokens), torch.arange(1)), 40)
    assert found.sum() == 6


@pytest.mark.parametrize("unit", [MaskingUnit.whole_word, MaskingUnit.span])
@pytest.mark.parametrize(
    ("version", "places"),
    [
        (2, {"whole_word": [26, 27, 28, 35, 36, 37], "span": [32]}),
        (3, {"whole_word": [2, 3, 4, 38, 39], "span": [0, 1, 2, 3, 4, 5]}),
    ],
)
def test_the_draw_never_changes_silently(unit: MaskingUnit, version: int, places: dict[str, list[int]]) -> None:
    """A resumed run must hide what it would have hidden, by the version it began with."""
    objective = masked(unit)
    objective.mask_version = version
    batch = objective.collate(rows(np.arange(10, 50).reshape(1, 40)), torch.tensor([12]))
    assert np.flatnonzero(hidden(batch, 40)[0]).tolist() == places[unit.value]


def test_words_and_spans_end_at_a_document_without_an_end_token() -> None:
    """Where a document goes on in another row, nothing stands between it and the next."""
    tokens = np.full((400, 40), 4)  # no id begins a word
    source = rows(tokens)
    source.documents[:, 20:] = 1
    found = hidden(masked(MaskingUnit.whole_word).collate(source, torch.arange(400)), 40)
    assert set(found[:, :20].sum(1).tolist()) == set(found[:, 20:].sum(1).tolist()) == {0, 6}


def test_words_begin_where_the_tokenizer_spells_a_beginning(assets) -> None:
    from pretrain.data.tokenizers.tokenizer import Tokenizer

    bert = Tokenizer.load(assets / "tokenizers" / "bert-base-uncased")
    ids = bert.encode("unbelievable misunderstandings happen")
    starts = bert.word_starts[ids]
    assert starts.sum() == 3
    bpe = train_bpe(["the quick brown fox (jumps) over the lazy dog. " * 20], 300)
    words = bpe.encode("the quick, brown fox")
    text = [bpe.decode([token]) for token in words]
    assert [not piece[0].isalnum() for piece in text] == bpe.word_starts[words].tolist()
