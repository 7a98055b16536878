"""Measure gain and forgetting of continued pre-training on a domain, at several shares of replay.

    python benchmarks/continued_pretraining.py MODEL --domain FILES --general FILES

MODEL, a run or a Hugging Face folder, is trained by `src/train.py experiment=continue` once for each of `--seeds` and
each share of `--replay` (of rows from the general text), with the same steps and rate. It is scored before and after
on the same held-out rows of both texts: loss, in nats per token. What is trained and scored already is kept, so that a
run that was stopped goes on by the same command.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import machine

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.train_stream import ShuffledRows, bits_per_byte_of_a_nat
from pretrain.evaluation.run import score_rows
from pretrain.interop.load import open_model
from pretrain.objectives.objective import ModelWithLoss

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/data/mixture.py",
    "configs/experiment/continue.yaml",
)

ROOT = Path(__file__).parents[1]
NO_REPLAY = 1e-9  # a weight so small that no row is sampled; the run still has the text's held-out documents
TEXTS = {"domain": "domain", "replay": "general"}  # names in the experiment, and here


def words_of(given: argparse.Namespace, replay: float, seed: int) -> list[str]:
    """Return the overrides of `src/train.py` for a run with this fraction of replayed rows."""
    words = ["experiment=continue", f"init_from={given.model}", f"seed={seed}"]
    for source, path, separator in (
        ("domain", given.domain, given.domain_separator),
        ("replay", given.general, given.general_separator),
    ):
        words += [f"data.sources.{source}.path={path}"]
        words += [f'data.sources.{source}.separator="{separator}"'] if separator else []
    words += [f"data.sources.replay.weight={replay or NO_REPLAY}", f"data.sources.domain.weight={1 - replay}"]
    words += [f"trainer.max_steps={given.steps}", f"schedule.warmup_steps={given.steps // 10}"]
    words += [f"batch_size={given.batch_size}", f"model.context_length={given.context_length}"]
    words += [f"optimizer.learning_rate={given.learning_rate}", f"data.max_validation_rows={given.rows}"]
    return [*words, "trainer.precision=fp32", "logger=csv", "checkpoint.keep=1", f"paths.cache_dir={given.cache}"]


def train(words: list[str], folder: Path) -> dict[str, Any]:
    """Return the report of a run."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), *words, f"paths.run_dir={folder}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf8"))
    return found


def score(model: Path, config: RunConfig, prepared: Prepared, rows: int) -> dict[str, float]:
    """Return loss and bits per byte of a model on the first held-out rows of both texts, as <text>/<figure>."""
    model_with_loss = ModelWithLoss(
        open_model(model).load(), config.objective.build(prepared.tokenizer, config.seed)
    ).eval()
    figures = {}
    for source, store in prepared.validation.items():
        length = config.model.context_length
        stream = ShuffledRows(store, config.data, length, prepared.tokenizer.padding_id, seed=0)
        count, factor = min(rows, len(stream)), bits_per_byte_of_a_nat(store) if config.objective.causal else None
        found = score_rows(model_with_loss, stream, count, config.batch_size, factor).metrics()
        figures |= {f"{TEXTS[source]}/{name}": found[name] for name in ("loss", "bits_per_byte") if name in found}
    return figures


def cell(given: argparse.Namespace, prepared: Prepared, replay: float, seed: int) -> dict[str, Any]:
    """Return the losses after one run, its seconds and number of parameters; measured once, then read again."""
    folder = given.folder / f"replay_{100 * replay:g}_seed_{seed}"
    kept, words = folder.with_suffix(".json"), words_of(given, replay, seed)
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf8"))
        if found["words"] == words:
            return found
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped, or of other settings
    report = train(words, folder)
    losses = score(folder, compose("train", words), prepared, given.rows)
    found = {"words": words, "losses": losses} | {name: report[name] for name in ("training_s", "parameters")}
    kept.write_text(json.dumps(found, indent=1), encoding="utf8")
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return all losses: of the base model, and the mean and deviation over the seeds at each share of replay."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", words_of(given, max(given.replay), given.seeds[0]))
    prepared = prepare(config.data, config.tokenizer, given.cache)
    losses = {"before": score(given.model, config, prepared, given.rows)}
    spread: dict[str, dict[str, float]] = {}
    cells = {(replay, seed): cell(given, prepared, replay, seed) for replay in given.replay for seed in given.seeds}
    for replay in given.replay:
        name = f"after, {replay:.0%} replayed" if replay else "after, none replayed"
        found = [cells[replay, seed]["losses"] for seed in given.seeds]
        losses[name] = {each: fmean(one[each] for one in found) for each in found[0]}
        if len(found) > 1:
            spread[name] = {each: stdev(one[each] for one in found) for each in found[0]}
    settings = {name: getattr(given, name) for name in ("steps", "batch_size", "context_length", "learning_rate")}
    settings |= {"replay": given.replay, "rows scored of each text": given.rows, "seeds": given.seeds}
    return {
        "machine": machine(),
        "texts": {"domain": Path(given.domain).name, "general": Path(given.general).name},
        "model": given.name or given.model.name,
        "parameters": next(iter(cells.values()))["parameters"],
        "settings": settings,
        "seconds of training, all runs": round(sum(each["training_s"] for each in cells.values()), 1),
        "losses": losses,
        "standard deviation over the seeds": spread,
        "targets": _targets(losses, given.bound),
    }


def _targets(losses: dict[str, dict[str, float]], bound: float) -> dict[str, bool]:
    """Return what was expected of the run with the most replay, against the one with the least."""
    before, *after = losses.values()
    least, most = after[0], after[-1]
    rise, rise_least = (each["general/loss"] - before["general/loss"] for each in (most, least))
    return {
        "lower domain loss with replay": most["domain/loss"] < before["domain/loss"],
        f"general loss with replay rises by at most {bound} nats": rise <= bound,
        "general loss rises less with replay than without": rise < rise_least,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the settings and a table of the losses with their changes."""
    print(f"{figures['model']} ({figures['parameters']:,} parameters); {figures['machine']}")
    print(", ".join(f"{name} {value}" for name, value in figures["settings"].items()))
    before = next(iter(figures["losses"].values()))
    print(f"{'loss in nats per token':<26}" + "".join(f"{name:>22}" for name in TEXTS.values()))
    for name, found in figures["losses"].items():
        cells = [(found[f"{text}/loss"], found[f"{text}/loss"] - before[f"{text}/loss"]) for text in TEXTS.values()]
        shown = [f"{loss:.4f}" + (f" ({change:+.4f})" if found is not before else "") for loss, change in cells]
        print(f"{name:<26}" + "".join(f"{cell:>22}" for cell in shown))
    for name, met in figures["targets"].items():
        print(f"{name}: {'met' if met else 'NOT MET'}")


def main() -> None:
    """Train all, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run or a Hugging Face folder")
    parser.add_argument("--name", help="of the model, for the table; default: the folder's name")
    for text in ("domain", "general"):
        parser.add_argument(f"--{text}", required=True, help="documents, as data=text_files reads them")
        parser.add_argument(f"--{text}-separator", help="between documents of a plain text file")
    parser.add_argument(
        "--replay", type=float, nargs="+", default=[0.0, 0.05, 0.25], help="fractions of rows of general text"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="the peak")
    parser.add_argument("--rows", type=int, default=64, help="held-out rows of each text that are scored")
    parser.add_argument(
        "--bound", type=float, default=0.1, help="largest increase of the general loss with replay, in nats"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--folder", type=Path, default=Path("logs/continued_pretraining"), help="for the runs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/continued_pretraining.json"))
    given = parser.parse_args()
    given.replay.sort()
    given.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")
    show(figures)


if __name__ == "__main__":
    main()
