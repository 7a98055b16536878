"""The residual stream in bf16 and 16-bit copies of the matrices: losses within the rounding, or the same to the bit."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from subjects import subject

from pretrain.models.layers import use_half_stream
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parity import Case, TrainingTask, difference, train_cases

BF16 = torch.bfloat16
COPIES = ParallelConfig(half_weight_copies=True)


def with_half_stream(build: Callable[[], ModelWithLoss]) -> ModelWithLoss:
    model_with_loss = build()
    use_half_stream(model_with_loss.model)
    return model_with_loss


def in_half(task: TrainingTask) -> TrainingTask:
    return replace(task, build=partial(with_half_stream, task.build))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_ranks")
def test_settings_of_bf16_train_alike() -> None:
    """Also on two processes, and with recomputed activations, which leave the bits as they are."""
    cases: dict[str, tuple[TrainingTask, Case]] = {}
    families = ("gpt", "llama", "bert")
    for family in families:
        one, bf16 = subject(family), Case(half=BF16)
        cases |= {f"{family} fp32": (one, Case()), f"{family} bf16": (one, bf16)}
        cases[f"{family} stream"] = (in_half(one), bf16)
    recomputed = ParallelConfig(activation_checkpointing=True, half_weight_copies=True)
    cases |= {
        "gpt stream, copies, recomputed": (in_half(subject("gpt")), Case(settings=recomputed, half=BF16)),
        "gpt stream, ddp": (in_half(subject("gpt")), Case(2, ddp=True, half=BF16)),
        "gpt stream, copies, ddp": (in_half(subject("gpt")), Case(2, COPIES, ddp=True, half=BF16)),
    }
    found = dict(zip(cases, train_cases(list(cases.values()), steps=10), strict=True))
    for family in families:
        assert 0 < difference(found[f"{family} bf16"], found[f"{family} fp32"]).loss < 5e-3
        assert 0 < difference(found[f"{family} stream"], found[f"{family} fp32"]).loss < 5e-3
        assert difference(found[f"{family} bf16"], found[f"{family} stream"]).loss > 0
    assert 0 < difference(found["gpt stream"], found["gpt stream, ddp"]).loss < 5e-4
    for with_copies, without in (("recomputed", "gpt stream"), ("ddp", "gpt stream, ddp")):
        apart = difference(found[f"gpt stream, copies, {with_copies}"], found[without])
        assert (apart.loss, apart.norm, apart.weights) == (0, 0, 0)
