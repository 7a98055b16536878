"""Measure a run's quality on documents that it was not trained on: `python benchmarks/quality.py RUN_FOLDER`.

A causal run is compared with interpolated Kneser-Ney n-grams of the same tokens (`kneser_ney.py`), and its samples are
searched for loops and for words that are not in the corpus. A masked run is compared with predictions that ignore the
context. Exact definitions:

strict loop     four tokens repeated three times or more back to back in a sample; tokens without a letter or digit do
                not count alone, because this corpus underlines its headings with rows of asterisks
any loop        the same for a phrase of any number of tokens: three times or more, and 12 tokens or more in all
frequent 4-gram four tokens in a row that occur four times or more in a sample, overlaps counted, such tokens left out
real words      share of the words ([A-Za-z]{2,}) of a sample, without its first and last, that occur in the training or
                validation documents, ignoring case
A sample is the generated text, tokenized again, shorter if the model ended it. "Real text" is held-out documents.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kneser_ney import KneserNey, worst_sum
from machine import machine

from pretrain.checkpoint.read import Checkpoint, open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.train_stream import bits_per_byte_of_a_nat
from pretrain.errors import DataError, PretrainError, printable
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score_documents
from pretrain.language_model import LanguageModel
from pretrain.training.config import PathsConfig

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/data",
    "configs/model/gpt_nano.yaml",
    "configs/recipe/gpt_nano.yaml",
)

ORDERS = (2, 3, 4, 5)
NEW_TOKENS, PROMPT_TOKENS = 100, 8
SAMPLING = {"temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1}  # as in configs and generate.py
WORD = re.compile("[A-Za-z]{2,}")
WORDLIKE = re.compile("[A-Za-z0-9]")
Ids = Sequence[int]
Documents = list[npt.NDArray[np.int64]]  # each the ids of BOS, text and EOS


def measure(run_folder: Path, cache: Path, samples: int) -> dict[str, Any]:
    """Return all metrics of a run, by section."""
    checkpoint = open_checkpoint(run_folder)
    run: RunConfig = from_dict(checkpoint.config)
    prepared = prepare(run.data, run.tokenizer, cache, report=lambda line: print(line, file=sys.stderr))
    if prepared.stream is not None:
        raise DataError("the run read a stream, and n-grams count the whole corpus: train with data.mode=prepare.")
    if not prepared.validation:
        raise DataError("the run kept no validation documents (data.validation_fraction=0): nothing can be measured.")
    train, held_out = _documents(prepared.train.values()), _documents(prepared.validation.values())
    figures: dict[str, Any] = {
        "machine": machine(),
        "settings": _settings(checkpoint, run, prepared),
        "model": _score(run_folder, cache),
    }
    if not run.objective.causal:
        figures["no context"] = _without_context(prepared.tokenizer, train, held_out)
        figures["targets"] = _masked_targets(figures["model"], figures["no context"])
        return figures
    figures["n-grams"] = _n_grams(train, held_out, list(prepared.validation.values()))
    words = _corpus_words(prepared.tokenizer, [*train, *held_out])
    language_model = LanguageModel.load(run_folder)
    figures["samples"] = _sample(language_model, held_out, words, samples, run.model.context_length)
    figures["targets"] = _targets(figures)
    return figures


def _documents(stores: Iterable[Store]) -> Documents:
    return [store.document(index) for store in stores for index in range(store.n_documents)]


def _settings(checkpoint: Checkpoint, run: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """Return the settings that the metrics depend on; for a mixture, all sources together."""
    train, validation = prepared.train.values(), prepared.validation.values()
    return {
        "run": run.name,
        "step": checkpoint.step,
        "tokens seen in training": checkpoint.progress.get("tokens_seen"),
        "parameters": checkpoint.progress.get("parameters"),
        "objective": run.objective.kind,
        "context length": run.model.context_length,
        "corpus": checkpoint.progress.get("data"),
        "same corpus as in training": checkpoint.progress.get("data_fingerprint") == prepared.fingerprint,
        "vocabulary": prepared.tokenizer.vocab_size,
        "training documents": sum(store.n_documents for store in train),
        "training tokens": sum(store.n_tokens for store in train),
        "validation documents": sum(store.n_documents for store in validation),
        "validation tokens predicted": sum(store.n_tokens - store.n_documents for store in validation),
        "validation bytes": sum(store.text_bytes for store in validation),
    }


def _score(run_folder: Path, cache: Path) -> dict[str, Any]:
    """Return the model's metrics on all validation documents."""
    start = time.perf_counter()
    scored = score_documents(EvalConfig(paths=PathsConfig(cache_dir=str(cache))), run_folder)
    kept = {name: value for name, value in scored.items() if name not in ("checkpoint", "objective")}
    return kept | {"seconds": time.perf_counter() - start}


def _n_grams(train: Documents, held_out: Documents, stores: Sequence[Store]) -> dict[str, dict[str, float]]:
    """Return bits per byte of each order, its seconds, and the largest error of a sum of probabilities."""
    figures = {}
    for order in ORDERS:
        start = time.perf_counter()
        model = KneserNey(train, stores[0].vocab_size, order)
        nats = -float(model.log_probabilities(held_out).mean())
        seconds = time.perf_counter() - start
        figures[f"{order}-gram"] = {
            "bits_per_byte": nats * bits_per_byte_of_a_nat(*stores),
            "nats_per_token": nats,
            "seconds": seconds,
            "sum_error": worst_sum(model, train),
        }
    return figures


def _without_context(tokenizer: Tokenizer, train: Documents, held_out: Documents) -> dict[str, Any]:
    """Return accuracy and loss of predicting validation tokens from counts of the training tokens.

    The expectation over all tokens that can be hidden, where a masked model is scored on a random choice of them. The
    unigram adds one to each count (Laplace). "drawn" predicts a random token of the training documents.
    """
    special = sorted(tokenizer.special_ids)
    trained, asked = (np.bincount(np.concatenate(part), minlength=tokenizer.vocab_size) for part in (train, held_out))
    trained[special] = asked[special] = 0
    unigram, share = (trained + 1) / (trained + 1).sum(), asked / asked.sum()
    frequent = int(trained.argmax())
    return {
        "most frequent token": repr(tokenizer.token(frequent)),
        "accuracy of the most frequent token": float(share[frequent]),
        "accuracy drawn from the unigram": float(share @ (trained / trained.sum())),
        "loss of the unigram": -float(share @ np.log(unigram)),
    }


def _corpus_words(tokenizer: Tokenizer, documents: Documents) -> set[str]:
    found: set[str] = set()
    for document in documents:
        found.update(word.casefold() for word in WORD.findall(tokenizer.decode(document.tolist())))
    return found


def _sample(
    model: LanguageModel, held_out: Documents, words: set[str], count: int, context_length: int
) -> dict[str, Any]:
    """Return metrics of `count` completions, prompted by the first tokens of long held-out documents."""
    tokenizer = model.tokenizer
    start = time.perf_counter()
    texts, real, prompts = [], [], []
    new_tokens = min(
        NEW_TOKENS, context_length - 1 - 2 * PROMPT_TOKENS
    )  # a prompt may be tokenized differently the second time
    long = [document for document in held_out if len(document) > 1 + PROMPT_TOKENS + new_tokens] or held_out
    for seed in range(count):
        document = long[seed * len(long) // count]
        prompts.append(tokenizer.decode(document[1 : 1 + PROMPT_TOKENS].tolist()))
        text = model.generate(prompts[-1], max_new_tokens=new_tokens, seed=seed, **SAMPLING)
        texts.append(text[len(prompts[-1]) :])
        real.append(tokenizer.decode(document[1 + PROMPT_TOKENS : 1 + PROMPT_TOKENS + new_tokens].tolist()))
    found = [word for text in texts for word in WORD.findall(text)[1:-1]]
    unknown = Counter(word for word in found if word.casefold() not in words)
    return {
        "count": count,
        "new tokens": new_tokens,
        **SAMPLING,
        "prompt tokens": PROMPT_TOKENS,
        "seconds": time.perf_counter() - start,
        "generated": _repetitions(tokenizer, texts),
        "real text": _repetitions(tokenizer, real),
        "words": len(found),
        "real words": 1 - unknown.total() / len(found) if found else 0.0,
        "unknown words": [word for word, _ in unknown.most_common(12)],
        "texts": [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)],
    }


def _repetitions(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Return the number of texts with repetitions, by the definitions above."""
    ids = [tokenizer.encode(text) for text in texts]
    blank = [frozenset(token for token in set(row) if not WORDLIKE.search(tokenizer.decode([token]))) for row in ids]
    return {
        "mean tokens": sum(map(len, ids)) / len(ids),
        "shortest": min(map(len, ids)),
        "strict loops": sum(has_strict_loop(row, skip) for row, skip in zip(ids, blank, strict=True)),
        "any loops": sum(has_any_loop(row, skip) for row, skip in zip(ids, blank, strict=True)),
        "frequent 4-grams": sum(most_frequent_4_gram(row, skip) >= 4 for row, skip in zip(ids, blank, strict=True)),
    }


def has_strict_loop(tokens: Ids, blank: frozenset[int] = frozenset(), width: int = 4, times: int = 3) -> bool:
    """True if some `width` tokens, not all of them in `blank`, occur `times` times or more back to back."""
    same = 0  # tokens in a row that equal the one `width` before them
    for position in range(width, len(tokens)):
        same = same + 1 if tokens[position] == tokens[position - width] else 0
        if same >= width * (times - 1) and not blank.issuperset(tokens[position - width + 1 : position + 1]):
            return True
    return False


def has_any_loop(tokens: Ids, blank: frozenset[int] = frozenset()) -> bool:
    """True if a phrase of any width occurs three times or more back to back and fills 12 tokens or more."""
    widths = range(1, len(tokens) // 3 + 1)
    return any(has_strict_loop(tokens, blank, width, max(3, -(-12 // width))) for width in widths)


def most_frequent_4_gram(tokens: Ids, blank: frozenset[int] = frozenset()) -> int:
    """Return the count of the most frequent 4-gram that has a token outside `blank`."""
    grams = Counter(tuple(tokens[start : start + 4]) for start in range(len(tokens) - 3))
    return max((count for gram, count in grams.items() if not blank.issuperset(gram)), default=0)


def _masked_targets(model: dict[str, Any], baseline: dict[str, Any]) -> dict[str, bool]:
    return {
        "right more often than the most frequent token": model["accuracy"]
        > baseline["accuracy of the most frequent token"],
        "lower loss than the unigram": model["loss"] < baseline["loss of the unigram"],
    }


def _targets(figures: dict[str, Any]) -> dict[str, bool]:
    """Compare with the n-gram, whose share of bits is added to `figures`, and with the targets of samples."""
    ratio = figures["model"]["bits_per_byte"] / figures["n-grams"]["3-gram"]["bits_per_byte"]
    figures["model"]["share of the 3-gram's bits"] = ratio
    samples = figures["samples"]
    return {
        "fewer bits per byte than the 3-gram": ratio < 1,
        "at least 10 % fewer": ratio <= 0.9,
        "no strict loop in any sample": samples["generated"]["strict loops"] == 0,
        "at least 90 % real words": samples["real words"] >= 0.9,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the metrics as a table of names and values."""
    for section, content in figures.items():
        print(f"\n{section}")
        for name, value in content.items():
            if isinstance(value, dict):
                value = "   ".join(f"{key} {_short(item)}" for key, item in value.items())
            elif section == "targets":
                value = "met" if value else "NOT MET"
            elif name == "texts":
                name, value = "the first", value[0]["prompt"] + " >>> " + value[0]["text"]
            elif isinstance(value, list):
                value = " ".join(value)
            print(f"  {name:<46} {printable(_short(value))}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Measure a run, print the metrics and write them to a file if asked."""
    parser = argparse.ArgumentParser(description="Measure what a run has learnt, on its validation documents.")
    parser.add_argument("run", type=Path, help="a run folder, or one of its checkpoints")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where token stores are (paths.cache_dir)")
    parser.add_argument("--output", type=Path, help="file for the metrics, as JSON")
    given = parser.parse_args()
    if given.samples < 1:
        parser.error("--samples must be at least 1")
    try:
        figures = measure(given.run, given.cache, given.samples)
    except PretrainError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    show(figures)
    if given.output:
        given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
