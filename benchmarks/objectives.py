"""Compare objectives on equal text, model and budget: `python benchmarks/objectives.py --novels FOLDER --pairs FILE`.

A causal, a masked (30 %), a hybrid (causal and diffusion rows) and a diffusion model of one shape read the same first
part of english_novels 1, 4 and 16 times, with two seeds, and with `--whole` the whole of it once. There
GPT-BERT's hybrid, of experiment=gpt_bert, is compared too: 15 of 16 rows masked in spans, the others causal; it, causal
and masked have two seeds. All have one tokenizer, one learning rate and no dropout, and are scored on the same tokens
of the same excerpts of the validation novels:

bits per byte     exact for causal and hybrid models, an upper bound with its standard error for masked and diffusion
minimal pairs     share of sentence pairs (BLiMP, a fixed part) in which the correct one is likelier: by likelihood of
                  causal and hybrid models, by pseudo-likelihood of masked ones, by the bound with 16 draws of masks of
                  diffusion, with the share that other masks could change; of hybrid and diffusion models by
                  pseudo-likelihood too, as masked models
infill            share of the words of a hidden span of 1, 3, 8 words that come back; a causal model sees the text
                  before the span alone, and all are told how many tokens the span has
seconds           of training

A cell that is done is a line of `<runs>/cells.jsonl` and is not run again: typed again, the script goes on, also in the
middle of a run, and the saved result has the cells so far. A cell reads about 5,000 tokens a second on one idle core:
1 and 4 times take some three hours, 16 times five more, the whole of it nine.
`--only` runs cells by name, such as diffusion-1-0; `--quick` runs a small cell of each objective to show that it works.
"""

import argparse
import json
import lzma
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Result
from objectives_picture import draw

from pretrain.data.tokenizers.train_bpe import train_bpe
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import ExampleSet, read_examples
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_examples
from pretrain.language_model import LanguageModel
from pretrain.reports.run import read_run

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/evaluation/bound.py",
    "src/pretrain/inference/diffusion.py",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
OBJECTIVES = {
    "causal": ["objective=causal"],
    "masked": ["objective=masked_30"],
    "hybrid": ["objective=hybrid", "objective.bidirectional=diffusion"],
    "diffusion": ["objective=diffusion"],
}
GPT_BERT = [  # the rows of experiment=gpt_bert, with the mean of the shares that it hides
    "objective=hybrid", "objective.masked_rows=0.9375", "objective.unit=span", "objective.mean_span=2.0",
    "objective.mask_probability=0.225",
]  # fmt: skip
SHAPE = [  # that of experiment=novels_small, with its rate
    "model=gpt_nano", "model.n_layers=4", "model.d_model=192", "model.n_heads=3", "model.context_length=256",
    "batch_size=8", "optimizer.learning_rate=4.0e-3", "schedule.warmup_steps=30", "schedule.decay_fraction=0.5",
    "data=text_files",
]  # fmt: skip
COMMAND = "python benchmarks/objectives.py --novels NOVELS --pairs PAIRS"
SPANS = (1, 3, 8)  # words
BYTES_OF_A_TOKEN = 4  # of this vocabulary on novels, about


@dataclass(frozen=True)
class Cell:
    """One training run and its figures."""

    objective: str
    epochs: int
    seed: int
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.objective}-{'whole' if self.whole else self.epochs}-{self.seed}"


@dataclass(frozen=True)
class Texts:
    """What all cells share: files to train on, a tokenizer and excerpts to score."""

    part: Path
    whole: Path
    tokenizer: Path
    excerpts: list[str]


def first_bytes(documents: Iterator[str], size: int) -> Iterator[str]:
    """Yield documents until they have `size` bytes; the last is cut."""
    for text in documents:
        if size <= 0:
            return
        yield text.encode()[:size].decode(errors="ignore")
        size -= len(text.encode())


def documents_of(path: Path) -> Iterator[str]:
    with lzma.open(path, "rt", encoding="utf8") as lines:
        for line in lines:
            yield str(json.loads(line)["text"])


def shared_texts(given: argparse.Namespace) -> Texts:
    """Write the part of the novels and the tokenizer that all cells share, unless they are there."""
    part, tokenizer = given.runs / "part.jsonl", given.runs / "tokenizer"
    whole = given.novels / "train.jsonl.xz"
    if not tokenizer.exists():
        given.runs.mkdir(parents=True, exist_ok=True)
        texts = list(first_bytes(documents_of(whole), given.tokens * BYTES_OF_A_TOKEN))
        part.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
        train_bpe(texts, given.vocab_size).save(tokenizer)
    return Texts(part, whole, tokenizer, excerpts(given.novels / "valid.jsonl.xz", given.excerpts))


def excerpts(path: Path, count: int, words: int = 60) -> list[str]:
    """Return passages of 60 words with single spaces, evenly spaced over the documents."""
    found = list[str]()
    for text in documents_of(path):
        split = text.split()
        found += [" ".join(split[start : start + words]) for start in range(0, len(split) - words, words)]
    chosen = np.linspace(0, len(found) - 1, count).astype(int)
    return [found[number] for number in chosen]


def train(cell: Cell, texts: Texts, given: argparse.Namespace) -> Path:
    """Return the folder of the cell's run, trained or gone on with."""
    folder: Path = given.runs / str(cell)
    words = [
        *SHAPE, *(OBJECTIVES | {"gpt_bert": GPT_BERT})[cell.objective],
        f"data.path={texts.whole if cell.whole else texts.part}",
        f"data.validation_path={given.novels / 'valid.jsonl.xz'}", "tokenizer=pretrained",
        f"tokenizer.path={texts.tokenizer}", f"seed={cell.seed}", "trainer.max_steps=-1",
        f"trainer.max_epochs={cell.epochs}", "trainer.val_check_interval=2000", "data.max_validation_rows=64",
        "logger=csv", "logging.report=false", "checkpoint.keep=1", f"paths.run_dir={folder}",
        f"paths.cache_dir={given.runs / 'cache'}", *given.words,
    ]  # fmt: skip
    resume = ["resume=auto"] if folder.exists() else []
    subprocess.run([sys.executable, str(TRAIN), *words, *resume], check=True, stdout=sys.stderr)
    return folder


def likelihood(llm: LanguageModel, passages: list[str]) -> dict[str, float]:
    """Return bits per byte of the passages, exact or a bound with its standard error, and how many tokens they are."""
    bound = None if llm.causal else BoundEstimate(16, llm.shift_targets)
    scores = Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, bound=bound).texts(passages)
    per_byte = 1 / math.log(2) / sum(score.text_bytes for score in scores)
    nats = -sum(score.log_likelihood for score in scores)
    error = math.sqrt(sum(score.standard_error**2 for score in scores))
    name = "bits_per_byte" if llm.causal else "bits_per_byte_bound"
    found = {name: nats * per_byte, "tokens": float(sum(score.tokens for score in scores))}
    return found if llm.causal else found | {"standard_error": error * per_byte}


def infill(llm: LanguageModel, passages: list[str], span: int) -> float:
    """Return the share of the words of a hidden span in the middle of each passage that come back."""
    shares = list[float]()
    for passage in passages:
        words = passage.split()
        start = len(words) // 2
        left, hidden, right = (
            " ".join(part) for part in (words[:start], words[start : start + span], words[start + span :])
        )
        count = len(llm.tokenizer.encode_following(f" {hidden}"))
        if llm.fills_masks:
            text = f"{left}{'[MASK]' * count} {right}"
            filled = llm.fill(text, order="confidence", temperature=0, seed=0)
        else:
            filled = llm.generate(left, max_new_tokens=count, temperature=0)
        found = filled[len(left) :].split()[:span]
        shares.append(sum(a == b for a, b in zip(found, hidden.split(), strict=False)) / span)
    return float(np.mean(shares))


def score(cell: Cell, folder: Path, texts: Texts, given: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of a trained cell."""
    llm = LanguageModel.load(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf8"))
    history = read_run(folder).history  # of all starts of the cell's run
    training_s = sum(start.end.training_s for start in history.starts if start.end) if history else 0.0
    figures: dict[str, Any] = {"cell": str(cell), "objective": cell.objective, "epochs": cell.epochs, "seed": cell.seed}
    figures |= {"seconds": training_s, "tokens_seen": report["tokens_seen"]}
    figures |= likelihood(llm, texts.excerpts)
    figures |= {f"infill_{span}": infill(llm, texts.excerpts[: given.infills], span) for span in SPANS}
    if given.pairs:
        figures |= minimal_pairs(llm, read_examples(Task.minimal_pairs, str(given.pairs), given.n_pairs))
    return figures


def minimal_pairs(llm: LanguageModel, pairs: ExampleSet) -> dict[str, float]:
    """Return the share of pairs a model gets right as what it is and, if it fills masks too, as a masked model."""
    bound = None if llm.causal or not llm.denoises else BoundEstimate(16, llm.shift_targets)
    found = score_examples(Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, bound=bound), pairs)
    figures = {"minimal_pairs": found["accuracy"]}
    if bound is not None:
        figures["minimal_pairs_undecided"] = found["undecided"]
    if llm.fills_masks and (llm.causal or bound is not None):
        masked = Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, pseudo_likelihood=True)
        figures["minimal_pairs_masked"] = score_examples(masked, pairs)["accuracy"]
    return figures


def cells(given: argparse.Namespace) -> list[Cell]:
    """Return the cells to run in order: what a table needs most comes first."""
    passes = [(1, 0)] if given.quick else [(1, 0), (1, 1), (4, 0), (16, 0), (4, 1), (16, 1)]  # epochs, seed
    found = [Cell(name, count, seed) for count, seed in passes for name in OBJECTIVES]
    if given.whole:
        found += [Cell(name, 1, seed, whole=True) for seed in (0, 1) for name in ("gpt_bert", "causal", "masked")]
        found += [Cell(name, 1, 0, whole=True) for name in ("hybrid", "diffusion")]
    return [cell for cell in found if not given.only or str(cell) in given.only]


def read_cells(table: Path) -> list[dict[str, Any]]:
    """Return the figures of the cells that are done, of all starts; of a cell that was scored again the last ones."""
    lines = table.read_text().splitlines() if table.exists() else []
    return list({figures["cell"]: figures for figures in map(json.loads, lines)}.values())


def measure(given: argparse.Namespace, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Run and score the cells that are not done, keep what is done after each."""
    texts, table = shared_texts(given), given.runs / "cells.jsonl"
    done = read_cells(table)
    keep(done)
    for cell in cells(given):
        is_done, folder = str(cell) in {figures["cell"] for figures in done}, given.runs / str(cell)
        if not is_done or (given.score_again and folder.exists()):
            figures = score(cell, folder if is_done else train(cell, texts, given), texts, given)
            with table.open("a") as lines:
                lines.write(json.dumps(figures) + "\n")
            done = read_cells(table)  # with those that another start with other cells of --only has added
            keep(done)
        figures = next(each for each in done if each["cell"] == str(cell))
        shown = [f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)]
        print(f"{cell!s:<16} {', '.join(shown)}", flush=True)
    if len({figures["tokens"] for figures in done}) > 1:
        sys.exit("the cells were scored on different tokens, so they cannot be compared: delete cells.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--novels", type=Path, required=True, help="folder with train.jsonl.xz and valid.jsonl.xz")
    parser.add_argument("--pairs", type=Path, help="blimp.jsonl.xz; none: without minimal pairs")
    parser.add_argument("--runs", type=Path, default=Path("logs/objectives"), help="folder of the cells")
    parser.add_argument("--only", nargs="+", help="names of cells")
    parser.add_argument("--whole", action="store_true", help="the whole of the novels once, too")
    parser.add_argument(
        "--score-again", action="store_true", help="also cells that are done, of which the run is there"
    )
    parser.add_argument("--quick", action="store_true", help="20 steps of each objective, in a folder of their own")
    parser.add_argument("words", nargs="*", help="more settings of every run")
    given = parser.parse_args()
    given.tokens, given.vocab_size, given.excerpts, given.infills, given.n_pairs = 1_000_000, 4096, 200, 100, 1000
    if given.quick:
        given.tokens, given.vocab_size, given.excerpts, given.infills, given.n_pairs = 100_000, 1024, 8, 4, 20
        given.runs /= "quick"
        given.words += ["trainer.max_steps=20", "trainer.max_epochs=null", "schedule.warmup_steps=2"]
    scored = {"excerpts": given.excerpts, "infills": given.infills, "pairs": given.n_pairs}
    result = Result("objectives", COMMAND, {"shape": "experiment=novels_small", "tokens": given.tokens} | scored)

    def keep(done: list[dict[str, Any]]) -> None:
        result.figures["cells"] = done
        (given.runs / "objectives.svg").write_text(draw(done), encoding="utf8")
        if not given.quick and not given.words:
            result.save()

    measure(given, keep)
    result.figures = {"cells": f"{len(result.figures['cells'])}, in {given.runs / 'cells.jsonl'}",
                      "picture": given.runs / "objectives.svg"}  # fmt: skip
    result.finish(keep=False)


if __name__ == "__main__":
    main()
