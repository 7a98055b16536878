"""Near-duplicates through all stages: what is removed has a kept twin, and nothing depends on how the work is cut."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from planted_duplicates import batch, chains, changed, reviews, true_similarities, windows

from pretrain.data.curation.near_duplicates import stages
from pretrain.data.curation.near_duplicates.buckets import BAND, Edges
from pretrain.data.curation.near_duplicates.components import COMPONENT, components_in_ranges, connected_components
from pretrain.data.curation.near_duplicates.config import PRESETS, NearDuplicatesConfig
from pretrain.data.curation.near_duplicates.minhash import MinHash, keys_within
from pretrain.data.curation.near_duplicates.shuffle_files import map_partition, read_partition
from pretrain.data.curation.near_duplicates.stages import MemberFiles, counts, decisions_of, run_all
from pretrain.data.curation.near_duplicates.verification import DECISION, MEMBER, check_decisions, decide, guard
from pretrain.errors import DataError

DEFAULT = NearDuplicatesConfig()


def removed(decisions):
    """Return the removed documents by number, with their twins."""
    rows = decisions[~decisions["kept"]]
    return dict(zip(rows["document"].tolist(), rows["twin"].tolist(), strict=True))


@pytest.fixture(scope="module")
def planted(assets: Path) -> list[str]:
    """Return 2,400 texts: 300 chains of 5, each text changed further from the one before, and 900 single ones."""
    texts = windows(reviews(assets), 150)
    return chains(texts[:300], 5, changes=2, seed=3) + texts[300:1200]


@pytest.fixture(scope="module")
def decisions(planted: list[str], tmp_path_factory: pytest.TempPathFactory):
    work = tmp_path_factory.mktemp("work")
    return run_all([batch(planted)], DEFAULT, work, 3)


@pytest.mark.slow
def test_every_removed_document_has_a_kept_twin_and_every_pair_is_found(planted, decisions) -> None:
    """Against brute force over tuples of words: precision 1, similarities exact, recall of the theory."""
    true = true_similarities(planted)
    kept = np.ones(len(planted), bool)
    kept[decisions["document"][~decisions["kept"]].astype(int)] = False
    rows = decisions[~decisions["kept"]]
    assert len(rows) > 500
    assert kept[rows["twin"].astype(int)].all()
    found = true[rows["document"].astype(int), rows["twin"].astype(int)]
    assert (found >= 0.8).all()
    assert (found == rows["similarity"]).all()
    beside_kept = (true >= 0.8) & kept[:, None] & kept[None, :]
    missed = np.argwhere(np.triu(beside_kept, 1))
    assert len(missed) < 0.03 * len(rows)
    assert not decisions["unverified"].any()


@pytest.mark.slow
def test_kept_documents_stand_for_all(planted, decisions) -> None:
    """The sizes of the kept documents' clusters sum to the number of documents: weights restore the distribution."""
    alone = len(planted) - len(decisions)
    assert decisions["cluster_size"][decisions["kept"]].sum() + alone == len(planted)
    by_document = {int(row["document"]): row for row in decisions}
    for row in decisions:
        twin = by_document[int(row["twin"])]
        assert twin["cluster_size"] == row["cluster_size"]
        assert (twin["cluster"] == row["cluster"]).all()
        assert (row["twin_id"] == batch([planted[int(row["twin"])]]).members["id"][0]).all()


def test_decisions_without_a_kept_twin_are_found_out(decisions) -> None:
    check_decisions(decisions, 0.8, "decisions-0")
    check_decisions(decisions[:0], 0.8, "decisions-0")
    gone = np.flatnonzero(~decisions["kept"])
    twins = np.searchsorted(decisions["document"], decisions["twin"][gone])
    for place, name, value in [
        (gone[3], "similarity", 0.79),
        (gone[4], "twin", decisions["document"][gone[5]]),
        (gone[6], "twin", 10**9),
        (twins[7], "kept", False),
    ]:
        damaged = decisions.copy()
        damaged[name][place] = value
        with pytest.raises(DataError, match=r"decisions-0 is damaged: document \d+ has no kept twin .* of 0\.8"):
            check_decisions(damaged, 0.8, "decisions-0")
    with pytest.raises(DataError, match="has no kept twin"):
        check_decisions(decisions, 0.95, "decisions-0")


def comparable(decisions, ids):
    """Return what is decided, by id instead of number."""
    of = {int(number): tuple(each) for number, each in ids}
    return sorted(
        (of[int(row["document"])], bool(row["kept"]), *map(tuple, (row["twin_id"], row["cluster"])),
         float(row["similarity"]), int(row["cluster_size"]))
        for row in decisions
    )  # fmt: skip


@pytest.mark.slow
def test_order_units_partitions_and_ranges_change_nothing(planted, decisions, tmp_path, monkeypatch) -> None:
    texts = planted[:900]
    outcomes = []
    for number, (units, partitions, members) in enumerate([(1, 1, 10**6), (4, 7, 50), (3, 2, 1)]):
        work = tmp_path / str(number)
        work.mkdir()
        monkeypatch.setattr(stages.write_components, "__defaults__", (members,))
        shuffled = random.Random(number).sample(texts, len(texts))
        size = -(-len(texts) // units)
        parts = [batch(shuffled[first : first + size], first=first) for first in range(0, len(texts), size)]
        found = run_all(parts, DEFAULT, work, partitions)
        ids = [pair for part in parts for pair in zip(part.members["document"], part.members["id"], strict=True)]
        outcomes.append(comparable(found, ids))
        assert len(list(work.glob("decisions-*"))) > (members < 10**6) * 5
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert sum(not kept for _, kept, *_ in outcomes[0]) > 200


def test_the_same_input_gives_the_same_bytes(planted, tmp_path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_all([batch(planted[:100]), batch(planted[100:200], first=100)], DEFAULT, tmp_path / name, 3)
    paths = sorted((tmp_path / "first").iterdir())
    assert len(paths) > 10
    for path in paths:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


@pytest.mark.slow
def test_a_base_corpus_gives_what_both_together_give(planted, tmp_path) -> None:
    """Old documents first and untouched: run(A), then run(B, base=A), keeps what run(A + B) keeps with A first."""
    draw = random.Random(5)
    old, new = planted[:1500:2], planted[1:1500:2]
    new += chains(planted[1500:1560], 2, changes=2, seed=4)  # alike among themselves alone
    new = draw.sample(new, len(new))
    folders = [tmp_path / name for name in ("old", "new", "both")]
    for folder in folders:
        folder.mkdir()
    first = batch(old)
    gone = removed(run_all([first], DEFAULT, folders[0], 3))
    staying = [place for place in range(len(old)) if place not in gone]
    base = stages.Batch(first.members[staying], [old[place] for place in staying])
    base.members["base"] = True
    base.members["cluster"] = 7  # a cluster of the old corpus stays as it is
    later = batch(new, first=10_000)
    found = run_all([base, later], DEFAULT, folders[1], 3)
    together = run_all([batch(old, priority=1), later], DEFAULT, folders[2], 5)
    expected = {number: twin for number, twin in removed(together).items() if number >= 10_000}
    assert removed(found) == expected
    assert len(expected) > 100
    assert any(twin < 10_000 for twin in expected.values())
    assert any(twin >= 10_000 for twin in expected.values())
    assert {number for number in removed(together) if number < 10_000} == set(gone)
    assert (found["cluster"][found["base"]] == 7).all()
    assert (found["cluster"][~found["base"]] == 7).any()


def test_a_chain_keeps_what_is_not_alike(tmp_path, assets) -> None:
    """A ~ B ~ C: if B goes for A, C stays, for it is not like A. Without verification, only A stays."""
    text = " ".join(reviews(assets)[0].split()[:150])
    draw = random.Random(1)
    middle = changed(text, 2, draw)
    last = changed(middle, 2, draw)
    texts = [text + " end", middle, last]  # longest first
    true = true_similarities(texts)
    assert true[0, 1] >= 0.8 <= true[1, 2]
    assert true[0, 2] < 0.8
    outcomes = {}
    for name in ("verified", "chained"):
        (tmp_path / name).mkdir()
        config = replace(DEFAULT, verify=name == "verified", bands=64, rows=4)
        units = [batch(texts, preference=[3, 2, 1])]
        outcomes[name] = run_all(units, config, tmp_path / name, 1)
    assert removed(outcomes["verified"]) == {1: 0}
    assert removed(outcomes["chained"]) == {1: 0, 2: 0}
    assert np.isnan(outcomes["chained"]["similarity"]).tolist() == [False, True, True]
    assert outcomes["chained"]["cluster_size"].tolist() == [3, 3, 3]
    assert outcomes["verified"]["cluster_size"].tolist() == [2, 2, 1]
    assert (outcomes["verified"]["cluster"] == outcomes["verified"]["cluster"][0]).all()


def test_priority_and_preference_say_which_is_kept(tmp_path) -> None:
    text = "a text of more than five words in three copies"
    for number, (order, kept) in enumerate([
        ({"priority": [0, 1, 0], "preference": [9, 0, 9]}, 1),
        ({"preference": [1, 2, 3]}, 2),
        ({"preference": 0, "id": [[2, 0], [1, 9], [1, 8]]}, 2),
        ({"preference": 0, "base": [False, True, False]}, 1),
    ]):  # fmt: skip
        work = tmp_path / str(number)
        work.mkdir()
        found = run_all([batch([text] * 3, **order)], DEFAULT, work, 2)
        assert removed(found) == dict.fromkeys({0, 1, 2} - {kept}, kept)


def test_documents_of_two_groups_are_not_compared(tmp_path: Path) -> None:
    """`within`: equal texts of one source are duplicates, those of two are not; the guard sees no pair either."""
    unit = batch(["a text of more than five words in four copies"] * 4)
    keys = keys_within(MinHash(5, 20, 8).band_keys(unit.texts), ["web", "books", "web", "books"])
    buckets, components, files = (
        tmp_path / "buckets",
        tmp_path / "components",
        MemberFiles(*(tmp_path / n for n in "ms")),
    )
    stages.shuffle_bands(keys, unit.members["document"], tmp_path / "bands", 1)
    stages.find_buckets([tmp_path / "bands"], 0, buckets)
    assert stages.write_components([buckets], components) == 1
    stages.shuffle_members([unit], components, 5, files)
    stages.shuffle_buckets(buckets, components, tmp_path / "routed")
    stages.decide_range([files], [tmp_path / "routed"], 0, DEFAULT, tmp_path / "decisions")
    found = map_partition(tmp_path / "decisions", 0, DECISION)
    assert removed(found) == {2: 0, 3: 1}
    bands = stages.read_buckets([tmp_path / "routed"], 0)
    assert guard(bands, found, found["document"] == 0).tolist() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "fineweb"])
def test_the_planted_pairs_of_1000_articles_are_found_and_no_other(assets: Path, tmp_path: Path, name: str) -> None:
    folder = assets / "curation" / "near_duplicates"
    lines = (folder / "articles_1000.train").read_text(encoding="utf8").splitlines()
    names, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    pairs = {frozenset(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()}
    found = removed(run_all([batch(list(texts))], PRESETS[name], tmp_path, 4))
    assert len(pairs) == 10
    assert {frozenset((names[number], names[twin])) for number, twin in found.items()} == pairs


def members_of(count: int, shingles: int = 10):
    """Return members of one component in canonical order of their numbers."""
    members = np.zeros(count, MEMBER)
    members["document"] = members["component"] = np.arange(count)
    members["component"] = 0
    members["preference"] = -np.arange(count)
    members["shingles"] = shingles
    return members


def bands_of(*buckets: list[int]):
    return np.array([(key, number) for key, each in enumerate(buckets) for number in each], BAND)


def distinct_sets(count: int, last_equals: int):
    """Return sets of ten numbers, all different but the last, which is that of a member."""
    sets = [np.arange(10, dtype=np.uint64) + 10 * place for place in range(count)]
    return [*sets[:-1], sets[last_equals]]


def test_tries_are_limited_and_what_is_not_compared_is_kept_and_counted() -> None:
    sets = distinct_sets(71, last_equals=69)
    found = decide(members_of(71), bands_of(list(range(71))), sets.__getitem__, 0.8)
    assert found["kept"].all()
    assert found["unverified"].tolist() == [False] * 65 + [True] * 6
    near = decide(members_of(71), bands_of(list(range(71)), [69, 70]), sets.__getitem__, 0.8)
    assert removed(near) == {70: 69}  # it shares most bands, so it is tried first
    sizes = members_of(71)
    sizes["shingles"][:69] = 100  # no set of ten is like them: they cost no try
    assert removed(decide(sizes, bands_of(list(range(71))), sets.__getitem__, 0.8)) == {70: 69}


def test_a_bucket_lists_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.curation.near_duplicates.verification.MAX_LISTED", 5)
    sets = distinct_sets(10, last_equals=8)
    found = decide(members_of(10), bands_of(list(range(10))), sets.__getitem__, 0.8)
    assert found["kept"].all()
    assert found["unverified"].tolist() == [False] * 6 + [True] * 4


def test_a_missing_file_of_members_is_no_decision() -> None:
    with pytest.raises(DataError, match=r"Document 5 has a bucket but no shingles"):
        decide(members_of(3), bands_of([0, 5]), distinct_sets(3, 0).__getitem__, 0.8)


def test_the_guard_leaves_no_pair_of_training_and_validation() -> None:
    found = np.zeros(6, DECISION)
    found["document"], found["kept"] = np.arange(6), True
    found["base"][4:] = True
    found["kept"][1] = False
    bands = bands_of([0, 1, 2], [2, 3], [3, 4], [0, 5])
    nothing = np.zeros(6, bool)

    def held_out(*numbers: int):
        return np.isin(np.arange(6), numbers)

    assert guard(bands, found, nothing).tolist() == []
    assert guard(bands, found, held_out(1)).tolist() == []  # it was removed
    assert guard(bands, found, held_out(3, 4)).tolist() == [2]
    assert guard(bands, found, held_out(3)).tolist() == [3]  # document 4 is in the training set of the base corpus
    assert guard(bands, found, held_out(4, 5)).tolist() == [0, 3]
    assert guard(bands, found, held_out(0, 2, 3, 4, 5)).tolist() == []


@pytest.mark.slow
def test_the_guard_covers_the_files_of_a_range(planted, tmp_path) -> None:
    """Any split, even by document: after the guard no kept training document shares a band with validation."""
    texts = planted[:600]
    run_all([batch(texts)], DEFAULT, tmp_path, 4)
    decisions = map_partition(tmp_path / "decisions-0", 0, DECISION)
    bands = stages.read_buckets([tmp_path / f"routed-{n}" for n in range(4)], 0)
    assert (np.diff(bands["key"].astype(object)) >= 0).all()
    validation = decisions["document"] % 3 == 0
    gone = guard(bands, decisions, validation)
    assert len(gone) > 20
    keys = MinHash(5, 20, 8).band_keys(texts)
    stay = [int(row["document"]) for row in decisions if row["kept"] and row["document"] not in gone]
    for number in stay:
        for other in stay:
            if (number % 3 == 0) != (other % 3 == 0):
                assert not (keys[number] == keys[other]).any()


def test_components_are_those_of_a_plain_search() -> None:
    draw = np.random.default_rng(0)
    for size, count in [(1, 0), (10, 6), (500, 240), (500, 900)]:
        pairs = draw.integers(0, size, (count, 2)).astype(np.uint64)
        pairs = np.concatenate([pairs, np.stack([np.arange(600, 650), np.arange(601, 651)], 1).astype(np.uint64)])
        draw.shuffle(pairs)
        label = {int(number): int(number) for pair in pairs for number in pair}
        for _ in label:
            for one, other in pairs.tolist():
                label[one] = label[other] = min(label[one], label[other])
        parts = [Edges(part[:, 0], part[:, 1]) for part in np.array_split(pairs, 3)]
        documents, components = connected_components(lambda parts=parts: parts)
        assert dict(zip(documents.tolist(), components.tolist(), strict=True)) == label


def test_ranges_hold_whole_components() -> None:
    documents = np.arange(12, dtype=np.uint64)
    components = np.array([0, 1, 0, 1, 4, 4, 4, 4, 8, 8, 10, 10], np.uint64)
    rows = components_in_ranges(documents, components, members=4)
    assert rows["range"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len(components_in_ranges(documents[:0], components[:0], 4)) == 0


def test_texts_without_any_pair_need_no_range(tmp_path: Path) -> None:
    found = run_all([batch(["one text of its own", "another that is not alike"]), batch([])], DEFAULT, tmp_path, 2)
    assert len(found) == 0
    assert len(map_partition(tmp_path / "components", 0, COMPONENT)) == 0


def test_decisions_are_read_for_a_unit(planted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages.write_components, "__defaults__", (40,))
    found = run_all([batch(planted[:300])], DEFAULT, tmp_path, 2)
    paths = sorted(tmp_path.glob("decisions-*"))
    assert len(paths) > 3
    part = decisions_of(paths, np.arange(100, 200, dtype=np.uint64))
    assert part["document"].tolist() == [n for n in sorted(found["document"].tolist()) if 100 <= n < 200]
    assert len(decisions_of(paths, np.empty(0, np.uint64))) == 0
    assert counts(paths) == {"removed": int((~found["kept"]).sum()), "unverified_kept": 0}


DAMAGES = {
    "empty": lambda data: b"",
    "cut in the head": lambda data: data[:20],
    "cut in the offsets": lambda data: data[:38],
    "cut in the rows": lambda data: data[:-3],
    "longer": lambda data: data + b"x",
    "another kind": lambda data: b"x" + data[1:],
    "many partitions": lambda data: data[:8] + (2**62).to_bytes(8, "little") + data[16:],
    "other rows": lambda data: data[:16] + (9).to_bytes(8, "little") + data[24:],
    "an offset": lambda data: data[:32] + b"\x01" + data[33:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(planted, tmp_path, damage) -> None:
    run_all([batch(planted[:20])], DEFAULT, tmp_path, 1)
    path = tmp_path / "members-0"
    assert len(read_partition([path], 0, MEMBER)) > 5
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"members-0 (is damaged|has other).* Delete it, and the stage .* runs again"):
        read_partition([path], 0, MEMBER)


def test_a_unit_finds_sets_in_files_of_several_units(planted, tmp_path) -> None:
    """The set of each member is its own, wherever its unit's file keeps it."""
    parts = [batch(planted[:60]), batch([], first=60), batch(planted[60:90], first=60)]
    run_all(parts, DEFAULT, tmp_path, 2)
    files = [MemberFiles(tmp_path / f"members-{n}", tmp_path / f"shingles-{n}") for n in range(3)]
    units = [(map_partition(each.members, 0, MEMBER), each.shingles) for each in files]
    sets = stages.ShingleSets(units, 0)
    members = read_partition([each.members for each in files], 0, MEMBER)
    shingler = stages.Shingler(5)
    assert len(members) > 50
    for place, member in enumerate(members):
        assert sets(place).tolist() == shingler.shingle_set(planted[int(member["document"])]).tolist()
