"""Near-duplicates against theory, brute force, datatrove: `PRETRAIN_ASSETS=... python benchmarks/near_duplicates.py`.

recall        pairs found per bin of their true similarity, beside the theory, for each preset
precision     share of the removed documents that have the similarity with a kept one, by brute force over tuples of
              words, with and without verification
articles      the ten planted pairs of 1,000 articles: found, and removed beside them
datatrove     documents that its MinHash removes and ours, of the same words, as it does without verification: both
              should differ by the chance of their hash functions alone. With its core package and xxhash < 4:
              pip install --no-deps datatrove==0.10.1 loguru humanize dill fsspec multiprocess "xxhash<4"
speed         text of reviews to band keys, one thread; shingle sets; comparisons of two sets
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from comparison import Result, take_turns, typed, why
from corpora import assets
from planted_duplicates import (
    BIN_EDGES,
    batch,
    chains,
    datatrove_removed,
    datatrove_signature_step,
    normalized,
    pairs_by_similarity,
    planted_copies,
    reviews,
    true_similarities,
    windows,
)

from pretrain.data.curation.near_duplicates.config import PRESETS, NearDuplicatesConfig
from pretrain.data.curation.near_duplicates.minhash import MinHash, candidate_probability
from pretrain.data.curation.near_duplicates.shingles import Shingler, jaccard
from pretrain.data.curation.near_duplicates.shuffle_files import Rows
from pretrain.data.curation.near_duplicates.stages import run_all

MEASURES = ("src/pretrain/data/curation/near_duplicates",)


def decisions_on(texts: list[str], config: NearDuplicatesConfig) -> Rows:
    """Return the decisions on the texts."""
    with tempfile.TemporaryDirectory() as folder:
        return run_all([batch(texts)], config, Path(folder), 4)


def recall(texts: list[str], a_bin: int) -> dict[str, dict[str, str]]:
    """Return for each preset the share of pairs found and its theory, by bin."""
    bins = pairs_by_similarity(texts, a_bin, seed=1)
    found: dict[str, dict[str, str]] = {}
    for name, config in PRESETS.items():
        minhash = MinHash(config.words, config.bands, config.rows)
        row = found[f"{name}, {config.bands}x{config.rows}"] = {}
        for low, high, pairs in zip(BIN_EDGES[:-1], BIN_EDGES[1:], bins, strict=True):
            first, second, similarities = zip(*pairs, strict=True)
            shared = (minhash.band_keys(first) == minhash.band_keys(second)).any(axis=1)
            expected = candidate_probability(np.array(similarities), config.bands, config.rows).mean()
            row[f"{low} to {high}"] = f"{shared.mean():.3f} (theory {expected:.3f})"
    return found


def precision(texts: list[str]) -> dict[str, str]:
    """Return the share of removed documents with a kept near-duplicate, with and without verification."""
    true = true_similarities(texts)
    found = {}
    for name, config in PRESETS.items():
        for verify in (True, False):
            rows = decisions_on(texts, replace(config, verify=verify))
            gone = rows["document"][~rows["kept"]].astype(int)
            kept = np.setdiff1d(np.arange(len(texts)), gone)
            right = (true[np.ix_(gone, kept)] >= config.similarity).any(axis=1)
            found[f"{name}, {'verified' if verify else 'not verified'}"] = (
                f"{right.mean():.3f} of {len(gone)} removed, of {len(texts)}"
            )
    return found


def articles() -> str:
    """Return how many planted pairs are found, and how many documents are removed beside them."""
    folder = assets() / "curation" / "near_duplicates"
    lines = (folder / "articles_1000.train").read_text(encoding="utf8").splitlines()
    names, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    truth = {frozenset(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()}
    rows = decisions_on(list(texts), PRESETS["default"])
    gone = rows[~rows["kept"]]
    pairs = {frozenset((names[row["document"]], names[row["twin"]])) for row in gone}
    return f"{len(pairs & truth)} of {len(truth)} pairs, {len(pairs - truth)} others"


def against_datatrove(texts: list[str], pairs: int) -> dict[str, str]:
    """Return what both remove of pairs with known similarities, and the standard deviation of the difference."""
    documents, similarities = planted_copies(texts, pairs, seed=6)
    config = PRESETS["fineweb"]
    theirs = datatrove_removed(documents, config)
    rows = decisions_on(documents, config)
    ours = {int(number) for number in rows["document"][~rows["kept"]]}
    chance = candidate_probability(similarities, config.bands, config.rows)
    return {
        "documents": str(len(documents)),
        "removed by ours, by datatrove, by theory": f"{len(ours)}, {len(theirs)}, {chance.sum():.0f}",
        "standard deviation of the difference": f"{np.sqrt(2 * (chance * (1 - chance)).sum()):.1f}",
    }


def speeds(texts: list[str], rounds: int, result: Result) -> None:
    """Add the speeds to the result."""
    size = sum(len(text.encode()) for text in texts)
    minhash, shingler = MinHash(5, 20, 8), Shingler(5)

    def megabytes(work) -> float:
        start = time.process_time()
        work()
        return size / 1e6 / (time.process_time() - start)

    sets = [shingler.shingle_set(text) for text in texts]

    def comparisons() -> float:
        start = time.process_time()
        for position in range(len(sets) - 1):
            jaccard(sets[position], sets[position + 1])
        return (len(sets) - 1) / (time.process_time() - start)

    ways = {
        "band keys, 20x8, MB/s": lambda: megabytes(lambda: minhash.band_keys(texts)),
        "shingle sets, MB/s": lambda: megabytes(lambda: [shingler.shingle_set(text) for text in texts]),
        "comparisons/s": comparisons,
    }
    for name, values in take_turns(ways, rounds).items():
        result.figures[name] = f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
    try:
        peer = datatrove_signature_step(PRESETS["fineweb"], Path(tempfile.gettempdir()))
    except ImportError as error:
        result.missing["datatrove"] = why(error)
        return
    ready = normalized(texts)  # words found beforehand for both
    own = MinHash(5, 14, 8)
    both = {
        "ours": lambda: megabytes(lambda: own.band_keys(ready)),
        "datatrove": lambda: megabytes(lambda: [peer.get_signature(peer.get_shingles(text)) for text in ready]),
    }
    result.add("signatures for near-duplicates", "MB/s", take_turns(both, rounds), more_is_better=True)


def measure(given: argparse.Namespace) -> Result:
    """Return the result."""
    texts = reviews(assets())
    pieces = windows(texts, 150)
    result = Result("near_duplicates", typed(), {"pairs a bin": given.pairs, "rounds": given.rounds, "threads": 1})
    for name, row in recall(pieces, given.pairs).items():
        result.figures[f"recall by similarity: {name}"] = row
    result.figures["precision"] = precision(chains(pieces[:300], 5, changes=2, seed=3) + pieces[300:1200])
    result.figures["articles"] = articles()
    try:
        result.figures["datatrove"] = against_datatrove(pieces, 1500)
    except ImportError as error:
        result.missing["datatrove"] = why(error)
    speeds(texts, given.rounds, result)
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000, help="of texts, for each bin of their similarity")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="300 pairs a bin, 3 rounds, nothing saved")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    given = parser.parse_args()
    if given.quick:
        given.pairs, given.rounds = 300, 3
    measure(given).finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
