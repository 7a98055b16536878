"""Measure how long a save stalls training, and its memory: `python benchmarks/checkpointing.py`.

A GPT of 124 million parameters (12 million with --quick) and AdamW's state are saved with the Trainer's code,
synchronously and in the background. Each save is of another step and starts when no write is in progress; a save is
done when the files are hashed and on the disk (fsync). Peers: `torch.save` of the same tensors, as Lightning's Trainer
saves, which neither hashes nor calls fsync; and the asynchronous save of torch.distributed.checkpoint. Then training
steps are timed with and without a save in the background.
"""

import argparse
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from comparison import Result, take_turns, typed, why

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.parallel.config import ParallelDims
from pretrain.training.run_state import RunState, SaveSettings

MEASURES = (
    "src/pretrain/checkpoint",
    "src/pretrain/training/run_state.py",
    "src/pretrain/training/callbacks/checkpoints.py",
)

VOCABULARY = 50257
SMALL = ["model.n_layers=4", "model.d_model=192", "model.n_heads=4"]


class Training:
    """A model and its optimizer after a first step, as in a run."""

    def __init__(self, words: list[str], rows: int, tokens: int) -> None:
        register_schemas("train", RunConfig)
        self.config: RunConfig = compose("train", [*words, "optimizer=adamw"])
        torch.manual_seed(0)
        self.model: Transformer = self.config.model.build(VOCABULARY, True)  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(std=0.02)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.shape = (rows, tokens)
        self.step()

    def step(self) -> None:
        """Take one step on random tokens."""
        tokens = torch.randint(VOCABULARY, self.shape)
        positions = torch.arange(self.shape[1]).expand(self.shape)
        batch = Batch(tokens, positions, None, tokens, None, torch.arange(len(tokens)))
        hidden = self.model(batch.tokens, batch.positions, batch.documents)
        logits = hidden @ self.model.head.weight.T
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run_state(self, folder: Path, asynchronous: bool) -> RunState:
        """Return our checkpoint callback, on a trainer with only what saving needs."""
        trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            global_step=0,
            is_global_zero=True,
            optimizers=[self.optimizer],
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        module = SimpleNamespace(
            model_with_loss=_WithLoss(self.model),
            parallel_dims=ParallelDims(),
            counters=dict,
            length=_Stateless(),
            spikes=_Stateless(),
        )
        folder.mkdir()
        settings = SaveSettings(
            folder=folder,
            keep=1,
            asynchronous=asynchronous,
            config={},
            whole_run=None,
            facts={},
            typed=[],
            after=0.0,
            save_tokenizer=lambda tokenizer: tokenizer.mkdir(),
        )
        data = SimpleNamespace(state_dict=dict, batch_sizes=BatchSizes.constant(StepSize(1, self.shape[1], order="")))
        parts: tuple[Any, Any, Any, Any] = (trainer, module, _Stateless(), data)
        return RunState(*parts, settings)


class _WithLoss(torch.nn.Module):
    """The model as a part of a run; saving needs no loss."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model


class _Stateless:
    """A part of a run without state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Saves:
    """The ways to save, each to its own folder; a call returns the seconds that training was stalled."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.number = 0
        self.until_done: dict[str, list[float]] = {}
        self.ways: dict[str, Callable[[], float]] = {}
        self.background = training.run_state(folder / "asynchronous", True)
        at_once = training.run_state(folder / "synchronous", False)
        self.add("asynchronous", self._own(self.background), self.background.finish)
        self.add("synchronous", self._own(at_once), at_once.finish)
        self.add("torch.save", self._torch_save, lambda: None)

    def add(self, name: str, save: Callable[[], None], wait: Callable[[], object]) -> None:
        """Add a way: `save` returns when training can continue, `wait` when the write is complete."""

        def held_up() -> float:
            start = time.perf_counter()
            save()
            seconds = time.perf_counter() - start
            wait()
            self.until_done.setdefault(name, []).append(time.perf_counter() - start)
            return seconds

        self.ways[name] = held_up

    def add_distributed(self) -> None:
        """Add torch.distributed.checkpoint's asynchronous save; raises if it does not work in one process."""
        from torch.distributed.checkpoint import FileSystemWriter, async_save

        pending: list[Any] = []

        def save() -> None:
            warnings.simplefilter("ignore")  # about one process, and about overwriting the last checkpoint
            writer = FileSystemWriter(self.folder / "distributed", overwrite=True)
            pending.append(async_save(self._state(), storage_writer=writer, no_dist=True))

        def wait() -> None:
            pending.pop().result()

        save()
        wait()
        self.add("torch.distributed.checkpoint", save, wait)

    def _own(self, state: RunState) -> Callable[[], None]:
        def save() -> None:
            self.number += 1
            state.save(self.number)

        return save

    def _state(self) -> dict[str, Any]:
        return {"model": self.training.model.state_dict(), "optimizer": self.training.optimizer.state_dict()}

    def _torch_save(self) -> None:
        torch.save(self._state(), self.folder / "last.ckpt")


def beside_a_save(training: Training, saves: Saves, rounds: int) -> dict[str, list[float]]:
    """Return seconds per step, one value per round: without a save, and during a save in the background."""

    def alone() -> float:
        start = time.perf_counter()
        training.step()
        return time.perf_counter() - start

    def during() -> float:
        saves.number += 1
        saves.background.save(saves.number)
        writing = saves.background._writing
        assert writing is not None
        start, steps = time.perf_counter(), 0
        while not steps or not writing.done():
            training.step()
            steps += 1
        seconds = (time.perf_counter() - start) / steps
        saves.background.finish()
        return seconds

    return take_turns({"beside a save": during, "alone": alone}, rounds)


def memory(save: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of a first save, and the increase of memory after it and at its peak, in MiB."""
    process = psutil.Process()
    before, peak = process.memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = save()
    held, highest = process.memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    more = max(highest - max(peak, before), held - before)
    return {"held_up_s": seconds, "kept_mib": (held - before) / 2**20, "peak_mib": more / 2**20}


def size(folder: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in [folder, *folder.rglob("*")] if path.is_file())


def measure(given: argparse.Namespace, folder: Path) -> Result:
    """Return the result."""
    words = ["model=gpt_small", *(SMALL if given.quick else [])]
    training = Training(words, rows=1, tokens=128)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    settings = {"parameters": parameters, "optimizer": "AdamW", "rounds": given.rounds, "step": training.shape}
    result = Result("checkpointing", typed(), settings)
    saves = Saves(training, folder)
    result.figures["first save"] = {name: memory(way) for name, way in saves.ways.items()}
    try:
        saves.add_distributed()
    except Exception as error:  # any failure of a peer is recorded
        result.missing["torch.distributed.checkpoint"] = why(error)
    held_up = take_turns(saves.ways, given.rounds, missing=result.missing)
    targets = {"synchronous": 1 / 0.15}
    result.add("training held up by a save", "s", held_up, ours="asynchronous", more_is_better=False, targets=targets)
    whole = {name: seconds[-given.rounds :] for name, seconds in saves.until_done.items() if name in held_up}
    result.add("save until it is on the disk", "s", whole, ours="asynchronous", more_is_better=False)
    beside = beside_a_save(training, saves, given.rounds)
    result.add("a step while a save is written", "s", beside, ours="beside a save", more_is_better=False)
    shares = [own / at_once for own, at_once in zip(held_up["asynchronous"], held_up["synchronous"], strict=True)]
    result.figures["held up, asynchronous to synchronous"] = {
        "median": statistics.median(shares), "lowest": min(shares), "highest": max(shares), "target": 0.15
    }  # fmt: skip
    result.figures["bytes"] = {path.name: size(path) for path in sorted(folder.iterdir())}
    result.figures["bytes of the numbers"] = 12 * parameters
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--quick", action="store_true", help="a model of 12 million parameters, nothing saved")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        measure(given, folder).finish(keep=not (given.quick or given.no_keep))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
