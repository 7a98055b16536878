"""From logits to the next token."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pretrain.config.setting import check, description
from pretrain.errors import ConfigError, DivergenceError
from pretrain.inference.config import GenerateConfig


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8  # 0: always the most likely token
    top_k: int | None = None  # choose among this many most likely tokens
    top_p: float | None = None  # choose among the most likely tokens that together have this probability
    repetition_penalty: float = 1.0  # above 1: tokens of prompt and completion become less likely
    seed: int | None = None  # None: another choice each time
    min_p: float | None = None  # choose among tokens with at least this share of the most likely token's probability

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                raise ConfigError(f"{field.name}=None is no number. Leave it out, or try {field.name}={field.default}.")
            check(field.name, getattr(self, field.name), description(GenerateConfig, field.name))


class Sampler:
    """Draws tokens with a separate random generator, so that torch's global one stays untouched."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(int(sampling.seed))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the chosen token of each row, int64 (B,), from logits (B, V); raises DivergenceError for NaN."""
        check_logits(logits)
        if self.sampling.temperature < 1e-6:  # practically 0, and the division could overflow
            return logits.argmax(-1)
        options = self.sampling
        scores = restrict(logits.float().cpu() / options.temperature, options.top_k, options.top_p, options.min_p)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(1).to(logits.device)


def check_logits(logits: Tensor) -> None:
    """Raise DivergenceError for NaN or infinity among logits; minus infinity is that of a suppressed token."""
    if not bool((logits < torch.inf).all()):
        raise DivergenceError(
            "the model's probabilities are NaN, so no token can be drawn: its weights have diverged. "
            "Take an earlier checkpoint."
        )


def draw_tokens(log_probabilities: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Return a token for each row of float64 (N, V), int64 (N,), by uniform random numbers from 0 to below 1, (N,).

    The draw inverts the cumulative distribution in double precision. Noise of 32 bits cannot be as large as a rare
    token needs, which lowers the temperature (Zheng et al. 2024, https://arxiv.org/abs/2409.02908, section 5). Raises
    DivergenceError for NaN.
    """
    check_logits(log_probabilities)
    if sampling.temperature < 1e-6:
        return log_probabilities.argmax(-1)
    scores = restrict(log_probabilities / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    cumulative = scores.softmax(-1).cumsum(-1)
    targets = (uniforms * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1)  # right: never one of probability 0


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits (B, V) with those of the tokens in `seen`, bool (B, V), lowered by a factor.

    Source: Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1, with the sign of the logit respected.
    """
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def restrict(logits: Tensor, top_k: int | None, top_p: float | None, min_p: float | None = None) -> Tensor:
    """Return logits (B, V) with all but the most likely tokens at minus infinity.

    `top_p` keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751, section 3.1). `min_p` keeps tokens with at least this share of the most likely
    token's probability (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        logits = torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill(before >= top_p, -torch.inf))
    if min_p is not None:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -torch.inf)
    return logits
