"""BPE training takes bounded time, changes nothing for ordinary text, reports its throughput and obeys signals."""

import random
import threading
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers

from pretrain.data.progress import Progress
from pretrain.data.sources import python_docs
from pretrain.data.tokenizers import train_bpe as tokenizer_training
from pretrain.data.tokenizers.tokenizer_json import BYTE_OF
from pretrain.data.tokenizers.train_bpe import (
    LONGEST,
    OWN_ROLES,
    Tokenizer,
    in_background,
    train_bpe,
    without_long_runs,
)
from pretrain.errors import DataError


def longest_word(text: str) -> int:
    """Return the length of the longest word in training."""
    split = tokenizer_training._byte_level(models.BPE()).pre_tokenizer.pre_tokenize_str
    return max(end - start for part in without_long_runs(text) for _, (start, end) in split(part))


@pytest.mark.parametrize("alphabet", ["ACGT", "0123456789", "=-#_", " ", "\n\t ", "天地玄黃", "é", "ab1 ", "½a"])
def test_no_word_is_longer_than_a_limit(alphabet: str) -> None:
    draw = random.Random(0)
    text = "The start. " + "".join(draw.choices(alphabet, k=5_000)) + " the end."
    assert "".join(without_long_runs(text)) == text
    assert longest_word(text) <= 1 + LONGEST  # with the space before it


@pytest.mark.slow
def test_ordinary_text_trains_the_same_tokenizer() -> None:
    texts = [document.text for document in islice(python_docs.documents(), 60)]
    texts += ["x" * LONGEST, "=" * LONGEST + "\n" + "word " * 3_000, "line\n" * 1_000, "日本語。" * 1_000]
    assert all(list(without_long_runs(text)) == [text] for text in texts)
    by_library = tokenizer_training._byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=500, min_frequency=2, initial_alphabet=list(BYTE_OF), show_progress=False,
        special_tokens=tokenizer_training._special_tokens(mask_takes_space=True),
    )  # fmt: skip
    by_library.train_from_iterator(texts, trainer)
    assert train_bpe(texts, 500).fingerprint == Tokenizer(by_library, OWN_ROLES).fingerprint


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a" * 700, " ", "\n", "1" * 600, ". ", "é" * 1500, "ab cd "])).map("".join))
def test_parts_join_to_the_text(text: str) -> None:
    assert "".join(without_long_runs(text)) == text


def test_the_throughput_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_training, "Progress", lambda report: Progress(report, every_s=0.0))
    monkeypatch.setattr(tokenizer_training, "POLL_S", 0.001)
    lines: list[str] = []
    train_bpe(["".join(random.Random(0).choices("ACGT", k=60_000)) for _ in range(3)], 600, lines.append)
    assert any("MB/s" in line for line in lines), lines
    assert lines[-1] == "learning to merge the words of 0 MB into 600 tokens, 0:00 so far ..."


def test_a_signal_interrupts_work_in_the_background() -> None:
    done, rounds = threading.Event(), []

    def meanwhile() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_background(done.wait, meanwhile)
    assert rounds == [0, 1]  # the work was still going on
    done.set()


def test_an_exception_in_the_background_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0)


def test_a_failure_of_the_library_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: object, meanwhile: object) -> None:
        raise RuntimeError("Trainer\nfailed")

    monkeypatch.setattr(tokenizer_training, "in_background", fail)
    with pytest.raises(
        DataError, match=r"^no tokenizer can be trained on this text: Trainer failed\. Try tokenizer=byt"
    ):
        train_bpe(["a"], 300)
