"""Filling masks: the model's own distribution, given tokens that stay, and draws that no neighbor changes."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import random_model, shape
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.inference import canvas as canvas_module
from pretrain.inference.canvas import Canvas, Reveal, counts_per_step
from pretrain.inference.config import DecodingOrder
from pretrain.inference.diffusion import Denoising, _scores, denoise, generate_by_denoising
from pretrain.inference.sampling import Sampling, draw_tokens
from pretrain.models.config import TransformerConfig

VOCAB, START, END, MASK = 50, 1, 2, 3
SUPPRESSED = torch.arange(VOCAB) < 4
HOT = Sampling(temperature=1.0, seed=0)
PLAIN = Denoising(MASK, SUPPRESSED, HOT)
ROWS = [[1, 10, MASK, 11, MASK, MASK, 2], [1, MASK, 20, 2], [1, MASK, MASK, 30, MASK, MASK, MASK, 31, 32, MASK, 2]]


def filled(model: Any, rows: Sequence[Sequence[int]], denoising: Denoising = PLAIN) -> list[list[int]]:
    *_, canvases = denoise(model, rows, denoising)
    return [canvas.tokens for canvas in canvases]


class Table(nn.Module):
    """A bidirectional model of three tokens 0, 1, 2 and a mask 3 that knows a joint distribution of three places."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.config = TransformerConfig(context_length=8)
        self.vocab_size, self.causal, self.head = 4, False, nn.Identity()
        self.anchor = nn.Parameter(torch.zeros(1))
        draw = torch.rand(27, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2 + 0.02
        self.joint = (draw / draw.sum()).reshape(3, 3, 3)
        self.runs = 0
        self.known: dict[tuple[int, ...], Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of every place, (B, 3, 4): its distribution given the tokens that are no masks."""
        self.runs += 1
        return torch.stack([self.logits(tuple(row)) for row in tokens.tolist()])

    def logits(self, tokens: tuple[int, ...]) -> Tensor:
        """Return the logits of the places of one canvas, (3, 4); there are 64 canvases."""
        if tokens not in self.known:
            logits = torch.full((3, 4), -30.0)
            for place in range(3):
                seen = [slice(None) if t == 3 or i == place else slice(t, t + 1) for i, t in enumerate(tokens)]
                logits[place, :3] = self.joint[tuple(seen)].sum([i for i in range(3) if i != place]).log()
            self.known[tokens] = logits
        return self.known[tokens]


TABLE = Denoising(3, torch.arange(4) == 3, Sampling(temperature=1.0), steps=3)


def chi_square(counts: Counter[tuple[int, ...]], joint: Tensor) -> float:
    """Return the statistic over the 27 outcomes, by 26 degrees of freedom in the mean 26."""
    n = sum(counts.values())
    return sum(
        (counts[place] - n * float(joint[place])) ** 2 / (n * float(joint[place]))
        for place in itertools.product(range(3), repeat=3)
    )


@pytest.fixture
def numbered_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every row random numbers of its own, the same in each run of the tests: equal rows are equal otherwise."""
    numbers = itertools.count()
    monkeypatch.setattr(canvas_module, "_generator", lambda *_: torch.Generator().manual_seed(next(numbers)))


@pytest.mark.slow
@pytest.mark.usefixtures("numbered_rows")
def test_random_order_one_by_one_draws_from_the_joint_distribution() -> None:
    """The 99.9th percentile of chi-square with 26 degrees of freedom is 54.05. Fewer steps miss the dependence."""
    table = Table()
    rows = [[3, 3, 3]] * 3000
    exact = Counter(map(tuple, filled(table, rows, TABLE)))
    assert table.runs == 3
    assert chi_square(exact, table.joint) < 54.05
    at_once = Counter(map(tuple, filled(table, rows, replace(TABLE, steps=1))))
    assert table.runs == 4
    assert chi_square(at_once, table.joint) > 200


@pytest.mark.slow
@pytest.mark.usefixtures("numbered_rows")
def test_every_order_of_reveals_is_equally_likely() -> None:
    *_, canvases = denoise(Table(), [[3, 3, 3]] * 3000, TABLE)
    orders = Counter(tuple(canvas.revealed) for canvas in canvases)
    assert len(orders) == 6
    assert sum((count - 500) ** 2 / 500 for count in orders.values()) < 20.52  # 99.9th percentile, 5 degrees


@pytest.mark.parametrize("order", list(DecodingOrder))
@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("modern_bert", False), ("llama", True)])
def test_masks_are_filled_and_given_tokens_stay(order: DecodingOrder, family: str, causal: bool) -> None:
    """A hybrid model predicts a mask from the position before it; neighbors in the batch change nothing."""
    model = random_model(shape(family), VOCAB, causal)
    for denoising in (PLAIN, replace(PLAIN, steps=1), replace(PLAIN, block_length=2, guidance_scale=1.5)):
        denoising = replace(denoising, order=order, shift_targets=causal)
        together = filled(model, ROWS, denoising)
        assert together == [filled(model, [row], denoising)[0] for row in ROWS]
        for before, after in zip(ROWS, together, strict=True):
            assert len(before) == len(after)
            assert all(new == old if old != MASK else new > 3 for old, new in zip(before, after, strict=True))


def test_a_seed_and_the_row_alone_fix_the_draws() -> None:
    model = random_model(shape("bert"), VOCAB, causal=False)
    assert filled(model, ROWS) == filled(model, ROWS[::-1])[::-1]
    assert filled(model, ROWS) != filled(model, ROWS, replace(PLAIN, sampling=Sampling(1.0, seed=1)))
    free = replace(PLAIN, sampling=Sampling(1.0))
    assert filled(model, ROWS, free) != filled(model, ROWS, free)
    twins = filled(model, [ROWS[2], ROWS[2]], free)
    assert twins[0] != twins[1]


@torch.no_grad()
def log_p(model: Any, tokens: list[int], place: int, suppressed: Tensor = SUPPRESSED) -> Tensor:
    scores: Tensor = model.head(model(torch.tensor([tokens])))[0, place].double()
    return scores.masked_fill(suppressed, -torch.inf).log_softmax(-1)


@torch.no_grad()
def test_blocks_of_one_run_from_left_to_right() -> None:
    model = random_model(shape("modern_bert"), VOCAB, causal=False)
    tokens = [1, 9, *[MASK] * 8]
    greedy = replace(PLAIN, sampling=Sampling(0.0), block_length=1)
    found = [new for (new,) in generate_by_denoising(model, [tokens[:2]], 8, greedy)]
    for place in range(2, 10):
        values = log_p(model, tokens, place)
        tokens[place] = int(values.argmax())
        token = found[place - 2]
        assert token is not None
        assert token.token == tokens[place]
        assert token.log_probability == pytest.approx(float(values.max()), abs=1e-4)
    assert len(set(tokens[2:])) > 3


@pytest.mark.parametrize("order", [DecodingOrder.confidence, DecodingOrder.margin, DecodingOrder.entropy])
def test_the_surest_mask_comes_first(order: DecodingOrder) -> None:
    model = random_model(shape("bert"), VOCAB, causal=False)
    tokens = [1, 9, *[MASK] * 6, 12, 2]
    *_, (canvas,) = denoise(model, [tokens], replace(PLAIN, sampling=Sampling(0.0), order=order))
    reveals = list(canvas.revealed)
    for revealed in reveals:
        p = {place: log_p(model, tokens, place).exp() for place in range(2, 8) if tokens[place] == MASK}
        scores = {
            DecodingOrder.confidence: {place: float(each.max()) for place, each in p.items()},
            DecodingOrder.margin: {place: float(each.topk(2).values @ torch.tensor([1.0, -1.0]).double())
                                   for place, each in p.items()},
            DecodingOrder.entropy: {place: float((each * each.clamp(min=1e-300).log()).sum())
                                    for place, each in p.items()},
        }[order]  # fmt: skip
        assert revealed == max(scores, key=lambda place: scores[place])
        tokens[revealed] = int(p[revealed].argmax())
    assert reveals != sorted(reveals)


def test_guidance_weighs_the_given_tokens() -> None:
    """Against (1 + w) log p(x | given) - w log p(x), renormalized. Special tokens are never hidden."""
    model = random_model(shape("bert"), VOCAB, causal=False)
    for suppressed in (SUPPRESSED, SUPPRESSED & (torch.arange(VOCAB) != END)):  # the end of a text may be drawn
        denoising = replace(
            PLAIN, guidance_scale=2.0, suppress_tokens=suppressed, special_ids=frozenset((0, START, END, MASK))
        )
        *_, (canvas,) = denoise(model, [[1, 9, 8, MASK, 2]], denoising)
        given, bare = ([1, 9, 8, MASK, 2], [1, MASK, MASK, MASK, 2])
        guided = 3 * log_p(model, given, 3, suppressed) - 2 * log_p(model, bare, 3, suppressed)
        expected = guided.masked_fill(suppressed, -torch.inf).log_softmax(-1)
        assert canvas.revealed[3] == pytest.approx(float(expected[canvas.tokens[3]]), abs=1e-3)


class Scripted(nn.Module):
    """A model that writes a text by heart, whatever it reads."""

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__()
        self.config = TransformerConfig(context_length=16)
        self.vocab_size, self.causal, self.head = VOCAB, False, nn.Identity()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.text = text
        self.runs = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.runs += 1
        logits = torch.zeros(*tokens.shape, VOCAB)
        for place in range(tokens.shape[1]):
            logits[:, place, self.text[place]] = 100.0
        return logits


def test_a_text_ends_at_the_end_token_and_later_blocks_are_not_run() -> None:
    text = [1, 9, 10, 11, 12, END, 13, 14, 15, 16, 17, 18]
    suppressed = SUPPRESSED & (torch.arange(VOCAB) != END)
    denoising = replace(PLAIN, end_ids=frozenset({END}), suppress_tokens=suppressed)
    for changes, runs in [({}, None), ({"steps": 1}, 1), ({"block_length": 5, "steps": 4}, 2)]:
        model = Scripted(text)
        steps = list(generate_by_denoising(model, [[1, 9]], 10, replace(denoising, **changes)))
        assert [step[0] and step[0].token for step in steps] == [10, 11, 12, None]
        assert runs is None or model.runs == runs
    whole = list(generate_by_denoising(Scripted(text), [[1, 9], [1]], 3, denoising))  # ended by the length: no None
    assert [[token and token.token for token in step] for step in whole] == [[10, 9], [11, 10], [12, 11]]


def test_tokens_come_block_by_block() -> None:
    model = Scripted(list(range(4, 20)))
    denoising = replace(PLAIN, block_length=4, steps=6)
    runs = [model.runs for _ in generate_by_denoising(model, [[1]], 12, denoising)]
    assert (runs[3], runs[7], runs[11]) == (2, 4, 6)


@pytest.mark.parametrize(
    ("blocks", "steps", "counts"),
    [
        ([3], None, [[1, 1, 1]]),
        ([10], 4, [[3, 3, 2, 2]]),
        ([4, 4, 2], 5, [[2, 2], [2, 2], [2]]),
        ([10, 1], 2, [[10], [1]]),
        ([1, 1], 2, [[1], [1]]),
    ],
)
def test_steps_share_the_masks(blocks: list[int], steps: int | None, counts: list[list[int]]) -> None:
    assert counts_per_step(blocks, steps) == counts


def test_each_step_reveals_as_many_as_planned() -> None:
    model = random_model(shape("bert"), VOCAB, causal=False)
    seen: list[int] = []
    denoising = replace(PLAIN, steps=3, on_step=lambda canvases: seen.append(len(canvases[0].hidden)))
    filled(model, [ROWS[2]], denoising)
    assert seen == [6, 4, 2, 0]


def test_a_row_with_fewer_masks_than_steps_takes_one_for_each() -> None:
    """A prompt that nearly fills the context does not refuse the batch, nor change its neighbors."""
    model = random_model(shape("bert"), VOCAB, causal=False)
    rows, denoising = [ROWS[1], ROWS[2]], replace(PLAIN, steps=3)
    alone = filled(model, [ROWS[1]]) + filled(model, [ROWS[2]], denoising)
    assert filled(model, rows, denoising) == alone
    assert filled(model, rows, replace(denoising, block_length=3)) == (
        filled(model, [ROWS[1]]) + filled(model, [ROWS[2]], replace(denoising, block_length=3))
    )


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """2e-9 apart from 1: in 32 bits such a token is never drawn, or far too often."""
    rare = torch.tensor([[1 - 2e-9, 2e-9]], dtype=torch.float64).log()
    uniforms = torch.tensor([1 - 2e-9 - 1e-15, 1 - 2e-9 + 1e-15], dtype=torch.float64)
    assert draw_tokens(rare.repeat(2, 1), uniforms, HOT).tolist() == [0, 1]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    never = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]], dtype=torch.float64)
    assert draw_tokens(never.repeat(2, 1), edges, HOT).tolist() == [1, 2]
    limited = replace(HOT, top_k=1)
    assert draw_tokens(rare, uniforms[1:], limited).tolist() == [0]


@pytest.mark.parametrize(
    ("limits", "weights"),
    [
        ({"temperature": 0.5}, [16, 9, 4, 1]),
        ({"temperature": 2.0}, [2, 3**0.5, 2**0.5, 1]),
        ({"top_k": 2}, [4, 3, 0, 0]),
        ({"top_p": 0.75}, [4, 3, 2, 0]),  # the two most likely have 0.7 together
        ({"min_p": 0.6}, [4, 3, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.8}, [16, 9, 0, 0]),  # the limit is one of the sharper distribution
    ],
)
def test_temperature_and_limits_shape_what_is_drawn(limits: dict[str, Any], weights: list[float]) -> None:
    """Of tokens with 0.4, 0.3, 0.2 and 0.1; evenly spaced numbers stand for chance, so shares are exact to 1 / 2000."""
    uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    log_p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log().repeat(2000, 1)
    drawn = draw_tokens(log_p, uniforms, replace(HOT, **limits))
    shares = torch.bincount(drawn, minlength=4) / 2000
    assert shares.tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-3)


def test_each_order_has_a_favorite_of_its_own() -> None:
    """Three places: with the likeliest token, with the largest lead over the second, with the fewest surprises."""
    sure, lead, calm = [0.52, 0.3, *[0.018] * 10], [0.44, *[0.056] * 10, 0.0], [0.5, 0.5, *[0.0] * 10]
    log_p = torch.tensor([sure, lead, calm], dtype=torch.float64).log()
    orders = [DecodingOrder.confidence, DecodingOrder.margin, DecodingOrder.entropy]
    assert [int(_scores(order, log_p, log_p[:, 0]).argmax()) for order in orders] == [0, 1, 2]


def test_a_row_has_random_numbers_of_its_own_in_double_precision() -> None:
    """Rows of one batch with equal numbers would be alike; numbers of 32 bits never draw a rare token."""
    rows = [[1, 10, MASK], [1, 11, MASK]]
    one, other = (Canvas(row, MASK, 0, None, None).uniforms(1000) for row in rows)
    assert (one != other).all()
    assert torch.equal(one, Canvas(rows[0], MASK, 0, None, None).uniforms(1000))
    assert (one != one.float().double()).sum() > 900


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ([1, MASK, MASK, 2], {"steps": 4}, r"steps=4 is more than the 3 masks to fill.* Try steps=3"),
        ([1, *[MASK] * 9], {"steps": 2, "block_length": 3},
         r"steps=2 is fewer than the 3 blocks of block_length=3.* Try steps=3, or block_length=5"),
        ([1, 9, 2], {}, r"the text has no \[MASK\] to fill"),
        ([1, *[MASK] * 40], {}, r"the text has 41 tokens, the model's context 32"),
        ([MASK, 5], {"shift_targets": True}, r"the first token is a mask"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_is_refused(row: list[int], changes: dict[str, Any], message: str) -> None:
    model = random_model(shape("bert"), VOCAB, causal=False)
    with pytest.raises(ConfigError, match=message):
        denoise(model, [[1, MASK, MASK, MASK], row], replace(PLAIN, **changes))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, r"steps=0 is below 1\. Try steps=32"),
        ("block_length", 0, r"block_length=0 is below 1\. Try block_length=32"),
        ("guidance_scale", -1.0, r"guidance_scale=-1\.0 is not a number from 0 up\. Try guidance_scale=1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAIN, **{name: value})


def test_a_prompt_beyond_the_context_is_refused() -> None:
    model = random_model(shape("bert"), VOCAB, causal=False)
    with pytest.raises(ConfigError, match=r"max_new_tokens=30 do not fit into the model's context of 32 tokens"):
        generate_by_denoising(model, [[1, 5, 6]], 30, PLAIN)


def test_a_canvas_forgets_what_lies_behind_the_end() -> None:
    canvas = Canvas([1, MASK, MASK, MASK], MASK, 0, None, None)
    canvas.reveal([Reveal(3, 9, -1.0)], {END})
    canvas.reveal([Reveal(2, END, -1.0)], {END})
    assert canvas.tokens == [1, MASK, END]
    assert canvas.hidden == [1]
    assert list(canvas.revealed) == [2]
    canvas.reveal([Reveal(1, 8, -1.0)], {END})
    assert not canvas.hidden


def test_a_canvas_ends_at_the_first_of_several_end_tokens() -> None:
    canvas = Canvas([1, *[MASK] * 4], MASK, 0, None, None)
    canvas.reveal([Reveal(3, END, -1.0)], {START, END})
    assert canvas.tokens == [1, MASK, MASK, END]
    canvas.reveal([Reveal(1, START, -1.0)], {START, END})
    assert canvas.tokens == [1, START]
    assert not canvas.hidden
