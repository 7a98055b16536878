"""Rotary positions against their formulas: scaling by kind, bases of local layers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import random_model, shape
from torch.testing import assert_close

from pretrain.errors import ConfigError
from pretrain.models.position import rotary_frequencies, rotation
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig


def llama3_frequency(frequency: float, factor: float, low: float, high: float, original: int) -> float:
    """The three cases as Grattafiori et al. release them, by wavelength."""
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_thresholds_of_yarn_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match=r"beta_slow=32\.0 must be below beta_fast=32\.0\. Try .*beta_slow=1\.0"):
        RopeScalingConfig(RopeScaling.yarn, 8.0, beta_slow=32.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_slow": 1e-310}, r"beta_slow=1e-310 is not between 1e-06 and 1e\+06 turns\. Try .*beta_slow=1\.0\."),
        ({"beta_fast": 1e308}, r"beta_fast=1e\+308 is not between 1e-06 and 1e\+06 turns\. Try .*beta_fast=32\.0\."),
        ({"original_context_length": 10**400}, r"original_context_length=10+ is above 16777216, the largest"),
    ],
)
def test_thresholds_that_no_angle_follows_from_are_refused(settings: dict[str, Any], message: str) -> None:
    """They ended in an overflow when the model was built."""
    with pytest.raises(ConfigError, match=rf"model\.rope_scaling\.{message}"):
        RopeScalingConfig(RopeScaling.yarn, 8.0, **settings)
    for turns in ({"beta_slow": 1e-6, "beta_fast": 1e6}, {"original_context_length": 1 << 24}):
        frequencies = rotary_frequencies(64, 10_000.0, RopeScalingConfig(RopeScaling.yarn, 8.0, **turns))
        assert frequencies.isfinite().all()


def yarn_frequency(pair: int, factor: float, original: int) -> float:
    """Pairs of 64 channels by how often they turn within the original context, as in the paper's equations 17 to 20."""
    frequency = 500_000.0 ** (-2 * pair / 64)
    first, last = (
        64 * math.log(original / (2 * math.pi * turns)) / (2 * math.log(500_000.0)) for turns in (32, 1)
    )  # fmt: skip
    share = min(1.0, max(0.0, (pair - math.floor(first)) / (math.ceil(last) - math.floor(first))))
    return share * frequency / factor + (1 - share) * frequency


def test_rope_scaling_equals_its_formula() -> None:
    plain = [500_000.0 ** (-2 * i / 64) for i in range(32)]
    for kind, expected in {
        RopeScaling.none: plain,
        RopeScaling.linear: [f / 8 for f in plain],
        RopeScaling.llama3: [llama3_frequency(f, 8, 1, 4, 8192) for f in plain],
        RopeScaling.yarn: [yarn_frequency(pair, 8, 8192) for pair in range(32)],
    }.items():
        found = rotary_frequencies(64, 500_000.0, RopeScalingConfig(kind, factor=8.0))
        assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-5)
    yarn = RopeScalingConfig(RopeScaling.yarn, factor=8.0)
    cos, sin = rotation(torch.arange(4).unsqueeze(0), rotary_frequencies(64, 500_000.0, yarn), yarn.rotation_scale)
    assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, 0.1 * math.log(8.0) + 1.0))  # "temperature" of eq. 22
    kept, stretched = rotary_frequencies(64, 500_000.0, RopeScalingConfig(RopeScaling.llama3, 8.0))[[0, -1]].tolist()
    assert kept == 1.0
    assert stretched == pytest.approx(plain[-1] / 8)


@torch.no_grad()
def test_local_layers_turn_by_their_own_base() -> None:
    # windows that are wide open: only the base tells the layers apart
    config = shape("modern_bert", sliding_window=100, global_attention_every=2)
    tokens = torch.randint(50, (1, 10), generator=torch.Generator().manual_seed(1))
    own = random_model(config, 50, False)(tokens)
    same = random_model(replace(config, rope_base_local=None), 50, False)(tokens)
    assert (own - same).abs().max() > 1e-3
    assert_close(random_model(replace(config, rope_base_local=config.rope_base), 50, False)(tokens), same)
