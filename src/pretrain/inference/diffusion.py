"""Fill the masks of texts in any order, as a masked diffusion model generates (Sahoo et al. 2024).

The network has no time input, so the law of the next reveal depends on the canvas alone: which of its masks comes next
is uniform, and no grid of times is needed (Zheng et al. 2024, https://arxiv.org/abs/2409.02908, section 3).
Shapes: B canvases, T positions, N masks, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.config.setting import check, description
from pretrain.errors import ConfigError
from pretrain.inference.canvas import Canvas, Reveal
from pretrain.inference.config import DecodingOrder, GenerateConfig
from pretrain.inference.fill_mask import check_has_mask
from pretrain.inference.generate import NewToken, check_length, context_length_of
from pretrain.inference.sampling import Sampling, draw_tokens
from pretrain.models.interface import LanguageModule, hidden_states, inputs_of

MAX_CHUNK = 1 << 24  # logits in double precision at a time: 128 MiB


@dataclass(frozen=True)
class Denoising:
    """How the masks of canvases are filled."""

    mask_id: int
    suppress_tokens: Tensor  # bool (V,): tokens never drawn
    sampling: Sampling
    end_ids: frozenset[int] = frozenset()  # the text ends at each of these tokens; without any, where the canvas does
    order: DecodingOrder = DecodingOrder.random
    steps: int | None = None  # runs of the model; None: one for each mask
    block_length: int | None = None  # masks that are filled before those to their right; None: all
    guidance_scale: float = 0.0
    shift_targets: bool = False  # the position before a mask predicts it
    on_step: Callable[[Sequence[Canvas]], None] | None = None  # gets the canvases before the first step and after each
    special_ids: frozenset[int] = frozenset()  # guidance never hides them; some may be drawn, such as the end token

    def __post_init__(self) -> None:
        for name in ("steps", "block_length", "guidance_scale"):
            check(name, getattr(self, name), description(GenerateConfig, name))


class Candidates(NamedTuple):
    """One drawn token for each of N masks; on the CPU."""

    tokens: Tensor  # int64 (N,)
    log_probabilities: Tensor  # float64 (N,), nats: before temperature and limits
    scores: Tensor  # float64 (N,): the highest are revealed first


def denoise(model: LanguageModule, rows: Sequence[Sequence[int]], denoising: Denoising) -> Iterator[list[Canvas]]:
    """Return an iterator over the canvases of all rows: before the first step and after each, until no mask is left.

    A row is a text with any number of `mask_id`. The canvases are the same objects each time, changed in place. A
    row's draws depend on the seed and on this row alone. A row with fewer masks than steps takes one step for each.
    Raises ConfigError for a row that exceeds the context or has no mask, for more steps than any row has masks, and
    for fewer than a row has blocks.
    """
    context_length = context_length_of(model)
    for row in rows:
        check_has_mask(row, denoising.mask_id)
        if len(row) > context_length:
            raise ConfigError(
                f"the text has {len(row)} tokens, the model's context {context_length}. Try a shorter text."
            )
        if denoising.shift_targets and row[0] == denoising.mask_id:
            raise ConfigError(
                "the first token is a mask, and this model predicts a mask from the token before it. "
                "Begin the text with a token that is known."
            )
    seed, steps, block_length = denoising.sampling.seed, denoising.steps, denoising.block_length
    masks = [list(row).count(denoising.mask_id) for row in rows]
    if steps is not None and steps <= max(masks, default=0):
        plans: list[int | None] = [min(steps, count) for count in masks]
    else:
        plans = [steps] * len(rows)
    canvases = [
        Canvas(row, denoising.mask_id, seed, planned, block_length) for row, planned in zip(rows, plans, strict=True)
    ]
    return _observed(_steps(_Network(model, denoising), canvases), denoising.on_step)


def _observed(
    steps: Iterator[list[Canvas]], on_step: Callable[[Sequence[Canvas]], None] | None
) -> Iterator[list[Canvas]]:
    for canvases in steps:
        if on_step is not None:
            on_step(canvases)
        yield canvases


@torch.inference_mode()  # as a decorator it is off while the caller's code runs between two steps
def _steps(network: "_Network", canvases: list[Canvas]) -> Iterator[list[Canvas]]:
    yield canvases
    while active := [canvas for canvas in canvases if canvas.hidden]:
        for canvas, reveals in zip(active, network.reveals(active), strict=True):
            canvas.reveal(reveals, network.denoising.end_ids)
        yield canvases


def generate_by_denoising(
    model: LanguageModule, prompts: Sequence[Sequence[int]], new: int | Sequence[int], denoising: Denoising
) -> Iterator[list[NewToken | None]]:
    """Return an iterator over the next tokens of all prompts, from left to right, as soon as all have one.

    Each prompt is followed by `new` masks, or a number of its own. A prompt whose text has ended gives None. Raises
    ConfigError if the context is too short, and as `denoise` does.
    """
    counts = [new] * len(prompts) if isinstance(new, int) else new
    for prompt, count in zip(prompts, counts, strict=True):
        check_length(len(prompt), count, context_length_of(model))
    rows = [[*prompt, *[denoising.mask_id] * count] for prompt, count in zip(prompts, counts, strict=True)]
    starts = [len(prompt) for prompt in prompts]
    return _from_the_left(denoise(model, rows, denoising), starts, max(counts), denoising.end_ids)


def _from_the_left(
    steps: Iterator[list[Canvas]], starts: Sequence[int], most: int, end_ids: frozenset[int]
) -> Iterator[list[NewToken | None]]:
    offset = 0  # from the end of the prompt
    for canvases in steps:
        positions = [(canvas, start + offset) for canvas, start in zip(canvases, starts, strict=True)]
        while offset < most and all(canvas.is_known(position) for canvas, position in positions):
            tokens = [_token(canvas, position, end_ids) for canvas, position in positions]
            yield tokens
            if not any(tokens):
                return
            offset += 1
            positions = [(canvas, position + 1) for canvas, position in positions]


def _token(canvas: Canvas, position: int, end_ids: frozenset[int]) -> NewToken | None:
    """Return the revealed token at a position; None at the end of the text and after it."""
    if position >= len(canvas.tokens) or canvas.tokens[position] in end_ids:
        return None
    return NewToken(canvas.tokens[position], canvas.revealed[position])


class _Network:
    """The model as a function from canvases to reveals."""

    def __init__(self, model: LanguageModule, denoising: Denoising) -> None:
        self.model: Any = model
        self.denoising = denoising
        self.device = next(model.parameters()).device
        self.suppress_tokens = denoising.suppress_tokens.cpu()

    def reveals(self, canvases: Sequence[Canvas]) -> list[list[Reveal]]:
        """Return the next reveals of each canvas, one run of the model for all."""
        by_chance = self.denoising.order is DecodingOrder.random
        positions = [canvas.random_positions() if by_chance else canvas.block_positions() for canvas in canvases]
        counts = [len(chosen) for chosen in positions]
        hidden, unguided = self._hidden(canvases, positions)
        uniforms = torch.cat([canvas.uniforms(count) for canvas, count in zip(canvases, counts, strict=True)])
        size = max(1, MAX_CHUNK // self.model.vocab_size)
        starts = range(0, len(hidden), size)
        chunks = [
            self._candidates(hidden[i : i + size], unguided[i : i + size], uniforms[i : i + size]) for i in starts
        ]
        drawn = [torch.cat(parts).split(counts) for parts in zip(*chunks, strict=True)]
        return [
            _best(Candidates(*parts), chosen, canvas.next_count)
            for canvas, chosen, *parts in zip(canvases, positions, *drawn, strict=True)
        ]

    def _hidden(self, canvases: Sequence[Canvas], positions: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the hidden states that predict the positions of all canvases, (N, d): with given tokens, and without.

        The second is empty, (0, d), unless guidance needs it.
        """
        rows = [canvas.tokens for canvas in canvases]
        if not self.denoising.guidance_scale:
            hidden = self._states(rows, positions)
            return hidden, hidden[:0]
        bare = [canvas.without_given(self.denoising.special_ids) for canvas in canvases]
        both = self._states([*rows, *bare], [*positions, *positions])
        hidden, unguided = both.chunk(2)
        return hidden, unguided

    def _states(self, rows: Sequence[list[int]], positions: Sequence[list[int]]) -> Tensor:
        """Return the hidden states that predict the given positions of rows, (N, d), in order."""
        lengths = [len(row) for row in rows]
        shift = int(self.denoising.shift_targets)
        if "documents" in inputs_of(self.model):
            groups = [list(range(len(rows)))]
        else:  # the model cannot leave padding out
            groups = [[i for i, length in enumerate(lengths) if length == each] for each in dict.fromkeys(lengths)]
        states: dict[int, Tensor] = {}
        for group in groups:
            hidden = self._run([rows[i] for i in group])
            for row, i in zip(hidden, group, strict=True):
                states[i] = row[torch.tensor(positions[i], device=row.device) - shift]
        return torch.cat([states[i] for i in range(len(rows))])

    def _run(self, rows: Sequence[list[int]]) -> Tensor:
        """Return the hidden states (B, T, d) of rows, padded on the right with a document of its own."""
        longest = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        documents = None
        if any(len(row) < longest for row in rows):
            lengths = torch.tensor([len(row) for row in rows], device=self.device)
            columns = torch.arange(longest, device=self.device)
            documents = (columns >= lengths.unsqueeze(1)).to(torch.int32)
        bidirectional = torch.zeros(len(rows), dtype=torch.bool, device=self.device) if self.model.causal else None
        return hidden_states(self.model, tokens, documents=documents, is_causal=bidirectional)

    def _candidates(self, hidden: Tensor, unguided: Tensor, uniforms: Tensor) -> Candidates:
        """Return a drawn token with its score for each of the hidden states (N, d)."""
        scale = self.denoising.guidance_scale
        log_p = self._log_probabilities(hidden)
        if scale:  # Nie et al. 2024, https://arxiv.org/abs/2410.18514, section 4
            log_p = (1 + scale) * log_p - scale * self._log_probabilities(unguided)
            log_p = log_p.masked_fill(self.suppress_tokens, -torch.inf).log_softmax(-1)
        tokens = draw_tokens(log_p, uniforms, self.denoising.sampling)
        chosen = log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return Candidates(tokens, chosen, _scores(self.denoising.order, log_p, chosen))

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return the model's log-probabilities without those of suppressed tokens, float64 (N, V)."""
        logits = self.model.head(hidden).float().cpu().double()
        suppressed: Tensor = logits.masked_fill(self.suppress_tokens, -torch.inf).log_softmax(-1)
        return suppressed


def _scores(order: DecodingOrder, log_p: Tensor, chosen: Tensor) -> Tensor:
    """Return what orders the masks, float64 (N,): the highest are revealed first.

    confidence: of the drawn token (Chang et al. 2022, https://arxiv.org/abs/2202.04200; Nie et al. 2025); margin: of
    the two most likely tokens (Kim et al. 2025, https://arxiv.org/abs/2502.06768); entropy: the lowest first.
    """
    if order is DecodingOrder.margin:
        first, second = log_p.exp().topk(2, dim=-1).values.unbind(-1)
        return first - second
    if order is DecodingOrder.entropy:
        return -torch.special.entr(log_p.exp()).sum(-1)
    return chosen


def _best(candidates: Candidates, positions: list[int], count: int) -> list[Reveal]:
    """Return the `count` candidates of the highest scores, from left to right; of equal ones those on the left."""
    best = sorted(candidates.scores.argsort(descending=True, stable=True)[:count].tolist())
    tokens, log_probabilities = candidates.tokens.tolist(), candidates.log_probabilities.tolist()
    return [Reveal(positions[i], tokens[i], log_probabilities[i]) for i in best]
