"""The coordinate check of muP: a few steps change what a model computes by as much at every width.

Source: Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D.1.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.doctor.shrink import ROWS
from pretrain.interop.load import build, build_without_weights
from pretrain.models.choices import Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.interface import allocate, blocks_of
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.mesh import load_parameters

TIMES = (1, 2, 4)  # the widths, over the narrowest one
STEPS = 3
RATE = 0.1  # share of the run's rate: small steps change the outputs in proportion, also where the run's diverge
# Powers of the width by which the changes may fall or grow. Measured under muP: blocks -0.1 to 0.15; logits -0.4 to 0,
# as initial weights change them too. With rates that do not follow the width: 0.6 to 1.3 with AdamW, 0.5 with Muon.
FALLS, LOGITS_FALL, GROWS = -0.3, -0.6, 0.3


def steps_change_every_width_alike(context: Context) -> CheckResult:
    """Check that small steps change what blocks add to the residual stream, and the logits, alike at every width.

    The small model is the base, and has the run's objective and optimizer; wider ones have more heads, or wider ones
    where `base_head_dim` says so. Raises NotApplicableError for a model without muP.
    """
    shape = context.shape
    if shape.parametrization is not Parametrization.mup:
        raise NotApplicableError(f"model.parametrization={shape.parametrization.name} has no base width")
    full = context.config.model.transformer
    widens_heads = full is not None and full.base_head_dim not in (None, full.attention_head_dim)
    changes = [_changes(context, at_width(shape, times, widens_heads)) for times in TIMES]
    widths = [shape.d_model * times for times in TIMES]
    names = [*(f"sum that block {number} adds" for number in range(shape.n_layers)), "logits"]
    powers = {name: _power(widths, [each[index] for each in changes]) for index, name in enumerate(names)}
    worst = max(powers, key=lambda name: _share_of_limit(name, powers[name]))
    passed = _share_of_limit(worst, powers[worst]) <= 1.0
    sizes = ", ".join(f"{each[names.index(worst)]:.2g}" for each in changes)
    figures = (
        f"widths {', '.join(map(str, widths))}: {STEPS} steps change the {worst} by {sizes}, as the width to the power "
        f"{powers[worst]:.2f} (limits {_least(worst):g} and {GROWS:g})"
    )
    if not passed:
        kind = context.config.optimizer.kind
        figures += f". No rate holds at another width: optimizer.kind={kind} must scale those of matrices for that"
    return CheckResult(passed, figures)


def at_width(shape: TransformerConfig, times: int, widens_heads: bool) -> TransformerConfig:
    """Return the shape `times` as wide, with the shape itself as the base of muP."""
    more_heads, wider = (1, times) if widens_heads else (times, 1)
    return replace(
        shape,
        d_model=shape.d_model * times,
        n_heads=shape.n_heads * more_heads,
        n_kv_heads=None if shape.n_kv_heads is None else shape.n_kv_heads * more_heads,
        head_dim=None if shape.head_dim is None else shape.head_dim * wider,
        d_ff=None if shape.d_ff is None else shape.d_ff * times,
        base_width=shape.d_model,
        base_head_dim=shape.attention_head_dim,
    )


def _changes(context: Context, shape: TransformerConfig) -> list[float]:
    """Return by how much a few steps change what each block adds, and the logits: root mean squares over a batch."""
    config, tokenizer = context.config, context.small_prepared.tokenizer
    model = build_without_weights(shape, config.objective, tokenizer)
    allocate(model, "cpu", lambda: build(shape, config.objective, tokenizer))
    load_parameters(model, lambda name, size: shape.initial_value(name, size, config.seed))
    trained, batch = ModelWithLoss(model, context.build_objective()).train(), context.batch(ROWS)
    optimizer = context.small.optimizer.build(model)
    for group in optimizer.param_groups:
        group["lr"] *= RATE
    outside = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("blocks.")}
    before = _outputs(trained, batch)
    for _ in range(STEPS):
        loss, count = trained(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    logits = _outputs(trained, batch)[-1]
    model.load_state_dict(outside, strict=False)  # new embeddings would hide how far the blocks' own weights went
    after = [*_outputs(trained, batch)[:-1], logits]
    return [float((b - a).square().mean().sqrt()) for a, b in zip(before, after, strict=True)]


@torch.no_grad()
def _outputs(trained: ModelWithLoss, batch: Batch) -> list[Tensor]:
    """Return what each block adds to its input (B, T, d), and the logits of the first row (T, vocabulary)."""
    found = list[Tensor]()

    def keep_added(block: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output - given[0])

    def keep(model: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)

    hooks = [block.register_forward_hook(keep_added) for block in blocks_of(trained.model)]
    hooks.append(trained.model.register_forward_hook(keep))
    try:
        trained(batch)
    finally:
        for hook in hooks:
            hook.remove()
    hidden = found.pop()
    return [*found, trained.model.head(hidden[0])]


def _least(name: str) -> float:
    return LOGITS_FALL if name == "logits" else FALLS


def _share_of_limit(name: str, power: float) -> float:
    """Return the power over the limit on its side of 0; infinite for NaN."""
    return math.inf if math.isnan(power) else max(power / GROWS, power / _least(name))


def _power(widths: list[int], sizes: list[float]) -> float:
    """Return the exponent of the width in a power law through sizes; NaN if one is 0 or not finite."""
    if not all(0.0 < size < math.inf for size in sizes):
        return math.nan
    x, y = ([math.log(value) for value in values] for values in (widths, sizes))
    mean = sum(x) / len(x)
    return sum((a - mean) * b for a, b in zip(x, y, strict=True)) / sum((a - mean) ** 2 for a in x)
