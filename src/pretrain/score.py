"""Score a checkpoint on whole documents: what `src/eval.py` runs."""

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
from pretrain.language_model import LanguageModel
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
    learner = Learner(language_model.model, run.objective.build(tokenizer, run.seed)).eval()
    pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    stream = RowStream(store, run.data, run.model.context_length, pad_id, seed=0)
    figures = score_rows(learner, stream, config.batch_size, config.max_rows)
    if run.objective.causal:
        figures["bits_per_byte"] = figures["loss"] * bits_per_byte_of_a_nat(store)
    facts = {"checkpoint": str(checkpoint.folder), "objective": run.objective.kind, "documents": store.n_documents}
    return facts | figures


def _store(config: EvalConfig, run: RunConfig, tokenizer_folder: str) -> Store:
    cache = Path(config.paths.cache_dir)
    if config.path is not None:
        files = TextFilesConfig(path=config.path, text_column=config.text_column, validation_fraction=0.0)
        store = prepare(files, PretrainedTokenizerConfig(path=tokenizer_folder), cache).train
        assert isinstance(store, Store)
        return store
    found = prepare(run.data, run.tokenizer, cache)
    if found.validation is None:
        raise DataError("the run kept no validation documents. Give files: path=<file>.")
    return found.validation
