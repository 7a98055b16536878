"""Measure bytes tokenized per second on one thread: `PRETRAIN_ASSETS=... python benchmarks/tokenizing.py`.

GPT-2's BPE on English novels split into documents of about 2,000 characters. Ours is the call of `prepare` for each
batch of documents: it returns arrays with BOS and EOS ids, and encodes with `tiktoken` if that is installed and gives
the same ids. The peers return the output of their libraries: a list of ids per document.
"""

import argparse
import importlib
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from comparison import Result, take_turns, typed
from corpora import assets, novels

from pretrain.data.tokenizers.tokenizer import MIN_FAST_CHARACTERS, Tokenizer

MEASURES = ("src/pretrain/data/tokenizers",)

BATCH = 256  # documents per call of `prepare`
TARGETS = {"tokenizers, encode": 4.0, "tokenizers, encode_batch": 4.0}


def speed(encode: Callable[[Sequence[str]], object], documents: list[str]) -> Callable[[], float]:
    """Return a function that encodes the documents and returns bytes per second."""
    size = sum(len(text.encode()) for text in documents)

    def bytes_per_s() -> float:
        start = time.perf_counter()
        for first in range(0, len(documents), BATCH):
            encode(documents[first : first + BATCH])
        return size / (time.perf_counter() - start)

    return bytes_per_s


def measure(given: argparse.Namespace) -> Result:
    """Return the result."""
    from tokenizers import Tokenizer as Library

    documents = novels(given.megabytes)
    ours, plain = (Tokenizer.load(assets() / "tokenizers" / "gpt2") for _ in range(2))
    library = Library.from_str(ours._json)
    vars(plain)["_fast"] = None  # as if tiktoken were not installed
    settings = {"documents": len(documents), "bytes": sum(len(text.encode()) for text in documents)}
    result = Result("tokenizing", typed(), settings | {"rounds": given.rounds, "threads": 1})
    ours.encode_documents(["a" * MIN_FAST_CHARACTERS])  # enough text for tiktoken to be tried
    ways = {
        "ours": speed(ours.encode_documents, documents),
        "ours, without tiktoken": speed(plain.encode_documents, documents),
        "tokenizers, encode": speed(lambda texts: [library.encode(text).ids for text in texts], documents),
        "tokenizers, encode_batch": speed(lambda texts: [each.ids for each in library.encode_batch(texts)], documents),
    }
    try:
        importlib.import_module("tiktoken")
    except ImportError as error:
        result.missing["tiktoken"] = str(error)
    found = take_turns(ways, given.rounds, missing=result.missing)
    result.add("tokenizing", "bytes/s", found, more_is_better=True, targets=TARGETS)
    without = {name: figures for name, figures in found.items() if name != "ours"}
    if "ours, without tiktoken" in without:
        result.add("tokenizing, no tiktoken", "bytes/s", without, ours="ours, without tiktoken", more_is_better=True)
    same = [
        np.array_equal(a, b)
        for a, b in zip(ours.encode_documents(documents), plain.encode_documents(documents), strict=True)
    ]
    fast = ours._fast
    result.figures["tiktoken encodes"] = fast is not None and fast.parity
    result.figures["documents with the same ids"] = f"{sum(same)} of {len(same)}"
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="1 megabyte, 5 rounds, nothing saved")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    given = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # read at the first encoding
    if given.quick:
        given.megabytes, given.rounds = 1, 5
    measure(given).finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
