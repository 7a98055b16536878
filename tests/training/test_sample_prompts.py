"""Prompts of the samples come from the run's own held-out text and suit the objective."""

from pathlib import Path

import pytest

from pretrain.config.compose import compose
from pretrain.data.prepare import Prepared, prepare
from pretrain.training.callbacks.sample_prompts import prompts_of
from pretrain.training.callbacks.samples import is_early


def prepared(tiny, *words: str) -> tuple[Prepared, list[str]]:
    """Return the data of these settings and the texts of the validation documents."""
    config = tiny.config(*words)
    found = prepare(config.data, config.tokenizer, tiny.folder / "cache", lambda line: None)
    texts = [found.tokenizer.decode(s.document(i)) for s in found.validation.values() for i in range(s.n_documents)]
    return found, texts


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_prompts_are_of_held_out_documents(tiny, tokenizer: str):
    words = [f"tokenizer={tokenizer}", *(["tokenizer.vocab_size=300"] if tokenizer == "bpe" else [])]
    data, texts = prepared(tiny, *words, "data.validation_fraction=0.2")
    objective = tiny.config(*words, "model=hybrid_nano").objective
    prompts = prompts_of(data, objective, context_length=64)
    assert prompts == prompts_of(data, objective, context_length=64)
    begins, masked = prompts[:3], prompts[3:]
    assert len(masked) == 3
    for prompt in begins:
        assert "[MASK]" not in prompt.text
        assert any(text.startswith(prompt.text) for text in texts)
        assert 1 <= len(data.tokenizer.encode_prompt(prompt.text)) < 32
    for prompt in masked:
        assert prompt.text.count("[MASK]") == 1
        assert any(prompt.text.replace("[MASK]", prompt.truth) in text for text in texts)
        assert len(data.tokenizer.encode_prompt(prompt.text)) < 62
    assert len(set(prompts)) == 6
    short = prompts_of(data, objective, context_length=16)
    assert all(0 < len(data.tokenizer.encode_prompt(prompt.text)) < 16 for prompt in short)
    assert prompts_of(data, objective, context_length=1) == []  # no room for a word
    assert prompts_of(data, tiny.config().objective, 64) == begins
    assert prompts_of(data, tiny.config("objective=masked").objective, 64) == masked


@pytest.mark.slow
def test_one_document_gives_several_prompts_and_spelled_special_tokens_none(tiny, tmp_path: Path):
    lines = [f"{name} walks to the old mill" for name in ("Anna", "Bert", "Carl")]
    (tmp_path / "one.txt").write_text("\n".join(["here is <|endoftext|> in the text", *lines]))
    (tmp_path / "two.txt").write_text("[MASK] is a token of the tokenizer here")
    words = [f"data.path={tmp_path}", "data.validation_fraction=0"]
    data, _ = prepared(tiny, *words)
    assert data.validation == {}  # training documents then
    objective = tiny.config("model=hybrid_nano").objective
    begins, masked = prompts_of(data, objective, 64)[:3], prompts_of(data, objective, 64)[3:]
    assert [prompt.text for prompt in begins] == [" ".join(line.split()[:4]) for line in lines]
    assert [prompt.text.replace("[MASK]", prompt.truth) for prompt in masked] == lines


@pytest.mark.slow
def test_a_classifier_gets_texts_with_their_labels(tiny, tmp_path: Path):
    rows = [f"film number {number} was {('bad', 'good')[number % 2]}\t{number % 2}" for number in range(40)]
    (tmp_path / "films.tsv").write_text("\n".join(rows))
    words = [
        "experiment=classify",
        "model=bert_nano",
        f"data.path={tmp_path / 'films.tsv'}",
        "data.validation_fraction=0.3",
    ]
    words += [word for word in tiny.words if not word.startswith(("data=", "data.path="))]
    config = compose("train", words)
    data = prepare(config.data, config.tokenizer, tiny.folder / "cache", lambda line: None)
    prompts = prompts_of(data, config.objective, 64)
    assert len(prompts) == 3
    assert {f"{prompt.text}\t{prompt.truth}" for prompt in prompts} <= set(rows)


def test_completions_of_the_beginning_are_short():
    assert [is_early(step, 1000) for step in (99, 100)] == [True, False]
    assert [is_early(step, -1) for step in (999, 1000)] == [True, False]
