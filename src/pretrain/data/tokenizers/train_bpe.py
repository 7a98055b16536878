"""Built-in lossless tokenizers: every byte a token, or byte-level BPE trained on the corpus."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pretrain.data.progress import Progress
from pretrain.data.tokenizers.long_texts import pieces
from pretrain.data.tokenizers.rust_calls import library_errors
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.tokenizer_json import BYTE_OF
from pretrain.errors import DataError

Report = Callable[[str], object]

PIECE_LENGTH = 1_000_000  # characters that training reads at once
POLL_S = 0.2
LONGEST = 1_000  # characters of one kind in a row, far beyond any word, number or rule of dashes

END_OF_TEXT, PAD, MASK = "<|endoftext|>", "[PAD]", "[MASK]"
OWN_ROLES = {
    "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD, "mask_token": MASK
}  # fmt: skip

_STEP = LONGEST // 2  # a longer run contains a whole step, wherever it begins
_KINDS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")  # letters, digits, others, spaces
_ONE_KIND = re.compile("|".join(f"{kind}{{{_STEP}}}" for kind in _KINDS))
_RUNS = re.compile("|".join(f"{kind}{{{LONGEST + 1},}}" for kind in _KINDS))


def ignore(line: str) -> None:
    """Discard a line of progress."""


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer of bytes: ids 0 to 255, then the three special tokens."""
    from tokenizers import models

    inner = _byte_level(models.BPE(vocab=BYTE_OF, merges=[]))
    inner.add_special_tokens(_special_tokens(mask_takes_space=False))  # a space is a token
    return Tokenizer(inner, OWN_ROLES)


def train_bpe(texts: Iterable[str], vocab_size: int, report: Report = ignore) -> Tokenizer:
    """Train a byte-level BPE tokenizer of at most `vocab_size` ids, a function of the texts.

    There are fewer ids if no pair of tokens occurs twice any more. Ids 0 to 2 are special, the 256 bytes follow.
    `report` gets a line with the throughput now and then. Signals interrupt training at once. Words of over a thousand
    characters are split first.
    Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, algorithm 1; Radford et al. 2019, section 2.2.
    """
    from tokenizers import models, trainers

    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=list(BYTE_OF),
        special_tokens=_special_tokens(mask_takes_space=True),
        show_progress=False,
    )
    parts = [part for text in texts for piece in pieces(text, PIECE_LENGTH) for part in without_long_runs(piece)]
    total = sum(map(len, parts))
    progress = Progress(report)
    read_all = threading.Event()

    def read() -> Iterator[str]:
        done = 0
        for part in parts:
            yield part
            done += len(part)
            progress("counted words to train a tokenizer", done, done / max(1, total))
        read_all.set()

    def meanwhile() -> None:
        if read_all.is_set():
            progress.report_waiting(f"learning to merge the words of {total / 1e6:,.0f} MB into {vocab_size:,} tokens")

    with library_errors("no tokenizer can be trained on this text", "Try tokenizer=bytes."):
        in_background(lambda: inner.train_from_iterator(read(), trainer), meanwhile)
    return Tokenizer(inner, OWN_ROLES)


def subsample(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield at most `max_bytes` of UTF-8, spread evenly over the texts, in order.

    One pass: every piece is selected until the limit is reached, then every 2nd, every 4th and so on, so between half
    of the limit and all of it remains. Raises DataError if there is no text.
    """
    length = max(1, min(PIECE_LENGTH, max_bytes // 64))  # characters: small enough to be spread over a few long texts
    selected: list[str] = []
    size, stride, count = 0, 1, 0
    for count, piece in enumerate((piece for text in texts for piece in pieces(text, length)), start=1):
        if (count - 1) % stride:
            continue
        selected.append(piece)
        size += len(piece.encode())
        while size > max_bytes and len(selected) > 1:
            stride *= 2
            selected = selected[::2]
            size = sum(len(piece.encode()) for piece in selected)
    if not count:
        raise DataError("tokenizer.kind=bpe has no text to train on. Name a corpus with text, or try tokenizer=bytes.")
    yield from selected


def head(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield the first `max_bytes` of UTF-8 of the texts; the last text is cut there."""
    left = max_bytes
    for text in texts:
        size = len(text.encode())
        yield text if size <= left else text.encode()[:left].decode(errors="ignore")
        left -= size
        if left <= 0:
            return


def _special_tokens(mask_takes_space: bool) -> list[Any]:
    """Return the special tokens of the built-in tokenizers, in the order of their ids.

    A mask that takes the space before it replaces a whole " word", as RoBERTa's does.
    """
    from tokenizers import AddedToken

    plain = [AddedToken(token, special=True, normalized=False) for token in (END_OF_TEXT, PAD)]
    return [*plain, AddedToken(MASK, special=True, normalized=False, lstrip=mask_takes_space)]


def _byte_level(model: Any) -> Any:
    """Return a `tokenizers.Tokenizer` that splits as GPT-2 does, then applies the model to bytes."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, pre_tokenizers

    inner = Inner(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def without_long_runs(text: str) -> Iterator[str]:
    """Yield a text in parts, cut inside runs of over LONGEST letters, digits or others.

    The parts join to the text again. BPE training takes time that grows with the square of a word's length: DNA,
    proteins and files without spaces would take days. Ordinary text stays in one part.
    """
    start = 0
    if any(_ONE_KIND.match(text, at) for at in range(0, len(text) - _STEP, _STEP)):  # a fast test: no match, no run
        for run in _RUNS.finditer(text):
            for cut in range(run.start() + LONGEST, run.end(), LONGEST):
                yield text[start:cut]
                start = cut
    yield text[start:]


def in_background(work: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run `work` in a thread and call `meanwhile` a few times a second until it ends.

    A signal's exception, such as KeyboardInterrupt, propagates at once; the thread ends with the process. Exceptions of
    `work` are raised here.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # the waiting thread raises it
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        meanwhile()
    if raised:
        raise raised[0]
