"""Compare classifiers from a base and from random weights: `python benchmarks/fine_tuning.py BASE DATA`.

Both use the same model, data, steps and head, by `src/train.py experiment=classify`, with each learning rate and seed.
DATA has train.tsv, dev.tsv and test.tsv, lines of text, tab, label, such as SST-2 in two classes (Socher et al. 2013,
https://aclanthology.org/D13-1170): 6,920, 872 and 1,821 sentences. For each of the two, the learning rate with the best
mean accuracy on dev.tsv is chosen, then scored on all of test.tsv. A seed determines the head's weights, the order
and, with `--labels`, the sample of training lines.

accuracy  share of texts whose predicted label is correct
macro F1  F1 (harmonic mean of precision and recall), averaged over the labels
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from machine import machine

from pretrain.config.serialize import to_dict
from pretrain.interop.load import ModelFolder, open_model
from pretrain.language_model import LanguageModel
from pretrain.training.validation_metrics import macro_f1

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "configs/experiment/classify.yaml",
)

ROOT = Path(__file__).parents[1]


def words_of_start(base: ModelFolder, start: str) -> list[str]:
    """Return the overrides of a run from the base's weights, or from random ones of the same shape."""
    if start == "base":
        return [f"init_from={base.folder}"]
    flat = to_dict(base.shape)
    shape = {name: value for name, value in flat.items() if name != "kind" and not isinstance(value, dict)}
    words = [f"model.{name}={'null' if value is None else value}" for name, value in shape.items()]
    words += [f"model.rope_scaling.{name}={value}" for name, value in flat["rope_scaling"].items()]
    left_to_right = base.objective.causal and not base.objective.fills_masks
    words += ["tokenizer=pretrained", f"tokenizer.path={base.tokenizer_folder}"]
    return ["model=bert_nano", *words, f"objective.left_to_right={str(left_to_right).lower()}"]


def lines_to_train_on(arguments: argparse.Namespace, seed: int) -> Path:
    """Return the file of a seed's training lines: all of them, or a sample of the given size."""
    whole: Path = arguments.data / "train.tsv"
    if not arguments.labels:
        return whole
    lines = whole.read_text(encoding="utf8").splitlines()
    path: Path = arguments.folder / f"train_{arguments.labels}_{seed}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(random.Random(seed).sample(lines, arguments.labels)) + "\n", encoding="utf8")
    return path


def train(arguments: argparse.Namespace, folder: Path, seed: int, words: list[str]) -> dict[str, Any]:
    """Return the report of a run; read it from the run folder if the run is complete."""
    if not (folder / "report.json").exists():
        command = [sys.executable, str(ROOT / "src" / "train.py"), "experiment=classify", *words, f"seed={seed}"]
        command += [
            f"data.path={lines_to_train_on(arguments, seed)}",
            f"data.validation_path={arguments.data / 'dev.tsv'}",
        ]
        subprocess.run([*command, f"paths.run_dir={folder}", "logger=csv"], check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf8"))
    return found


def tested(run_folder: Path, path: Path) -> dict[str, float]:
    """Return accuracy, macro F1 and the number of lines of a file."""
    model = LanguageModel.load(run_folder)
    lines = [line.rpartition("\t") for line in path.read_text(encoding="utf8").splitlines() if line]
    answers = model.classify([text for text, _, _ in lines])
    predictions = torch.tensor([max(range(len(each)), key=list(each.values()).__getitem__) for each in answers])
    labels = torch.tensor([model.labels.index(label) for _, _, label in lines])
    f1 = float(macro_f1(len(model.labels))(predictions, labels))
    return {"texts": len(lines), "accuracy": float((predictions == labels).double().mean()), "macro_f1": f1}


def row(base: ModelFolder, start: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a line of the table: accuracies on dev.tsv of all rates, and on test.tsv of the best one."""
    dev: dict[float, list[float]] = {}
    folders: dict[float, list[Path]] = {}
    for rate in arguments.rates:
        words = [*words_of_start(base, start), f"optimizer.learning_rate={rate:g}", *arguments.words]
        folders[rate] = [arguments.folder / f"{start}_{rate:g}_{seed}" for seed in arguments.seeds]
        runs = zip(folders[rate], arguments.seeds, strict=True)
        reports = [train(arguments, folder, seed, words) for folder, seed in runs]
        dev[rate] = [report["validation"]["val/accuracy"] for report in reports]
    best = max(arguments.rates, key=lambda rate: fmean(dev[rate]))
    test = [tested(folder, arguments.data / "test.tsv") for folder in folders[best]]
    return {"start": start, "learning_rate": best, "dev": {f"{rate:g}": dev[rate] for rate in dev}, "test": test}


def span(values: list[float]) -> str:
    """Return the mean and standard deviation of some shares, in percent."""
    return f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f} %" if len(values) > 1 else f"{values[0]:.1%}"


def main() -> None:
    """Train from both starts, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a run, one of its checkpoints, or a Hugging Face folder")
    parser.add_argument("data", type=Path, help="folder of train.tsv, dev.tsv and test.tsv")
    parser.add_argument("words", nargs="*", help="overrides of both, such as trainer.max_steps=800")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="candidates, chosen on dev.tsv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each trains from both starts")
    parser.add_argument("--labels", type=int, help="training lines, sampled for each seed; default: all")
    parser.add_argument("--folder", type=Path, default=Path("logs/fine_tuning"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fine_tuning.json"))
    arguments = parser.parse_args()
    base = open_model(arguments.base)
    rows = [row(base, start, arguments) for start in ("base", "random")]
    facts = {
        "objective": base.objective.kind,
        "steps": base.metadata.get("step"),
        "tokens": base.metadata.get("tokens_seen"),
    }
    settings = [word for word in arguments.words if not word.startswith("paths.")]
    result = {
        "machine": machine(),
        "base": facts,
        "settings": settings,
        "data": arguments.data.name,
        "labels": arguments.labels or "all",
        "seeds": arguments.seeds,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(f"{result['machine']}\nbase {facts}; {arguments.data.name}; {result['labels']} labels; {' '.join(settings)}")
    print(f"{'start':<8} {'rate':>7} {'dev accuracy':>14} {'test accuracy':>14} {'test F1':>14}")
    for line in rows:
        figures = [line["dev"][f"{line['learning_rate']:g}"]]
        figures += [[one[name] for one in line["test"]] for name in ("accuracy", "macro_f1")]
        print(
            f"{line['start']:<8} {line['learning_rate']:>7g} " + " ".join(f"{span(values):>14}" for values in figures)
        )


if __name__ == "__main__":
    main()
