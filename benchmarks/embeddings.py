"""Compare a masked base's vectors before and after contrastive training: `python benchmarks/embeddings.py`.

A masked model of nano size is trained on encyclopedia articles and on the sentences of the tasks below, without their
labels. Then `experiment=embed` teaches it pairs of texts that belong together, and STS-B scores the vectors of both:

paraphrases       pairs of MRPC that are said to be equivalent, and pairs of RTE of which the first entails the second
with STS-B        the same, and the pairs of STS-B's train that people gave 4 or more of 5
spearman          rank correlation of the vectors' cosine with people's scores (Cer et al. 2017,
                  https://arxiv.org/abs/1708.00055)

For each set of pairs the first seed's model chooses the learning rate on a tenth of STS-B's train, which no model is
trained on; then all 1,500 pairs of dev are read once. A seed determines the order of the pairs and the masks of
dropout. On a core to itself the base trained for 8 minutes and each of the other runs for less than three. A run that
is complete is not run again.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from comparison import Result, typed
from corpora import assets, texts

from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.run import score

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/evaluation/embedding_tasks.py",
    "src/pretrain/inference/embedding.py",
    "configs/experiment/embed.yaml",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
BASE = [
    "model=bert_nano", "model.n_layers=4", "model.d_model=192", "model.n_heads=3", "data=text_files",
    "tokenizer.vocab_size=8192", "batch_size=16", "schedule.decay_fraction=0.5", "trainer.val_check_interval=500",
]  # fmt: skip
PAIRS = ("paraphrases", "with STS-B")
EVERY = 10  # of STS-B's train, one pair in so many chooses the rate
ALIKE = 4.0  # the score from which on two sentences of STS-B belong together

Pair = tuple[str, str]


def rows_of(task: str, split: str = "train") -> Iterator[list[str]]:
    """Yield the rows after the heading of one of GLUE's tables."""
    path = assets() / "eval" / "glue" / task / f"{split}.tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        yield from rows


def paraphrases() -> list[Pair]:
    """Return the pairs of MRPC and RTE that belong together."""
    equivalent = [(row[3], row[4]) for row in rows_of("MRPC") if row[0] == "1"]
    entailed = [(row[1], row[2]) for row in rows_of("RTE") if row[3] == "entailment"]
    return equivalent + entailed


def alike() -> list[Pair]:
    """Return the pairs of STS-B's train that belong together, without those that choose the rate."""
    return [
        (row[7], row[8]) for number, row in enumerate(rows_of("STS-B")) if number % EVERY and float(row[9]) >= ALIKE
    ]


def write_inputs(folder: Path) -> None:
    """Write the text of the base, the pairs of each set, and the table that chooses the rate."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [row[7:10] for number, row in enumerate(rows_of("STS-B")) if number % EVERY == 0]
    lines = ["sentence1\tsentence2\tscore", *("\t".join(row) for row in held_out)]
    (folder / "held_out.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    hidden = {text for row in held_out for text in row[:2]}
    sets = {PAIRS[0]: paraphrases()}
    sets[PAIRS[1]] = sets[PAIRS[0]] + alike()
    for name, pairs in sets.items():
        records = [{"anchor": one, "positive": other} for one, other in pairs if not {one, other} & hidden]
        _write_lines(pairs_file(folder, name), records)
    sentences = [row[7:9] for row in rows_of("STS-B")] + [row[3:5] for row in rows_of("MRPC")]
    sentences += [row[1:3] for row in rows_of("RTE")]
    documents = [" ".join(text.split()) for text in texts("wikipedia_vital/en")]
    documents += sorted({text for pair in sentences for text in pair} - hidden)
    _write_lines(folder / "base.jsonl", [{"text": text} for text in documents])


def pairs_file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_')}.jsonl"


def _write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")


def train(folder: Path, words: list[str]) -> dict[str, Any]:
    """Return the report of a run; read it from the run folder if the run is complete."""
    if not (folder / "report.json").exists():
        words = [*words, f"paths.run_dir={folder}", "logger=csv", "logging.report=false", "checkpoint.keep=1"]
        resume = ["resume=auto"] if folder.exists() else []
        subprocess.run([sys.executable, str(TRAIN), *words, *resume], check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf8"))
    return found


def spearman(model: Path, table: Path) -> float:
    """Return the rank correlation of a model's vectors on a table of STS-B's kind."""
    return float(score(EvalConfig(task=Task.sts, path=str(table)), model)["spearman"])


def tuned(name: str, base: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the models that learn a set of pairs, at the rate that does best on the held-out part."""
    inputs, dev = given.runs / "inputs", assets() / "eval" / "glue" / "STS-B" / "dev.tsv"
    path = pairs_file(inputs, name)
    seconds = list[float]()

    def run(rate: float, seed: int) -> Path:
        folder: Path = given.runs / f"{path.stem}_{rate:g}_{seed}"
        words = [f"init_from={base}", f"data.path={path}", f"optimizer.learning_rate={rate:g}", f"seed={seed}"]
        seconds.append(train(folder, ["experiment=embed", *words, *given.tuning])["training_s"])
        return folder

    first, *others = given.seeds
    held_out = {rate: spearman(run(rate, first), inputs / "held_out.tsv") for rate in given.rates}
    best = max(held_out, key=held_out.__getitem__)
    folders = [run(best, seed) for seed in (first, *others)]
    return {
        "learning_rate": best,
        "held_out": {f"{rate:g}": value for rate, value in held_out.items()},
        "dev": [spearman(folder, dev) for folder in folders],
        "seconds": round(fmean(seconds), 1),
        "pairs": sum(1 for _ in path.open(encoding="utf8")),
    }


def main() -> None:
    """Train base and models of vectors, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of the base")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="candidates of the pairs' rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the contrastive runs")
    parser.add_argument("--runs", type=Path, default=Path("logs/embeddings"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, in a folder of their own")
    given = parser.parse_args()
    given.tuning = ["batch_size=16", "trainer.max_steps=600"]
    if given.quick:
        given.steps, given.rates, given.seeds, given.runs = 20, [1e-3], [0], given.runs / "quick"
        given.tuning = ["batch_size=8", "trainer.max_steps=10", "schedule.warmup_steps=2"]
    inputs, base = given.runs / "inputs", given.runs / "base"
    write_inputs(inputs)
    words = [f"data.path={inputs / 'base.jsonl'}", f"trainer.max_steps={given.steps}"]
    report = train(base, [*BASE, *words, *(["schedule.warmup_steps=2"] if given.quick else [])])
    settings = {"base": " ".join(BASE), "pairs": " ".join(given.tuning), "seeds": given.seeds}
    result = Result("embeddings", typed(), settings)
    before = {"held_out": spearman(base, inputs / "held_out.tsv")}
    before["dev"] = spearman(base, assets() / "eval" / "glue" / "STS-B" / "dev.tsv")
    result.figures["base"] = before | {
        "parameters": report["parameters"],
        "tokens_seen": report["tokens_seen"],
        "seconds": round(report["training_s"], 1),
    }
    for name in PAIRS:
        result.figures[name] = tuned(name, base, given)
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
