"""Checks of the corpus pass on a sound one and fail on a wrong row, document or file."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizer_kinds import tokenizer_of

from pretrain.data import train_stream as batches
from pretrain.data.mixture import Proportions
from pretrain.data.packing import plan_rows
from pretrain.data.shuffle import Shuffle
from pretrain.data.tokenizers import tokenizer as home
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.doctor import corpus as checks
from pretrain.doctor.check import NotApplicableError
from pretrain.doctor.resume import flip_bit
from pretrain.errors import DataError

ALL = (
    checks.prepared, checks.files_verify, checks.round_trip, checks.special_tokens_apart, checks.packed_once,
    checks.order_is_a_permutation,
)  # fmt: skip


@pytest.fixture
def mixture(corpus) -> list[str]:
    source = f"kind: text_files, path: {corpus}"
    return ["data=mixture", f"data.sources={{few: {{{source}, weight: 0.3}}, many: {{{source}, weight: 0.7}}}}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [[], ["data.packing=concat"], ["data.document_mask=false"], ["tokenizer=bpe", "tokenizer.vocab_size=300"]]
)
def test_a_sound_corpus_passes(context, words):
    sound = context(*words)
    for check in ALL:
        finding = check(sound)
        assert finding.passed, finding


@pytest.mark.slow
def test_a_sound_stream_passes(context):
    sound = context("data.mode=stream", "data.era_tokens=2048")
    for check in ALL:
        finding = check(sound)
        assert finding.passed, finding
    assert "era 0" in checks.prepared(sound).figures
    assert sound.small.data.kind == "text_files"  # a sample: small runs start nothing that reads on
    assert sound.small.paths.cache_dir.startswith(str(sound.folder))
    assert sound.stream.tokens()[""] > 1000


@pytest.mark.slow
def test_a_large_corpus_is_sampled_for_the_small_runs(context, monkeypatch, mixture):
    from pretrain.doctor import context as home

    monkeypatch.setattr(home, "LARGE_TOKENS", 1000)
    monkeypatch.setattr(home, "SAMPLE_TOKENS", 1500)
    sampled = context(*mixture)
    assert 1500 < sampled.stream.tokens()[""] < 4500  # of two sources
    assert sampled.small_prepared.tokenizer.fingerprint == sampled.prepared.tokenizer.fingerprint


@pytest.mark.slow
def test_a_mixture_has_its_shares(context, monkeypatch, mixture):
    sound = context(*mixture)
    finding = checks.mixture_shares(sound)
    assert finding.passed, finding
    assert "few 30.00% (target: 30.00%), many 70.00% (target: 70.00%)" in finding.figures
    assert checks.packed_once(sound).passed
    original = Proportions.__call__
    monkeypatch.setattr(Proportions, "__call__", lambda self, samples: original(self, samples // 2))
    assert not checks.mixture_shares(sound).passed
    with pytest.raises(NotApplicableError, match=r"data\.kind=text_files is one source"):
        checks.mixture_shares(context())


@pytest.mark.slow
def test_a_flipped_bit_in_the_store_is_found(context):
    damaged = context()
    (tokens,) = (damaged.prepared.corpora[""].folder / "train" / "shards").glob("*.tok")
    flip_bit(tokens)
    with pytest.raises(DataError, match=r"00000\.tok"):
        checks.files_verify(damaged)
    flip_bit(tokens)
    assert checks.files_verify(damaged).passed


@pytest.mark.slow
def test_a_tokenizer_that_loses_text_is_found(context, monkeypatch):
    original = Tokenizer.encode_documents
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda self, texts: original(self, [t[:-2] for t in texts]))
    assert not checks.round_trip(context()).passed


@pytest.mark.slow
def test_a_text_that_became_a_special_token_is_found(context, monkeypatch, tmp_path):
    tokenizer_of("unigram").save(tmp_path / "tokenizer")
    spelled = tmp_path / "spelled.jsonl"
    spelled.write_text("".join(f'{{"text": "old <mask> {n}</s> new"}}\n' for n in range(20)))
    words = (f"data.path={spelled}", "tokenizer=pretrained", f"tokenizer.path={tmp_path / 'tokenizer'}")
    assert checks.special_tokens_apart(context(*words)).passed
    monkeypatch.setattr(Tokenizer, "_check_special", lambda self, ids, text: None)
    monkeypatch.setattr(home, "spelled_by_model", lambda state, special: frozenset())
    found = checks.special_tokens_apart(context(*words, f"paths.cache_dir={tmp_path / 'other'}"))
    assert not found.passed
    assert "'<mask>' in " in found.figures
    assert "'</s>' in " in found.figures


@pytest.mark.slow
def test_documents_too_long_to_try_leave_nothing_to_say(context, monkeypatch):
    monkeypatch.setattr(checks, "ROUND_TRIP_TOKENS", 1)
    assert not checks.round_trip(context()).passed


@pytest.mark.slow
@pytest.mark.parametrize("defect", ["a piece lost", "a piece twice", "a token skipped"])
def test_documents_that_are_not_packed_once_are_found(context, monkeypatch, defect):
    def wrong(*given, **named):
        plan = plan_rows(*given, **named)
        if defect == "a token skipped":
            longest = int(np.argmax(plan.lengths))
            offsets, lengths = plan.offsets.copy(), plan.lengths.copy()
            offsets[longest], lengths[longest] = offsets[longest] + 1, lengths[longest] - 1
            return replace(plan, offsets=offsets, lengths=lengths)
        if defect == "a piece lost":
            return replace(plan, lengths=np.where(np.arange(len(plan.lengths)) == 3, 0, plan.lengths))
        arrays = {name: getattr(plan, name).copy() for name in ("documents", "offsets", "lengths")}
        for array in arrays.values():
            array[-1] = array[0]
        return replace(plan, **arrays)

    monkeypatch.setattr(batches, "plan_rows", wrong)
    finding = checks.packed_once(context("data.packing=concat"))
    assert not finding.passed
    assert " 0 are not covered once" not in finding.figures


@pytest.mark.slow
def test_rows_that_are_misread_are_found(context, monkeypatch):
    original = batches.read_rows

    def shifted(*given):
        rows = original(*given)
        return replace(rows, tokens=np.roll(rows.tokens, 1, axis=1))

    monkeypatch.setattr(batches, "read_rows", shifted)
    finding = checks.packed_once(context())
    assert not finding.passed
    assert "0 are not covered once" in finding.figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda self, samples: samples % (self.rows - 1), "repeat a row"),
        (lambda self, samples: samples % self.rows + 1, "1 have a row out of range|2 have a row out of range"),
        (lambda self, samples: samples % self.rows, "both epochs have the same order"),
    ],
)
def test_an_order_that_is_none_is_found(context, monkeypatch, order, words):
    monkeypatch.setattr(Shuffle, "__call__", order)
    finding = checks.order_is_a_permutation(context())
    assert not finding.passed
    assert any(word in finding.figures for word in words.split("|"))
