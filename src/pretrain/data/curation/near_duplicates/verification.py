"""Which candidates are duplicates: each is compared with documents that are kept, by true Jaccard similarity.

Nothing is removed through a third document: of a chain A ~ B ~ C whose ends differ, A and C are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.near_duplicates.buckets import shares_bucket_with
from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints, jaccard
from pretrain.data.curation.near_duplicates.shuffle_files import Rows
from pretrain.errors import DataError

VERIFICATION_VERSION = 1  # increase when the decisions change
MAX_TRIES = 64  # kept documents that a document is compared with
MAX_LISTED = 1024  # kept documents of one bucket that are candidates: a bucket of boilerplate may have a million

# What decides which document is kept, and the id (128 bits) that names it. The canonical order is: documents of the
# base corpus, then the larger priority, then the larger preference, then the smaller id.
MEMBER = np.dtype(
    [
        ("document", "<u8"),  # its number: unique, from input order; the base corpus's are numbers of their own
        ("component", "<u8"),
        ("base", "?"),
        ("priority", "<i8"),
        ("preference", "<i8"),  # length, date, or the negative number for `keep=first`
        ("id", "<u8", (2,)),  # upper and lower half
        ("cluster", "<u8", (2,)),  # of a document of the base corpus: its cluster there
        ("shingles", "<u4"),  # distinct ones
        ("copies", "<u4"),  # documents of equal text that it stands for, itself among them; 0 counts as 1
    ]
)

DECISION = np.dtype(
    [
        ("document", "<u8"),  # the rows are sorted by it
        ("base", "?"),
        ("kept", "?"),
        ("unverified", "?"),  # kept, but not all of its candidates were compared
        ("twin", "<u8"),  # the kept document that it is a duplicate of; itself if it is kept
        ("twin_id", "<u8", (2,)),
        ("similarity", "<f8"),  # Jaccard, with the twin; NaN if removed without verification
        ("cluster", "<u8", (2,)),  # id of the first document of its component: near-duplicates, found or not, share it
        ("cluster_size", "<i8"),  # documents that its twin stands for with their copies, itself among them
    ]
)


def canonical_order(members: Rows) -> Ints:
    """Return the positions of the members in canonical order, int64."""
    ids = members["id"]
    by = (members["document"], ids[:, 1], ids[:, 0], -members["preference"], -members["priority"], ~members["base"])
    return np.lexsort(by)


def decide(members: Rows, bands: Rows, shingles_of: Callable[[int], Hashes] | None, similarity: float) -> Rows:
    """Return a row of `DECISION` for each member, sorted by document.

    `members` are whole components and `bands` the rows of their buckets. `shingles_of` gives the shingle set of a
    member by its position, and members are removed that have the similarity with a kept one; None removes all of a
    component but its first and the base corpus. Raises DataError if a band names a document that is no member.
    """
    order = canonical_order(members)
    ordered = members[order]
    first = _first_of_component(ordered["component"])
    found = np.zeros(len(ordered), DECISION)
    found["document"], found["base"] = ordered["document"], ordered["base"]
    clusters = np.where(ordered["base"][:, None], ordered["cluster"], ordered["id"])
    found["cluster"] = np.where(ordered["base"][:, None], clusters, clusters[first])
    if shingles_of is None:
        twins = np.where(ordered["base"], np.arange(len(ordered)), first)
        found["similarity"] = np.where(twins == np.arange(len(ordered)), 1.0, np.nan)
    else:
        positions = order.tolist()
        result = _Verifier(ordered, similarity, lambda position: shingles_of(positions[position])).run(
            _buckets_of(ordered, bands)
        )
        twins = np.array(result.twins, np.int64)
        found["similarity"], found["unverified"] = result.similarities, result.unverified
    found["kept"] = twins == np.arange(len(ordered))
    found["twin"], found["twin_id"] = ordered["document"][twins], ordered["id"][twins]
    copies = np.maximum(ordered["copies"], 1)
    found["cluster_size"] = np.bincount(twins, weights=copies, minlength=len(ordered))[twins]
    return found[np.argsort(found["document"])]


def _first_of_component(components: Hashes) -> Ints:
    """Return for each member, in canonical order, the position of the first of its component."""
    _, firsts, inverse = np.unique(components, return_index=True, return_inverse=True)
    return firsts[inverse]


@dataclass(frozen=True)
class _Buckets:
    """The buckets, as numbers from 0, of each member by its position."""

    buckets: Ints
    starts: Ints  # (members + 1,)

    def of(self, position: int) -> list[int]:
        return self.buckets[self.starts[position] : self.starts[position + 1]].tolist()


def _buckets_of(ordered: Rows, bands: Rows) -> _Buckets:
    by_document = np.argsort(ordered["document"])
    documents = ordered["document"][by_document]
    spots = np.searchsorted(documents, bands["document"])
    known = spots < len(documents)
    known[known] = documents[spots[known]] == bands["document"][known]
    if not known.all():
        number = int(bands["document"][~known][0])
        raise DataError(f"Document {number} has a bucket but no shingles: the files of this stage are not all there.")
    positions = by_document[spots]
    buckets = np.unique(bands["key"], return_inverse=True)[1]
    arranged = np.lexsort((buckets, positions))
    starts = np.searchsorted(positions[arranged], np.arange(len(ordered) + 1))
    return _Buckets(buckets[arranged], starts)


@dataclass
class _Verifier:
    """Goes through members in canonical order; keeps what of each is known."""

    ordered: Rows
    similarity: float
    shingles_of: Callable[[int], Hashes]
    twins: list[int] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    unverified: list[bool] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)  # positions of kept members by bucket

    def run(self, buckets: _Buckets) -> _Verifier:
        sizes = self.ordered["shingles"].tolist()
        base = self.ordered["base"].tolist()
        for position in range(len(sizes)):
            own = buckets.of(position)
            twin, similarity, complete = (position, 1.0, True) if base[position] else self._twin(position, own, sizes)
            self.twins.append(twin)
            self.similarities.append(similarity)
            self.unverified.append(twin == position and not complete)
            if twin == position:
                for bucket in own:
                    self.kept.setdefault(bucket, []).append(position)
        return self

    def _twin(self, position: int, own: list[int], sizes: list[int]) -> tuple[int, float, bool]:
        """Return the first kept member with the similarity, or the member itself; and whether all were compared."""
        listed = [self.kept[bucket] for bucket in own if bucket in self.kept]
        complete = all(len(each) <= MAX_LISTED for each in listed)
        counts = Counter(other for each in listed for other in each[:MAX_LISTED])
        mine: Hashes | None = None
        tries = 0
        for other, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            small, large = sorted((sizes[position], sizes[other]))
            if small / large < self.similarity:  # no set of these sizes has it: costs no comparison
                continue
            if tries == MAX_TRIES:
                return position, 1.0, False
            tries += 1
            mine = self.shingles_of(position) if mine is None else mine
            found = jaccard(mine, self.shingles_of(other))
            if found >= self.similarity:
                return other, found, True
        return position, 1.0, complete


def check_decisions(decisions: Rows, similarity: float, name: str) -> None:
    """Raise DataError unless each removed document has a kept twin, as similar as asked or not compared at all.

    `decisions` are all of a range, and `name` is their file's for the message.
    """
    twins = np.searchsorted(decisions["document"], decisions["twin"])
    found = np.minimum(twins, len(decisions) - 1)
    own = decisions["document"] == decisions["twin"]
    right = (decisions["document"][found] == decisions["twin"]) & decisions["kept"][found] & (own == decisions["kept"])
    right &= ~(decisions["similarity"] < similarity)
    if not right.all():
        number = int(decisions["document"][~right][0])
        raise DataError(
            f"{name} is damaged: document {number} has no kept twin with a similarity of {similarity}. "
            "Delete it, and the stage that wrote it runs again."
        )


def guard(bands: Rows, decisions: Rows, validation: npt.NDArray[np.bool_]) -> Hashes:
    """Return the documents to leave out so that no kept pair that shares a band is split: sorted uint64.

    `bands` are the rows of `decisions`'s buckets, sorted by key, and `validation` says of each decision whether its
    document is for validation. A training document beside a validation document goes; beside one of the base corpus,
    which is never changed, the new validation document goes instead.
    """
    positions = np.searchsorted(decisions["document"], bands["document"])
    kept = decisions["kept"][positions]
    bands, positions = bands[kept], positions[kept]
    held_out, base = validation[positions], decisions["base"][positions]
    beside_training = shares_bucket_with(bands, base & ~held_out)
    gone = np.unique(bands["document"][beside_training & held_out & ~base])
    held_out &= ~np.isin(bands["document"], gone)
    beside_validation = shares_bucket_with(bands, held_out)
    leaking = ~validation[positions] & ~base & beside_validation
    return np.union1d(gone, bands["document"][leaking])
