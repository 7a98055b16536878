"""Prompts of the samples, taken from documents that the run does not train on."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pretrain.data.prepare import Prepared
from pretrain.data.token_store.annotations import PROMPT_TOKENS, TURNS
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.objectives.config import ObjectiveConfig

N_PROMPTS = 3  # of a kind: completions, masks or labels
_DOCUMENTS = 12  # looked at in each source, spread over it
_READ_TOKENS = 1024  # of the beginning of a document
_BEGIN_WORDS, _BEGIN_CHARACTERS = 4, 60  # of a text to continue
_LINE_WORDS = 6  # fewest words of a line that a prompt is taken from, where there are such lines
_MOST_WORDS = 20  # of a line with a mask
_TEXT_CHARACTERS = 200  # of a text to classify
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class SamplePrompt:
    """A text to continue, with [MASK]s to fill or to classify, and what the document has there ("": not shown)."""

    text: str
    truth: str = ""


def prompts_of(prepared: Prepared, objective: ObjectiveConfig, context_length: int) -> list[SamplePrompt]:
    """Return prompts that suit the objective, from validation documents, or without any from training documents.

    They are spread over sources and documents and always the same. A causal model gets the first words of a line, or
    the prompt of a pair; a masked model a line with a word masked; a classifier or
    regressor the beginning of a text. Returns fewer
    where the text has no such lines.
    """
    stores, tokenizer = prepared.validation or prepared.train, prepared.tokenizer
    if objective.embedding_pooling is not None:
        return []  # it predicts no tokens
    if objective.n_labels is not None:
        return list(islice(_labeled(stores, tokenizer), N_PROMPTS))
    prompts: list[SamplePrompt] = []
    if objective.causal or objective.denoises:
        limit = context_length // 2
        pairs = [text for text in _pairs(stores, tokenizer) if _n_tokens(text, tokenizer) in range(1, limit)]
        begins = pairs or filter(None, (_begin(line, tokenizer, limit) for line in _lines(stores, tokenizer)))
        prompts += [SamplePrompt(text) for text in islice(begins, N_PROMPTS)]
    if objective.fills_masks:
        masked = (_with_mask(line, tokenizer, context_length - 2) for line in _lines(stores, tokenizer))
        prompts += islice(filter(None, masked), N_PROMPTS)
    return prompts


def _documents(stores: Mapping[str, Store]) -> Iterator[tuple[Store, int]]:
    """Yield documents spread over each source, one of every source in turn."""
    spread = {
        name: np.linspace(0, store.n_documents, min(_DOCUMENTS, store.n_documents), endpoint=False).astype(int).tolist()
        for name, store in stores.items()
    }
    # not in the order of the corpus: the first three are far apart
    for turn in sorted(range(_DOCUMENTS), key=lambda number: number * 5 % _DOCUMENTS):
        for name, numbers in spread.items():
            if turn < len(numbers):
                yield stores[name], numbers[turn]


def _tokens(store: Store, index: int) -> list[int]:
    """Return the first tokens of a document, BOS left out."""
    bounds = store.document_bounds()[index : index + 2]
    tokens: list[int] = store.read(bounds[:1], np.minimum(np.diff(bounds), _READ_TOKENS)).tolist()
    return tokens[1:]


def _labeled(stores: Mapping[str, Store], tokenizer: Tokenizer) -> Iterator[SamplePrompt]:
    for store, index in _documents(stores):
        text = " ".join(tokenizer.decode(_tokens(store, index)).split())[:_TEXT_CHARACTERS]
        if store.annotations is not None and text:
            yield SamplePrompt(text, truth=store.annotations.shown(index))


def _pairs(stores: Mapping[str, Store], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the prompts of pairs, and what precedes the first answer of conversations, as far as they are short."""
    for store, index in _documents(stores):
        if store.annotations is not None and store.annotations.kind in (PROMPT_TOKENS, TURNS):
            length = int(store.annotations.values[index]) - 1  # BOS
            if 0 < length < _READ_TOKENS:
                yield tokenizer.decode(_tokens(store, index)[:length])


def _lines(stores: Mapping[str, Store], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line of each document, then a second one of each, and so on; short ones where all are short."""
    texts = [tokenizer.decode(_tokens(store, index)) for store, index in _documents(stores)]
    lines = [[line.strip() for line in text.split("\n") if line.strip()] for text in texts]
    long = [[line for line in each if len(line.split()) >= _LINE_WORDS] for each in lines]
    yield from _in_turn(long if any(long) else lines)


def _in_turn(lists: list[list[str]]) -> Iterator[str]:
    for number in range(max(map(len, lists), default=0)):
        yield from (each[number] for each in lists if number < len(each))


def _begin(line: str, tokenizer: Tokenizer, limit: int) -> str:
    """Return the first words of a line, fewer than `limit` tokens; "" if there are none."""
    return _cut(line, _BEGIN_WORDS, tokenizer, limit)[:_BEGIN_CHARACTERS]


def _cut(line: str, most_words: int, tokenizer: Tokenizer, limit: int) -> str:
    """Return the first words of a line, fewer than `limit` tokens; "" if they spell special tokens."""
    words = line.split()[:most_words]
    while words and (length := _n_tokens(" ".join(words), tokenizer)) >= limit:
        words.pop()
    return " ".join(words) if words and length else ""


def _with_mask(line: str, tokenizer: Tokenizer, limit: int) -> SamplePrompt | None:
    """Return the line, cut to `limit` tokens, with a word in its middle masked; None if it has no word to mask."""
    text = _cut(line, _MOST_WORDS, tokenizer, limit)
    found = sorted(_WORD.finditer(text), key=lambda word: abs(word.start() + word.end() - len(text)))
    whole = (word for word in found if len(tokenizer.encode_following(f" {word[0]}")) == 1)
    if (word := next(whole, None)) is not None:
        return _masked(text, word.start(), word.end())
    for word in found:  # of several tokens: mask the last
        piece = tokenizer.token(tokenizer.encode_following(f" {word[0]}")[-1]).strip()
        if piece and word[0].endswith(piece):
            return _masked(text, word.end() - len(piece), word.end())
    return None


def _masked(text: str, start: int, end: int) -> SamplePrompt:
    return SamplePrompt(f"{text[:start]}[MASK]{text[end:]}", truth=text[start:end])


def _n_tokens(text: str, tokenizer: Tokenizer) -> int:
    """Return the number of tokens of a prompt; 0 if it spells special tokens, which would not be read as text."""
    tokens = tokenizer.encode_prompt(text)
    return 0 if "[MASK]" in text or tokenizer.special_ids.intersection(tokens) else len(tokens)
