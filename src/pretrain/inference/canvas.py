"""A text some of whose tokens are hidden: which masks are revealed in which step, and from which random numbers."""

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import ConfigError


class Reveal(NamedTuple):
    """A mask that becomes a token."""

    position: int  # in the row, from 0
    token: int
    log_probability: float  # nats, given the canvas before the step


class Canvas:
    """One row of tokens and masks. Tokens that were given are never changed."""

    def __init__(
        self, tokens: Sequence[int], mask_id: int, seed: int | None, steps: int | None, block_length: int | None
    ) -> None:
        """Plan the steps of a row; raises ConfigError for a number of steps that it cannot have."""
        self.tokens = list(tokens)
        self.mask_id = mask_id
        self.hidden = [position for position, token in enumerate(self.tokens) if token == mask_id]
        self.revealed: dict[int, float] = {}  # log-probability of each position, in the order of the reveals
        self.newest: list[Reveal] = []  # of the last step
        self._generator = _generator(self.tokens, seed)
        size = block_length or max(1, len(self.hidden))
        blocks = [self.hidden[i : i + size] for i in range(0, len(self.hidden), size)]
        counts = counts_per_step([len(block) for block in blocks], steps)
        self._blocks = list(zip(blocks, counts, strict=True))[::-1]  # the last is the current one

    @property
    def next_count(self) -> int:
        """How many masks the next step reveals."""
        return self._blocks[-1][1][0]

    @property
    def found(self) -> dict[int, int]:
        """The revealed token of each position that was a mask."""
        return {position: self.tokens[position] for position in self.revealed}

    def block_positions(self) -> list[int]:
        """Return the masks of the current block, from left to right."""
        return self._blocks[-1][0]

    def random_positions(self) -> list[int]:
        """Return as many masks of the current block as the next step reveals: every choice is equally likely."""
        positions = self.block_positions()
        chosen = torch.randperm(len(positions), generator=self._generator)[: self.next_count]
        return sorted(positions[i] for i in chosen.tolist())

    def uniforms(self, count: int) -> Tensor:
        """Return the row's next random numbers from 0 to below 1, float64 (count,)."""
        return torch.rand(count, dtype=torch.float64, generator=self._generator)

    def reveal(self, reveals: list[Reveal], end_ids: Collection[int]) -> None:
        """Replace masks by tokens. The first of `end_ids` ends the text: what lies after it is dropped, masks too."""
        for position, token, log_probability in reveals:
            self.tokens[position] = token
            self.revealed[position] = log_probability
        ends = [position for position, token, _ in reveals if token in end_ids]
        length = min(ends) + 1 if ends else len(self.tokens)
        del self.tokens[length:]
        self.newest = [each for each in reveals if each.position < length]
        self.revealed = {position: value for position, value in self.revealed.items() if position < length}
        self.hidden = [position for position in self.hidden if position < length and position not in self.revealed]
        positions, counts = self._blocks.pop()
        left = [position for position in positions if position < length and position not in self.revealed]
        if left:  # else the next block is the current one; after the end of the text nothing is hidden
            self._blocks.append((left, [min(count, len(left)) for count in counts[1:]]))

    def is_known(self, position: int) -> bool:
        """Whether a position holds a token, or lies after the end of the text."""
        return position >= len(self.tokens) or self.tokens[position] != self.mask_id

    def without_given(self, kept: Collection[int]) -> list[int]:
        """Return the tokens with masks for all that were given; `kept`: special tokens that stay."""
        positions = self.revealed.keys()
        return [
            token if position in positions or token in kept else self.mask_id
            for position, token in enumerate(self.tokens)
        ]


def counts_per_step(blocks: Sequence[int], steps: int | None) -> list[list[int]]:
    """Return how many masks each step reveals, block by block; `blocks` are their numbers of masks.

    Every block gets one step, and the rest go one by one to the block with the most masks per step. The counts of a
    block differ by one at most. Raises ConfigError for more steps than masks, or fewer than blocks.
    """
    masks = sum(blocks)
    if steps is None or not masks:
        return [[1] * size for size in blocks]
    if steps > masks:
        raise ConfigError(
            f"steps={steps} is more than the {masks} masks to fill, and each step fills at least one. "
            f"Try steps={masks}, or leave it out."
        )
    if steps < len(blocks):
        raise ConfigError(
            f"steps={steps} is fewer than the {len(blocks)} blocks of block_length={max(blocks)}, which take one step "
            f"each at least. Try steps={len(blocks)}, or block_length={-(-masks // steps)}."
        )
    sizes, taken = np.array(blocks), np.ones(len(blocks), np.int64)
    for _ in range(steps - len(blocks)):
        taken[np.argmax(sizes / taken)] += 1
    return [
        [size // n + int(step < size % n) for step in range(n)] for size, n in zip(blocks, taken.tolist(), strict=True)
    ]


def _generator(tokens: Sequence[int], seed: int | None) -> torch.Generator:
    """Return the random generator of a row, a function of the seed and its tokens; without a seed a new one."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    key = np.array([seed, *tokens], np.uint64).tobytes()
    return generator.manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))
