"""Runs of words that documents share with evaluation items, and what the published definitions say about each item.

A run of n words is a hash (`Shingler`). An item's parts have the runs of three sizes: that of the settings (13 in
GPT-3: Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C), 8 (PaLM: Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, section 8; Llama 3: Dubey et al. 2024, https://arxiv.org/abs/2407.21783, section
5.1.4) and 11 (Llama 2: Touvron et al. 2023, https://arxiv.org/abs/2307.09288, appendix A.6: more than 10 tokens, for
which we take words). A part of 8 words or more that is shorter than a run is one run itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.contamination.config import SHORTEST
from pretrain.data.curation.contamination.eval_sets import Item
from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints, Shingler, normalized_words

OVERLAP_VERSION = 1  # increase when the runs of a text or a verdict change
OWN, EIGHT, ELEVEN = 0, 1, 2  # the three sizes of runs
GRAM = np.dtype([("length", "<u4"), ("hash", "<u8")])
POSTING = np.dtype([("gram", "<u4"), ("item", "<u4"), ("position", "<u4"), ("size", "u1")])
HIT = np.dtype([("document", "<u8"), ("gram", "<u4")])
CONTAMINATED = np.dtype([("document", "<u8"), ("sets", "<u8"), ("share", "<f8")])
DIRTY, NOT_CLEAN = 0.8, 0.2  # Llama 2: shares of an item's words in shared runs
PALM_SHARE = 0.7  # PaLM: share of an item's runs of 8 words

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[Any]


def grams_of_items(items: Iterable[Item], words: int) -> tuple[Rows, Rows, Ints]:
    """Return the runs of all items sorted by length and hash, where each stands, and the words of each item.

    A posting's position is that of the run's first word, counted through the item's parts.
    """
    lengths, hashes, all_rows, totals = list[Ints](), list[Hashes](), list[Rows](), list[int]()
    shinglers: dict[int, Shingler] = {}
    for number, item in enumerate(items):
        before = 0
        for part in item.parts:
            count = len(normalized_words(part))
            if count < SHORTEST:
                continue
            for size, length in enumerate((words, 8, 11)):
                used = min(length, count)
                found, _ = shinglers.setdefault(used, Shingler(used)).shingles([part])
                rows = np.zeros(len(found), POSTING)
                rows["item"], rows["position"], rows["size"] = number, before + np.arange(len(found)), size
                all_rows.append(rows)
                hashes.append(found)
                lengths.append(np.full(len(found), used, np.int64))
            before += count
        totals.append(before)
    known = np.zeros(sum(map(len, hashes)), GRAM)
    if len(known):
        known["length"], known["hash"] = np.concatenate(lengths), np.concatenate(hashes)
    grams, which = np.unique(known, return_inverse=True)
    postings = np.concatenate([np.empty(0, POSTING), *all_rows])
    postings["gram"] = which
    return grams, postings[np.argsort(postings["gram"], kind="stable")], np.array(totals, np.int64)


class Finder:
    """Finds the runs of evaluation items in texts."""

    def __init__(self, grams: Rows) -> None:
        self._tables: dict[int, tuple[Hashes, int]] = {}
        for length in np.unique(grams["length"]).tolist():
            chosen = np.flatnonzero(grams["length"] == length)
            self._tables[length] = grams["hash"][chosen], int(chosen[0])
        self._shinglers = {length: Shingler(length) for length in (SHORTEST, *self._tables)}

    def find(self, texts: Sequence[str]) -> tuple[Ints, Ints]:
        """Return the numbers of texts and of the runs in them, each pair once, sorted; int64 (pairs,) both.

        Every run holds one of 8 words, so texts without such a one are left at that.
        """
        if SHORTEST not in self._tables:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        shingles, starts = self._shinglers[SHORTEST].shingles(texts)
        _, at = self._known(SHORTEST, shingles)
        hit = np.unique(np.searchsorted(starts, at, "right") - 1)
        documents, grams = list[Ints](), list[Ints]()
        for number in hit.tolist():
            own = [self._known(SHORTEST, shingles[starts[number] : starts[number + 1]])[0]]
            for length in self._tables.keys() - {SHORTEST}:
                longer, _ = self._shinglers[length].shingles([texts[number]])
                own += [self._known(length, longer)[0]]
            found = np.unique(np.concatenate(own))
            grams.append(found)
            documents.append(np.full(len(found), number, np.int64))
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *documents]), np.concatenate([empty, *grams])

    def _known(self, length: int, hashes: Hashes) -> tuple[Ints, Ints]:
        """Return the numbers of the runs among hashes, and the positions of these."""
        table, first = self._tables[length]
        positions = np.searchsorted(table, hashes)
        positions[positions == len(table)] = 0
        at = np.flatnonzero(table[positions] == hashes)
        return first + positions[at], at


@dataclass(frozen=True)
class Verdicts:
    """What the definitions say of items; arrays over all items."""

    words: Ints  # of the parts that are long enough
    checkable: npt.NDArray[np.bool_]  # the item has a run that is no boilerplate
    ignored: Ints  # runs of the settings' size that are boilerplate
    any_run: npt.NDArray[np.bool_]  # a run of the settings' size stands in the corpus
    share: Floats  # largest share of those runs in one document
    palm: Floats  # share of runs of 8 words in the corpus
    llama_2: Floats  # share of words in shared runs of 11
    llama_3: Floats  # share of words in shared runs of 8
    longest: Ints  # words of the longest run in one document, as runs of 8 show it

    def columns(self) -> dict[str, Any]:
        """Return the arrays by name."""
        return dict(vars(self))


class Overlaps:
    """The runs shared by a corpus and the items, without boilerplate."""

    def __init__(self, grams: Rows, postings: Rows, words: Ints, ignored: npt.NDArray[np.bool_]) -> None:
        """`ignored` (grams,) are the runs that count nowhere."""
        self.grams, self.words, self.ignored = grams, words, ignored
        self.postings = postings
        self._starts = np.searchsorted(postings["gram"], np.arange(len(grams) + 1))
        counted = ~ignored[postings["gram"]]
        self._totals = [self._count(postings[counted & (postings["size"] == size)]) for size in (OWN, EIGHT, ELEVEN)]

    def _count(self, postings: Rows) -> Ints:
        return np.bincount(postings["item"], minlength=len(self.words)).astype(np.int64)

    def pairs(self, hits: Rows) -> tuple[Rows, Ints, Floats]:
        """Return the runs of 8 and of the settings' size at which each document meets each item, and shares.

        First the postings, then for each the number of its (document, item) pair, then of each pair the share of the
        item's runs that the document holds; documents and items of the pairs are `pair_documents` and `pair_items`.
        """
        counts = (self._starts[1:] - self._starts[:-1])[hits["gram"]]
        first = np.repeat(self._starts[hits["gram"]], counts)
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.postings[first + within]
        documents = np.repeat(hits["document"], counts)
        ranks = np.searchsorted(known := np.unique(documents), documents)
        keys, pair = np.unique(ranks.astype(np.int64) * len(self.words) + rows["item"], return_inverse=True)
        self.pair_documents, self.pair_items = known[keys // max(1, len(self.words))], keys % max(1, len(self.words))
        own = np.bincount(pair[rows["size"] == OWN], minlength=len(keys))
        return rows, pair.astype(np.int64), own / np.maximum(1, self._totals[OWN][self.pair_items])

    def verdicts(self, hits: Rows) -> Verdicts:
        """Return what the definitions say about every item; `hits` are without boilerplate."""
        n = len(self.words)
        found = np.zeros(len(self.grams), bool)
        found[hits["gram"]] = True
        seen = self.postings[found[self.postings["gram"]]]
        by_size = [self._count(seen[seen["size"] == size]) for size in (OWN, EIGHT, ELEVEN)]
        rows, pair, shares = self.pairs(hits)
        share, longest = np.zeros(n), np.zeros(n, np.int64)
        np.maximum.at(share, self.pair_items, shares)
        eight = rows["size"] == EIGHT
        np.maximum.at(longest, self.pair_items, _longest(pair[eight], rows["position"][eight], len(shares)))
        whole = np.bincount(self.postings["item"][self.postings["size"] == OWN], minlength=n)
        return Verdicts(
            self.words, self._totals[EIGHT] > 0, (whole - self._totals[OWN]).astype(np.int64), by_size[OWN] > 0, share,
            by_size[EIGHT] / np.maximum(1, self._totals[EIGHT]), self._covered(seen, ELEVEN),
            self._covered(seen, EIGHT), longest,
        )  # fmt: skip

    def _covered(self, seen: Rows, size: int) -> Floats:
        """Return the share of each item's words that lie in a shared run."""
        starts = np.cumsum(self.words) - self.words
        rows = seen[seen["size"] == size]
        first = starts[rows["item"]] + rows["position"]
        last = first + self.grams["length"][rows["gram"]]
        change = np.zeros(int(self.words.sum()) + 1, np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, last, -1)
        covered = np.concatenate([[0], np.cumsum(np.cumsum(change)[:-1] > 0)])
        return (covered[starts + self.words] - covered[starts]) / np.maximum(1, self.words)


def _longest(pair: Ints, positions: Rows, pairs: int) -> Ints:
    """Return the words of each pair's longest span of runs of 8 at consecutive positions."""
    found = np.zeros(pairs, np.int64)
    if not len(pair):
        return found
    order = np.lexsort((positions, pair))
    pair, ordered = pair[order], positions[order].astype(np.int64)
    breaks = np.concatenate([[True], (pair[1:] != pair[:-1]) | (ordered[1:] != ordered[:-1] + 1)])
    starts = np.flatnonzero(breaks)
    lengths = np.diff(np.concatenate([starts, [len(pair)]]))
    np.maximum.at(found, pair[starts], lengths + SHORTEST - 1)
    return found
