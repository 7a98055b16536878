"""Block masks allow exactly the pairs of dense masks; the kernels that only a GPU has are tested in tests/gpu."""

import pytest
import torch
from families import random_model, shape
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from torch.testing import assert_close

from pretrain.models.attention import attend
from pretrain.models.masks import BLOCK, AttentionMask, build_block_mask, build_mask, can_use_block_masks

WAYS = [True, False, None]  # none: rows of both kinds
WINDOWS = [None, 1, 5, 100, 128, 300]
CAUSAL_ROWS = torch.tensor([True, False, True])

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def documents(length: int) -> Tensor:
    """Return three rows: few documents and a padded end, many documents, only one."""
    positions = torch.arange(length)
    padded = torch.where(positions < length - 40, (positions >= 50).int() + (positions >= 260).int(), -1)
    return torch.stack([padded, positions // 37, torch.zeros_like(positions)]).int()


def both(causal: bool | None, window: int | None, numbers: Tensor) -> tuple[Tensor, AttentionMask]:
    """Return the dense mask, bool (3, 1, T, T), and the block mask."""
    rule = CAUSAL_ROWS if causal is None else causal
    allowed = build_mask(rule, window, numbers, numbers.shape[1], numbers.device).allowed
    assert allowed is not None
    return allowed, AttentionMask(False, blocks=build_block_mask(rule, window, numbers))


def by_block(allowed: Tensor) -> Tensor:
    """Return a mask as (3, N, N, BLOCK x BLOCK) pairs, none allowed beyond the row's end."""
    beyond = -allowed.shape[-1] % BLOCK
    whole = torch.nn.functional.pad(allowed.squeeze(1), (0, beyond, 0, beyond))
    return whole.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3).flatten(3)


def listed(count: Tensor, numbers: Tensor) -> Tensor:
    """Return which blocks are on a list of BlockMask, bool (3, N, N)."""
    found = torch.zeros(numbers.squeeze(1).shape, dtype=torch.bool)
    first = torch.arange(numbers.shape[-1]) < count.squeeze(1).unsqueeze(-1)
    row, query, place = first.nonzero(as_tuple=True)
    found[row, query, numbers.squeeze(1)[row, query, place].long()] = True
    return found


@pytest.mark.parametrize("length", [384, 300, 90])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", WAYS)
def test_block_lists_are_those_of_the_dense_mask(causal: bool | None, window: int | None, length: int) -> None:
    allowed, mask = both(causal, window, documents(length))
    pairs, blocks = by_block(allowed), mask.blocks
    assert blocks is not None
    wholly = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    partly = listed(blocks.kv_num_blocks, blocks.kv_indices)
    assert torch.equal(wholly, pairs.all(-1))
    assert torch.equal(partly, pairs.any(-1) & ~pairs.all(-1))
    assert torch.equal(listed(blocks.full_q_num_blocks, blocks.full_q_indices), wholly.mT)
    assert torch.equal(listed(blocks.q_num_blocks, blocks.q_indices), partly.mT)
    inside = create_mask(blocks.mask_mod, 3, 1, length, length, "cpu")
    assert torch.equal(inside, allowed)


def test_documents_in_any_order_leave_out_no_block() -> None:
    numbers = documents(384)[:, torch.randperm(384, generator=torch.Generator().manual_seed(0))]
    allowed, mask = both(True, None, numbers)
    assert mask.blocks is not None
    seen = listed(mask.blocks.kv_num_blocks, mask.blocks.kv_indices)
    whole = listed(mask.blocks.full_kv_num_blocks, mask.blocks.full_kv_indices)
    pairs = by_block(allowed)
    assert not (pairs.any(-1) & ~(seen | whole)).any()
    assert torch.equal(whole, pairs.all(-1))


@pytest.mark.slow
@pytest.mark.parametrize("causal", WAYS)
@torch.no_grad()
def test_attention_is_the_same(causal: bool | None) -> None:
    allowed, mask = both(causal, 100, documents(300))
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, 300, 16, generator=draw) for heads in (4, 2, 2))
    assert_close(attend(q, k, v, mask, 0.0), attend(q, k, v, AttentionMask(False, allowed), 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "llama", "local", "bert", "modern_bert"])
@torch.no_grad()
def test_models_are_the_same(family: str) -> None:
    config = shape(family, d_model=64, context_length=150)
    model = random_model(config, 50, family in ("gpt", "llama", "local"))
    tokens = torch.randint(50, (3, 150), generator=torch.Generator().manual_seed(1))
    numbers = documents(150)
    expected = model(tokens, documents=numbers)
    assert_close(model(tokens, masks=model.masks(tokens, numbers, in_blocks=True)), expected, rtol=1e-4, atol=1e-4)
    alone = model.masks(tokens, None, in_blocks=True)  # every row one document
    assert_close(model(tokens, masks=alone), model(tokens), rtol=1e-4, atol=1e-4)


def test_who_can_use_block_masks() -> None:
    assert can_use_block_masks(shape("llama", d_model=64))
    assert not can_use_block_masks(shape("llama", d_model=64, attention_dropout=0.1))
    assert not can_use_block_masks(shape("llama"))  # heads of 8 channels


@pytest.mark.slow
@torch.no_grad()
def test_layers_are_compiled_once_for_all_batches() -> None:
    """Batches with and without documents have the same kind of mask: compiling again would take a minute."""
    model, graphs = random_model(shape("local", d_model=64), 50, True), []

    def count(module: torch.fx.GraphModule, _: object) -> object:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    for block in model.blocks:
        block.compile(dynamic=False, backend=count, fullgraph=True)
    tokens = torch.zeros(3, 32, dtype=torch.int64)
    for numbers in (documents(32), None, documents(32) * 2, None):
        model(tokens, masks=model.masks(tokens, numbers, in_blocks=True))
    torch.compiler.reset()
    assert len(graphs) == 2  # layers with a window, layers without
