"""Shingles, MinHash and band keys: the theory holds, on any input and in any batch."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from planted_duplicates import (
    BIN_EDGES,
    batch,
    datatrove_removed,
    pairs_by_similarity,
    planted_copies,
    reviews,
    windows,
)

from pretrain.data.curation.near_duplicates.config import PRESETS, NearDuplicatesConfig, Within
from pretrain.data.curation.near_duplicates.minhash import (
    MinHash,
    candidate_probability,
    check_index,
    index_parameters,
    keys_within,
)
from pretrain.data.curation.near_duplicates.shingles import (
    MAX_CACHED_WORDS,
    Shingler,
    _WordHashes,
    jaccard,
    normalized_words,
)
from pretrain.data.curation.near_duplicates.stages import run_all
from pretrain.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def bins(assets: Path) -> list[list[tuple[str, str, float]]]:
    """Return 600 pairs of texts with their similarity in each of its bins."""
    return pairs_by_similarity(windows(reviews(assets), 120), 600, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "fineweb", "olmo3"])
def test_pairs_are_found_as_often_as_theory_says(bins: list[list[tuple[str, str, float]]], name: str) -> None:
    """In each bin of the true similarity, within .03; and nearly all from .8 on."""
    config = PRESETS[name]
    minhash = MinHash(config.words, config.bands, config.rows)
    above = []
    for edge, pairs in zip(BIN_EDGES, bins, strict=False):
        first, second, similarities = zip(*pairs, strict=True)
        found = (minhash.band_keys(first) == minhash.band_keys(second)).any(axis=1)
        expected = candidate_probability(np.array(similarities), config.bands, config.rows).mean()
        assert abs(found.mean() - expected) < 0.03, (edge, found.mean(), expected)
        above += found.tolist() if edge >= 0.8 else []
    assert np.mean(above) >= (0.97 if name == "default" else 0.93)


@pytest.mark.slow
def test_agreeing_functions_estimate_the_similarity(bins: list[list[tuple[str, str, float]]]) -> None:
    """Each of the 160 functions agrees with probability J: none is stuck, and they are not copies of each other."""
    minhash, shingler = MinHash(5, 20, 8), Shingler(5)
    pairs = [pair for each in bins for pair in each]
    first, second = (minhash.signatures(*shingler.shingles([pair[side] for pair in pairs])) for side in (0, 1))
    similarities = np.array([pair[2] for pair in pairs])
    agreement = first == second
    assert abs(agreement.mean() - similarities.mean()) < 0.005
    assert np.abs(agreement.mean(axis=0) - similarities.mean()).max() < 0.04  # 4,200 pairs: sigma is .007
    spread = (agreement.mean(axis=1) - similarities).std()
    expected = np.sqrt((similarities * (1 - similarities) / 160).mean())
    assert 0.9 < spread / expected < 1.1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!! ...",
        "one",
        "one two three four",
        "a b c d e",
        "grüße Ünï",
        "東京都の天気",
        "ภาษาไทย",
        "\ud800 x",
        "x" * 100_000,
    ],
    ids=str.__len__,
)
def test_every_text_has_a_shingle_and_equals_itself_in_any_batch(text: str) -> None:
    minhash, shingler = MinHash(5, 4, 4), Shingler(5)
    others = ["the quick brown fox jumps over it", "", "x y"]
    shingles = shingler.shingle_set(text)
    assert len(shingles) >= 1
    assert jaccard(shingles, shingles) == 1
    alone = minhash.band_keys([text])
    assert_array_equal(minhash.band_keys([*others, text, *others])[3:4], alone)
    assert not (minhash.band_keys(["another text of some words"]) == alone).any()


def test_no_texts_have_no_keys() -> None:
    assert MinHash(5, 20, 8).band_keys([]).shape == (0, 20)


def test_short_texts_are_compared_by_their_words() -> None:
    shingler = Shingler(5)
    assert jaccard(shingler.shingle_set("Yes, it is."), shingler.shingle_set("yes it IS")) == 1
    assert jaccard(shingler.shingle_set("yes it is"), shingler.shingle_set("is it yes")) == 0
    assert jaccard(shingler.shingle_set("***"), shingler.shingle_set("---")) == 0


def test_texts_are_normalized() -> None:
    assert normalized_words("Cafe\u0301, CAFÉ!") == ["café", "café"]
    assert normalized_words("snake_case isn't 1.5") == ["snake_case", "isn", "t", "1", "5"]
    assert normalized_words("我 喜欢ABC北京。") == ["我", "喜", "欢", "abc", "北", "京"]
    assert normalized_words(" -- \n ** ") == ["-- **"]


def test_jaccard_is_that_of_the_sets() -> None:
    draw = random.Random(0)
    for _ in range(200):
        first, second = ({draw.randrange(30) for _ in range(draw.randint(1, 20))} for _ in range(2))
        arrays = [np.array(sorted(each), np.uint64) for each in (first, second)]
        assert jaccard(*arrays) == len(first & second) / len(first | second) == jaccard(*arrays[::-1])


def test_a_full_cache_of_words_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{n % 50}" for n in range(500))
    wanted = Shingler(5).shingle_set(text)
    assert MAX_CACHED_WORDS > 50
    monkeypatch.setattr("pretrain.data.curation.near_duplicates.shingles.MAX_CACHED_WORDS", 7)
    hashes = _WordHashes()
    shingler = Shingler(5)
    shingler._hashes = hashes
    assert_array_equal(shingler.shingle_set(text), wanted)
    assert len(hashes) <= 7


def test_only_texts_of_one_group_share_keys() -> None:
    keys = np.repeat(MinHash(5, 20, 8).band_keys(["the same text in two languages"]), 3, axis=0)
    first, second, other = keys_within(keys, ["en", "en", "fr"])
    assert_array_equal(first, second)
    assert not (first == other).any()


def test_an_index_of_other_keys_is_refused() -> None:
    stored = index_parameters(PRESETS["default"])
    check_index(stored, NearDuplicatesConfig(similarity=0.9), "index.json")
    with pytest.raises(
        ConfigError, match=r"duplicates\.bands=14 does not fit .* index\.json.*Try duplicates\.bands=20"
    ):
        check_index(stored, PRESETS["fineweb"], "index.json")
    with pytest.raises(ConfigError, match=r"duplicates\.within=source .*Try duplicates\.within=all"):
        check_index(stored, NearDuplicatesConfig(within=Within.source), "index.json")
    with pytest.raises(DataError, match=r"index\.json has band keys of unicode=1\.0.*Curate the base corpus again"):
        check_index(stored | {"unicode": "1.0"}, PRESETS["default"], "index.json")


@pytest.mark.slow
def test_band_keys_never_change_silently() -> None:
    """An index on disk is compared with these: whoever changes them must raise MINHASH_VERSION."""
    code = (
        "from pretrain.data.curation.near_duplicates.minhash import *;"
        "print(MINHASH_VERSION, MinHash(5, 2, 3).band_keys(['The quick brown fox jumps over the lazy dog.']).tolist())"
    )
    for seed in ("0", "1"):
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert found.stdout == "1 [[620534534798929694, 14989379023237785680]]\n"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"duplicates\.bands=300 .*Try duplicates\.bands=20"):
        NearDuplicatesConfig(bands=300)
    with pytest.raises(ConfigError, match=r"duplicates\.rows=64 are more than 2048 .*Try duplicates\.bands=32"):
        NearDuplicatesConfig(bands=64, rows=64)
    with pytest.raises(ConfigError, match=r"duplicates\.similarity=0.*Try duplicates\.similarity=0\.8"):
        NearDuplicatesConfig(similarity=0)
    with pytest.raises(ConfigError, match=r"duplicates\.paragraphs=5.*Try duplicates\.paragraphs=200"):
        NearDuplicatesConfig(paragraphs=5)


def test_datatrove_removes_the_same_but_for_the_chance_of_hashes(assets: Path, tmp_path: Path) -> None:
    """Of 1,500 pairs from J = .3 to 1, without verification: within 3 sigma of each other and of theory."""
    pytest.importorskip("datatrove", reason="pip install --no-deps datatrove==0.10.1 loguru humanize dill")
    config = PRESETS["fineweb"]
    documents, similarities = planted_copies(windows(reviews(assets), 150), 1500, seed=6)
    theirs = datatrove_removed(documents, config)
    rows = run_all([batch(documents)], config, tmp_path, 3)
    ours = set(rows["document"][~rows["kept"]].tolist())
    chance = candidate_probability(similarities, config.bands, config.rows)
    sigma = np.sqrt((chance * (1 - chance)).sum())
    assert abs(len(ours) - len(theirs)) < 3 * np.sqrt(2) * sigma
    assert abs(len(ours) - chance.sum()) < 3 * sigma > abs(len(theirs) - chance.sum())
    pairs_of = [{number // 2 for number in each} for each in (ours, theirs)]
    for place in pairs_of[0] ^ pairs_of[1]:
        assert chance[place] < 0.999
    assert len(pairs_of[0] & pairs_of[1]) > 0.7 * len(ours)
