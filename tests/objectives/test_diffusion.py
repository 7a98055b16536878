"""What masked diffusion hides: uniform shares, static shapes, a pure function of the seed; settings and hybrid rows."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from subjects import Words

from pretrain.config.serialize import from_dict, to_dict
from pretrain.data.collate import IGNORE, Rows
from pretrain.errors import ConfigError
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import BidirectionalRows, DiffusionConfig, HybridConfig, MaskingUnit
from pretrain.objectives.diffusion import Diffusion, add_border, uniform
from pretrain.objectives.objective import Objective

BEGIN, MASK, END, VOCAB = 0, 1, 2, 131
PROMPT = 3  # tokens of the first document in `prompted`


def diffusion(seed: int = 0, **changes: float) -> Objective:
    return DiffusionConfig(**{"random_length_rows": 0.0, **changes}).build(Words(), seed)


def packed(*rows: list[int], length: int = 24) -> Rows:
    """Return rows of documents with these numbers of tokens after their begin token; the last of each ends it."""
    tokens, following = (np.full((len(rows), length), value) for value in (END, IGNORE))
    documents, positions = np.full((len(rows), length), -1, np.int32), np.zeros((len(rows), length), np.int64)
    draw = np.random.default_rng(0)
    for row, sizes in enumerate(rows):
        start = 0
        for number, size in enumerate(sizes):
            place = slice(start, start + size + 1)
            tokens[row, place] = [BEGIN, *draw.integers(3, VOCAB, size - 1), END]
            following[row, place] = [*tokens[row, place][1:], IGNORE]
            documents[row, place], positions[row, place] = number, np.arange(size + 1)
            start += size + 1
    return Rows(tokens, following, positions, documents)


def p_of_uniform(counts: np.ndarray) -> float:
    """Return the probability of counts at least as unequal as these if all were equally likely (chi-square)."""
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2), torch.tensor(statistic / 2)).item()


def hidden_by_piece(batch: Batch, documents: np.ndarray) -> Counter[tuple[int, int]]:
    """Return the number of hidden tokens of each (row, piece)."""
    assert batch.target_positions is not None
    row, slot = np.nonzero(batch.targets.numpy() != IGNORE)
    return Counter(zip(row.tolist(), documents[row, batch.target_positions.numpy()[row, slot]].tolist(), strict=True))


def test_the_number_of_hidden_tokens_is_uniform_for_every_length() -> None:
    """Also where the number of pieces varies from row to row, and with it the piece of the row that has a length."""
    draw = np.random.default_rng(1)
    sizes = [draw.integers(1, 7, draw.integers(1, 4)).tolist() for _ in range(4000)]
    rows = packed(*sizes)
    batch = diffusion().collate(rows, torch.arange(4000) + 10**12)
    found = hidden_by_piece(batch, rows.documents)
    for n in range(1, 7):
        hidden = [
            found[row, piece] for row, pieces in enumerate(sizes) for piece, size in enumerate(pieces) if size == n
        ]
        counts = np.bincount(hidden, minlength=n + 1)
        assert counts[0] == 0
        assert len(counts) == n + 1
        if n > 1:
            assert p_of_uniform(counts[1:]) > 1e-3, (n, counts)


def test_k_is_spread_more_evenly_than_by_chance_over_rows_and_over_pieces() -> None:
    """Low discrepancy: of 1,000 independent draws a tenth would lie off by 30."""
    for samples, pieces in ((np.arange(1000) + 77, np.zeros(1000, int)), (np.full(1000, 5), np.arange(1000))):
        counts = np.bincount((10 * uniform(3, samples, pieces)).astype(int), minlength=10)
        assert np.abs(counts - 100).max() <= 5
    firsts = [uniform(seed, np.array([0]), np.array([0]))[0] for seed in range(2000)]
    assert p_of_uniform(np.bincount((10 * np.array(firsts)).astype(int))) > 1e-3  # of any one piece, over seeds


def test_a_token_is_hidden_whatever_its_place_and_only_text_is() -> None:
    rows = packed(*[[5, 9]] * 3000)
    batch = diffusion(seed=4).collate(rows, torch.arange(3000))
    assert batch.target_positions is not None
    masked = (batch.tokens.numpy() == MASK) & (rows.tokens != MASK)
    by_place = masked.sum(0)
    assert by_place[0] == by_place[6] == 0  # begin tokens
    assert not by_place[16:].any()  # padding
    assert np.abs(by_place[1:6] - 3000 * 0.6).max() < 5 * np.sqrt(3000 * 0.25)  # (n + 1) / 2n of them
    assert np.abs(by_place[7:16] - 3000 * 10 / 18).max() < 5 * np.sqrt(3000 * 0.25)
    row, slot = np.nonzero(batch.targets.numpy() != IGNORE)
    place = batch.target_positions.numpy()[row, slot]
    assert np.array_equal(np.c_[row, place], np.argwhere(masked))  # in order, and every target is hidden
    assert np.array_equal(batch.targets.numpy()[row, slot], rows.tokens[row, place])
    assert np.array_equal(batch.tokens.numpy()[~masked], rows.tokens[~masked])
    assert batch.targets.shape == rows.tokens.shape


def test_what_counts_are_the_targets_of_the_causal_objective() -> None:
    """A prompt is never hidden; the first token of a row that continues a document is."""
    rows = packed([9, 5], [4, 6])
    rows.next_tokens[0, :PROMPT] = IGNORE  # the first row: a begin token, three tokens of prompt, then the response
    rows.tokens[1, 0] = 50  # the second row begins in the midst of a document
    seen = np.zeros(rows.tokens.shape, bool)
    for start in range(0, 400, 2):
        batch = diffusion().collate(rows, torch.arange(2) + start)
        assert batch.row_counts().tolist() == [9 - PROMPT + 5, 4 + 1 + 6]
        seen |= batch.tokens.numpy() == MASK
    expected = np.zeros_like(seen)
    expected[0, [*range(PROMPT + 1, 10), *range(11, 16)]] = True
    expected[1, [*range(5), *range(6, 12)]] = True
    assert np.array_equal(seen, expected)


def test_the_mask_is_a_function_of_seed_sample_and_piece() -> None:
    rows = packed(*[[9, 6]] * 5)
    samples = torch.tensor([0, 3, 10**15, 2**62, 7])
    together = diffusion().collate(rows, samples)
    np.random.seed(1)  # noqa: NPY002  (what a mask must not depend on)
    torch.manual_seed(1)
    for row, sample in enumerate(samples.tolist()):  # whatever else is in the micro-batch, and as often as it is read
        alone = diffusion().collate(rows[np.array([row])], torch.tensor([sample]))
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.targets[0], together.targets[row])
        assert torch.equal(alone.weights[0], together.weights[row])  # type: ignore[index]
    assert len({tuple(row) for row in (together.tokens == MASK).tolist()}) == 5
    assert not torch.equal(diffusion(seed=1).collate(rows, samples).tokens, together.tokens)


def test_a_mask_of_the_global_generator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails with it."""
    draw = np.random.mtrand.RandomState(0)
    monkeypatch.setattr(
        "pretrain.objectives.diffusion.position_hashes",
        lambda _, samples, length: draw.randint(2**32, size=(len(samples), length), dtype=np.uint32),
    )
    with pytest.raises(AssertionError):
        test_the_mask_is_a_function_of_seed_sample_and_piece()


@pytest.mark.parametrize(
    ("version", "places", "borders"),
    [(1, [*range(1, 5), 6, 8, 10, *range(13, 21)], [4, 11, 20]), (3, [*range(1, 9), 10, *range(14, 21)], [11, 14, 20])],
)
def test_the_draw_never_changes_silently(version: int, places: list[int], borders: list[int]) -> None:
    """A resumed run must hide what it would have hidden, by the version it began with."""
    rows = packed([11, 8])
    objective = diffusion(seed=5, random_length_rows=1.0)
    objective.mask_version = version
    batch = objective.collate(rows, torch.tensor([12]))
    assert np.flatnonzero(batch.tokens[0].numpy() == MASK).tolist() == places
    assert np.flatnonzero(np.diff(batch.documents[0].numpy())).tolist() == borders  # type: ignore[index]


def test_at_least_the_set_share_is_hidden() -> None:
    rows = packed(*[[10, 5]] * 400)
    batch = diffusion(min_masked_fraction=0.3).collate(rows, torch.arange(400))
    found = hidden_by_piece(batch, rows.documents)
    assert {found[row, 0] for row in range(400)} == set(range(3, 11))
    assert {found[row, 1] for row in range(400)} == {2, 3, 4, 5}
    assert set(batch.row_counts().tolist()) == {15}
    torch.testing.assert_close(batch.weighted(torch.ones(400, 24)).sum(1), torch.full((400,), 15.0))


def test_two_passes_hide_a_mask_and_its_complement() -> None:
    rows = packed(*[[7, 1]] * 300)
    batch = diffusion(complementary=True).collate(rows, torch.arange(300))
    assert (batch.tokens.shape, batch.targets.shape, batch.text_tokens) == ((600, 24), (300, 24), 300 * 24)
    first, second = (batch.tokens.numpy()[number::2] == MASK for number in (0, 1))
    text = np.zeros(24, bool)
    text[[*range(1, 8), 9]] = True
    assert np.array_equal(first | second, np.tile(text, (300, 1)))  # every token is a target,
    assert not (first & second).any()  # once
    assert set(batch.row_counts().tolist()) == {16}
    k = Counter(first[:, 1:8].sum(1).tolist())
    assert set(k) == set(range(1, 8))  # all 7 with probability 1 / 7
    assert p_of_uniform(np.array([k[number] for number in range(1, 8)])) > 1e-3
    weights = batch.weighted(torch.ones(300, 24))
    torch.testing.assert_close(weights.sum(1), torch.full((300,), 16.0))
    floor = diffusion(complementary=True, min_masked_fraction=0.4).collate(rows, torch.arange(300))
    assert {min(hidden, 7 - hidden) for hidden in (floor.tokens[::2, 1:8] == MASK).sum(1).tolist()} == {0, 3}


def test_shifted_targets_are_predicted_one_place_before() -> None:
    rows = packed(*[[5, 9]] * 50)
    plain, shifted = (diffusion(shift=shift).collate(rows, torch.arange(50)) for shift in (False, True))
    assert torch.equal(plain.tokens, shifted.tokens)  # a begin token stands before every first token
    assert plain.target_positions is not None
    assert shifted.target_positions is not None
    is_target = plain.targets != IGNORE
    assert torch.equal(shifted.target_positions[is_target], plain.target_positions[is_target] - 1)
    assert not shifted.target_positions[~is_target].any()
    rows.tokens[:, 0] = 50  # a piece that continues a document: nothing predicts its first token
    assert set(diffusion(shift=True).collate(rows, torch.arange(50)).row_counts().tolist()) == {14}
    assert set(diffusion().collate(rows, torch.arange(50)).row_counts().tolist()) == {15}


def test_a_share_of_training_rows_has_one_more_border() -> None:
    rows = packed(*[[11, 7]] * 2000)
    batch = diffusion(random_length_rows=0.1).collate(rows, torch.arange(2000))
    plain = diffusion().collate(rows, torch.arange(2000))
    assert batch.documents is not None
    divided = (batch.documents.numpy().max(1) == 2).nonzero()[0]
    assert abs(len(divided) - 200) < 5 * np.sqrt(2000 * 0.09)
    borders = [int(np.flatnonzero(np.diff(batch.documents[row].numpy()))[0]) + 1 for row in divided]
    assert {1, 11} <= set(borders)
    for row in divided:
        documents, positions = batch.documents[row].numpy(), batch.positions[row].numpy()
        for piece in range(3):
            assert np.array_equal(positions[documents == piece], np.arange((documents == piece).sum()))
    assert torch.equal(batch.row_counts(), plain.row_counts())  # every token still counts
    assert np.array_equal(rows.documents, packed(*[[11, 7]] * 2000).documents)  # the store's rows are not written to
    others = np.setdiff1d(np.arange(2000), divided)
    assert torch.equal(batch.tokens[others], plain.tokens[others])


def test_positions_that_count_through_the_row_go_on_at_a_border() -> None:
    for positions, restarts in ((np.arange(12), False), (np.r_[np.arange(5), np.arange(7)], True)):
        for seed in range(20):
            documents, place = np.repeat([0, 1], [5, 7]).astype(np.int32), positions.copy()
            add_border(documents, place, seed % 11 + 1)
            assert documents.max() == 2
            starts = np.flatnonzero(np.diff(documents, prepend=-1))
            assert np.array_equal(place, np.arange(12) - np.repeat(starts, np.diff([*starts, 12])) * restarts)


@pytest.mark.parametrize("version", [1, 3])
def test_a_row_of_one_token_has_no_border(version: int) -> None:
    rows = packed([3])
    rows.documents[0, 1:] = -1
    objective = diffusion(random_length_rows=1.0)
    objective.mask_version = version
    batch = objective.collate(rows, torch.arange(1))
    assert batch.documents is not None
    assert batch.documents[0, :2].tolist() == [0, -1]


def test_validation_scores_the_bound_itself() -> None:
    """Whatever training does to lower its variance or to learn other lengths; a shift is part of the model."""
    rows, samples = packed([9, 6], [15]), torch.arange(2) + 2**62
    training = diffusion(complementary=True, min_masked_fraction=0.4, random_length_rows=1.0)
    scored, plain = training.parts[""].collate(rows, samples), diffusion().collate(rows, samples)
    assert torch.equal(scored.tokens, plain.tokens)
    assert torch.equal(scored.weights, plain.weights)  # type: ignore[arg-type]
    shifted = diffusion(shift=True).parts[""]
    assert isinstance(shifted, Diffusion)
    assert shifted.config.shift


def test_hybrid_rows_may_be_those_of_a_diffusion() -> None:
    config = HybridConfig(bidirectional=BidirectionalRows.diffusion)
    objective, rows, samples = config.build(Words(), seed=0), packed(*[[9, 6]] * 20), torch.arange(20)
    batch = objective.collate(rows, samples)
    causal, denoised = (part.collate(rows, samples) for part in objective.parts.values())
    assert list(objective.parts) == ["causal", "diffusion"]
    assert batch.is_causal is not None
    assert batch.weights is not None
    assert 0 < batch.is_causal.sum() < 20
    assert set(batch.row_counts().tolist()) == {15}
    for row in range(20):
        assert batch.weighted(torch.ones(20, 24))[row].sum().item() == pytest.approx(15)
        part = causal if batch.is_causal[row] else denoised
        assert torch.equal(batch.tokens[row], part.tokens[row])
    row, slot = (denoised.targets != IGNORE).nonzero(as_tuple=True)
    place = denoised.target_positions[row, slot]  # type: ignore[index]
    bidirectional = ~batch.is_causal[row]
    assert torch.equal(batch.targets[row, place][bidirectional], denoised.targets[row, slot][bidirectional])
    assert torch.equal(batch.weights[row, place][bidirectional], denoised.weights[row, slot][bidirectional])  # type: ignore[index]
    assert not denoised.is_causal.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value"),
    [("mask_probability", 0.2), ("validation_mask_probability", 0.15), ("mask_token_prob", 0.7), ("mean_span", 3.0),
     ("unit", MaskingUnit.span), ("random_token_prob", 0.0)],
)  # fmt: skip
def test_settings_of_masking_mean_nothing_in_a_hybrid_with_diffusion(tiny: Any, name: str, value: Any) -> None:
    message = rf"objective\.{name}=\S+ means nothing with objective\.bidirectional=diffusion.* or take objective\.bidi"
    with pytest.raises(ConfigError, match=message):
        HybridConfig(**{name: value}, bidirectional=BidirectionalRows.diffusion)
    assert getattr(HybridConfig(**{name: value}), name) == value
    config = tiny.config("model=hybrid_nano", "objective.bidirectional=diffusion")  # with the preset's share, 0.3
    saved = to_dict(config)
    assert from_dict(saved) == config
    saved["objective"][name] = getattr(value, "name", value)  # an earlier version let it pass
    usual = {each.name: each.default for each in fields(HybridConfig)}[name]
    assert from_dict(saved).objective == replace(config.objective, **{name: usual})


def test_an_excluded_row_counts_nothing() -> None:
    batch = diffusion(complementary=True).collate(packed([9, 6], [15]), torch.arange(2))
    batch.targets[0] = IGNORE
    assert batch.row_counts().tolist() == [0, 30]
    assert batch.weighted(torch.ones(2, 24)).sum(1).tolist() == [0, pytest.approx(30)]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_masked_fraction=0\.6 is more than half.*Try .*=0\.3"):
        DiffusionConfig(complementary=True, min_masked_fraction=0.6)
    assert DiffusionConfig(complementary=True, min_masked_fraction=0.3).passes == 2
    with pytest.raises(ConfigError, match="objective=diffusion needs a tokenizer with a mask token"):
        DiffusionConfig().build(replace(Words(), mask_id=None), seed=0)
    config = DiffusionConfig()
    assert (config.causal, config.fills_masks, config.denoises) == (False, True, True)
    assert not HybridConfig().denoises
