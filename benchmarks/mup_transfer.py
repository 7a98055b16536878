"""Compare how the best learning rate moves with the width: `python benchmarks/mup_transfer.py TEXT`.

Two-layer models of the bytes of one text, of widths 64 to 512 with heads of 32 channels, read the same batches for the
same number of steps, in the standard parametrization and in muP with the base width 64, where both are the same model.
For each width the rates around the best one of the width before are tried by factors of 2 until both neighbors of the
best are worse, then those at a factor of 1.41 from it. The loss is that of fixed passages of the last twentieth, the
mean of `--seeds`, which differ in the initial weights and in the batches.

A run that is done is a line of `--runs` and is not run again: typed again, the script goes on, and the saved result has
the runs so far.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from comparison import Result
from torch import Tensor
from torch.nn.functional import cross_entropy

from pretrain.models.choices import Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer
from pretrain.optim.config import AdamWConfig, MuonConfig

MEASURES = ("src/pretrain/models", "src/pretrain/optim")

WIDTHS = (64, 128, 256, 512)
HEAD_DIM, LENGTH, ROWS, STEPS, WARMUP = 32, 64, 8, 60, 6
OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}
FIRST = 4  # power of 1.41 of the rate that the first width begins with, over LOWEST
LOWEST = 2.0**-9
COARSE = 2  # powers of 1.41 between the rates that are tried first


@dataclass(frozen=True)
class Run:
    """One training run: its rate is LOWEST x 2^(power / 2)."""

    optimizer: str
    parametrization: str
    width: int
    power: int
    seed: int = 0

    @property
    def rate(self) -> float:
        return LOWEST * 2.0 ** (self.power / 2)


@dataclass(frozen=True)
class Texts:
    """Bytes to train on, and passages (N, LENGTH + 1) to score."""

    train: Tensor
    held_out: Tensor


def shape(run: Run) -> TransformerConfig:
    """Return the settings of the model; at the base width muP is the standard parametrization."""
    config = TransformerConfig(
        n_layers=2, d_model=run.width, n_heads=run.width // HEAD_DIM, d_ff=2 * run.width, context_length=LENGTH,
        tie_embeddings=False,
    )  # fmt: skip
    if run.parametrization == "standard":
        return config
    return replace(config, parametrization=Parametrization.mup, base_width=WIDTHS[0])


def read_texts(path: Path) -> Texts:
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    cut = len(data) - len(data) // 20
    starts = torch.linspace(cut, len(data) - LENGTH - 1, 64).long()
    return Texts(data[:cut], torch.stack([data[start : start + LENGTH + 1] for start in starts]))


def loss_of(model: Transformer, rows: Tensor) -> Tensor:
    """Return the mean loss in nats of rows (B, LENGTH + 1) of bytes."""
    logits = model.head(model(rows[:, :-1]))
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train(run: Run, texts: Texts) -> float:
    """Return the loss of a run on the held-out passages; infinite if it diverged."""
    config = shape(run)
    model = config.build(256, causal=True)
    initialize(model, config, run.seed)
    optimizer = OPTIMIZERS[run.optimizer](learning_rate=run.rate).build(model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(STEPS):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        starts = torch.randint(len(texts.train) - LENGTH, (ROWS,), generator=generator)
        loss = loss_of(model, torch.stack([texts.train[start : start + LENGTH + 1] for start in starts]))
        if not loss.isfinite():
            return float("inf")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(loss_of(model, texts.held_out))


class Runs:
    """Runs that are done, as lines of a file."""

    def __init__(self, path: Path, texts: Texts, seeds: list[int], keep: Callable[[dict[Run, float]], None]) -> None:
        self.path, self.texts, self.seeds, self.keep = path, texts, seeds, keep
        lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
        self.done = {Run(**record["run"]): float(record["loss"]) for record in map(json.loads, lines)}
        keep(self.done)

    def loss(self, run: Run) -> float:
        """Return the loss of a run, after training it unless it is done."""
        if run.width == WIDTHS[0]:
            run = replace(run, parametrization="standard")  # muP is the same there
        if run not in self.done:
            start = time.perf_counter()
            self.done[run] = train(run, self.texts)
            seconds = time.perf_counter() - start
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as lines:
                lines.write(json.dumps({"run": asdict(run), "loss": self.done[run], "seconds": seconds}) + "\n")
            print(f"{run}: rate {run.rate:.5f}, loss {self.done[run]:.4f}, {seconds:.0f} s", flush=True)
            self.keep(self.done)
        return self.done[run]

    def best(self, run: Run) -> Run:
        """Return the run of the best rate around that of `run`."""

        def at(power: int) -> float:
            return fmean(self.loss(replace(run, power=power, seed=seed)) for seed in self.seeds)

        power = run.power
        while at(found := min((power - COARSE, power, power + COARSE), key=at)) < at(power):
            power = found
        return replace(run, power=min((power - 1, power, power + 1), key=at))


def best_rates(done: dict[Run, float], seeds: list[int]) -> list[dict[str, Any]]:
    """Return for each optimizer, parametrization and width the best rate so far, and the mean loss of each rate.

    Of each seed the best rate alone is there, too, of the rates that all seeds have tried.
    """
    found = list[dict[str, Any]]()
    for optimizer in OPTIMIZERS:
        for parametrization in ("standard", "mup"):
            for width in WIDTHS:
                name = "standard" if width == WIDTHS[0] else parametrization
                by_rate: dict[float, dict[int, float]] = {}
                for run, loss in done.items():
                    if (run.optimizer, run.parametrization, run.width) == (optimizer, name, width):
                        by_rate.setdefault(run.rate, {})[run.seed] = loss
                by_rate = {rate: each for rate, each in by_rate.items() if set(seeds) <= set(each)}
                losses = {rate: fmean(each[seed] for seed in seeds) for rate, each in by_rate.items()}
                if losses:
                    rate = min(losses, key=lambda rate: losses[rate])
                    found.append({
                        "optimizer": optimizer, "parametrization": parametrization, "width": width, "rate": rate,
                        "loss": losses[rate], "losses": sorted(losses.items()),
                        "of_seeds": [min(by_rate, key=lambda rate: by_rate[rate][seed]) for seed in seeds],
                    })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a file of text, such as tinyshakespeare's input.txt")
    parser.add_argument("--runs", type=Path, default=Path("logs/mup_transfer/runs.jsonl"), help="file of the runs")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of the result; by default benchmarks/results")
    given = parser.parse_args()
    settings = {"text": given.text.parent.name, "steps": STEPS, "tokens": STEPS * ROWS * LENGTH, "seeds": given.seeds}
    result = Result(
        "mup_transfer", f"python benchmarks/mup_transfer.py TEXT --optimizers {' '.join(given.optimizers)}", settings
    )

    def keep(done: dict[Run, float]) -> None:
        result.figures = {"best": best_rates(done, given.seeds), "runs": len(done)}
        result.save(given.out)

    runs = Runs(given.runs, read_texts(given.text), given.seeds, keep)
    for optimizer in given.optimizers:
        starts = dict.fromkeys(("standard", "mup"), FIRST)
        for width in WIDTHS:
            for parametrization in starts:
                best = runs.best(Run(optimizer, parametrization, width, starts[parametrization]))
                starts[parametrization] = best.power
    result.finish(keep=False)


if __name__ == "__main__":
    main()
