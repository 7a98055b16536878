"""Measure how fast masked rows are loaded: `PRETRAIN_ASSETS=... python benchmarks/masked_loading.py`.

Micro-batches of English novels, packed and shuffled, loaded in one process that keeps freed memory as a run does; all
objectives read the same rows in turns.
The ratio is tokens per second of an objective to those of the causal one in the same round. Masks hide 15 % of the
tokens: single tokens, whole words and spans; half of the rows of the hybrid are causal. A diffusion hides any share of
each document, and with `complementary` every row is made twice.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from comparison import Result, take_turns, typed
from corpora import assets, novels
from data_loading import HalfAndHalf, write_store

from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.data.mixture import mixture_dataset
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.kernels.malloc import keep_freed_memory
from pretrain.objectives.causal import Causal
from pretrain.objectives.config import DiffusionConfig, MaskedConfig, MaskingUnit
from pretrain.objectives.diffusion import Diffusion
from pretrain.objectives.hybrid import Hybrid
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import Objective
from pretrain.training.datamodule import BatchLoader, MicroBatches, RankSlice

MEASURES = (
    "src/pretrain/data/collate.py",
    "src/pretrain/objectives",
    "src/pretrain/training/datamodule.py",
)

SHAPES = ((8, 1024), (128, 128))  # rows and their tokens
TARGETS = {"causal": 0.5}


def objectives(tokenizer: Tokenizer) -> dict[str, Objective]:
    """Return the objectives by name, with the end token in place of [MASK], which the tokenizer lacks."""
    end = tokenizer.eos_id

    def masked(unit: MaskingUnit, shift: bool = False) -> Masked:
        config = MaskedConfig(mask_probability=0.15, unit=unit)
        return Masked(
            config, mask_id=end, special_ids=[end], vocab_size=tokenizer.vocab_size, seed=0,
            word_starts=tokenizer.word_starts, shift_targets=shift,
        )  # fmt: skip

    def diffusion(complementary: bool) -> Diffusion:
        return Diffusion(DiffusionConfig(complementary=complementary), mask_id=end, bos_id=end, seed=0)

    return {
        "causal": Causal(),
        "tokens": masked(MaskingUnit.token),
        "whole words": masked(MaskingUnit.whole_word),
        "spans": masked(MaskingUnit.span),
        "hybrid": Hybrid(masked(MaskingUnit.token, shift=True), 0.5),
        "diffusion": diffusion(False),
        "diffusion, complementary": diffusion(True),
    }


def reader(batches: Iterator[Any], count: int, tokens: int) -> Callable[[], float]:
    """Return what reads so many batches and returns the tokens per second."""

    def read() -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return count * tokens / (time.perf_counter() - start)

    return read


def measure(given: argparse.Namespace, folder: Path) -> Result:
    """Return the result."""
    tokenizer = Tokenizer.load(assets() / "tokenizers" / "gpt2")
    store: Store = write_store(folder / "novels", novels(given.megabytes), tokenizer)
    facts = f"{store.n_documents} documents, {store.n_tokens} tokens"
    result = Result("masked_loading", typed(), {"novels": facts, "rounds": given.rounds, "batches": given.batches})
    for rows, length in SHAPES:
        stream = mixture_dataset({"": Store(folder / "novels")}, HalfAndHalf(), length, pad_id=0, seed=0)
        sizes = BatchSizes.constant(StepSize(rows, rows * length, order=""))
        readers = {
            name: reader(
                iter(BatchLoader(MicroBatches(stream, objective, RankSlice(rows), sizes), 0, 2**62)),
                given.batches, rows * length,
            )
            for name, objective in objectives(tokenizer).items()
        }  # fmt: skip
        found = take_turns(readers, given.rounds)
        for name in found:
            if name != "causal":
                pair = {name: found[name], "causal": found["causal"]}
                what = f"loading, {name}, {rows} x {length} tokens"
                result.add(what, "tokens/s", pair, ours=name, more_is_better=True, targets=TARGETS)
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10, help="of the novels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60, help="micro-batches per objective and round")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    parser.add_argument("--quick", action="store_true", help="4 megabytes, 5 rounds of 20 batches; not saved")
    given = parser.parse_args()
    if given.quick:
        given.megabytes, given.rounds, given.batches = 4, 5, 20
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder)).finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
