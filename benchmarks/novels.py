"""Measure what a model learns from novels in ten minutes: `python benchmarks/novels.py`.

experiment=novels_small (causal) and experiment=novels_small_masked train on english_novels/train.jsonl.xz for ten
minutes each, including start-up and validation. Both are scored on every document of valid.jsonl.xz, four unseen
novels:

bits per byte    of the text, causal; lower is better
masked accuracy  share of masked tokens that are predicted correctly

The curve is the loss on a fixed part of the same novels during the run. `--choose` is for tuning settings, which follow
it: two of the training novels replace valid.jsonl.xz, so that settings are not tuned on the reported documents:

    python benchmarks/novels.py --choose --only causal --minutes 5 model.n_layers=6 optimizer.learning_rate=4e-3
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from comparison import Result, typed

from pretrain.inference.config import GenerationOptions
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/data",
    "configs/experiment/novels_small.yaml",
    "configs/experiment/novels_small_masked.yaml",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
KINDS = {"causal": "novels_small", "masked": "novels_small_masked"}
CHOICE = Path(".cache") / "novels_to_choose_on"
HELD_OUT = slice(20, None, 40)  # training novels that --choose validates on
PROMPTS = {
    "causal": ("It was a dark night when", "She looked at him and", "The old house stood"),
    "masked": ("He took her [MASK] and kissed it.", "The [MASK] was shining through the window."),
}
SAMPLING: GenerationOptions = {"max_new_tokens": 60, "temperature": 0.8, "min_p": 0.1, "seed": 0}


def parts(novels: Path, choose: bool) -> list[str]:
    """Return the overrides of the training text and of the text to score."""
    files = {"path": novels / "train.jsonl.xz", "validation_path": novels / "valid.jsonl.xz"}
    if choose:
        with lzma.open(files["path"], "rt", encoding="utf8") as lines:
            documents = list(lines)
        held_out = documents[HELD_OUT]
        CHOICE.mkdir(parents=True, exist_ok=True)
        for name, some in {
            "path": [text for text in documents if text not in held_out],
            "validation_path": held_out,
        }.items():
            files[name] = CHOICE / f"{name}.jsonl"
            if not files[name].exists():  # a rewritten file would be tokenized again
                files[name].write_text("".join(some), encoding="utf8")
    return [f"data.{name}={path}" for name, path in files.items()]


def train(kind: str, words: list[str], folder: Path) -> dict[str, Any]:
    """Return the report of a run."""
    command = [sys.executable, str(TRAIN), f"experiment={KINDS[kind]}", "trainer.accelerator=cpu", "logger=csv"]
    command += [f"paths.run_dir={folder}", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf8"))
    return found


def scored(folder: Path, words: list[str]) -> dict[str, Any]:
    """Return the scores of a run on all documents to score."""
    (text,) = (word.removeprefix("data.validation_path=") for word in words if word.startswith("data.validation_path="))
    output = folder.parent / "scores.json"
    command = [
        sys.executable,
        str(TRAIN.with_name("eval.py")),
        f"checkpoint={folder}",
        f"path={text}",
        f"output={output}",
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf8"))
    for name in ("checkpoint", "settings"):  # they contain paths of this machine
        del found[name]
    return found


def curve(folder: Path, steps: int) -> list[tuple[float, float]]:
    """Return the validation losses of a run, each with the share of its steps taken before."""
    rows = [row for row in read_rows(folder / "metrics.csv") if row["name"] == "val/loss"]
    return [(round(int(row["step"]) / steps, 3), round(float(row["value"]), 4)) for row in rows]


def written(kind: str, folder: Path) -> list[str]:
    """Return the model's completion of each prompt."""
    model = LanguageModel.load(folder)
    if kind == "masked":
        each = [(prompt, model.predict_mask(prompt)) for prompt in PROMPTS[kind]]
        return [
            f"{prompt} {[(answer.token, round(answer.probability, 3)) for answer in found[0]]}"
            for prompt, found in each
        ]
    return [model.generate(prompt, **SAMPLING) for prompt in PROMPTS[kind]]


def main() -> None:
    """Train, score, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="overrides of the runs, such as model.n_layers=6")
    parser.add_argument("--only", choices=KINDS, help="one of the two")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--choose", action="store_true", help="for tuning: score on held-out training novels")
    parser.add_argument("--folder", type=Path, help="where to save the runs; default: deleted")
    given = parser.parse_args()
    novels = Path(os.environ.get("PRETRAIN_ASSETS", "")) / "corpora" / "english_novels"
    if not novels.is_dir():
        sys.exit(f"there are no novels at {novels}: name the folder of the assets by PRETRAIN_ASSETS")
    result = Result("novels", typed(), {"minutes": given.minutes})
    for kind in [given.only] if given.only else KINDS:
        with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / kind
            words = [*parts(novels, given.choose), f"trainer.max_time={given.minutes}", *given.words]
            report = train(kind, words, folder / "run")
            names = ("parameters", "steps", "tokens_seen", "training_s")
            result.figures[kind] = {name: report[name] for name in names} | scored(folder / "run", words)
            result.figures[f"{kind}, curve"] = curve(folder / "run", report["steps"])
            result.figures[f"{kind}, written"] = written(kind, folder / "run")
    result.finish(keep=not (given.choose or given.words or given.only))


if __name__ == "__main__":
    main()
