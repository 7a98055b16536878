"""Fine-tune a base on GLUE's tasks with several seeds and rates, and score it: `eval.py task=glue`."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.commands.from_python import train
from pretrain.config.overrides import quote
from pretrain.errors import DataError, printable
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.glue import REGRESSION, LabeledText, glue_metrics, read_split
from pretrain.files.atomic_files import write_atomically
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import finished_run
from pretrain.models.choices import Position

RESULTS = "results.jsonl"
WARMUP_SHARE = 0.06  # of the steps: Liu et al. 2019, https://arxiv.org/abs/1907.11692, appendix B


@dataclass(frozen=True)
class Try:
    """One fine-tuning."""

    task: str
    rate: float
    seed: int
    text: str  # hash of the task's files: scores on others are not its

    def __str__(self) -> str:
        return f"{self.task}-{self.rate:g}-{self.seed}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self}-{self.text[:8]}"


class Results:
    """The scores of tries, written to a file as they come, so that a restart goes on after them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, Try], dict[str, float]] = {}
        text = path.read_text(encoding="utf8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left the beginning of a line
        if whole != text:
            write_atomically(path, whole.encode())
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                text = str(record.get("text", ""))  # an earlier version wrote none: trained again
                one = Try(str(record["task"]), float(record["rate"]), int(record["seed"]), text)
                scores = {str(name): float(value) for name, value in record["metrics"].items()}
                self.found[str(record["split"]), one] = scores
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(
                    f"{printable(path)}:{number} is no result of task=glue. Remove the line; what it scored is "
                    "trained again."
                ) from None

    def add(self, split: str, one: Try, metrics: dict[str, float]) -> None:
        """Keep the scores of a try and append them to the file."""
        self.found[split, one] = metrics
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"split": split, **asdict(one), "metrics": metrics}) + "\n")


def split_train(
    rows: Sequence[LabeledText], max_train_examples: int = 0
) -> tuple[list[LabeledText], list[LabeledText]]:
    """Return the rows to train on, in an order that never changes and at most so many (0: all), and the held-out tenth.

    The tenth is of all rows, whatever is trained on.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    n_held_out = max(1, len(rows) // 10)
    part = [rows[position] for position in order[n_held_out:]]
    return part[: max_train_examples or len(part)], [rows[position] for position in order[:n_held_out]]


@dataclass(frozen=True)
class RowSize:
    """The rows of tokens of a fine-tuning."""

    length: int  # tokens
    examples: float  # that a row holds, about


def row_size(base: str | Path, rows: Sequence[LabeledText], batch_examples: int) -> RowSize:
    """Return rows of the base's context length, or of about a step's examples where that holds more of them.

    A row of 8,192 tokens holds hundreds of sentences, and a step reads a row at least. Rows are twice as long as the
    longest example or more, as held-out ones may be longer. Learned positions have weights for one length alone.
    """
    folder = open_model(base)
    pairs = [(row.text, None) if isinstance(row.text, str) else row.text for row in rows]
    shape, length = folder.shape.transformer, folder.shape.context_length
    sizes = [min(len(ids), length) for ids in folder.tokenizer.encode_text_pairs(pairs)]  # a longer one is truncated
    mean = float(np.mean(sizes))
    if shape is not None and shape.position is Position.rope:
        length = min(length, max(2 * max(sizes), math.ceil(batch_examples * mean)))
    return RowSize(length, length / mean)


def _fingerprint(model: Path) -> str:
    """Return a hash of a model's weights, so that another model in the same folder is another base."""
    digest = hashlib.sha256()
    manifest = model / "manifest.json"  # of a checkpoint: it has the hashes of the weights
    for path in [manifest] if manifest.is_file() else sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _fingerprint_of_text(folder: Path) -> str:
    """Return a hash of the files of a task."""
    digest = hashlib.sha256()
    for split in ("train", "dev"):
        with (folder / f"{split}.tsv").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class Glue:
    """The fine-tunings of one base; `folder` holds results and, while they are needed, the runs."""

    def __init__(self, config: EvalConfig, base: str | Path) -> None:
        self.config = config
        self.base = Path(base)
        settings = asdict(config.glue) | {"tasks": [], "seeds": [], "learning_rates": []}
        found = open_model(base).folder.resolve()
        key = json.dumps([str(found), _fingerprint(found), settings], sort_keys=True)  # a try has its text's own
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        self.folder = Path(config.paths.logs_dir) / "glue" / f"{self.base.resolve().name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / RESULTS)
        self.texts: dict[str, str] = {}  # hash of each task's files, by task
        self.row_sizes: dict[str, RowSize] = {}  # by task

    def score(self, task: str) -> dict[str, float | str]:
        """Return the rate that held-out text chose, and mean and deviation over seeds of each metric on dev.

        A tenth of train, the same for all tries, is held out to choose the rate; dev is read once, at the end.
        """
        assert self.config.path is not None
        folder = Path(self.config.path).expanduser()
        rows, dev = (read_split(folder, task, split) for split in ("train", "dev"))
        self.texts[task] = _fingerprint_of_text(folder / task)
        part, held_out = split_train(rows, self.config.glue.max_train_examples)
        rates = self.config.glue.learning_rates
        for rate in rates:
            for one in self._tries(task, rate):
                if ("held_out", one) not in self.results.found:
                    self.results.add("held_out", one, self._scores(one, part, held_out))
        means = [self._mean("held_out", task, rate)["score"][0] for rate in rates]
        best = rates[int(np.argmax(means))]
        for one in self._tries(task, best):
            if ("dev", one) not in self.results.found:
                self.results.add("dev", one, self._scores(one, part, dev))
        for rate in rates:
            for one in self._tries(task, rate):
                shutil.rmtree(self.folder / one.name, ignore_errors=True)
        figures: dict[str, float | str] = {"learning_rate": f"{best:g}"}
        for name, (mean, deviation) in self._mean("dev", task, best).items():
            figures |= {name: mean, f"{name}_deviation": deviation}
        return figures

    def _tries(self, task: str, rate: float) -> Iterator[Try]:
        return (Try(task, rate, seed, self.texts[task]) for seed in self.config.glue.seeds)

    def _mean(self, split: str, task: str, rate: float) -> dict[str, tuple[float, float]]:
        """Return mean and deviation of the sample over seeds; a single seed has deviation 0."""
        found = [self.results.found[split, one] for one in self._tries(task, rate)]
        values = {name: [scores[name] for scores in found] for name in found[0]}
        return {
            name: (float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else 0.0)
            for name, each in values.items()
        }

    def _scores(self, one: Try, rows: Sequence[LabeledText], asked: Sequence[LabeledText]) -> dict[str, float]:
        """Return the metrics on the rows `asked` of the model that the try trains, or has trained."""
        folder = self.folder / one.name
        if finished_run(folder) is None:
            self._train(one, rows)
        model = LanguageModel.load(folder, self.config.device)
        texts: Any = [row.text for row in asked]
        answers = (
            model.regress(texts)
            if one.task == REGRESSION
            else [max(each, key=each.__getitem__) for each in model.classify(texts)]
        )
        return glue_metrics(one.task, answers, [row.label for row in asked])

    def _train(self, one: Try, rows: Sequence[LabeledText]) -> None:
        folder, settings = self.folder / one.name, self.config.glue
        shutil.rmtree(folder, ignore_errors=True)  # of a try that was interrupted
        path = self.folder / f"{one.task}.jsonl"
        with path.open("w", encoding="utf8") as file:
            for row in rows:
                texts = (row.text,) if isinstance(row.text, str) else row.text
                names = ("text", "second")
                record = dict(zip(names, texts, strict=False)) | {"label": row.label}
                file.write(json.dumps(record) + "\n")
        is_pair = not isinstance(rows[0].text, str)
        print(printable(f"fine-tuning {one} on {len(rows):,} examples"), file=sys.stderr, flush=True)
        accelerator = "cpu" if self.config.device == "cpu" else "auto"
        if one.task not in self.row_sizes:  # all of its examples are encoded for that
            self.row_sizes[one.task] = row_size(self.base, rows, settings.batch_examples)
        size = self.row_sizes[one.task]
        with redirect_stdout(sys.stderr):
            train(
                "experiment=regress" if one.task == REGRESSION else "experiment=classify",
                quote(f"init_from={self.base}", "init_from"),
                quote(f"data.path={path}", "data.path"),
                *(["data.pair_column=second"] if is_pair else []),
                "data.validation_fraction=0",
                f"optimizer.learning_rate={one.rate}",
                f"seed={one.seed}",
                f"model.context_length={size.length}",
                f"batch_size={max(1, round(settings.batch_examples / size.examples))}",
                "trainer.max_steps=-1",
                f"trainer.max_epochs={settings.epochs}",
                f"trainer.accelerator={accelerator}",
                f"schedule.warmup_fraction={WARMUP_SHARE}",
                "logger=none",
                "logging.report=false",
                quote(f"paths.run_dir={folder}", "paths.run_dir"),
                quote(f"paths.cache_dir={self.config.paths.cache_dir}", "paths.cache_dir"),
            )


def glue_table(figures: dict[str, Any]) -> str:
    """Return a line for each metric of each task: mean and deviation over seeds, and the rate; then the mean score."""
    tasks = [key.removesuffix("/learning_rate") for key in figures if key.endswith("/learning_rate")]
    lines = [f"checkpoint  {figures['checkpoint']}", f"{'task':<6} {'metric':<9} {'dev':>7}   deviation   rate"]
    for task in tasks:
        names = [key.partition("/")[2] for key in figures if key.startswith(f"{task}/")]
        for name in (each for each in names if f"{each}_deviation" in names and each != "score"):
            mean, deviation = figures[f"{task}/{name}"], figures[f"{task}/{name}_deviation"]
            lines.append(f"{task:<6} {name:<9} {mean:>7.4f} ± {deviation:<9.4f}   {figures[f'{task}/learning_rate']}")
    seeds = f"{figures['seeds']} seed{'s' * (figures['seeds'] > 1)}"
    return "\n".join([*lines, f"mean score  {figures['mean_score']:.4f} ({seeds}; deviations are of single runs)"])


def score_glue(config: EvalConfig, base: str | Path) -> dict[str, Any]:
    """Return the figures of each task as `<task>/<metric>`, with deviations over seeds, and the mean of the scores.

    Raises the errors of training, and DataError for files that are not GLUE's.
    """
    glue = Glue(config, base)
    figures: dict[str, Any] = {"checkpoint": str(base), "task": config.task.name}
    scores = []
    for task in config.glue.tasks:
        found = glue.score(task)
        scores.append(float(found["score"]))
        figures |= {f"{task}/{name}": value for name, value in found.items()}
    return figures | {"mean_score": float(np.mean(scores)), "seeds": len(config.glue.seeds)}
