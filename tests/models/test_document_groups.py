"""Attention document by document equals attention under a dense mask, and is used where it is worth it."""

import pytest
import torch
from families import random_model, shape
from torch import Tensor
from torch.testing import assert_close

from pretrain.models.attention import attend
from pretrain.models.document_groups import document_groups
from pretrain.models.masks import AttentionMask, build_mask
from pretrain.objectives.causal import Causal
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parallelize import parallelize

LENGTH = 512


def packed(*rows: list[int]) -> Tensor:
    """Return documents of these lengths, int32 (B, LENGTH), with padding (-1) at the end of each row."""
    numbers = torch.full((len(rows), LENGTH), -1, dtype=torch.int32)
    for row, lengths in zip(numbers, rows, strict=True):
        filled = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        row[: len(filled)] = filled
    return numbers


EQUAL = packed([64] * 8)
SHORT = packed([30, 1, 200, 17, 16, 90, 64], [3] * 150, [128, 130, 129, 125])


def gradients(mask: AttentionMask, dropout: float = 0.0) -> list[Tensor]:
    """Return attention of two heads and two rows to each key, with the gradients of queries, keys and values."""
    draw = torch.Generator().manual_seed(0)
    of_heads = (4, 2, 2)
    q, k, v = (torch.randn(3, heads, LENGTH, 8, generator=draw, requires_grad=True) for heads in of_heads)
    output = attend(q, k, v, mask, dropout)
    seed = torch.randn(output.shape, generator=draw)
    return [output, *torch.autograd.grad((output * seed).sum(), (q, k, v))]


@pytest.mark.parametrize("window", [None, 1, 6, 100, 4096])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_dense_mask_with_gradients(causal: bool, window: int | None) -> None:
    groups = document_groups(causal, window, SHORT, dropout=False)
    assert groups is not None
    assert len(groups) > 3
    for ours, dense in zip(
        gradients(AttentionMask(causal, groups=groups)),
        gradients(build_mask(causal, window, SHORT, LENGTH, SHORT.device)),
        strict=True,
    ):
        assert_close(ours, dense, rtol=1e-4, atol=1e-5)


def test_dropout_leaves_out_its_share_of_the_scores_of_a_document() -> None:
    """Values of one and constant queries: each output is the share of its document's scores that is kept, over 0.9."""
    groups = document_groups(False, None, EQUAL, dropout=True)
    assert groups is not None
    ones = torch.ones(1, 4, LENGTH, 8)
    found = attend(ones, ones, ones, AttentionMask(False, groups=groups), 0.1)[..., 0]
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)
    kept = found * 0.9 * 64
    assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    assert kept.unique().numel() > 5


@pytest.mark.parametrize(
    ("numbers", "dropout", "used"),
    [
        (SHORT, False, True),
        (EQUAL[:, :256], False, False),  # of short rows SDPA computes the dense mask as fast
        (EQUAL[:, :256], True, True),
        (EQUAL[:, :128], True, False),
        (packed([450, 62]), True, False),  # one document is nearly the row
        (packed([40, 40, 40] * 4) % 3, True, False),  # documents are scattered over the row
    ],
)
def test_it_is_used_for_short_documents_in_long_rows(numbers: Tensor, dropout: bool, used: bool) -> None:
    assert (document_groups(False, None, numbers, dropout) is not None) == used


def test_a_model_trains_by_document_and_a_compiled_one_does_not() -> None:
    model = random_model(shape("modern_bert", context_length=LENGTH), 64, causal=False)
    tokens = torch.randint(64, SHORT.shape)
    masks = model.masks(tokens, SHORT)
    assert all(mask.groups for mask in masks.values())
    with torch.no_grad():
        by_document = model(tokens, documents=SHORT)
    parallelize(ModelWithLoss(model, Causal()), None, ParallelConfig(compile=True), None)
    dense = model.masks(tokens, SHORT)
    assert all(mask.allowed is not None for mask in dense.values())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert_close(model(tokens, documents=SHORT, masks=dense), by_document, rtol=1e-4, atol=1e-5)
