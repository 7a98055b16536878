"""A batch with two kinds of rows: each equals the rows of its own objective."""

import numpy as np
import pytest
import torch
from families import CAUSAL, random_model, shape
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.collate import IGNORE, Rows
from pretrain.errors import ConfigError
from pretrain.models.transformer import Transformer
from pretrain.objectives.causal import Causal
from pretrain.objectives.config import HybridConfig
from pretrain.objectives.hybrid import Hybrid
from pretrain.objectives.objective import ModelWithLoss

VOCAB, MASK = 50, 1
LENGTH, CUT = 24, 10  # every row: a document of CUT tokens, another one, two places of padding


class Words:
    vocab_size = VOCAB
    mask_id: int | None = MASK
    special_ids = frozenset({0, MASK})
    word_starts = np.ones(VOCAB, bool)


def hybrid(masked_rows: float = 0.5) -> Hybrid:
    built = HybridConfig(masked_rows=masked_rows, mask_probability=0.3).build(Words(), seed=3)
    assert isinstance(built, Hybrid)
    return built


def rows(count: int) -> Rows:
    tokens = np.random.default_rng(0).integers(2, VOCAB, (count, LENGTH))
    documents = np.zeros((count, LENGTH), np.int32)
    documents[:, CUT:] = 1
    documents[:, -2:] = -1
    following = np.roll(tokens, -1, axis=1)
    following[:, [CUT - 1, LENGTH - 3, LENGTH - 2, LENGTH - 1]] = IGNORE
    positions = np.tile(np.r_[np.arange(CUT), np.arange(LENGTH - CUT)], (count, 1))
    return Rows(tokens, following, positions, documents)


@pytest.mark.slow
@given(start=st.integers(0, 2**61), count=st.integers(1, 3000), share=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_close_to_the_share_of_any_consecutive_rows_is_masked(start: int, count: int, share: float) -> None:
    masked = hybrid(share).is_masked(torch.arange(count) + start)
    assert abs(int(masked.sum()) - share * count) < 5


def test_a_step_and_each_of_two_ranks_get_both_kinds() -> None:
    masked = hybrid().is_masked(torch.arange(16 * 100)).view(100, 16)
    assert ((masked.sum(1) - 8).abs() <= 2).all()
    for rank in (0, 1):
        assert abs(int(masked[:, rank::2].sum()) - 400) <= 20


def test_each_row_is_that_of_its_own_objective() -> None:
    objective, source, samples = hybrid(), rows(40), torch.arange(40)
    batch = objective.collate(source, samples)
    kinds = {name: part.collate(source, samples) for name, part in objective.parts.items()}
    masked = objective.is_masked(samples)
    assert 0 < masked.sum() < 40
    assert torch.equal(batch.is_causal, ~masked)
    for row in range(40):
        if not masked[row]:
            assert torch.equal(batch.tokens[row], kinds["causal"].tokens[row])
            assert torch.equal(batch.targets[row], kinds["causal"].targets[row])
            continue
        before, after = torch.from_numpy(source.tokens[row]), batch.tokens[row]
        places = (batch.targets[row] != IGNORE).nonzero().squeeze(1)
        assert torch.equal(after, kinds["masked"].tokens[row])
        assert torch.equal(batch.targets[row, places], before[places + 1])  # predicted one place before its own
        changed = (after != before).nonzero().squeeze(1)
        assert set(changed.tolist()) <= {place + 1 for place in places.tolist()}
        assert len(places) == round(0.3 * (LENGTH - 2 - 2))
        assert not {-1, CUT - 1, LENGTH - 3, LENGTH - 2, LENGTH - 1} & set(places.tolist())


@pytest.mark.parametrize("name", CAUSAL)
def test_the_loss_is_the_sum_of_both_kinds(name: str) -> None:
    objective, source, samples = hybrid(), rows(12), torch.arange(12)
    model = random_model(shape(name), VOCAB, causal=True)
    loss, count = ModelWithLoss(model, objective)(objective.collate(source, samples))
    masked = objective.is_masked(samples).numpy()
    parts = []
    for part, chosen in zip(objective.parts.values(), (~masked, masked), strict=True):
        own = Rows(*(getattr(source, field)[chosen] for field in ("tokens", "next_tokens", "positions", "documents")))
        parts.append(ModelWithLoss(model, part)(part.collate(own, samples[torch.from_numpy(chosen)])))
    torch.testing.assert_close(loss, sum(part[0] for part in parts), rtol=1e-5, atol=1e-3)
    assert count == sum(part[1] for part in parts)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_rows_cannot_see_ahead_and_masked_rows_can(name: str) -> None:
    model: Transformer = random_model(shape(name), VOCAB, causal=True)
    tokens = torch.randint(2, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    is_causal = torch.tensor([True, False])
    with torch.no_grad():
        difference = (model(tokens, is_causal=is_causal) - model(changed, is_causal=is_causal)).abs().amax(-1)
        alone = model(tokens[:1])
        together = model(tokens, is_causal=is_causal)[:1]
    assert (difference[0, :9] == 0).all()
    assert (difference[1, 7:9] > 0).all()  # a window of 5 sees 2 tokens to either side
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective=hybrid needs a tokenizer with a mask token"):
        HybridConfig().build(type("NoMask", (Words,), {"mask_id": None})(), seed=0)
    config = HybridConfig()
    assert config.causal
    assert config.fills_masks
    assert isinstance(hybrid().parts["causal"], Causal)
