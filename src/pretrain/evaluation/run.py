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

from pretrain.checkpoint.read import Checkpoint, read_manifest
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.registry import typed_tasks
from pretrain.config.run import RunConfig
from pretrain.config.stages import course_of
from pretrain.data.config import DataConfig, PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows, bits_per_byte_of_a_nat, validation_rows
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.bound import estimate_of
from pretrain.evaluation.clean_items import clean_scores, verdicts_for
from pretrain.evaluation.config import FROM_FILES, OF_VECTORS, EvalConfig, Task
from pretrain.evaluation.embedding_tasks import (
    read_retrieval_set,
    read_sentence_pairs,
    score_embeddings,
    some_pairs,
)
from pretrain.evaluation.examples import read_examples, spaced
from pretrain.evaluation.likelihood import Ints, Passage, Score
from pretrain.evaluation.needle import score_needles
from pretrain.evaluation.scorer import Progress, Scorer, check_examples, check_numbers
from pretrain.evaluation.tasks import score_examples
from pretrain.evaluation.totals import ScoredPart, Totals, validation_metrics
from pretrain.inference.dtype import prepare_for_inference
from pretrain.interop.load import ModelFolder, open_model
from pretrain.language_model import LanguageModel
from pretrain.launch.resume import saved_sizes
from pretrain.models.interface import LanguageModule
from pretrain.objectives.objective import ModelWithLoss

MEMORIZATION_DOCUMENTS = 1000  # default, of training and of validation documents


def score(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return the metrics of the model at `path` on the task of the settings, by name.

    Raises ConfigError for a task that the model cannot do, DataError if there is nothing to score it on, and
    CheckpointError for a checkpoint that cannot be read.
    """
    if config.tasks:
        return score_own_tasks(config, path)
    if config.task in OF_VECTORS and config.path is not None:
        return _score_vectors(config, path, config.path)
    folder = open_model(path, config.weights)
    _check_predicts_tokens(config, path, folder)
    if config.task is Task.documents:
        return score_documents(config, path)
    started_s = time.perf_counter()
    if config.pseudo_likelihood:
        _check_fills_masks(path, folder)
    left_to_right = folder.objective.causal and not config.pseudo_likelihood
    examples = None
    if config.task in FROM_FILES and config.path is not None:  # before the weights, so that a wrong file fails at once
        _check_draws(config, folder, "draws")
        examples = read_examples(config.task, config.path, config.max_examples, config.delimiter)
        check_examples(examples, folder.tokenizer, folder.shape.context_length, left_to_right)
    scorer = Scorer(
        _model(config, folder),
        folder.tokenizer,
        folder.starts_with_bos,
        batch_tokens=config.batch_tokens,
        report=Progress(config.task.name),
        bound=None if config.pseudo_likelihood else estimate_of(folder.objective, config.draws),
        pseudo_likelihood=config.pseudo_likelihood,
    )
    if examples is not None:
        metrics = score_examples(scorer, examples)
        if (verdicts := verdicts_for(config, folder)) is not None:
            metrics |= clean_scores(scorer, examples, verdicts)
    elif config.task is Task.memorization:
        metrics = _memorization(config, folder, scorer)
    elif config.task is Task.needle:
        metrics = score_needles(scorer, _haystack(config, folder), config.needle)
    else:
        metrics = _pseudo_perplexity(config, folder, scorer)
    metadata = {"checkpoint": str(folder.folder), "objective": folder.objective.kind, "task": config.task.name}
    return metadata | metrics | {"elapsed_s": time.perf_counter() - started_s}


def _check_predicts_tokens(config: EvalConfig, path: str | Path, folder: ModelFolder) -> None:
    """Raise ConfigError for a model without a head that predicts tokens."""
    if folder.pooling is not None:
        raise ConfigError(
            f"checkpoint={path} embeds texts, and task={config.task.name} scores predictions of tokens. "
            "Take task=sts or task=retrieval."
        )
    if folder.objective.n_labels is not None:
        raise ConfigError(f"checkpoint={path} {_with_head(folder)}(...).")


def _check_fills_masks(path: str | Path, folder: ModelFolder) -> None:
    """Raise ConfigError for a model that has no pseudo-likelihoods."""
    objective = folder.objective
    if objective.causal and not objective.fills_masks:
        raise ConfigError(
            f"pseudo_likelihood=true hides tokens, and checkpoint={path} has not learned to fill masks. Leave it out; "
            "a model of objective=hybrid can be scored in both ways."
        )
    if objective.shift_targets and not objective.causal:
        raise ConfigError(
            f"pseudo_likelihood=true reads each prediction at the masked token, and checkpoint={path} was trained with "
            "objective.shift=true. Leave it out, for scores by its bound."
        )


def _with_head(folder: ModelFolder) -> str:
    """Return what a model with a head on texts is, and how it is used instead of being scored."""
    if folder.objective.classifier is None:
        metrics, what, method = "correlations", "predicts a number of a text", "regress"
    else:
        metrics, what, method = "accuracy and F1", "is a classifier", "classify"
    return (
        f"{what}, and eval scores predictions of tokens. Its {metrics} are in report.json; for other texts use "
        f"LanguageModel.load(...).{method}"
    )


def _score_vectors(config: EvalConfig, path: str | Path, examples: str) -> dict[str, Any]:
    started_s = time.perf_counter()
    is_sts = config.task is Task.sts
    read = some_pairs(read_sentence_pairs(examples), config.max_examples) if is_sts else read_retrieval_set(examples)
    model = LanguageModel.load(path, config.device, config.dtype, weights=config.weights)
    metrics = score_embeddings(model.embed_beginnings, read)
    metadata = {"checkpoint": str(path), "task": config.task.name}
    return metadata | metrics | {"elapsed_s": time.perf_counter() - started_s}


def score_own_tasks(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return the metrics of the model at `path` on the registered tasks of the settings, as `<kind>/<metric>`.

    Raises ConfigError for a task that is not registered; other errors are those of the tasks.
    """
    tasks = typed_tasks(config.tasks)
    model = LanguageModel.load(path, config.device, config.dtype, weights=config.weights)
    scored: dict[str, Any] = {"checkpoint": str(path)}
    for task in tasks:
        scored |= {f"{task.kind}/{name}": value for name, value in task.score(model).items()}
    return scored


def _check_draws(config: EvalConfig, folder: ModelFolder, name: str) -> None:
    """Raise ConfigError for a number of random masks that was typed for a model that is scored without a bound."""
    value = getattr(config, name)
    has_bound = folder.objective.weighs_targets if name == "draws_per_row" else estimate_of(folder.objective)
    if value != getattr(EvalConfig, name) and (not has_bound or config.pseudo_likelihood):
        raise ConfigError(f"{name}={value} means nothing for a model that is scored without a bound. Leave it out.")


def score_documents(config: EvalConfig, path: str | Path) -> dict[str, Any]:
    """Return loss in nats per target, perplexity, accuracy and, for a causal model, bits per byte of the text.

    A diffusion model's loss is a bound, with its standard error over `config.draws_per_row` masks of each row. The
    documents are those of `config.path`, or the run's validation documents. Metrics of a mixture's sources and a
    hybrid model's parts follow as `<name>/loss` and so on. Raises DataError if there are no documents, CheckpointError
    for a checkpoint that cannot be read.
    """
    folder = open_model(path, config.weights)
    _check_draws(config, folder, "draws_per_row")
    tokenizer, seed = folder.tokenizer, folder.run.seed if folder.run else 0
    model, objective = _model(config, folder), folder.objective.build(tokenizer, seed)
    packing = _packing(config, folder.run)
    counts, scored = Counter[str](), list[ScoredPart]()
    source_counts: dict[str, int] = {}
    for source, store in _stores(config, folder).items():
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
        stream = validation_rows(store, packing, folder.shape.context_length, tokenizer.padding_id)
        rows = min(config.max_rows or len(stream), len(stream)) if stream else 0
        of_source = Counter(documents=store.n_documents, rows=rows)
        for name, part in objective.validation_parts.items():
            factor = bits_per_byte_of_a_nat(store) if part.causal or part.is_bound else None
            totals = Totals(0.0, 0, 0, factor, part.is_bound)
            if stream is not None:
                draws = config.draws_per_row if part.is_bound else 1
                scorer = ModelWithLoss(model, part).eval()
                totals = score_rows(scorer, stream, rows, config.batch_size, factor, draws)
            of_source["targets"] += int(totals.targets)
            scored.append((source, name, totals))
        counts += of_source
        source_counts |= {f"{source}/{name}": count for name, count in of_source.items() if source}
    if not counts["targets"]:
        raise DataError(
            f"the {counts['documents']:,} documents to score have no target token, so there is no loss. "
            "Give other files: path=<file>."
        )
    check_numbers(math.isnan(totals.loss_sum) for _, _, totals in scored)
    metadata = {"checkpoint": str(folder.folder), "objective": folder.objective.kind}
    return metadata | counts | validation_metrics(scored) | source_counts


def score_rows(
    model_with_loss: ModelWithLoss,
    stream: ShuffledRows,
    n_rows: int,
    batch_size: int,
    bits_per_byte_of_a_nat: float | None,
    draws: int = 1,
) -> Totals:
    """Return the totals over the first `n_rows` rows of a stream; the factor is None for a masked model.

    A bound is the mean over `draws` masks of each row, and its variance, with two or more, that within rows. Shares
    of hidden tokens are of low discrepancy within a row and over rows, so the variance is rather too large than too
    small.
    """
    losses = np.zeros((draws, n_rows))
    correct, counts = np.zeros((draws, n_rows)), np.zeros(n_rows)
    device, report = next(model_with_loss.parameters()).device, Progress("documents", "row")
    for draw in range(draws):
        for start in range(0, n_rows, batch_size):
            rows = np.arange(start, min(start + batch_size, n_rows))
            samples = torch.from_numpy(rows * draws + draw)  # masks are a function of it, and neighbors' shares differ
            batch = model_with_loss.objective.collate(stream.rows(rows), samples)
            of_targets, predictions = model_with_loss.evaluate(batch.to(device))
            losses[draw, rows] = batch.weighted(of_targets.cpu().double()).sum(1)
            correct[draw, rows] = batch.weighted((predictions.cpu() == batch.targets).double()).sum(1)
            counts[rows] = batch.row_counts()
            report(draw * n_rows + len(rows) + start, draws * n_rows)
    return Totals(
        float(losses.mean(0).sum()),
        float(correct.mean(0).sum()),
        int(counts.sum()),
        bits_per_byte_of_a_nat,
        model_with_loss.objective.is_bound,
        float(losses.var(0, ddof=1).sum() / draws) if draws > 1 else 0.0,
    )


def _model(config: EvalConfig, folder: ModelFolder) -> LanguageModule:
    """Return the model on the device and in the dtype of the settings, in evaluation mode."""
    return prepare_for_inference(folder.load(), config.device, config.dtype).eval()


def _pseudo_perplexity(config: EvalConfig, folder: ModelFolder, scorer: Scorer) -> dict[str, float]:
    """Return the mean loss of the documents' tokens, each masked in turn, and its exponential."""
    if scorer.causal:
        raise ConfigError(
            "task=pseudo_perplexity needs a masked model, and this one is causal. "
            "Take task=documents, which returns its perplexity."
        )
    if scorer.bound is not None and scorer.bound.shift_targets:
        raise ConfigError(
            "task=pseudo_perplexity reads each prediction at the masked token, and this model was trained with "
            "objective.shift=true. Take task=documents, which returns its bound."
        )
    stores = list(_stores(config, folder).values())
    documents = [(store, number) for store in stores for number in range(store.n_documents)]
    rows = [store.document(number) for store, number in spaced(documents, config.max_examples)]
    scores = scorer.documents(rows)
    total = Score(sum(likelihood for likelihood, _ in scores), sum(tokens for _, tokens in scores), text_bytes=0)
    if not total.tokens:
        raise DataError(
            f"the {len(rows):,} documents to score hold special tokens alone, which are never masked. "
            "Give other files: path=<file>."
        )
    return {
        "pseudo_loss": total.loss,
        "pseudo_perplexity": total.perplexity,
        "documents": len(rows),
        "tokens": total.tokens,
    }


def _memorization(config: EvalConfig, folder: ModelFolder, scorer: Scorer) -> dict[str, float]:
    """Return how much of training and validation documents the model repeats verbatim, as `<split>/<metric>`."""
    context_length = folder.shape.context_length
    if config.prompt_tokens + config.new_tokens > context_length:
        half = context_length // 2
        remedy = f"Try prompt_tokens={half} new_tokens={half}." if half else "Take a model with a longer context."
        raise ConfigError(
            f"prompt_tokens={config.prompt_tokens} and new_tokens={config.new_tokens} do not fit into the model's "
            f"context of {context_length} tokens. {remedy}"
        )
    prepared = _prepared(config, folder, "Score a run's folder, or one of its checkpoints.")
    train, stream = list(prepared.train.values()), prepared.stream
    if stream is not None:
        train = [stream.era(era.number) for era in stream.ledger.eras]
    count = config.max_examples or MEMORIZATION_DOCUMENTS
    metrics: dict[str, float] = {}
    for split, stores in (("train", train), ("validation", list(prepared.validation.values()))):
        documents = document_heads(stores, 1 + config.prompt_tokens + config.new_tokens, count)  # 1: BOS
        if documents:
            repeated = verbatim_metrics(scorer, documents, config.new_tokens)
            metrics |= {f"{split}/{name}": value for name, value in repeated.items()}
        elif split == "train":
            raise DataError(
                f"no training document is longer than prompt_tokens={config.prompt_tokens} plus "
                f"new_tokens={config.new_tokens}. Try prompt_tokens=8 new_tokens=8."
            )
    read = _tokens_of_text(folder) / max(1, sum(store.n_tokens for store in train))
    return metrics | {"train/times_read": read}


def _tokens_of_text(folder: ModelFolder) -> int:
    """Return the tokens that a run has read of its text; of a later stage with another text, since that began."""
    seen = int(folder.metadata.get("tokens_seen", 0))
    if not (name := folder.metadata.get("text_of")):
        return seen
    checkpoint = Checkpoint(folder.folder, read_manifest(folder.folder))
    course = course_of(settings_of(checkpoint, whole_run=True), saved_sizes(checkpoint), checkpoint.step)
    stage = next((each for each in course.stages if each.name == name), course.stages[0])
    return max(0, seen - course.sizes.tokens(course.span_of_text(stage)[0]))


def _haystack(config: EvalConfig, folder: ModelFolder) -> Ints:
    """Return the ids of the held-out text, documents one after another without BOS and EOS, as many as are used."""
    longest = max(config.needle.lengths, default=folder.shape.context_length)
    found, size = list[Ints](), 0
    for store in _stores(config, folder).values():
        store.check_tokenizer(folder.tokenizer.fingerprint, folder.tokenizer.vocab_size)
        for number in range(store.n_documents):
            if size >= longest * config.needle.trials:
                break
            found.append(store.document(number)[1:-1].astype(np.int64))
            size += len(found[-1])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def verbatim_metrics(scorer: Scorer, documents: Sequence[Ints], new_tokens: int) -> dict[str, float]:
    """Return the share of documents whose last `new_tokens` the model repeats, and the mean number repeated.

    Documents are truncated to prompt and compared tokens. Greedy decoding repeats a document for as long as each next
    token is the argmax, so one forward pass suffices. Source: Carlini et al. 2022, https://arxiv.org/abs/2202.07646.
    """
    if not scorer.causal:
        raise ConfigError(
            "task=memorization needs a causal model, and this one was trained to fill masks. "
            f"Score it with task={'pseudo_perplexity' if scorer.bound is None else 'documents'}."
        )
    predicted = scorer.predictions([Passage(tokens, len(tokens) - new_tokens) for tokens in documents])
    repeated = np.array([int(passage.correct.long().cumprod(0).sum()) for passage in predicted])
    return {
        "exact_match": float((repeated == new_tokens).mean()),
        "verbatim_tokens": float(repeated.mean()),
        "documents": len(documents),
    }


def document_heads(stores: Sequence[Store], tokens: int, count: int) -> list[Ints]:
    """Return the first `tokens` ids of documents that have more: at most `count`, evenly spaced."""
    long_enough = [
        (store, int(start))
        for store in stores
        for start in store.document_starts()[store.document_lengths() > tokens]  # more: the last id is EOS
    ]
    return [store.read(np.array([start]), np.array([tokens])) for store, start in spaced(long_enough, count)]


def _run_of(folder: ModelFolder, remedy: str) -> RunConfig:
    if folder.run is None:
        raise DataError(f"{folder.folder} was not trained here, so its documents are unknown. {remedy}")
    return folder.run


def _packing(config: EvalConfig, run: RunConfig | None) -> DataConfig:
    """Return the settings by which documents are packed: the run's own, which a model trained on pairs has for pairs.

    They read the beginning of a long document alone; of other files its base would be scored on all of it.
    """
    if run is None or (config.path is not None and any(part.annotated for part in run.data.parts().values())):
        return DataConfig()
    return run.data


def _prepared(config: EvalConfig, folder: ModelFolder, remedy: str) -> Prepared:
    """Return the text of a run, or of the stage that wrote a checkpoint: its tokenizer learned from that of the run."""
    run = _run_of(folder, remedy)
    whole = settings_of(Checkpoint(folder.folder, read_manifest(folder.folder)), whole_run=True)
    return prepare(run.data, run.tokenizer, Path(config.paths.cache_dir), trained_on=whole.data)


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
        except DataError as error:  # these settings of eval.py lack the prefix `data.`
            raise DataError(re.sub(r"\bdata\.(path|text_column|format)=", r"\1=", str(error))) from error
    validation = _prepared(config, folder, remedy).validation
    if not validation:
        raise DataError(f"the run has no validation documents. {remedy}")
    return validation
