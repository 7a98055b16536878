"""Rotary positions: rotate each pair of a head's channels by an angle proportional to the position."""

import math

import torch
from torch import Tensor

from pretrain.models.rope_config import RopeScaling, RopeScalingConfig


def rotary_frequencies(head_dim: int, base: float, scaling: RopeScalingConfig) -> Tensor:
    """Return the angle per position of each channel pair, float32 (head_dim / 2,), in radians.

    `head_dim` counts the channels that are rotated.
    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4.2.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = base ** (-pairs / head_dim)
    if scaling.kind is RopeScaling.linear:
        return frequencies / scaling.factor
    if scaling.kind is RopeScaling.llama3:
        return _llama3(frequencies, scaling)
    if scaling.kind is RopeScaling.yarn:
        return frequencies * _yarn(head_dim, base, scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Stretch long wavelengths by the factor, keep short ones, and blend between the two thresholds."""
    turns = scaling.original_context_length * frequencies / (2 * math.pi)  # in the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / scaling.factor)


def _yarn(head_dim: int, base: float, scaling: RopeScalingConfig) -> Tensor:
    """Return the factor of each pair's frequency: 1 for pairs that turn often, 1 / factor for those that seldom do.

    Between the two it is blended linearly by the index of the pair, and the thresholds are whole indices, as released.
    Source: Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.2.
    """

    def pair_that_turns(times: float) -> float:
        wavelengths = scaling.original_context_length / (2 * math.pi * times)
        return head_dim * math.log(wavelengths) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    stretch = ((pairs - first) / ((last - first) or 0.001)).clamp(0.0, 1.0)  # where both are equal: a step
    return 1.0 - stretch + stretch / scaling.factor


def rotation(positions: Tensor, frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines times `scale`, float32 (B, 1, T, head_dim / 2), for positions (B, T)."""
    angles = positions.unsqueeze(-1).float() * frequencies  # (B, T, head_dim / 2)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return (cos, sin) if scale == 1.0 else (scale * cos, scale * sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, T, head_dim) with each pair of channels (i, i + n / 2) of the first n rotated.

    Cosines and sines have n / 2 channels. Source of the part: Black et al. 2022, https://arxiv.org/abs/2204.06745,
    section 2.1.
    """
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotated], cos, sin), x[..., rotated:]), dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)
