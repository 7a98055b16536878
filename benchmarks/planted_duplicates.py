"""Pairs of real texts of known similarity, for the benchmark and the tests of near-duplicates."""

import json
import lzma
import random
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.near_duplicates.config import NearDuplicatesConfig
from pretrain.data.curation.near_duplicates.shingles import Shingler, jaccard, normalized_words
from pretrain.data.curation.near_duplicates.stages import Batch
from pretrain.data.curation.near_duplicates.verification import MEMBER

BIN_EDGES = [round(0.3 + 0.1 * position, 1) for position in range(8)]  # of the true similarity


def reviews(assets: Path) -> list[str]:
    """Return 1,000 film reviews of 3.9 kB on average."""
    with lzma.open(assets / "curation" / "texts" / "movie_reviews.jsonl.xz", "rt", encoding="utf8") as lines:
        return [json.loads(line)["text"] for line in lines]


def windows(texts: list[str], words: int) -> list[str]:
    """Return all texts cut into pieces of this many words; rests are left out."""
    found = []
    for text in texts:
        all_words = text.split()
        found += [" ".join(all_words[first : first + words]) for first in range(0, len(all_words) - words + 1, words)]
    return found


def changed(text: str, changes: int, draw: random.Random) -> str:
    """Return the text with so many words replaced, each by a word that no other text has."""
    words = text.split()
    for position in draw.sample(range(len(words)), min(changes, len(words))):
        words[position] = f"x{draw.getrandbits(40):x}"
    return " ".join(words)


def pairs_by_similarity(texts: list[str], a_bin: int, seed: int) -> list[list[tuple[str, str, float]]]:
    """Return for each bin of `BIN_EDGES` `a_bin` pairs of a text and its changed copy, with their true similarity."""
    draw, shingler = random.Random(seed), Shingler(5)
    sets = [shingler.shingle_set(text) for text in texts]
    bins: list[list[tuple[str, str, float]]] = [[] for _ in BIN_EDGES[:-1]]
    most = max(1, len(texts[0].split()) // 8)
    while any(len(each) < a_bin for each in bins):
        position = draw.randrange(len(texts))
        copy = changed(texts[position], draw.randint(1, most), draw)
        similarity = jaccard(sets[position], shingler.shingle_set(copy))
        index = int(np.searchsorted(BIN_EDGES, similarity, "right")) - 1
        if 0 <= index < len(bins) and len(bins[index]) < a_bin:
            bins[index].append((texts[position], copy, similarity))
    return bins


def chains(texts: list[str], length: int, changes: int, seed: int) -> list[str]:
    """Return each text and `length - 1` copies, each changed further from the one before it."""
    draw, found = random.Random(seed), []
    for text in texts:
        for _ in range(length):
            found.append(text)
            text = changed(text, changes, draw)
    return found


def batch(texts: list[str], first: int = 0, **order: Any) -> Batch:
    """Return a unit of texts numbered from `first`; ids are drawn from the text, and longer texts come first."""
    members = np.zeros(len(texts), MEMBER)
    members["document"] = np.arange(first, first + len(texts))
    members["preference"] = [len(text) for text in texts]
    shingler = Shingler(1)
    sums = [int(shingler.shingles([text])[0].sum()) for text in texts]
    members["id"] = np.array([[each, each ^ 0xFF] for each in sums], np.uint64).reshape(-1, 2)
    for name, value in order.items():
        members[name] = value
    return Batch(members, texts)


def true_similarities(texts: list[str]) -> npt.NDArray[np.float64]:
    """Return the Jaccard similarity of each two texts, float64 (texts, texts), by brute force over word tuples.

    It uses none of the hashes that it checks.
    """
    sets = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[position : position + 5]) for position in range(max(1, len(words) - 4))})
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, each in enumerate(sets):
        for shingle in each:
            holders.setdefault(shingle, []).append(index)
    shared = np.zeros((len(texts), len(texts)))
    for members in holders.values():
        shared[np.ix_(members, members)] += 1
    sizes = np.array([len(each) for each in sets], np.float64)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def planted_copies(texts: list[str], count: int, seed: int) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return texts, each with one changed copy, and the similarity of each pair: from .3 to 1."""
    draw, shingler = random.Random(seed), Shingler(5)
    documents, similarities = [], []
    for text in texts[:count]:
        copy = changed(text, draw.randint(1, max(1, len(text.split()) // 8)), draw)
        documents += [text, copy]
        similarities.append(jaccard(shingler.shingle_set(text), shingler.shingle_set(copy)))
    return documents, np.array(similarities)


def normalized(texts: list[str]) -> list[str]:
    """Return the words of each text with single spaces: a plain split gives any program the same words."""
    return [" ".join(normalized_words(text)) for text in texts]


class _Split:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def datatrove_signature_step(config: NearDuplicatesConfig, folder: Path) -> Any:
    """Return datatrove's first step, with words found by a plain split. Raises ImportError without datatrove."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.text import TextNormConfig

    plain = TextNormConfig(
        lowercase=False, norm_whitespace=False, remove_punctuation=False, norm_unicode_diacritics=False,
        norm_numbers=False,
    )  # fmt: skip
    settings = minhash.MinhashConfig(
        n_grams=config.words, num_buckets=config.bands, hashes_per_bucket=config.rows, norm_config=plain
    )
    with patch.object(minhash, "load_word_tokenizer", lambda language: _Split()):
        return minhash.MinhashDedupSignature(str(folder / "signatures"), settings)


def datatrove_removed(texts: list[str], config: NearDuplicatesConfig) -> set[int]:
    """Return the positions of the texts that datatrove's MinHash steps remove. Raises ImportError without datatrove."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = datatrove_signature_step(config, folder)
        documents = (Document(text=text, id=str(position)) for position, text in enumerate(normalized(texts)))
        first.run(documents, 0, 1)
        pairs, clusters = str(folder / "pairs"), str(folder / "clusters")
        second = minhash.MinhashDedupBuckets(str(folder / "signatures"), pairs, config=first.config)
        for bucket in range(config.bands):
            second.run(None, bucket, config.bands)
        minhash.MinhashDedupCluster(pairs, clusters, first.config).run(None, 0, 1)
        return set(np.fromfile(folder / "clusters" / "000000.remove", "<u4").tolist())
