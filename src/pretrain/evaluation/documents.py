"""Score a checkpoint on whole documents, packed as in training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.checkpoint import open_checkpoint
from pretrain.config import EvalConfig, RunConfig, from_dict
from pretrain.data.batches import RowStream
from pretrain.data.config import PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.store import Store
from pretrain.errors import DataError
from pretrain.language_model import LanguageModel
from pretrain.objectives.batch import IGNORE
from pretrain.objectives.objective import Learner


def score_documents(config: EvalConfig, path: Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    The documents are those of `config.path`, or the validation documents of the run. Raises DataError where there are
    none, CheckpointError where the checkpoint cannot be used.
    """
    checkpoint = open_checkpoint(path)
    run: RunConfig = from_dict(checkpoint.config)
    language_model = LanguageModel.load(checkpoint.folder)
    tokenizer = language_model.tokenizer
    store = _store(config, run, str(checkpoint.tokenizer_folder))
    store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    objective = run.objective.build(tokenizer, run.seed)
    learner = Learner(language_model.model, objective).eval()
    pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    stream = RowStream(store, run.data, run.model.context_length, pad_id, seed=0)
    n_rows = min(config.max_rows or len(stream), len(stream))
    loss_sum, right, count = 0.0, 0, 0
    for start in range(0, n_rows, config.batch_size):
        places = np.arange(start, min(start + config.batch_size, n_rows))
        batch = objective.make_batch(stream.rows(places), torch.from_numpy(places))
        losses, hits = learner.evaluate(batch)
        loss_sum += float(losses.double().sum())
        right += int(hits.sum())
        count += int((batch.targets != IGNORE).sum())
    loss = loss_sum / max(1, count)
    figures: dict[str, Any] = {
        "checkpoint": str(checkpoint.folder),
        "objective": run.objective.kind,
        "documents": store.n_documents,
        "rows": n_rows,
        "targets": count,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": right / max(1, count),
    }
    if run.objective.causal:
        targets_per_byte = (store.n_tokens - store.n_documents) / max(1, store.text_bytes)
        figures["bits_per_byte"] = loss * targets_per_byte / math.log(2)
    return figures


def _store(config: EvalConfig, run: RunConfig, tokenizer_folder: str) -> Store:
    cache = Path(config.paths.cache_dir)
    if config.path is not None:
        files = TextFilesConfig(path=config.path, text_column=config.text_column, validation_fraction=0.0)
        return prepare(files, PretrainedTokenizerConfig(path=tokenizer_folder), cache).train
    found: Prepared = prepare(run.data, run.tokenizer, cache)
    if found.validation is None:
        raise DataError("the run kept no validation documents (data.validation_fraction=0). Give files: path=<file>.")
    return found.validation
