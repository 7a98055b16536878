"""The probability of every answer at every mask."""

import pytest
import torch
from families import lively, shape
from torch.testing import assert_close

from pretrain.errors import ConfigError
from pretrain.inference.fill_mask import mask_probabilities

VOCAB, MASK = 50, 3
FORBIDDEN = torch.arange(VOCAB) < 4


@pytest.mark.parametrize("family", ["bert", "modern_bert"])
def test_probabilities_at_each_mask_are_those_of_the_whole_text(family: str) -> None:
    model = lively(shape(family), VOCAB, causal=False)
    tokens = [1, 10, MASK, 11, 12, MASK, MASK, 2]
    found = mask_probabilities(model, tokens, MASK, FORBIDDEN)
    assert found.shape == (3, VOCAB)
    assert found.dtype == torch.float32
    assert not found[:, FORBIDDEN].any()
    assert_close(found.sum(-1), torch.ones(3))
    with torch.no_grad():
        expected = model.head(model(torch.tensor([tokens])))[0, [2, 5, 6], 4:].softmax(-1)
    assert_close(found[:, 4:].clone(), expected)


def test_a_text_without_a_mask_is_refused() -> None:
    model = lively(shape("bert"), VOCAB, causal=False)
    with pytest.raises(ConfigError, match=r"the text has no \[MASK\] to fill\. Try: The quick \[MASK\] fox"):
        mask_probabilities(model, [1, 10, 2], MASK, FORBIDDEN)


def test_a_text_longer_than_the_context_is_refused() -> None:
    model = lively(shape("bert"), VOCAB, causal=False)
    assert len(mask_probabilities(model, [MASK] * 32, MASK, FORBIDDEN)) == 32
    with pytest.raises(ConfigError, match=r"the text has 33 tokens, the model's context 32\. Try a shorter text"):
        mask_probabilities(model, [MASK] * 33, MASK, FORBIDDEN)
