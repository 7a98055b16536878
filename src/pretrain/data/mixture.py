"""Several sources in exact proportions: the source of a sample is a function of its index."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.collate import Rows
from pretrain.data.config import DataConfig
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import RowOrigin, ShuffledRows
from pretrain.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Pair:
    """Two branches that share the samples of their pair; a branch is a source number or another pair."""

    weight: int  # of the first branch
    total: int  # of both
    first: "_Pair | int"
    second: "_Pair | int"

    def of_first(self, draws: int) -> int:
        """Return how many of the pair's first `draws` samples go to the first branch: its exact share, rounded."""
        return (2 * draws * self.weight + self.total) // (2 * self.total)


class Proportions:
    """Which source the g-th draw of a mixture reads, and which of that source's draws it is: a function of g alone.

    Sources are joined in pairs, always the two of least weight, until one pair holds all: Huffman's tree. A pair deals
    its draws to its two branches by rounding, so the count of a branch is never more than 1/2 from its share of the
    pair's. On the way down to a source these errors add up, each made smaller by the shares below it. After the first
    of them a share is at most 2/3, for what was joined with this branch weighs at least half as much; so whatever the
    weights, and however many the sources, the count of a source is less than (1 + 1 + 2/3 + (2/3)^2 + ...) / 2 = 2 from
    its exact share of any number of first draws. All of it is whole numbers without limit: draw 10^12 is as exact as 0.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        scale = math.lcm(*(weight.denominator for weight in weights))
        whole = [int(weight * scale) for weight in weights]
        self.shares = [Fraction(weight, sum(whole)) for weight in whole]
        heap: list[tuple[int, int, _Pair | int]] = [(weight, number, number) for number, weight in enumerate(whole)]
        heapq.heapify(heap)
        made = len(heap)
        while len(heap) > 1:
            (less, _, first), (more, _, second) = heapq.heappop(heap), heapq.heappop(heap)
            made += 1  # settles the order of equal weights
            heapq.heappush(heap, (less + more, made, _Pair(less, less + more, first, second)))
        self.root = heap[0][2]

    def __call__(self, draws: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
        """Return the number of each draw's source, and of the draw among that source's own; both int64, (draws,)."""
        found = np.array([self._one(draw) for draw in draws.tolist()], np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def counts(self, draws: int) -> list[int]:
        """Return how many of the first `draws` draws each source has."""
        counts = [0] * len(self.shares)
        waiting = [(self.root, draws)]
        while waiting:
            branch, count = waiting.pop()
            if isinstance(branch, _Pair):
                first = branch.of_first(count)
                waiting += [(branch.first, first), (branch.second, count - first)]
            else:
                counts[branch] = count
        return counts

    def _one(self, draw: int) -> tuple[int, int]:
        branch = self.root
        while isinstance(branch, _Pair):
            before = branch.of_first(draw)
            if branch.of_first(draw + 1) > before:
                branch, draw = branch.first, before
            else:
                branch, draw = branch.second, draw - before
        return branch, draw


class MixtureDataset:
    """The rows of a run in their order, each from one source; a single source is a mixture of one.

    No state: the rows of a step depend on the seed and the step alone, for any number of ranks and micro-batches.
    """

    def __init__(self, streams: dict[str, ShuffledRows], weights: Mapping[str, Fraction]) -> None:
        self.streams = streams
        self.proportions = Proportions([weights[name] for name in streams])
        self.shares = dict(zip(streams, self.proportions.shares, strict=True))

    def rows(self, sample_indices: npt.NDArray[np.integer]) -> Rows:
        """Return the rows of these samples, (len(sample_indices), row_length)."""
        if len(self.streams) == 1:
            return next(iter(self.streams.values())).rows(sample_indices)
        sources, draws = self.proportions(sample_indices)
        found = [
            stream.rows(draws[sources == number])
            for number, stream in enumerate(self.streams.values())
            if (sources == number).any()
        ]
        positions = np.argsort(np.argsort(sources, kind="stable"))  # of each sample in `found`, source after source
        return Rows.joined(found)[positions]

    def row_origins(self, sample_indices: npt.NDArray[np.integer]) -> list[RowOrigin]:
        """Return the origin of each sample's row; its id is <source>:<row>, or <row> for a single source."""
        sources, draws = self.proportions(sample_indices)
        streams = list(self.streams.items())
        found = []
        for source, draw in zip(sources.tolist(), draws, strict=True):
            name, stream = streams[source]
            row = int(stream.order(draw))
            found.append(RowOrigin(f"{name}:{row}" if name else str(row), name, stream, row))
        return found

    def is_open(self) -> bool:
        """Return False: all text was read before the run."""
        return False

    def is_waiting(self, samples: int) -> bool:
        """Return False: every row exists."""
        return False

    @property
    def rows_per_epoch(self) -> int | None:
        """Rows of one pass over the training text; None for several sources, each read at a pace of its own."""
        return len(next(iter(self.streams.values()))) if len(self.streams) == 1 else None

    def tokens(self) -> dict[str, int]:
        """Return how many training tokens each source has."""
        return {name: stream.store.n_tokens for name, stream in self.streams.items()}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how many epochs of each source the first `samples` samples make."""
        counts = self.proportions.counts(samples)
        return {name: count / len(stream) for (name, stream), count in zip(self.streams.items(), counts, strict=True)}


def mixture_dataset(
    stores: dict[str, Store], config: DataConfig, row_length: int, pad_id: int, seed: int
) -> MixtureDataset:
    """Return the training rows of a run from the stores of its sources.

    Each source is shuffled with its own seed. Raises DataError if a source has no rows.
    """
    streams = {}
    for name, store in stores.items():
        try:
            streams[name] = ShuffledRows(store, config, row_length, pad_id, _seed_of(name, seed))
        except DataError as error:
            raise DataError(f"source {name}: {error}" if name else str(error)) from error
    return MixtureDataset(streams, config.weights({name: len(stream) for name, stream in streams.items()}))


def _seed_of(source: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(source.encode(), seed=seed % 2**64) if source else seed
