"""Measure the tokens per second of data loaders: `PRETRAIN_ASSETS=... python benchmarks/data_loading.py`.

Micro-batches of 8 rows of 1,024 tokens, shuffled, loaded in the training process. Sources: English novels split into
documents of about 2,000 characters, and Wikipedia articles. Our rows are packed by document (best fit) and have
targets, positions and document numbers. The peers (`data_loading_peers.py`) return windows of one concatenated row;
only OLMo-core's have document lengths. The plain memory map returns random windows, and the same windows shifted by
one as targets. Each baseline is a process of its own. Baselines with busy background threads are compared to ours
without the others.

Also measured: the milliseconds from opening the store to the first micro-batch of step 10^9.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Result, typed, why
from corpora import assets, novels, texts
from data_loading_peers import PEERS
from turns import Turn, race

from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.data.config import DataConfig
from pretrain.data.mixture import MixtureDataset, mixture_dataset
from pretrain.data.token_store.build import open_writer
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.objectives.causal import Causal
from pretrain.objectives.config import MaskedConfig
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import Objective
from pretrain.training.datamodule import BatchLoader, MicroBatches, RankSlice

MEASURES = (
    "src/pretrain/data/collate.py",
    "src/pretrain/data/mixture.py",
    "src/pretrain/data/packing.py",
    "src/pretrain/data/shuffle.py",
    "src/pretrain/data/token_store",
    "src/pretrain/data/train_stream.py",
    "src/pretrain/objectives",
    "src/pretrain/training/datamodule.py",
)

ROWS, LENGTH, STEP = 8, 1024, 10**9
OURS = ("causal", "causal, of a mixture", "masked")
RACES = (("memory map", "datasets", "datasets, iterable"), ("mosaicml-streaming",), ("litdata",), ("OLMo-core",))
AHEAD = ("datasets", "datasets, iterable", "mosaicml-streaming", "OLMo-core")
TARGETS = {"memory map": 0.5} | dict.fromkeys(AHEAD, 1.0)


class HalfAndHalf(DataConfig):
    """A mixture config with equal weights."""

    def weights(self, rows: Any) -> dict[str, Fraction]:
        """Return a weight of 1 for each."""
        return dict.fromkeys(rows, Fraction(1))


def write_store(folder: Path, documents: list[str], tokenizer: Tokenizer) -> Store:
    """Write a token store of the documents and return it."""
    writer = open_writer(folder, tokenizer, shard_tokens=2**27)
    for text, tokens in zip(documents, tokenizer.encode_documents(documents), strict=True):
        writer.add(tokens, len(text.encode()))
    return writer.finish({})


def rows_of(folders: dict[str, Path]) -> MixtureDataset:
    """Return the packed rows of one or more stores."""
    stores = {name: Store(folder) for name, folder in folders.items()}
    return mixture_dataset(stores, HalfAndHalf(), LENGTH, pad_id=0, seed=0)


def loader(stream: MixtureDataset, objective: Objective, step: int) -> Iterator[Any]:
    """Return the micro-batches from a step on, as the Trainer gets them."""
    sizes = BatchSizes.constant(StepSize(ROWS, ROWS * LENGTH, order=""))
    batches = MicroBatches(stream, objective, RankSlice(ROWS), sizes)
    return iter(BatchLoader(batches, step * batches.accumulation, 2**62))


def first_of(folders: dict[str, Path], step: int) -> float:
    """Return the milliseconds from opening the stores to the first micro-batch of a step."""
    start = time.perf_counter()
    next(loader(rows_of(folders), Causal(), step))
    return (time.perf_counter() - start) * 1e3


def ours(name: str, folder: Path) -> Iterator[Any]:
    """Return one of our loaders."""
    if name == "causal, of a mixture":
        return loader(rows_of({part: folder / part for part in ("novels", "articles")}), Causal(), 0)
    stream = rows_of({"": folder / "novels"})
    if name == "causal":
        return loader(stream, Causal(), 0)
    end, size = stream.streams[""].store.eos_id, stream.streams[""].store.vocab_size
    masking = MaskedConfig(mask_probability=0.15)
    return loader(stream, Masked(masking, mask_id=end, special_ids=[end], vocab_size=size, seed=0), 0)


def contend(name: str, folder: Path) -> None:
    """Read a micro-batch per step, when it is this baseline's turn."""
    turn = Turn()
    if name in OURS:
        batches = ours(name, folder)
    else:
        tokens = np.fromfile(folder / "novels" / "shards" / "00000.tok", np.uint16)[32:]  # after a header of 64 bytes
        (folder / name).mkdir()
        batches = PEERS[name](tokens, folder / name, ROWS, LENGTH)
    next(batches)
    while True:
        turn.step()
        next(batches)


def peers_at_hand(result: Result, names: tuple[str, ...], folder: Path) -> list[str]:
    """Return the peers that work here; record in `result` why the others do not."""
    found = []
    for name in names:
        (folder / "tried" / name).mkdir(parents=True)
        try:
            next(PEERS[name](np.arange(20_000, dtype=np.uint16), folder / "tried" / name, ROWS, 64))
        except Exception as error:  # any failure of a peer is recorded
            result.missing[name] = why(error)
            continue
        found.append(name)
    return found


def measure(given: argparse.Namespace, folder: Path) -> Result:
    """Return the result."""
    tokenizer = Tokenizer.load(assets() / "tokenizers" / "gpt2")
    corpora = {"novels": novels(given.megabytes), "articles": list(texts("wikipedia_vital/en"))}
    stores = {name: write_store(folder / name, documents, tokenizer) for name, documents in corpora.items()}
    facts = {name: f"{store.n_documents} documents, {store.n_tokens} tokens" for name, store in stores.items()}
    settings = facts | {"rows": ROWS, "length": LENGTH, "rounds": given.rounds, "batches a round": given.batches}
    result = Result("data_loading", typed(), settings)
    command = [sys.executable, __file__, "--folder", str(folder), "--baseline"]
    for number, entered in enumerate(RACES[:1] if given.quick else RACES):
        peers = peers_at_hand(result, entered, folder)
        own = OURS if number == 0 else OURS[:1]
        commands = {name: [*command, name] for name in (*own, *peers)}
        seconds, _ = race(
            commands, rounds=given.rounds, steps=given.batches, warm_up=given.batches, missing=result.missing
        )
        found = {name: [ROWS * LENGTH / each for each in figures] for name, figures in seconds.items()}
        for name in [name for name in own if name in found]:
            rounds = {way: figures for way, figures in found.items() if way == name or way not in own}
            targets = TARGETS if name == "causal" else None
            result.add(f"loading, {name}", "tokens/s", rounds, ours=name, more_is_better=True, targets=targets)
    folders = {name: folder / name for name in stores}
    for name, step in (("step 0", 0), (f"step {STEP:.0e}", STEP)):
        figures = [first_of(folders, step) for _ in range(given.rounds + 1)][1:]
        result.figures[f"first micro-batch of {name}, ms"] = {
            "median": statistics.median(figures), "lowest": min(figures), "highest": max(figures), "target": 50
        }  # fmt: skip
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10, help="of the novels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=1000, help="micro-batches per baseline and round")
    parser.add_argument(
        "--quick", action="store_true", help="4 megabytes, 5 rounds of 200 batches, fewer peers; not saved"
    )
    parser.add_argument("--no-keep", action="store_true", help="print only")
    parser.add_argument("--baseline", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.baseline:
        contend(given.baseline, given.folder)
    if given.quick:
        given.megabytes, given.rounds, given.batches = 4, 5, 200
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder)).finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
