"""Settings of scoring: which task, on which text, and how much of it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.data.config import Format
from pretrain.errors import ConfigError
from pretrain.training.config import PathsConfig, SavedWeights


class Task(Enum):
    """What a trained model is scored on."""

    documents = "documents"  # loss, perplexity, accuracy and bits per byte of text
    pseudo_perplexity = (
        "pseudo_perplexity"  # of documents; masked models (Salazar et al. 2020, arxiv.org/abs/1910.14659)
    )
    minimal_pairs = "minimal_pairs"  # the more likely of two sentences, as in BLiMP (Warstadt et al. 2020)
    multiple_choice = "multiple_choice"  # the most likely of several answers, as in HellaSwag, ARC and PIQA
    cloze = "cloze"  # the last word of a passage, as in LAMBADA (Paperno et al. 2016, arxiv.org/abs/1606.06031)
    bias = "bias"  # the more stereotyping of two sentences, as in CrowS-Pairs (Nangia et al. 2020)
    glue = "glue"  # fine-tuned on tasks of GLUE (Wang et al. 2018, https://arxiv.org/abs/1804.07461)
    memorization = "memorization"  # how much of its training documents a model repeats (arxiv.org/abs/2202.07646)
    sts = "sts"  # similarity of two sentences by their vectors, as in STS-B (Cer et al. 2017, arxiv.org/abs/1708.00055)
    retrieval = "retrieval"  # passages that answer queries by their vectors, in BEIR's files (arxiv.org/abs/2104.08663)
    needle = "needle"  # a number hidden in a long text, found by likelihood; causal models


FROM_FILES = (Task.minimal_pairs, Task.multiple_choice, Task.cloze, Task.bias)
OF_VECTORS = (Task.sts, Task.retrieval)

_OTHER_PARTS = {  # of tasks without max_examples: what they score, and the setting of a part of it
    Task.documents: "scores packed rows. Try max_rows=500.",
    Task.glue: "reads each dev set once, whole. Try glue.max_train_examples=500 for a part of train.",
    Task.needle: "makes its own texts. Try needle.trials=5.",
    Task.retrieval: "ranks all passages of its folder for all of its queries. Leave it out.",
}


_ONLY_FOR = {  # settings that some tasks read
    "draws": FROM_FILES,
    "draws_per_row": (Task.documents,),
    "delimiter": (Task.multiple_choice, Task.cloze),
    "prompt_tokens": (Task.memorization,),
    "new_tokens": (Task.memorization,),
}

GLUE_TASKS = ("CoLA", "MRPC", "RTE", "STS-B", "SST-2")


@dataclass
class GlueConfig(Settings):
    """Fine-tuning on GLUE's tasks, with every seed at every learning rate."""

    prefix: ClassVar[str] = "glue."
    tasks: list[str] = setting(default_factory=lambda: list(GLUE_TASKS), about="Tasks: CoLA, MRPC, RTE, STS-B, SST-2.")
    seeds: list[int] = setting(default_factory=lambda: [0, 1, 2], about="Seeds of the head, the order and dropout.")
    learning_rates: list[float] = setting(
        default_factory=lambda: [2.0e-5, 5.0e-5],
        about="Peak learning rates; a tenth of train that is held out chooses one.",
    )
    epochs: float = setting(3.0, "Passes over the training examples.", bounds="(0.0, inf)", unit="epochs", example=3)
    batch_examples: int = setting(32, "Examples of a step, about.", bounds="[1, inf)", unit="examples")
    max_train_examples: int = setting(
        0, "Training examples of each task; 0: all.", bounds="[0, inf)", unit="examples", example=500
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks or not set(self.tasks) <= set(GLUE_TASKS):
            raise ConfigError(
                f"glue.tasks=[{','.join(map(str, self.tasks))}] must name tasks of {', '.join(GLUE_TASKS)}. "
                "Try 'glue.tasks=[RTE]'."
            )
        for name in ("tasks", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"glue.{name}={values} must be a list of one or more different values.")
        if min(self.learning_rates) <= 0:
            raise ConfigError(f"glue.learning_rates={self.learning_rates} must be above 0. Try [2e-5,5e-5].")


@dataclass
class NeedleConfig(Settings):
    """A number that is hidden in held-out text of several lengths, at several depths."""

    prefix: ClassVar[str] = "needle."
    lengths: list[int] = setting(
        default_factory=list, about="Tokens of the texts; []: a quarter, half and all of the model's context."
    )
    depths: list[float] = setting(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        about="Where the number stands: 0 is the beginning of the text, 1 its end.",
    )
    trials: int = setting(10, "Texts and numbers of each length and depth.", bounds="[1, inf)")
    choices: int = setting(10, "Numbers whose likelihood is compared; one of them is hidden.", bounds="[2, 1000]")
    digits: int = setting(5, "Digits of a number.", bounds="[4, 12]")
    seed: int = setting(0, "Seed of the numbers.", bounds="[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if len(set(values)) < len(values):
                raise ConfigError(f"needle.{name}={values} must be different values.")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError(f"needle.depths={self.depths} must be one or more numbers from 0 to 1. Try [0,0.5,1].")
        if any(length < 1 for length in self.lengths):
            raise ConfigError(f"needle.lengths={self.lengths} must be 1 or more tokens. Try [512,1024].")


@dataclass
class EvalConfig(Settings):
    """Score a trained model on a task."""

    checkpoint: str = setting(
        "auto", "A run, one of its checkpoints, a Hugging Face folder or name; auto: the newest run."
    )
    weights: SavedWeights = setting(SavedWeights.trained, "Weights of the run: trained, or ema, their moving average.")
    dtype: str = setting("fp32", "Number format of the weights: fp32, bf16, or int8 on CPUs.")
    task: Task = setting(Task.documents, "What to score the model on.")
    tasks: list[Any] = setting(
        default_factory=list,
        about="Tasks of your own, instead of task: kinds that a plug-in registers, or {kind: mine, setting: value}.",
    )
    plugins: list[str] = plugins_setting()
    path: str | None = setting(
        None, "Files of text, or of a task's examples; null: the run's own validation documents."
    )
    text_column: str = setting("text", "Column of the text, in files of documents that are not plain text.")
    format: Format = setting(Format.auto, "Format of files of documents; auto: by each file's name and its beginning.")
    batch_size: int = setting(16, "task=documents: rows of a forward pass.", bounds="[1, inf)", unit="rows", example=32)
    max_rows: int = setting(
        0,
        "task=documents: rows of each source; 0: all.",
        bounds="[0, inf)",
        unit="rows",
        example=500,
        hint="or 0 for all",
    )
    batch_tokens: int = setting(
        4096, "Other tasks: tokens of a forward pass.", bounds="[1, inf)", unit="tokens", example=32
    )
    max_examples: int = setting(
        0, "Not for documents, glue, needle, retrieval: examples to score, evenly spaced; 0: all, memorization 1,000.",
        bounds="[0, inf)", unit="examples", example=500, hint="or 0 for all",
    )  # fmt: skip
    pseudo_likelihood: bool = setting(
        False,
        "Minimal pairs, multiple choice, bias: score a hybrid or diffusion model as a masked one, token by token.",
    )
    draws: int = setting(
        32,
        "Diffusion, files of examples: random masks of each text that estimate its bound; even.",
        bounds="[2, inf)",
    )
    draws_per_row: int = setting(
        4, "Diffusion, task=documents: random masks of each row that estimate the bound; 1: no standard error.",
        bounds="[1, inf)",
    )  # fmt: skip
    delimiter: str = setting(" ", r"Text between query and choice, or context and completion; \n is a new line.")
    prompt_tokens: int = setting(
        32, "task=memorization: tokens of a document's beginning.", bounds="[1, inf)", unit="tokens"
    )
    new_tokens: int = setting(
        32, "task=memorization: tokens compared with the document.", bounds="[1, inf)", unit="tokens"
    )
    contamination: str | None = setting(
        "auto",
        "A curated corpus with verdicts on the items, for the score on clean ones; auto: the run's own, if any; "
        "null: none.",
    )
    device: str = setting("cpu", "Device of the model: cpu, cuda or mps.")
    output: str | None = setting(None, "A JSON file for figures and settings.")
    glue: GlueConfig = field(default_factory=GlueConfig)
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is Task.glue and self.path is None:
            raise ConfigError(
                "task=glue needs the folder of GLUE's tasks. Give it: path=<folder with CoLA, MRPC, ...>."
            )
        if self.task is Task.glue and self.weights is SavedWeights.ema:
            raise ConfigError(
                "weights=ema is not fine-tuned by task=glue, which begins with trained weights. Export the average "
                "first (weights=ema output=<folder>), and score that: checkpoint=<folder>."
            )
        if self.task is Task.glue and not self.tasks and self.dtype != "fp32":
            raise ConfigError(
                f"dtype={self.dtype} has no use in task=glue, which trains in the precision of the device and scores "
                "what it has trained. Leave it out."
            )
        if self.task in FROM_FILES and self.path is None:
            raise ConfigError(f"task={self.task.name} needs a file of examples. Give it: path=examples.jsonl.")
        if self.pseudo_likelihood and (self.task not in FROM_FILES or self.task is Task.cloze):
            raise ConfigError(
                "pseudo_likelihood=true is for task=minimal_pairs, multiple_choice and bias, "
                f"not task={self.task.name}. Leave it out."
            )
        if self.task in OF_VECTORS and self.path is None:
            files = "a table, as STS-B's dev.tsv" if self.task is Task.sts else "a folder of BEIR"
            raise ConfigError(f"task={self.task.name} needs {files}. Give it: path=<path>.")
        if not self.tasks:  # those of one's own may read any setting
            self._check_part()
        if self.task is Task.memorization and self.path is not None:
            raise ConfigError(
                f"task=memorization compares the run's own documents, so path={self.path} has no use. Leave it out."
            )

    def _check_part(self) -> None:
        """Raise ConfigError for a part of the examples, or of the rows, that the task has no use for."""
        if self.max_examples and self.task in _OTHER_PARTS:
            raise ConfigError(
                f"max_examples={self.max_examples} has no use in task={self.task.name}, which {_OTHER_PARTS[self.task]}"
            )
        for name, tasks in _ONLY_FOR.items():
            value = getattr(self, name)
            if self.task not in tasks and value != getattr(type(self), name):
                of_rows = name == "draws" and self.task is Task.documents
                raise ConfigError(
                    f"{name}={value!r} is for task={' or '.join(each.name for each in tasks)}, not "
                    f"task={self.task.name}. {f'Try draws_per_row={value}.' if of_rows else 'Leave it out.'}"
                )
        if self.max_rows and self.task is not Task.documents:
            whole = "Leave it out." if self.task in _OTHER_PARTS else f"Try max_examples={self.max_rows}."
            raise ConfigError(f"max_rows={self.max_rows} is for task=documents, not task={self.task.name}. {whole}")


@dataclass
class ScoresConfig(Settings):
    """Tasks that score the model while it trains and at the end, on a fixed part of each file."""

    prefix: ClassVar[str] = "scores."
    every_n_steps: int = setting(
        0, "Steps between scores; 0: never.", bounds="[0, inf)", unit="optimizer steps", example=500
    )
    minimal_pairs: list[str] = setting(
        default_factory=list, about="Files of sentence pairs, as in BLiMP; figures are named after the file."
    )
    multiple_choice: list[str] = setting(default_factory=list, about="Files of questions with choices, as HellaSwag.")
    cloze: list[str] = setting(default_factory=list, about="Files of passages whose last word is missing, as LAMBADA.")
    bias: list[str] = setting(
        default_factory=list, about="Files of a more and a less stereotyping sentence a row, as CrowS-Pairs."
    )
    sts: list[str] = setting(
        default_factory=list, about="Files of sentence pairs with scores, as STS-B: how well vectors rank them."
    )
    retrieval: list[str] = setting(
        default_factory=list, about="Folders in BEIR's layout: how well vectors find passages, all of a folder's."
    )
    needle: list[str] = setting(
        default_factory=list, about="Text files in which a number is hidden, as long as the context and shorter."
    )
    max_examples: int = setting(
        500, "Examples of each file, evenly spaced; 0: all.", bounds="[0, inf)", unit="examples"
    )
    delimiter: str = setting(" ", r"Text between query and choice, or context and completion; \n is a new line.")
    batch_tokens: int = setting(4096, "Tokens of a forward pass.", bounds="[1, inf)", unit="tokens")

    def files(self) -> list[tuple[Task, str]]:
        """Return every file of examples that predictions of tokens are scored on, with its task."""
        return [(task, path) for task in FROM_FILES for path in getattr(self, task.name)]

    @property
    def predicts_tokens(self) -> bool:
        """Whether predictions of tokens are scored, not vectors alone."""
        return bool(self.files() or self.needle)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every_n_steps and not (self.predicts_tokens or self.sts or self.retrieval):
            raise ConfigError(
                f"scores.every_n_steps={self.every_n_steps} has nothing to score. "
                "Name a file: 'scores.minimal_pairs=[blimp.jsonl]', or set scores.every_n_steps=0."
            )
