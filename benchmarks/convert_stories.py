"""Measure what conversion to a masked diffusion gains over random weights: `python benchmarks/convert_stories.py`.

stories260K, a causal model, and random weights of its shape are trained by `experiment=convert_to_diffusion` with equal
settings and steps on the same stories. 60 other stories are scored by both:

bits per byte    upper bound of a diffusion, with its standard error over 32 draws of masks; exact for the causal base
difference       random minus converted, nats per token, with its standard error over the stories
copied words     the longest run of words that the training stories have, too: of a sample, and of held-out stories

A run that is done is not run again: typed again, the script goes on. The base was trained on stories like these, so its
own figure is kind to it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Result, typed

from pretrain.config.serialize import flat, to_dict
from pretrain.errors import shown
from pretrain.evaluation.scorer import Score
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/evaluation/bound.py",
    "src/pretrain/training/initial_weights.py",
    "configs/experiment/convert_to_diffusion.yaml",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
SEPARATOR = "<|endoftext|>"
HELD_OUT = 60  # stories, evenly spaced over the file
STARTS = ("converted", "random")
PROMPT = "Once upon a time"


def stories(path: Path) -> tuple[list[str], list[str]]:
    """Return the stories to train on and those held out; no story is in both."""
    parts = (story.strip() for story in path.read_text(encoding="utf8").split(SEPARATOR))
    unique = list(dict.fromkeys(story for story in parts if story))
    held_out = set(np.linspace(0, len(unique) - 1, HELD_OUT).astype(int).tolist())
    return (
        [story for number, story in enumerate(unique) if number not in held_out],
        [unique[number] for number in sorted(held_out)],
    )


def start_words(base: Path, start: str) -> list[str]:
    """Return the overrides of a start: the base's weights, or random ones of its shape with its tokenizer."""
    if start == "converted":
        return [f"init_from={base}"]
    found = open_model(str(base))
    shape = [f"{key}={shown(value)}" for key, value in flat(to_dict(found.shape), "model.") if key != "model.kind"]
    return ["model=llama_nano", *shape, "tokenizer=pretrained", f"tokenizer.path={base}", "objective.shift=true"]


def train(start: str, given: argparse.Namespace) -> Path:
    """Return the folder of a start's run, trained, gone on with, or done before."""
    folder: Path = given.runs / start
    if (folder / "report.json").exists():
        return folder
    words = [
        "experiment=convert_to_diffusion", *start_words(given.base, start), f"data.path={given.runs / 'train.jsonl'}",
        f"data.validation_path={given.runs / 'held_out.jsonl'}", "trainer.max_time=null", "batch_size=8",
        f"trainer.max_steps={given.steps}", f"trainer.val_check_interval={max(1, given.steps // 4)}",
        f"checkpoint.every_n_steps={max(1, given.steps // 4)}", "checkpoint.keep=1", "logger=csv",
        "logging.report=false", f"paths.run_dir={folder}", f"paths.cache_dir={given.runs / 'cache'}", *given.words,
    ]  # fmt: skip
    resume = ["resume=auto"] if folder.exists() else []
    subprocess.run([sys.executable, str(TRAIN), *words, *resume], check=True, stdout=sys.stderr)
    return folder


def likelihood(scores: list[Score]) -> dict[str, float]:
    """Return nats per token and bits per byte of scored stories, with the standard error of a bound."""
    tokens, text_bytes = (sum(getattr(score, name) for score in scores) for name in ("tokens", "text_bytes"))
    nats = -sum(score.log_likelihood for score in scores)
    error = math.sqrt(sum((score.standard_error or 0.0) ** 2 for score in scores))
    bits = 1 / math.log(2) / text_bytes
    found = {"nats_per_token": nats / tokens, "bits_per_byte": nats * bits, "standard_error": error * bits}
    return found | {"tokens": tokens, "bytes": text_bytes}


def difference(scores: dict[str, list[Score]]) -> dict[str, float]:
    """Return by how much the converted model's bound is lower than the other's, in nats per token."""
    converted, random = (np.array([score.log_likelihood for score in scores[name]]) for name in ("converted", "random"))
    lower = converted - random  # of each story's bound
    tokens = sum(score.tokens for score in scores["converted"])
    error = lower.std(ddof=1) * len(lower) ** 0.5
    return {"nats_per_token": float(lower.sum() / tokens), "standard_error": float(error / tokens)}


def copied_words(text: str, training: str) -> str:
    """Return the longest run of words of a text that the training text has, too; white space is single spaces."""
    words = text.split()
    longest: list[str] = []
    for start in range(len(words)):
        while start + len(longest) < len(words):
            tried = words[start : start + len(longest) + 1]
            if f" {' '.join(tried)} " not in training:
                break
            longest = tried
    return " ".join(longest)


def sample(llm: LanguageModel, training: str) -> dict[str, Any]:
    """Return a story as the model writes it, the first draw, and its longest copied run of words."""
    text = llm.generate(PROMPT, max_new_tokens=160, temperature=0.8, seed=0)
    copied = copied_words(text, training)
    return {"text": text, "copied": copied, "copied_words": len(copied.split())}


def measure(given: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return the figures of all models."""
    text, held_out = stories(path)
    given.runs.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", text), ("held_out", held_out)):
        target = given.runs / f"{name}.jsonl"
        if not target.exists():  # a rewritten file would be tokenized again
            target.write_text("".join(json.dumps({"text": story}) + "\n" for story in some), encoding="utf8")
    training = f" {' '.join(' '.join(text).split())} "
    scores = {"base": LanguageModel.load(given.base).score(held_out)}
    figures: dict[str, Any] = {"base": likelihood(scores["base"])}
    for start in given.only or STARTS:
        folder = train(start, given)
        llm = LanguageModel.load(folder)
        scores[start] = llm.score(held_out)
        report = json.loads((folder / "report.json").read_text(encoding="utf8"))
        kept = {name: report[name] for name in ("parameters", "steps", "tokens_seen", "training_s")}
        figures[start] = likelihood(scores[start]) | kept | {"sample": sample(llm, training)}
        print(f"{start}: {figures[start]['bits_per_byte']:.4f} bits per byte at most", flush=True)
    if given.only:
        return figures
    figures["random minus converted"] = difference(scores)
    spans = [len(copied_words(story, training).split()) for story in held_out]
    figures["copied words of held-out stories"] = {"median": float(np.median(spans)), "most": max(spans)}
    return figures


def main() -> None:
    """Train both, print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each run, of 8 rows of 512 tokens")
    parser.add_argument("--runs", type=Path, default=Path("logs/convert_stories"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=STARTS, help="these alone; the result is then not saved")
    parser.add_argument("words", nargs="*", help="more settings of both runs; the result is then not saved")
    given = parser.parse_args()
    assets = Path(os.environ.get("PRETRAIN_ASSETS", ""))
    given.base = assets / "models" / "stories260K" / "hf"
    path = assets / "corpora" / "tinystories_sample" / "tiny.utf8"
    if not path.is_file():
        sys.exit(f"there are no stories at {path}: name the folder of the assets by PRETRAIN_ASSETS")
    result = Result("convert_stories", typed(), {"steps": given.steps, "held out": HELD_OUT})
    result.figures = measure(given, path)
    result.finish(keep=not (given.words or given.only))


if __name__ == "__main__":
    main()
