"""Score a checkpoint on whole documents: what `src/eval.py` runs."""

from collections import Counter
from pathlib import Path
from typing import Any

from pretrain.data.batches import RowStream, bits_per_byte_of_a_nat
from pretrain.data.config import DataConfig, PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import prepare
from pretrain.data.store import Store
from pretrain.errors import DataError
from pretrain.evaluation.documents import score_rows
from pretrain.evaluation.totals import validation_figures
from pretrain.model_folder import ModelFolder, open_model
from pretrain.objectives.objective import Learner
from pretrain.script_config import EvalConfig


def score_documents(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    The documents are those of `config.path`, or the validation documents of the run. Figures of a mixture's sources
    and of a hybrid model's parts come after those of all together, as `<name>/loss` and so on. Raises DataError where
    there are no documents, CheckpointError where the checkpoint cannot be used.
    """
    folder = open_model(path)
    tokenizer, objective, seed = folder.tokenizer, folder.objective, folder.run.seed if folder.run else 0
    model, whole = folder.load(), objective.build(tokenizer, seed)
    packing = folder.run.data if folder.run else DataConfig()
    counts, found = Counter[str](), []
    of_sources: dict[str, int] = {}
    for source, store in _stores(config, folder).items():
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
        stream = RowStream(store, packing, folder.shape.context_length, tokenizer.padding_id, seed=0)
        rows = min(config.max_rows or len(stream), len(stream))
        own = Counter(documents=store.n_documents, rows=rows)
        for part, scored in whole.parts.items():
            factor = bits_per_byte_of_a_nat(store) if scored.causal else None
            totals = score_rows(Learner(model, scored).eval(), stream, rows, config.batch_size, factor)
            own["targets"] += int(totals.targets)
            found.append((source, part, totals))
        counts += own
        of_sources |= {f"{source}/{name}": count for name, count in own.items() if source}
    facts = {"checkpoint": str(folder.folder), "objective": objective.kind}
    return facts | counts | validation_figures(found) | of_sources


def _stores(config: EvalConfig, folder: ModelFolder) -> dict[str, Store]:
    """Return the stores to score, by source."""
    cache = Path(config.paths.cache_dir)
    if config.path is not None:
        files = TextFilesConfig(path=config.path, text_column=config.text_column, validation_fraction=0.0)
        return prepare(files, PretrainedTokenizerConfig(path=str(folder.tokenizer_folder)), cache).train
    if folder.run is None:
        raise DataError(
            f"{folder.folder} was trained elsewhere, so its documents are not known. Give files: path=<file>."
        )
    found = prepare(folder.run.data, folder.run.tokenizer, cache).validation
    if not found:
        raise DataError("the run kept no validation documents. Give files: path=<file>.")
    return found
