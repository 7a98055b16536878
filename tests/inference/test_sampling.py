"""Sampling: which tokens remain, and how often each is drawn."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.errors import ConfigError, DivergenceError
from pretrain.inference.sampling import Sampler, Sampling, apply_repetition_penalty, draw_tokens, restrict

PROBABILITIES = [0.1, 0.4, 0.05, 0.25, 0.2]


def logits(rows: int = 1) -> torch.Tensor:
    return torch.tensor([PROBABILITIES]).log().repeat(rows, 1) + 3.0


@pytest.mark.parametrize("top_k", [None, 1, 2, 4, 5, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.3999, 0.41, 0.66, 0.94, 0.96, 1.0])
def test_top_k_and_top_p_keep_the_right_tokens(top_k: int | None, top_p: float | None) -> None:
    """First the k most likely; of these, renormalized, the fewest that reach p."""
    order = sorted(range(5), key=lambda i: -PROBABILITIES[i])[:top_k]
    total = sum(PROBABILITIES[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if top_p is not None and reached >= top_p:
            break
        kept.append(i)
        reached += PROBABILITIES[i] / total
    found = restrict(logits(), top_k, top_p)
    assert found.isfinite()[0].nonzero().squeeze(1).tolist() == sorted(kept)
    assert torch.equal(found[0, kept], logits()[0, kept])


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [(None, 5), (0.001, 5), (0.12, 5), (0.13, 4), (0.25, 4), (0.26, 3), (0.51, 2), (0.63, 1), (1.0, 1)],
)
def test_min_p_keeps_tokens_with_that_share_of_the_maximum(min_p: float | None, kept: int) -> None:
    """The maximum is 0.4, so the others have shares of 0.625, 0.5, 0.25 and 0.125."""
    order = sorted(range(5), key=lambda i: -PROBABILITIES[i])[:kept]
    found = restrict(logits(2), None, None, min_p)
    for row in found:
        assert row.isfinite().nonzero().squeeze(1).tolist() == sorted(order)
    assert restrict(logits(), 2, 0.1, min_p).isfinite().sum() == 1  # the limits add up
    drawn = set(Sampler(Sampling(5.0, seed=0, min_p=min_p))(logits(2000)).tolist())
    hot = [p**0.2 for p in PROBABILITIES]  # the share counts after the temperature
    assert drawn == {i for i in range(5) if min_p is None or hot[i] >= min_p * max(hot)}


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.integers(1, 40), st.floats(0.001, 1.0))
@settings(max_examples=150, deadline=None)
def test_the_most_likely_token_always_remains(values: list[float], top_k: int, top_p: float) -> None:
    scores = torch.tensor([values])
    kept = restrict(scores, top_k, top_p)
    assert kept.max() == scores.max()
    assert kept.softmax(-1).isfinite().all()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, None), (1.0, 2)])
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_k: int | None) -> None:
    weights = [p ** (1 / temperature) if top_k is None or p >= 0.25 else 0.0 for p in PROBABILITIES]
    n = 20_000
    counts = Counter(Sampler(Sampling(temperature, top_k=top_k, seed=0))(logits(n)).tolist())
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[token] / n - share) <= 5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-7, 1e-5])
def test_temperature_zero_takes_the_most_likely_token(temperature: float) -> None:
    scores = logits(50)
    scores[:, 2] = -torch.inf
    assert Sampler(Sampling(temperature, seed=0))(scores).tolist() == [1] * 50


def test_a_seed_fixes_the_choice() -> None:
    def draw(seed: int | None) -> list[int]:
        return Sampler(Sampling(1.0, seed=seed))(logits(200)).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_choice_is_made_in_32_bits(dtype: torch.dtype) -> None:
    scores = torch.zeros(4, 70_000, dtype=dtype)  # in bfloat16 the sum of so many probabilities would be off
    assert Sampler(Sampling(1.0, top_p=0.5, seed=0))(scores).max() > 0
    assert restrict(scores.float(), None, 0.5).isfinite().sum(1).tolist() == pytest.approx([35_000] * 4, rel=0.01)


def test_a_penalty_lowers_seen_tokens_of_either_sign() -> None:
    scores = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert apply_repetition_penalty(scores, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert apply_repetition_penalty(scores, seen, 1.0) is scores


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("temperature", [-1.0, math.nan, math.inf], r"is not a number from 0 up\. Try temperature=0\.8"),
        ("top_k", [0], r"is below 1\. Try top_k=50"),
        ("min_p", [0.0, 1.1, -0.5, math.nan], r"is not a share above 0 and up to 1\. Try min_p=0\.05"),
        ("top_p", [0.0, 1.1, -0.5, math.nan], r"is not a share above 0 and up to 1\. Try top_p=0\.95"),
        ("repetition_penalty", [0.0, -1.0, math.nan, math.inf], "is not a number above 0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, values: list[float], message: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"{name}={value} {message}"):
            Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_weights_that_have_diverged_draw_nothing(temperature: float, wrong: float) -> None:
    scores, sampling = logits(2), Sampling(temperature)
    scores[0, 3], scores[1, 2] = -math.inf, wrong  # a suppressed token is none
    for draw in (Sampler(sampling), lambda x: draw_tokens(x.double(), torch.zeros(len(x)).double(), sampling)):
        assert len(draw(scores[:1])) == 1
        with pytest.raises(DivergenceError, match="the model's probabilities are NaN, so no token can be drawn"):
            draw(scores)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_an_option_that_must_be_a_number_cannot_be_none(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=None is no number\. Leave it out, or try {name}="):
        Sampling(**{name: None})
