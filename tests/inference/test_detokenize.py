"""The text of a completion: whole characters, up to a stop string, with the log-probability of each token."""

from typing import Any

import pytest
import torch
from families import random_model, shape
from folders import BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import tokenizer_of

from pretrain.errors import ConfigError
from pretrain.inference.detokenize import FinishReason, GenerationState, StopStrings
from pretrain.inference.generate import NewToken
from pretrain.language_model import LanguageModel


def detokenized(text: bytes, *stop: str) -> tuple[list[str], GenerationState]:
    """Return the pieces that come out as the bytes of a text go in, token by token, and their state."""
    generation = GenerationState(BYTES, [BYTES.bos_id], StopStrings(stop))
    pieces = []
    for token in text:
        pieces.append(generation.add(NewToken(token, -0.5)))
        if generation.finish_reason is not None:
            break
    pieces.append(generation.end(FinishReason.length))
    return [piece for piece in pieces if piece], generation


def test_a_stop_string_of_several_tokens_ends_the_text_before_it() -> None:
    pieces, generation = detokenized(b"One.\n\nTwo.", "\n\n")
    assert "".join(pieces) == "One."
    found = generation.completion()
    assert (found.text, found.finish_reason) == ("One.", FinishReason.stop_string)
    assert bytes(found.tokens) == b"One.\n\n"  # those of the stop string too
    assert found.log_probabilities == (-0.5,) * 6


@pytest.mark.parametrize("kind", ["word level", "word piece", "llama"])
def test_a_word_behind_an_unknown_one_keeps_its_space(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    *prompt, last = tokenizer.encode_prompt("the \u4e2d dog")
    assert prompt[-1] == tokenizer.unk_id
    generation = GenerationState(tokenizer, prompt, StopStrings(()))
    assert generation.add(NewToken(last, -0.5)) == " dog"


def test_white_space_of_a_template_before_the_text_is_no_stop_string() -> None:
    generation = GenerationState(BYTES, [BYTES.bos_id], StopStrings("\n"), strip=True)
    pieces = [generation.add(NewToken(token, -0.5)) for token in b" \nOne line.\nTwo"]
    assert "".join(pieces[:12]) == "One line."
    assert generation.completion().finish_reason is FinishReason.stop_string
    nothing = GenerationState(BYTES, [BYTES.bos_id], StopStrings("\n"), strip=True)
    assert [nothing.add(NewToken(token, -0.5)) for token in b"\n \n"] == ["", "", ""]
    assert nothing.end(FinishReason.length) == ""


def test_text_is_delayed_only_while_it_may_begin_a_stop_string() -> None:
    assert detokenized(b"abac", "abad")[0] == ["abac"]
    assert detokenized(b"ababad", "abad")[0] == ["ab"]
    assert detokenized(b"abx", "abc", "x")[0] == ["ab"]
    assert detokenized(b"ab", "abc")[0] == ["ab"]  # the text ends first
    assert detokenized("é€€b".encode(), "€b")[0] == ["é", "€"]
    assert detokenized(b"a\xc3", "\ufffd")[0] == ["a"]  # half a character at the end is shown as U+FFFD
    assert detokenized(b"abc")[0] == ["a", "b", "c"]


def test_an_end_by_the_model_differs_from_one_by_length() -> None:
    generation = GenerationState(BYTES, [], StopStrings("x"))
    assert generation.add(NewToken(97, -1.0)) == "a"
    assert generation.add(None) == ""
    assert generation.end(FinishReason.length) == ""
    assert generation.completion().finish_reason is FinishReason.model
    assert detokenized(b"ab", "x")[1].completion().finish_reason is FinishReason.length


@pytest.mark.slow
@given(st.text("ab€", max_size=12), st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_text_ends_before_the_first_stop_string_whatever_its_tokens(text: str, stop: list[str]) -> None:
    """Compared with cutting at the first stop string that is complete, the one that begins first among those."""
    expected = text
    for end in range(len(text) + 1):
        found = [text[:end].find(string) for string in stop if string in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    assert "".join(detokenized(text.encode(), *stop)[0]) == expected


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stop holds an empty string, which occurs at the start of every text"):
        StopStrings(["a", ""])


@pytest.fixture(scope="module")
def llm() -> LanguageModel:
    config = shape("llama", context_length=64)
    return LanguageModel(random_model(config, BYTES.vocab_size, causal=True), BYTES)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "seed": 1, "top_k": 5, "min_p": 0.01}])
def test_log_probabilities_are_those_of_the_score(llm: LanguageModel, options: Any) -> None:
    """Whatever the sampling options, they are the model's: the whole text's score minus the prompt's."""
    options = {**options, "repetition_penalty": 1.3, "max_new_tokens": 12}
    found = llm.complete(["The quick", "a"], **options)
    for prompt, each in zip(("The quick", "a"), found, strict=True):
        assert len(each.log_probabilities) == len(each.tokens) == 12
        rows = torch.tensor([[BYTES.bos_id, *prompt.encode(), *each.tokens]])
        with torch.no_grad():
            likely = llm.model.head(llm.model(rows))[0, :-1].log_softmax(-1)
        expected = likely.gather(1, rows[0, 1:].unsqueeze(1)).squeeze(1)[-12:]
        torch.testing.assert_close(torch.tensor(each.log_probabilities), expected, atol=1e-5, rtol=1e-5)
        if each.text.isascii():
            difference = llm.score(prompt + each.text).log_likelihood - llm.score(prompt).log_likelihood
            assert sum(each.log_probabilities) == pytest.approx(difference, rel=1e-4)


def test_stop_strings_work_in_batches_and_streams(llm: LanguageModel) -> None:
    options: Any = {"temperature": 2.0, "seed": 5, "max_new_tokens": 30}
    prompts = ["The quick", "x"]
    free = llm.generate(prompts, **options)
    new = free[0][len("The quick") :]
    stop = next(new[i : i + 2] for i in range(3, len(new)) if "\ufffd" not in new[i : i + 2])
    found = llm.complete(prompts, stop=[stop], **options)
    assert found[0].finish_reason is FinishReason.stop_string
    assert found[0].text == new[: new.index(stop)]
    assert free[1][1:].startswith(found[1].text)
    alone: Any = {**options, "stop": stop}
    streamed = "".join(llm.stream("The quick", **alone))
    assert streamed == llm.generate("The quick", **alone)[len("The quick") :]


def test_generation_stops_when_all_texts_have(llm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = llm._steps

    def counted(*arguments: Any) -> Any:
        for step in real(*arguments):
            steps.append(len(steps))
            yield step

    monkeypatch.setattr(llm, "_steps", counted)
    (first,) = llm.complete(["a"], temperature=0, max_new_tokens=40)
    assert len(steps) == 40
    character = next(c for c in first.text if c != "\ufffd")
    steps.clear()
    llm.complete(["a", "a"], temperature=0, max_new_tokens=40, stop=character)
    assert 0 < len(steps) < 40


def test_ids_are_prompts_too_and_unknown_options_are_named(llm: LanguageModel) -> None:
    ids = [BYTES.bos_id, *b"The"]
    assert llm.complete([ids], temperature=0) == llm.complete(["The"], temperature=0)
    misspelt: Any = {"top_kk": 3}
    with pytest.raises(ConfigError, match=r"top_kk is not an option of generate\(\)\. Did you mean top_k\?"):
        llm.generate("a", **misspelt)
