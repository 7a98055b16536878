"""Masking: published proportions, no special tokens, deterministic per sample, static shapes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.collate import IGNORE, Rows
from pretrain.data.shuffle import hashed_key
from pretrain.errors import ConfigError
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import MaskedConfig
from pretrain.objectives.hashed_draws import position_hashes
from pretrain.objectives.masked import Masked

VOCAB, MASK, SPECIAL = 100, 3, (0, 1, 2, 3)


def masked(seed: int = 0, **changes: float) -> Masked:
    return Masked(MaskedConfig(**changes), mask_id=MASK, special_ids=SPECIAL, vocab_size=VOCAB, seed=seed)


def rows(tokens: np.ndarray, padding: int = 0) -> Rows:
    documents = np.zeros(tokens.shape, np.int32)
    if padding:
        documents[:, -padding:] = -1
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    return Rows(tokens, np.full_like(tokens, IGNORE), positions, documents)


def text(count: int, length: int = 100, seed: int = 0) -> np.ndarray:
    """Return rows without special tokens."""
    return np.random.default_rng(seed).integers(len(SPECIAL), VOCAB, (count, length))


def chosen(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, position and original token of every target."""
    assert batch.target_positions is not None
    row, slot = np.nonzero(batch.targets.numpy() != IGNORE)
    return row, batch.target_positions.numpy()[row, slot], batch.targets.numpy()[row, slot]


def test_of_the_targets_80_percent_are_masked_10_random_and_10_kept() -> None:
    before = text(2000)
    batch = masked().collate(rows(before), torch.arange(2000))
    row, place, target = chosen(batch)
    after = batch.tokens.numpy()[row, place]
    assert np.array_equal(target, before[row, place])  # the target is what stood there
    n = len(row)
    assert n == 2000 * 15
    for share, hits in {0.8: (after == MASK).sum(), 0.1: ((after != MASK) & (after != target)).sum()}.items():
        expected = share * (1 - 2 / VOCAB if share == 0.1 else 1 + 0.1 / 0.8 / VOCAB)  # a random token may be either
        assert abs(hits / n - expected) < 5 * math.sqrt(share * (1 - share) / n)
    untouched = np.ones_like(before, bool)
    untouched[row, place] = False
    assert np.array_equal(batch.tokens.numpy()[untouched], before[untouched])


def test_random_tokens_span_the_whole_vocabulary_evenly() -> None:
    batch = masked(mask_token_prob=0.0, random_token_prob=1.0).collate(rows(text(2000)), torch.arange(2000))
    row, place, _ = chosen(batch)
    counts = np.bincount(batch.tokens.numpy()[row, place], minlength=VOCAB)
    assert len(counts) == VOCAB
    assert counts.min() > 0
    assert np.abs(counts - 300).max() < 5 * math.sqrt(300)


def test_every_position_of_a_row_is_chosen_equally_often() -> None:
    _, place, _ = chosen(masked().collate(rows(text(4000)), torch.arange(4000)))
    counts = np.bincount(place, minlength=100)
    assert np.abs(counts - 600).max() < 5 * math.sqrt(600 * 0.85)


@given(
    length=st.integers(1, 60),
    padding=st.integers(0, 60),
    special=st.floats(0, 1),
    p=st.floats(0.01, 0.99),
    sample=st.integers(0, 2**62),
)
@settings(max_examples=100, deadline=None)
def test_the_exact_share_of_candidates_is_chosen_in_static_shapes(
    length: int, padding: int, special: float, p: float, sample: int
) -> None:
    draw = np.random.default_rng(sample)
    before = np.where(draw.random((3, length)) < special, draw.integers(0, len(SPECIAL), (3, length)), text(3, length))
    source = rows(before.copy(), min(padding, length))
    samples = torch.arange(3) + sample
    batch = masked(mask_probability=p).collate(source, samples)
    assert batch.target_positions is not None
    width = max(1, math.ceil(p * length))
    assert batch.targets.shape == batch.target_positions.shape == (3, width)
    assert np.array_equal(source.tokens, before)  # the store's rows are not written to
    row, place, target = chosen(batch)
    assert not np.isin(target, SPECIAL).any()
    assert (source.documents[row, place] >= 0).all()
    for number in range(3):
        candidates = (~np.isin(before[number], SPECIAL) & (source.documents[number] >= 0)).sum()
        places = place[row == number]
        assert len(places) == (max(1, round(p * candidates)) if candidates else 0)
        assert (np.diff(places) > 0).all()  # sorted, none twice
    if not len(row):
        assert np.array_equal(batch.tokens.numpy(), before)


def test_a_row_without_a_candidate_has_no_target() -> None:
    before = np.concatenate([np.full((1, 20), 2), text(1, 20)])
    batch = masked().collate(rows(before), torch.arange(2))
    assert (batch.targets[0] == IGNORE).all()
    assert (batch.targets[1] != IGNORE).any()
    assert batch.tokens[0].tolist() == before[0].tolist()


def test_the_mask_is_a_function_of_seed_and_sample() -> None:
    same = np.repeat(text(1), 6, axis=0)
    samples = torch.tensor([0, 1, 2, 10**15, 2**62, 7])
    together = masked().collate(rows(same), samples)
    assert len({tuple(row) for row in together.target_positions.tolist()}) == 6  # differs between samples
    for i, sample in enumerate(samples.tolist()):  # whatever else is in the micro-batch
        alone = masked().collate(rows(same[:1]), torch.tensor([sample]))
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.targets[0], together.targets[i])
    for seed in (1, 2**32, 2**64 - 1):
        assert not torch.equal(masked(seed).collate(rows(same), samples).target_positions, together.target_positions)


@pytest.mark.parametrize(
    ("version", "places", "words"), [(1, [0, 9, 13, 14], [62, 4, 30]), (2, [5, 10, 15, 16], [90, 38, 42])]
)
def test_the_draw_never_changes_silently(version: int, places: list[int], words: list[int]) -> None:
    """A resumed run must hide what it would have hidden, by the version it began with."""
    tokens = np.arange(10, 30).reshape(1, 20)
    objective = masked(seed=5, mask_probability=0.2)
    objective.mask_version = version
    batch = objective.collate(rows(tokens), torch.tensor([12]))
    assert batch.target_positions is not None
    assert batch.target_positions.tolist() == [places]
    objective = masked(seed=5, mask_token_prob=0.0, random_token_prob=1.0)
    objective.mask_version = version
    batch = objective.collate(rows(tokens), torch.tensor([12]))
    assert batch.target_positions is not None
    assert batch.tokens[0, batch.target_positions[0]].tolist() == words


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.9])
def test_the_targets_of_a_row_are_its_tokens_with_the_smallest_hashes(probability: float) -> None:
    """Also for rows of nothing but padding, and of as many targets as tokens."""
    before = rows(text(6, length=600))
    before.documents[1, 40:] = -1
    before.documents[2] = -1
    before.tokens[3, ::2] = MASK
    before.documents[4, 1:] = -1
    batch = masked(mask_probability=probability).collate(before, torch.arange(6))
    row, position, _ = chosen(batch)
    hashes = position_hashes(hashed_key((0,)), np.arange(6), 600)
    for number in range(6):
        candidates = np.flatnonzero((before.documents[number] >= 0) & (before.tokens[number] != MASK))
        count = min(len(candidates), max(1, round(probability * len(candidates))))
        expected = candidates[np.argsort(hashes[number, candidates])[:count]]
        assert position[row == number].tolist() == sorted(expected.tolist())


def test_a_bidirectional_model_gets_the_documents_of_padded_rows() -> None:
    assert masked().collate(rows(text(2)), torch.arange(2)).documents is None
    assert masked().collate(rows(text(2), padding=3), torch.arange(2)).documents is not None


class Words:
    vocab_size = VOCAB
    special_ids = frozenset(SPECIAL)

    def __init__(self, mask_id: int | None) -> None:
        self.mask_id = mask_id


def test_settings_build_the_objective_or_say_what_the_tokenizer_lacks() -> None:
    built = MaskedConfig().build(Words(MASK), seed=4)
    assert isinstance(built, Masked)
    assert (built.mask_id, built.vocab_size, built.seed, built.causal) == (MASK, VOCAB, 4, False)
    assert MaskedConfig().causal is False
    with pytest.raises(ConfigError, match=r"objective=masked needs a tokenizer with a mask token.*Try tokenizer=bpe"):
        MaskedConfig().build(Words(None), seed=0)


def test_shares_that_add_up_to_more_than_1_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.mask_token_prob=0\.95 and .*=0\.1 add up to more than 1\. Try"):
        MaskedConfig(mask_token_prob=0.95, random_token_prob=0.1)
