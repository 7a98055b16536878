"""A mixture: exact proportions after any number of samples, without state."""

import lzma
import math
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pretrain.data.config import BytesTokenizerConfig, MixtureConfig, MixtureSource, TextFilesConfig
from pretrain.data.mixture import MixtureDataset, Proportions, mixture_dataset
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.shuffle import ORDER_VERSION, micro_batch_samples
from pretrain.data.train_stream import ShuffledRows

WEIGHTS = st.lists(st.fractions(Fraction(1, 10**6), 1000, max_denominator=10**6), min_size=1, max_size=12)
FAR = 10**12


def tally(proportions: Proportions, first: int, count: int) -> np.ndarray:
    """Return how many samples each source has had before each of `count` samples from `first` on, (count, sources)."""
    sources, _ = proportions(np.arange(first, first + count))
    drawn = np.cumsum(sources[:, None] == np.arange(len(proportions.shares)), axis=0)
    return proportions.counts(first) + np.concatenate([np.zeros_like(drawn[:1]), drawn[:-1]])


@pytest.mark.slow
@given(weights=WEIGHTS, first=st.integers(0, 10**15))
@settings(max_examples=200, deadline=None)
def test_counts_stay_within_two_of_their_shares_after_any_number_of_draws(weights: list[Fraction], first: int) -> None:
    proportions = Proportions(weights)
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = np.array([int(weight * scale) for weight in weights], object)  # Python's integers have no limit
    for start in (0, first):
        counts, samples = tally(proportions, start, 150), np.arange(start, start + 150)
        assert_array_equal(counts.sum(1), samples)
        off = counts.astype(object) * whole.sum() - samples.astype(object)[:, None] * whole
        assert np.abs(off).max() < 2 * whole.sum()


@pytest.mark.parametrize(
    "weights",
    [[1000, *[1] * 11], [3**power for power in range(9)], [2**power for power in range(20)], [1] * 100, [7, 7, 7]],
    ids=["one large", "powers of three", "powers of two", "a hundred", "three"],
)
def test_the_bound_holds_where_many_sources_fall_due_at_once(weights: list[int]) -> None:
    """Merged by their due times 1/2, 3/2, 5/2 ... the first of these would be 5.4 samples off."""
    proportions = Proportions([Fraction(weight) for weight in weights])
    shares = np.array([weight / sum(weights) for weight in weights])
    counts = tally(proportions, 0, 3000)
    assert np.abs(counts - np.arange(3000)[:, None] * shares).max() < 2
    assert_array_equal(counts[2500], proportions.counts(2500))


@pytest.mark.slow
@given(weights=WEIGHTS, positions=st.lists(st.integers(0, 3000), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_each_source_gives_its_samples_without_gap_or_repeat(weights: list[Fraction], positions: list[int]) -> None:
    proportions = Proportions(weights)
    cuts = sorted({0, 3001, *positions})
    parts = [proportions(np.arange(first, last)) for first, last in pairwise(cuts)]
    sources, samples = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert sources.dtype == samples.dtype == np.int64
    for number in range(len(weights)):
        assert_array_equal(samples[sources == number], np.arange((sources == number).sum()))
    alone = [proportions(np.array([position])) for position in positions]  # looked up alone, equal to the sequence
    assert [(int(s[0]), int(d[0])) for s, d in alone] == [(sources[p], samples[p]) for p in positions]


@pytest.mark.parametrize("first", [FAR, 10**18])
def test_far_samples_are_found_at_once_and_go_on_without_gap(first: int) -> None:
    proportions = Proportions([Fraction("0.6"), Fraction("0.3"), Fraction("0.1"), Fraction("0.000001")])
    start = time.process_time()
    sources, samples = proportions(np.arange(first, first + 1000))
    assert time.process_time() - start < 1.0  # a millisecond, were the machine not busy
    for number, count in enumerate(proportions.counts(first)):
        assert_array_equal(samples[sources == number], count + np.arange((sources == number).sum()))
    assert abs(proportions.counts(first)[0] - Fraction("0.6") / Fraction("1.000001") * first) < 2


def test_decimal_weights_are_exact() -> None:
    """As binary fractions 0.1 and 0.3 are off by 10^-17, which 10^18 samples would show."""
    proportions = Proportions([Fraction("0.1"), Fraction("0.2"), Fraction("0.7")])
    assert proportions.shares == [Fraction(1, 10), Fraction(2, 10), Fraction(7, 10)]
    assert proportions.counts(10**18) == [10**17, 2 * 10**17, 7 * 10**17]


def test_the_order_of_a_mixture_never_changes_silently() -> None:
    """A checkpoint resumes by these numbers: whoever changes them must raise ORDER_VERSION."""
    assert ORDER_VERSION == 1
    sources, samples = Proportions([Fraction("0.6"), Fraction("0.3"), Fraction("0.1")])(np.arange(20))
    assert "".join(map(str, sources)) == "01020010100102001010"
    assert samples.tolist() == [0, 0, 1, 0, 2, 3, 1, 4, 2, 5, 6, 3, 7, 1, 8, 9, 4, 10, 5, 11]


Opened = Callable[..., tuple[Prepared, MixtureConfig]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return opened(name=source, ...): a prepared mixture, with its settings."""
    folder = tmp_path_factory.mktemp("mixture")

    def prepared(**parts: MixtureSource) -> tuple[Prepared, MixtureConfig]:
        config = MixtureConfig(sources=parts, validation_fraction=0.0)
        return prepare(config, BytesTokenizerConfig(), folder / "cache", report=lambda line: None), config

    return prepared


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], TextFilesConfig]:
    """Return texts(letter, rows): a corpus whose documents fill a row of 16 bytes each with a letter and a number."""
    folder = tmp_path_factory.mktemp("texts")

    def written(letter: str, rows: int) -> TextFilesConfig:
        path = folder / f"{letter}{rows}.txt"
        path.write_text("|".join(f"{letter * 9}{number:05d}" for number in range(rows)))
        return TextFilesConfig(path=str(path), separator="|")

    return written


Texts = Callable[[str, int], TextFilesConfig]


def stream_of(prepared: Prepared, config: MixtureConfig, seed: int = 0) -> MixtureDataset:
    pad = prepared.tokenizer.pad_id
    assert pad is not None
    return mixture_dataset(prepared.train, config, row_length=16, pad_id=pad, seed=seed)


def names(stream: MixtureDataset, prepared: Prepared, samples: np.ndarray) -> list[str]:
    """Return the text of each row."""
    return [prepared.tokenizer.decode(row.tolist()) for row in stream.rows(samples).tokens]


def test_a_row_has_one_source_and_an_epoch_reads_all_rows_of_each(opened: Opened, texts: Texts) -> None:
    prepared, config = opened(
        a=MixtureSource(texts("a", 30), weight=3), b=MixtureSource(texts("b", 30), weight=1.5),
        c=MixtureSource(texts("c", 7), weight=0.5),
    )  # fmt: skip
    stream = stream_of(prepared, config)
    assert stream.shares == {"a": Fraction(6, 10), "b": Fraction(3, 10), "c": Fraction(1, 10)}
    read = names(stream, prepared, np.arange(100))
    assert Counter(name[0] for name in read) == {"a": 60, "b": 30, "c": 10}
    assert all(len(set(name[:9])) == 1 for name in read)
    for letter, rows in (("a", 30), ("b", 30), ("c", 7)):
        own = [name for name in read if name[0] == letter]
        assert len(set(own[:rows])) == rows
    first = [[int(name[9:]) for name in read if name[0] == letter][:30] for letter in "ab"]
    assert first[0] != first[1]  # two sources of as many rows are not read in the same order
    assert names(stream, prepared, np.array([41, 7])) == [read[41], read[7]]
    assert read != names(stream_of(prepared, config, seed=1), prepared, np.arange(100))
    assert stream.epochs(100) == {"a": 2.0, "b": 1.0, "c": 10 / 7}


def test_micro_batches_of_any_grid_make_the_same_step(opened: Opened, texts: Texts) -> None:
    prepared, config = opened(a=MixtureSource(texts("a", 30), weight=0.6), b=MixtureSource(texts("b", 30), weight=0.4))
    stream = stream_of(prepared, config)
    for step in (0, 3, 10**11):
        whole = stream.rows(micro_batch_samples(step, 0, 12, 12))
        for size in (1, 3, 4):
            parts = [stream.rows(micro_batch_samples(step, index, size, 12)) for index in range(12 // size)]
            for field in ("tokens", "next_tokens", "positions", "documents"):
                assert_array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


def test_epochs_give_each_source_its_rows_so_many_times(opened: Opened, texts: Texts) -> None:
    prepared, config = opened(a=MixtureSource(texts("a", 30), epochs=1), b=MixtureSource(texts("b", 20), epochs=2.5))
    stream = stream_of(prepared, config)
    assert stream.shares == {"a": Fraction(30, 80), "b": Fraction(50, 80)}
    assert stream.epochs(80) == {"a": 1.0, "b": 2.5}
    read = Counter(names(stream, prepared, np.arange(80)))
    assert set(read.values()) == {1, 2, 3}
    assert sum(count for name, count in read.items() if name[0] == "a") == 30


def test_a_source_alone_is_read_as_it_always_was(opened: Opened, texts: Texts, tmp_path: Path) -> None:
    config = texts("a", 30)
    config.validation_fraction = 0.0
    prepared = prepare(config, BytesTokenizerConfig(), tmp_path, report=lambda line: None)
    pad = prepared.tokenizer.pad_id
    assert pad is not None
    stream = mixture_dataset(prepared.train, config, 16, pad, seed=5)
    plain = ShuffledRows(prepared.train[""], config, 16, pad, seed=5)
    samples = np.arange(95)
    assert_array_equal(stream.rows(samples).tokens, plain.rows(samples).tokens)
    assert prepared.fingerprint == prepared.train[""].fingerprint


@pytest.mark.slow
def test_real_corpora_are_drawn_in_their_shares_at_every_step(assets: Path, tmp_path: Path) -> None:
    """Counted from the rows that training batches hold, each found again in the source it is said to be of."""
    sources = {}
    for name, weight in (("english_novels/valid", 0.6), ("wikipedia_vital/en", 0.3), ("python_peps/peps", 0.1)):
        source = name.split("/")[0]
        with lzma.open(assets / "corpora" / f"{name}.jsonl.xz", "rt", encoding="utf8") as lines:
            (tmp_path / f"{source}.jsonl").write_text("".join(islice(lines, 40)), encoding="utf8")
        sources[source] = MixtureSource(TextFilesConfig(path=str(tmp_path / f"{source}.jsonl")), weight=weight)
    config = MixtureConfig(sources=sources, validation_fraction=0.0)
    prepared = prepare(config, BytesTokenizerConfig(), tmp_path / "cache", report=lambda line: None)
    pad = prepared.tokenizer.pad_id
    assert pad is not None
    stream = mixture_dataset(prepared.train, config, 128, pad, seed=3)
    known = {
        name: {row.tobytes() for row in each.read(np.arange(len(each))).tokens} for name, each in stream.streams.items()
    }
    drawn: Counter[str] = Counter()
    for step in range(200):
        for row in stream.rows(micro_batch_samples(step, 0, 8, 8)).tokens:
            (source,) = [name for name, rows in known.items() if row.tobytes() in rows]
            drawn[source] += 1
        for name, share in stream.shares.items():
            assert abs(drawn[name] - share * 8 * (step + 1)) < 2
    assert dict(drawn) == {"english_novels": 960, "python_peps": 160, "wikipedia_vital": 480}
