"""Score a checkpoint: what `src/eval.py` runs."""

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.config.run import RunConfig
from pretrain.data.collate import IGNORE
from pretrain.data.config import DataConfig, PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows, bits_per_byte_of_a_nat, validation_rows
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import FROM_FILES, EvalConfig, Task
from pretrain.evaluation.examples import read_examples, spaced
from pretrain.evaluation.likelihood import Ints, Passage, Score
from pretrain.evaluation.scorer import Progress, Scorer, check_examples, check_numbers
from pretrain.evaluation.tasks import score_examples
from pretrain.evaluation.totals import Totals, validation_figures
from pretrain.inference.dtype import prepare_for_inference
from pretrain.interop.load import ModelFolder, open_model
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import ClassifyConfig
from pretrain.objectives.objective import ModelWithLoss

MEMORIZATION_DOCUMENTS = 1000  # of each kind, where nothing else is asked for


def score(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return the figures of the model at `path` on the task of the settings, by name.

    Raises ConfigError where the model cannot do the task, DataError where there is nothing to score it on, and
    CheckpointError where the checkpoint cannot be used.
    """
    folder = open_model(path)
    if isinstance(folder.objective, ClassifyConfig):
        raise ConfigError(
            f"checkpoint={path} was trained to classify texts, and eval.py scores predictions of tokens. Its "
            "accuracy and F1 are in report.json; for other texts use LanguageModel.load(...).classify(...)."
        )
    if config.task is Task.documents:
        return score_documents(config, path)
    started_s = time.perf_counter()
    examples = None
    if config.task in FROM_FILES and config.path is not None:  # before the weights: a wrong file is soon told
        examples = read_examples(config.task, config.path, config.max_examples, config.delimiter)
        check_examples(examples, folder.tokenizer, folder.shape.context_length, folder.objective.causal)
    scorer = Scorer(
        _model(config, folder),
        folder.tokenizer,
        folder.starts_with_bos,
        batch_tokens=config.batch_tokens,
        report=Progress(config.task.name),
    )
    if examples is not None:
        figures = score_examples(scorer, examples)
    elif config.task is Task.memorization:
        figures = _memorization(config, folder, scorer)
    else:
        figures = _pseudo_perplexity(config, folder, scorer)
    metadata = {"checkpoint": str(folder.folder), "objective": folder.objective.kind, "task": config.task.name}
    return metadata | figures | {"elapsed_s": time.perf_counter() - started_s}


def score_documents(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    The documents are those of `config.path`, or the validation documents of the run. Figures of a mixture's sources
    and of a hybrid model's parts come after those of all together, as `<name>/loss` and so on. Raises DataError where
    there are no documents, CheckpointError where the checkpoint cannot be used.
    """
    folder = open_model(path)
    tokenizer, objective, seed = folder.tokenizer, folder.objective, folder.run.seed if folder.run else 0
    model, whole = _model(config, folder), objective.build(tokenizer, seed)
    packing = folder.run.data if folder.run else DataConfig()
    counts, found = Counter[str](), []
    of_sources: dict[str, int] = {}
    for source, store in _stores(config, folder).items():
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
        stream = validation_rows(store, packing, folder.shape.context_length, tokenizer.padding_id)
        rows = min(config.max_rows or len(stream), len(stream)) if stream else 0
        own = Counter(documents=store.n_documents, rows=rows)
        for part, scored in whole.parts.items():
            factor = bits_per_byte_of_a_nat(store) if scored.causal else None
            totals = Totals(0.0, 0, 0, factor)
            if stream is not None:
                totals = score_rows(ModelWithLoss(model, scored).eval(), stream, rows, config.batch_size, factor)
            own["targets"] += int(totals.targets)
            found.append((source, part, totals))
        counts += own
        of_sources |= {f"{source}/{name}": count for name, count in own.items() if source}
    if not counts["targets"]:
        raise DataError(
            f"the {counts['documents']:,} documents to score have no token that is to be predicted, so there is no "
            "loss. Give other files: path=<file>."
        )
    check_numbers(math.isnan(totals.loss_sum) for _, _, totals in found)
    metadata = {"checkpoint": str(folder.folder), "objective": objective.kind}
    return metadata | counts | validation_figures(found) | of_sources


def score_rows(
    model_with_loss: ModelWithLoss,
    stream: ShuffledRows,
    n_rows: int,
    batch_size: int,
    bits_per_byte_of_a_nat: float | None,
) -> Totals:
    """Score the first `n_rows` rows of a stream; the factor is None for a masked model."""
    loss_sum, right, count = 0.0, 0, 0
    device = next(model_with_loss.parameters()).device
    for start in range(0, n_rows, batch_size):
        row_indices = np.arange(start, min(start + batch_size, n_rows))
        batch = model_with_loss.objective.collate(stream.rows(row_indices), torch.from_numpy(row_indices))
        losses, predictions = model_with_loss.evaluate(batch.to(device))
        loss_sum += float(losses.cpu().double().sum())
        right += int((predictions.cpu() == batch.targets).sum())
        count += int((batch.targets != IGNORE).sum())
    return Totals(loss_sum, right, count, bits_per_byte_of_a_nat)


def _model(config: EvalConfig, folder: ModelFolder) -> Transformer:
    """Return the model where and as the settings say, to be read only."""
    return prepare_for_inference(folder.load(), config.device, config.dtype).eval()


def _pseudo_perplexity(config: EvalConfig, folder: ModelFolder, scorer: Scorer) -> dict[str, float]:
    """Return the mean loss of each token of the documents, hidden alone, and its exponential."""
    if scorer.causal:
        raise ConfigError(
            "task=pseudo_perplexity hides each token in turn, and this model reads from left to right. "
            "Take task=documents, which gives its perplexity."
        )
    stores = list(_stores(config, folder).values())
    documents = [(store, number) for store in stores for number in range(store.n_documents)]
    rows = [store.document(number) for store, number in spaced(documents, config.max_examples)]
    scores = scorer.documents(rows)
    whole = Score(sum(likelihood for likelihood, _ in scores), sum(tokens for _, tokens in scores), text_bytes=0)
    if not whole.tokens:
        raise DataError(f"the {len(rows):,} documents to score have only special tokens, and none that can be hidden.")
    return {"pseudo_loss": whole.loss, "pseudo_perplexity": whole.perplexity, "documents": len(rows)} | {
        "tokens": whole.tokens
    }


def _memorization(config: EvalConfig, folder: ModelFolder, scorer: Scorer) -> dict[str, float]:
    """Return how much of training and of validation documents is repeated word for word, as `<kind>/<figure>`."""
    context_length = folder.shape.context_length
    if config.prompt_tokens + config.new_tokens > context_length:
        half = context_length // 2
        remedy = (
            f"Try prompt_tokens={half} new_tokens={half}." if half else "Nothing fits: take a model with a longer one."
        )
        raise ConfigError(
            f"prompt_tokens={config.prompt_tokens} and new_tokens={config.new_tokens} do not fit into the model's "
            f"context of {context_length} tokens. {remedy}"
        )
    prepared = _prepared(config, _run_of(folder, "Score a run's folder, or one of its checkpoints."))
    train, stream = list(prepared.train.values()), prepared.stream
    if stream is not None:
        train = [stream.era(era.number) for era in stream.ledger.eras]
    count = config.max_examples or MEMORIZATION_DOCUMENTS
    figures: dict[str, float] = {}
    for kind, stores in (("train", train), ("validation", list(prepared.validation.values()))):
        tokens = 1 + config.prompt_tokens + config.new_tokens  # the first one begins the document
        documents = beginnings(stores, tokens, count)
        if documents:
            found = verbatim_figures(scorer, documents, config.new_tokens)
            figures |= {f"{kind}/{name}": value for name, value in found.items()}
        elif kind == "train":
            raise DataError(
                f"no training document is longer than prompt_tokens={config.prompt_tokens} and "
                f"new_tokens={config.new_tokens} together. Try prompt_tokens=8 new_tokens=8."
            )
    read = float(folder.metadata.get("tokens_seen", 0)) / max(1, sum(store.n_tokens for store in train))
    return figures | {"train/times_read": read}


def verbatim_figures(scorer: Scorer, documents: Sequence[Ints], new_tokens: int) -> dict[str, float]:
    """Return the share of documents whose last `new_tokens` the model repeats, and how many it repeats at first.

    Each document is truncated to the prompt and the tokens compared. Greedy decoding repeats a document exactly as long
    as each next token is the argmax, so one forward pass suffices. Source: Carlini et al. 2022, https://arxiv.org/abs/2202.07646.
    """
    if not scorer.causal:
        raise ConfigError(
            "task=memorization continues documents, and this model was trained to fill masks. "
            "Take a causal model, or score this one with task=pseudo_perplexity."
        )
    found = scorer.predictions([Passage(tokens, len(tokens) - new_tokens) for tokens in documents])
    repeated = np.array([int(each.predictions.long().cumprod(0).sum()) for each in found])
    return {
        "exact_match": float((repeated == new_tokens).mean()),
        "verbatim_tokens": float(repeated.mean()),
        "documents": len(documents),
    }


def beginnings(stores: Sequence[Store], tokens: int, count: int) -> list[Ints]:
    """Return the first `tokens` ids of documents that have more, at most `count` of them, evenly spaced."""
    long_enough = [
        (store, int(start))
        for store in stores
        for start in store.document_starts()[store.document_lengths() > tokens]  # the last id ends the document
    ]
    return [store.read(np.array([start]), np.array([tokens])) for store, start in spaced(long_enough, count)]


def _run_of(folder: ModelFolder, remedy: str) -> RunConfig:
    if folder.run is None:
        raise DataError(f"{folder.folder} was trained elsewhere, so its documents are not known. {remedy}")
    return folder.run


def _prepared(config: EvalConfig, run: RunConfig) -> Prepared:
    return prepare(run.data, run.tokenizer, Path(config.paths.cache_dir))


def _stores(config: EvalConfig, folder: ModelFolder) -> dict[str, Store]:
    """Return the stores to score, by source."""
    remedy = "Give files: path=<file>."
    if config.path is not None:
        files = TextFilesConfig(
            path=config.path, text_column=config.text_column, format=config.format, validation_fraction=0.0
        )
        tokenizer = PretrainedTokenizerConfig(path=str(folder.tokenizer_folder))
        try:
            return prepare(files, tokenizer, Path(config.paths.cache_dir)).train
        except DataError as error:  # the settings have shorter names here
            raise DataError(re.sub(r"\bdata\.(path|text_column|format)=", r"\1=", str(error))) from error
    found = _prepared(config, _run_of(folder, remedy)).validation
    if not found:
        raise DataError(f"the run kept no validation documents. {remedy}")
    return found
