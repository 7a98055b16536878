"""Score a checkpoint on whole documents: what `src/eval.py` runs."""

from pathlib import Path
from typing import Any

from pretrain.config import EvalConfig
from pretrain.data.batches import RowStream, bits_per_byte_of_a_nat
from pretrain.data.config import DataConfig, PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import prepare
from pretrain.data.store import Store
from pretrain.errors import DataError
from pretrain.evaluation.documents import score_rows
from pretrain.model_folder import ModelFolder, open_model
from pretrain.objectives.objective import Learner


def score_documents(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    The documents are those of `config.path`, or the validation documents of the run. Raises DataError where there are
    none, CheckpointError where the checkpoint cannot be used.
    """
    found = open_model(path)
    tokenizer, objective, seed = found.tokenizer, found.objective, found.run.seed if found.run else 0
    store = _store(config, found)
    store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    learner = Learner(found.load(), objective.build(tokenizer, seed)).eval()
    pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    packing = found.run.data if found.run else DataConfig()
    stream = RowStream(store, packing, found.shape.context_length, pad_id, seed=0)
    figures = score_rows(learner, stream, config.batch_size, config.max_rows)
    if objective.causal:
        figures["bits_per_byte"] = figures["loss"] * bits_per_byte_of_a_nat(store)
    facts = {"checkpoint": str(found.folder), "objective": objective.kind, "documents": store.n_documents}
    return facts | figures


def _store(config: EvalConfig, found: ModelFolder) -> Store:
    cache = Path(config.paths.cache_dir)
    if config.path is not None:
        files = TextFilesConfig(path=config.path, text_column=config.text_column, validation_fraction=0.0)
        return prepare(files, PretrainedTokenizerConfig(path=str(found.tokenizer_folder)), cache).train
    if found.run is None:
        raise DataError(
            f"{found.folder} was trained elsewhere, so its documents are not known. Give files: path=<file>."
        )
    prepared = prepare(found.run.data, found.run.tokenizer, cache)
    if prepared.validation is None:
        raise DataError("the run kept no validation documents (data.validation_fraction=0). Give files: path=<file>.")
    return prepared.validation
