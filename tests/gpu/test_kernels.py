"""GPU kernels equal the plain code: attention with block masks, the fused loss."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pretrain.data.collate import IGNORE
from pretrain.kernels.softcap import Softcap, capped
from pretrain.models.attention import attend
from pretrain.models.masks import AttentionMask, build_block_mask, build_mask
from pretrain.objectives import loss

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own


def documents(length: int, device: torch.device) -> Tensor:
    """Return document numbers of three rows: few and many of them, and a padded end."""
    positions = torch.arange(length, device=device)
    padded = torch.where(positions < length - 40, (positions >= 50).int() + (positions >= 260).int(), -1)
    return torch.stack([padded, positions // 37, torch.zeros_like(positions)]).int()


def masks(
    causal: bool | None, window: int | None, length: int, device: torch.device
) -> tuple[AttentionMask, AttentionMask]:
    """Return the same mask as a number for each pair and in blocks; of rows of both kinds where `causal` is none."""
    numbers = documents(length, device)
    rule = torch.tensor([True, False, True], device=device) if causal is None else causal
    blocks = build_block_mask(rule, window, numbers)
    return build_mask(rule, window, numbers, length, device), AttentionMask(False, blocks=blocks)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    given = [value.detach().clone().requires_grad_() for value in inputs]
    out = function(*given)
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out))
    return [out.detach(), *(value.grad for value in given if value.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [384, 300])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 100), (False, None), (False, 128), (None, None)])
def test_attention_in_blocks_is_attention_pair_by_pair(
    causal: bool | None, window: int | None, length: int, dtype: torch.dtype, gpu: torch.device
) -> None:
    torch.manual_seed(0)
    dense, in_blocks = masks(causal, window, length, gpu)
    q, k, v = (torch.randn(3, heads, length, 32, device=gpu, dtype=dtype) for heads in (4, 2, 2))
    torch.compiler.reset()
    compiled = torch.compile(attend, dynamic=False)
    found = with_gradients(lambda *each: compiled(*each, in_blocks, 0.0), q, k, v)
    exact = with_gradients(lambda *each: attend(*each, dense, 0.0), q.double(), k.double(), v.double())
    bound = 1e-5 if dtype is torch.float32 else 0.01
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < bound


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("z_loss", "softcap"), [(0.0, None), (0.01, None), (0.01, Softcap(3.0)),
                                                  (0.0, Softcap(3.0, by_tanh=False))])  # fmt: skip
def test_the_loss_at_once_is_the_loss(
    bias: bool,
    dtype: torch.dtype,
    z_loss: float,
    softcap: Softcap | None,
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 0)
    monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS_GPU", 256 * 5000)
    shapes = [(1000, 64), (5000, 64), (5000,)][: 2 + bias]
    values = [torch.randn(shape, device=gpu).mul_(0.3) for shape in shapes]
    targets = torch.randint(5000, (1000,), device=gpu)
    targets[::7] = IGNORE

    def at_once(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return loss.cross_entropy_sum(
                features,
                SimpleNamespace(weight=weight, bias=bias, softcap=softcap),
                targets,
                settings=loss.LossSettings(compiled=True, z_loss=z_loss),
            )

    def exactly(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = capped(softcap, torch.nn.functional.linear(features, weight, bias))
        penalty = z_loss * logits.logsumexp(-1)[targets != IGNORE].square().sum()
        plain = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return plain + penalty - penalty.detach()

    found = with_gradients(at_once, *values)
    exact = with_gradients(exactly, *(value.double() for value in values))
    assert_close(found[0].double(), exact[0], rtol=1e-6 if dtype is torch.float32 else 1e-3, atol=0)
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        assert ours.dtype == torch.float32
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < (1e-5 if dtype is torch.float32 else 0.01)
