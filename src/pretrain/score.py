"""Score a checkpoint on whole documents: what `src/eval.py` runs."""

import operator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pretrain.checkpoint import open_checkpoint
from pretrain.config import EvalConfig, RunConfig, from_dict
from pretrain.data.batches import RowStream, bits_per_byte_of_a_nat
from pretrain.data.config import PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import prepare
from pretrain.data.store import Store
from pretrain.errors import DataError
from pretrain.evaluation.documents import score_rows
from pretrain.evaluation.totals import Totals
from pretrain.language_model import LanguageModel
from pretrain.objectives.objective import Learner


def score_documents(config: EvalConfig, path: Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    The documents are those of `config.path`, or the validation documents of the run; figures of a mixture's sources
    come after those of all together, as `<source>/loss` and so on. Raises DataError where there are no documents,
    CheckpointError where the checkpoint cannot be used.
    """
    checkpoint = open_checkpoint(path)
    run: RunConfig = from_dict(checkpoint.config)
    language_model = LanguageModel.load(checkpoint.folder)
    tokenizer = language_model.tokenizer
    learner = Learner(language_model.model, run.objective.build(tokenizer, run.seed)).eval()
    pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    scored: dict[str, _Scored] = {}
    for name, store in _stores(config, run, str(checkpoint.tokenizer_folder)).items():
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
        stream = RowStream(store, run.data, run.model.context_length, pad_id, seed=0)
        rows = min(config.max_rows or len(stream), len(stream))
        factor = bits_per_byte_of_a_nat(store) if run.objective.causal else None
        totals = score_rows(learner, stream, rows, config.batch_size, factor)
        scored[name] = _Scored(store.n_documents, rows, totals)
    figures: dict[str, Any] = {"checkpoint": str(checkpoint.folder), "objective": run.objective.kind}
    figures |= reduce(operator.add, scored.values()).figures()
    for name, source in scored.items():
        if name:
            figures |= {f"{name}/{figure}": value for figure, value in source.figures().items()}
    return figures


@dataclass(frozen=True)
class _Scored:
    """What was scored, and what it came to."""

    documents: int
    rows: int
    totals: Totals

    def __add__(self, other: "_Scored") -> "_Scored":
        return _Scored(self.documents + other.documents, self.rows + other.rows, self.totals + other.totals)

    def figures(self) -> dict[str, float]:
        counts = {"documents": self.documents, "rows": self.rows, "targets": self.totals.targets}
        return counts | self.totals.figures()


def _stores(config: EvalConfig, run: RunConfig, tokenizer_folder: str) -> dict[str, Store]:
    """Return the stores to score, by source."""
    cache = Path(config.paths.cache_dir)
    if config.path is not None:
        files = TextFilesConfig(path=config.path, text_column=config.text_column, validation_fraction=0.0)
        return prepare(files, PretrainedTokenizerConfig(path=tokenizer_folder), cache).train
    found = prepare(run.data, run.tokenizer, cache).validation
    if not found:
        raise DataError("the run kept no validation documents (data.validation_fraction=0). Give files: path=<file>.")
    return found
