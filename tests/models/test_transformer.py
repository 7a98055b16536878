"""Masks and attention against slow references; model sizes against published ones."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import random_model, shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pretrain.errors import ConfigError
from pretrain.kernels.softcap import Softcap
from pretrain.models import attention
from pretrain.models.attention import MAX_EAGER_SCORES, Attention, attend, attend_capped
from pretrain.models.choices import Activation, AttentionGate, ClassifierHead, Head, Norm, NormPosition, Position
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import FeedForward
from pretrain.models.masks import AttentionMask, build_block_mask, build_mask
from pretrain.models.position import rotary_frequencies, rotate, rotation
from pretrain.models.size import parameter_count

FAMILIES = [
    ("gpt", True),
    ("llama", True),
    ("local", True),
    ("neox", True),
    ("olmo", True),
    ("gemma", True),
    ("gemma2", True),
    ("gated", True),
    ("bert", False),
    ("modern_bert", False),
]


def some_tokens(rows: int, length: int, vocab_size: int = 50, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", [name for name, _ in FAMILIES])
@torch.no_grad()
def test_a_causal_model_does_not_see_ahead_and_a_bidirectional_one_does(family: str) -> None:
    tokens = some_tokens(2, 12)
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 50
    for causal in (True, False):
        model = random_model(shape(family), 50, causal)
        before, after = model(tokens)[:, :8], model(changed)[:, :8]
        moved = (before - after).abs().amax((0, 2))  # of each position
        if causal:
            assert_close(before, after, atol=0, rtol=0)
        else:
            assert moved[-1] > 1e-3


@pytest.mark.parametrize(("family", "causal"), FAMILIES)
@torch.no_grad()
def test_documents_in_one_row_do_not_see_each_other(family: str, causal: bool) -> None:
    model = random_model(shape(family), 50, causal)
    lengths = [7, 12, 1, 5]
    tokens = some_tokens(1, sum(lengths) + 3)
    documents = torch.tensor([[n for n, length in enumerate(lengths) for _ in range(length)] + [-1] * 3])
    positions = torch.tensor([[i for length in lengths for i in range(length)] + [0] * 3])
    packed = model(tokens, positions, documents)[0]
    assert packed.isfinite().all()  # padding too
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        assert_close(packed[part], model(tokens[:, part])[0], atol=1e-5, rtol=1e-5)
        start += length
    whole = model(tokens)[0, 7:19]  # without document numbers they do
    assert (whole - packed[7:19]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt", "neox", "olmo", "gemma", "gemma2", "gated", "bert"])
def test_the_gradient_is_the_slope_of_the_loss(family: str) -> None:
    """By a central difference in float64 along a random direction of all parameters."""
    model, tokens = random_model(shape(family), 50, True).double(), some_tokens(2, 9)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]

    def loss(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), direction, strict=True):
                parameter += step * change
        return model.head(model(tokens)).logsumexp(-1).square().mean()

    loss(0.0).backward()  # type: ignore[no-untyped-call]
    by_gradient = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), direction, strict=True))  # type: ignore[operator]
    ahead = loss(1e-4).item()
    behind = loss(-2e-4).item()
    assert_close((ahead - behind) / 2e-4, by_gradient, rtol=2e-3, atol=1e-3)


@torch.no_grad()
def test_new_parts_of_a_block_equal_their_formulas() -> None:
    """Parallel layers, norms of outputs, a rotated part of each head, layers without rotation, shifted positions."""
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))
    mask = build_mask(True, None, None, 6, x.device)
    config = shape("neox")
    turn = rotation(torch.arange(6).unsqueeze(0), rotary_frequencies(config.rope_dim, 1e4, config.rope_scaling))
    block = random_model(config, 50, True).blocks[0]
    attended = block.attention(block.attention_norm(x), mask, turn)
    assert_close(block(x, mask, turn), x + attended + block.feed_forward(block.feed_forward_norm(x)))

    block = random_model(shape("olmo"), 50, True).blocks[0]
    middle = x + block.attention_norm(block.attention(x, mask))
    assert_close(block(x, mask), middle + block.feed_forward_norm(block.feed_forward(middle)))

    model = random_model(shape("gemma"), 50, True)
    block = model.blocks[0]
    middle = x + block.attention_output_norm(block.attention(block.attention_norm(x), mask))
    assert_close(
        block(x, mask), middle + block.feed_forward_output_norm(block.feed_forward(block.feed_forward_norm(middle)))
    )
    norm = block.attention_output_norm
    assert_close(norm(x), (1 + norm.weight) * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    tokens = some_tokens(1, 6)
    assert_close(model.embeddings(tokens, tokens), math.sqrt(32) * model.embeddings.tokens.weight[tokens])
    assert [model.config.layer_window(layer) for layer in range(3)] == [5, 5, None]
    listed = shape("gemma", global_attention_layers=[0, 1])
    assert [listed.layer_window(layer) for layer in range(3)] == [None, None, 5]

    head = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(4))
    turned = rotate(head, *turn)  # two of eight channels
    expected = torch.stack([slow_turn(head[0, 0, t, :2], t, [1.0]) for t in range(6)])
    assert_close(turned[0, 0, :, :2], expected.float())
    assert torch.equal(turned[..., 2:], head[..., 2:])

    assert [shape("olmo").layer_rotates(layer) for layer in range(3)] == [True, False, True]
    plain = random_model(shape("gpt"), 50, True)
    shifted = shape("gpt", position_offset=3).build(50, True).eval()
    positions = torch.cat([torch.zeros(3, 32), plain.embeddings.positions.weight])
    shifted.load_state_dict(plain.state_dict() | {"embeddings.positions.weight": positions})
    assert torch.equal(shifted(some_tokens(1, 9)), plain(some_tokens(1, 9)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("neox", {"rope_fraction": 0.4}, "rope_fraction=0.4 rotates 3 of 8 .* Try model.rope_fraction=0.5"),
        ("llama", {"position_offset": 2}, "position_offset=2 is for a table .* Try model.position_offset=0"),
        (
            "gemma2",
            {"attention_dropout": 0.1},
            "softcap=1.5 does not go with .*_dropout=0.1.* Try .*_dropout=0",
        ),
        ("bert", {"norm_unit_offset": True}, "norm_unit_offset=true is for RMS norms.*norm=layer .*model.norm=rms"),
        ("gemma", {"global_attention_offset": 3}, "offset=3 is not .*every=3 layers.* Try .*_offset=2"),
        ("gemma", {"global_attention_layers": [3]}, r"_layers=\[3\] must be of 0 to 2, .* Try .*_layers=\[0\]"),
        (
            "gemma",
            {"rope_base": 1.0},
            "kind=yarn needs a base above 1, and .*rope_base=1.0.* Try .*_base=10000",
        ),
        ("gpt", {"head_init_std": 0.0}, "head_init_std=0.0 is for .* Try model.tie_embeddings=false"),
        ("bert", {"norm_first_block": False}, "first_block=false leaves .*norm_position=post .* Try .*_block=true"),
        ("olmo", {"norm_first_block": False}, "first_block=false leaves .*norm_position=output has none there"),
        ("bert", {"parallel_residual": True}, "parallel_residual=true needs .*norm_position=post .*norm_position=pre"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape(name, **changes)


def mask_mod(i: int, j: int, causal: bool, window: int | None) -> bool:
    """The rule in words: causal sees itself and what came before, a window the last w, or w // 2 to either side."""
    if causal:
        return j <= i and (window is None or i - j < window)
    return window is None or abs(i - j) <= window // 2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 100])
def test_masks_hold_exactly_the_pairs_of_the_rule(causal: bool, window: int | None) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, -1], [0] * 9])
    mask = build_mask(causal, window, documents, 9, torch.device("cpu"))
    expected = [
        [[mask_mod(i, j, causal, window) and row[i] == row[j] for j in range(9)] for i in range(9)]
        for row in documents.tolist()
    ]
    assert mask.allowed is not None
    assert mask.allowed.squeeze(1).tolist() == expected
    plain = build_mask(causal, window, None, 9, torch.device("cpu"))
    if plain.allowed is not None:
        assert plain.allowed[0, 0].tolist() == expected[1]
    else:
        assert expected[1] == [[mask_mod(i, j, causal, None) for j in range(9)] for i in range(9)]


def slow_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / math.sqrt(float((x * x).sum()) / len(x) + eps) * weight


def slow_turn(x: Tensor, position: int, frequencies: list[float]) -> Tensor:
    """Turn channel i against channel i + width / 2 as complex numbers."""
    half = len(x) // 2
    turned = [
        complex(x[i], x[i + half]) * complex(math.cos(position * f), math.sin(position * f))
        for i, f in enumerate(frequencies)
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=torch.float64)


def slow_attention(
    layer: Attention, x: Tensor, config: TransformerConfig, visible: Callable[[int, int], bool]
) -> Tensor:
    """One row, one head and one position at a time, in 64 bits; x is (T, d_model)."""
    width, group = config.attention_head_dim, config.n_heads // config.kv_heads
    frequencies = [float(config.rope_base ** (-2 * i / width)) for i in range(width // 2)]
    q, k, v = (
        (x @ linear.weight.double().T).unflatten(1, (-1, width)) for linear in (layer.query, layer.key, layer.value)
    )
    out = torch.zeros(len(x), config.n_heads, width, dtype=torch.float64)
    for head in range(config.n_heads):
        queries, keys = [], []
        for t in range(len(x)):
            query, key = q[t, head], k[t, head // group]
            if layer.query_norm is not None and layer.key_norm is not None:
                query = slow_rms(query, layer.query_norm.weight.double(), config.norm_eps)
                key = slow_rms(key, layer.key_norm.weight.double(), config.norm_eps)
            queries.append(slow_turn(query, t, frequencies))
            keys.append(slow_turn(key, t, frequencies))
        for i in range(len(x)):
            places = [j for j in range(len(x)) if visible(i, j)]
            weights = [math.exp(float(queries[i] @ keys[j]) / math.sqrt(width)) for j in places]
            for weight, j in zip(weights, places, strict=True):
                out[i, head] += weight / sum(weights) * v[j, head // group]
    return out.flatten(1) @ layer.output.weight.double().T


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 3), (False, None), (False, 4)])
@torch.no_grad()
def test_attention_equals_a_slow_formula(kv_heads: int, qk_norm: bool, causal: bool, window: int | None) -> None:
    config = shape(
        "llama", n_kv_heads=kv_heads, qk_norm=qk_norm, sliding_window=window, global_attention_every=0, head_dim=6
    )
    model = random_model(config, 50, causal)
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(2))
    turns = rotation(torch.arange(9).unsqueeze(0), rotary_frequencies(6, config.rope_base, config.rope_scaling))
    layer = model.blocks[0].attention
    found = layer(x, build_mask(causal, window, None, 9, x.device), turns)
    expected = slow_attention(layer, x[0].double(), config, lambda i, j: mask_mod(i, j, causal, window))
    assert_close(found[0].double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@torch.no_grad()
def test_scores_are_bounded_by_the_formula() -> None:
    """By tanh and by the square root, dense and in FlexAttention's blocks."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, heads, 160, 16, generator=generator) for heads in (4, 2, 2))
    scores = q @ k.repeat_interleave(2, 1).mT / 4
    documents = torch.zeros(2, 160, dtype=torch.int32)
    for by_tanh in (True, False):
        bounded = 1.5 * (scores / 1.5).tanh() if by_tanh else scores / (1 + (scores / 1.5) ** 2).sqrt()
        allowed = torch.ones(160, 160, dtype=torch.bool).tril()
        expected = bounded.masked_fill(~allowed, -math.inf).softmax(-1) @ v.repeat_interleave(2, 1)
        for mask in (AttentionMask(True), AttentionMask(True, blocks=build_block_mask(True, None, documents))):
            assert_close(attend_capped(q, k, v, mask, Softcap(1.5, by_tanh)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", list(Activation))
@torch.no_grad()
def test_feed_forward_equals_its_formula(activation: Activation) -> None:
    layer = FeedForward(shape("gpt", feed_forward=activation))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    up = layer.up(x).double()
    gate = up if layer.gate is None else layer.gate(x).double()
    by_name = {
        "gelu": gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))),
        "gelu_tanh": 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))),
        "relu2": gate.clamp(min=0) ** 2,
        "swiglu": gate / (1 + torch.exp(-gate)) * up,
        "geglu": gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))) * up,
    }
    by_name["geglu_tanh"] = by_name["gelu_tanh"] * up
    assert_close(layer(x), layer.down(by_name[activation.value].float()), atol=1e-6, rtol=1e-5)


@st.composite
def configs(draw: st.DrawFn) -> TransformerConfig:
    heads = draw(st.integers(1, 4))
    flags = {
        name: draw(st.booleans())
        for name in (
            "norm_bias",
            "norm_first_block",
            "embedding_norm",
            "bias",
            "qk_norm",
            "qk_norm_across_heads",
            "scale_embeddings",
            "tie_embeddings",
        )
    }
    position = draw(st.sampled_from(Position))
    norm = draw(st.sampled_from(Norm))
    norm_position = draw(st.sampled_from(NormPosition))
    flags["norm_first_block"] |= norm_position in (NormPosition.post, NormPosition.output)
    return TransformerConfig(
        n_layers=draw(st.integers(1, 3)),
        d_model=2 * heads * draw(st.integers(1, 4)),
        n_heads=heads,
        n_kv_heads=draw(st.sampled_from([None, *(n for n in range(1, heads + 1) if heads % n == 0)])),
        head_dim=draw(st.sampled_from([None, 2, 6])),
        d_ff=draw(st.sampled_from([None, 1, 7])),
        context_length=draw(st.integers(1, 9)),
        token_types=draw(st.integers(0, 2)),
        qkv_bias=draw(st.sampled_from([None, True, False])),
        attention_output_bias=draw(st.sampled_from([None, True, False])),
        feed_forward=draw(st.sampled_from(Activation)),
        norm=norm,
        norm_unit_offset=norm is Norm.rms and draw(st.booleans()),
        norm_position=norm_position,
        parallel_residual=norm_position is NormPosition.pre and draw(st.booleans()),
        position=position,
        position_offset=draw(st.integers(0, 3)) if position is Position.learned else 0,
        nope_every=draw(st.integers(0, 2)),
        attention_gate=draw(st.sampled_from(AttentionGate)),
        value_embeddings_every=draw(st.integers(0, 3)),
        residual_scalars=draw(st.booleans()),
        head=draw(st.sampled_from(Head)),
        **flags,
    )


@pytest.mark.slow
@given(config=configs(), vocab_size=st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_the_formula_for_the_size_equals_a_count(config: TransformerConfig, vocab_size: int) -> None:
    with torch.device("meta"):
        model = config.build(vocab_size, causal=True)
    assert parameter_count(config, vocab_size) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ClassifierHead)
def test_the_size_of_a_classifier_is_counted_whatever_head_it_replaces(kind: ClassifierHead) -> None:
    config = shape("llama", classifier_head=kind, head_init_std=0.0)
    model = config.build(50, causal=True, n_labels=3)
    assert config.parameter_count(50, n_labels=3) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "layers", "width", "heads", "context", "vocabulary", "count"),
    [
        ("gpt", 12, 768, 12, 1024, 50257, 124_439_808),
        ("gpt", 24, 1024, 16, 1024, 50257, 354_823_168),
        ("gpt", 36, 1280, 20, 1024, 50257, 774_030_080),
        ("gpt", 48, 1600, 25, 1024, 50257, 1_557_611_200),
        ("bert", 12, 768, 12, 512, 30522, 109_514_298),
        ("bert", 24, 1024, 16, 512, 30522, 335_174_458),
    ],
)
def test_sizes_are_the_published_ones(
    family: str, layers: int, width: int, heads: int, context: int, vocabulary: int, count: int
) -> None:
    config = shape(family, n_layers=layers, d_model=width, n_heads=heads, context_length=context)
    assert parameter_count(config, vocabulary) == count


def test_the_head_shares_the_embedding_again_after_copies_were_made() -> None:
    with torch.device("meta"):
        model = shape("gpt").build(50, causal=True)
    model.to_empty(device="cpu").tie()
    assert model.head.weight is model.embeddings.tokens.weight
    untied = shape("llama").build(50, causal=True)
    untied.tie()
    assert untied.head.weight is not untied.embeddings.tokens.weight


@pytest.mark.parametrize("seen", ["causal", "both ways", "documents"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_eager_attention_in_bf16_equals_the_fused_one(kv_heads: int, seen: str) -> None:
    documents = torch.tensor([[0] * 9 + [1] * 7, [0] * 16]) if seen == "documents" else None
    mask = build_mask(seen != "both ways", None, documents, 16, torch.device("cpu"))
    made = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, heads, 16, 8, generator=made) for heads in (4, kv_heads, kv_heads))
    found, expected = [], []
    for dtype, kept in ((torch.float32, expected), (torch.bfloat16, found)):
        given = [each.to(dtype, copy=True).requires_grad_() for each in (q, k, v)]
        out = attend(*given, mask, dropout=0.0)
        assert ("Flash" in str(out.grad_fn) or "Scaled" in str(out.grad_fn)) == (dtype is torch.float32), out.grad_fn
        out.float().square().sum().backward()
        kept += [out.detach().float(), *(each.grad.float() for each in given)]
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, atol=0.02 * float(theirs.abs().max()), rtol=0)


def test_attention_is_fused_for_many_scores_and_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = []
    monkeypatch.setattr(attention, "_eager_attention", lambda q, *_: eager.append(q.shape) or q)
    mask = build_mask(True, None, None, 64, torch.device("cpu"))
    few, many = (torch.zeros(1, heads, 64, 8, dtype=torch.bfloat16) for heads in (2, MAX_EAGER_SCORES // 64**2 + 1))
    for q in (few, many):
        attend(q, q, q, mask, dropout=0.0)
        with torch.no_grad():
            attend(q, q, q, mask, dropout=0.0)
    assert eager == [few.shape]
    with torch.autocast("cpu", torch.bfloat16):
        attend(few.float(), few.float(), few.float(), mask, dropout=0.0)
    attend(few.float(), few.float(), few.float(), mask, dropout=0.0)
    assert eager == [few.shape] * 2
