"""A language model that fills masks in texts and after prompts: in Python and by `generate.py`."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import random_model, shape

from pretrain.commands import tasks
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.errors import ConfigError
from pretrain.inference.config import DecodingOrder, GenerateConfig
from pretrain.inference.detokenize import FinishReason
from pretrain.interop import load as loading
from pretrain.language_model import LanguageModel
from pretrain.objectives.fine_tuning_config import ClassifyConfig
from pretrain.training.callbacks.sample_prompts import SamplePrompt
from pretrain.training.callbacks.samples import sample_text
from pretrain.training.config import SampleConfig

TEXT = "The quick brown fox jumps over the lazy dog."
BPE = train_bpe([TEXT] * 3, 300)
HOLES = "The quick [MASK] [MASK] jumps over the lazy[MASK]."


def model_of(kind: str) -> LanguageModel:
    """Return a model with random weights; its context is 64 tokens."""
    causal = kind in ("causal", "hybrid")
    config = shape("llama" if causal else "bert", context_length=64)
    model = random_model(config, config.vocabulary(BPE.vocab_size), causal)
    return LanguageModel(model, BPE, fills_masks=kind != "causal", denoises=kind == "diffusion")


def classifier() -> LanguageModel:
    config = ClassifyConfig(labels=["a", "b"])
    model = loading.build(shape("bert", context_length=64), config, BPE)
    return LanguageModel(model, BPE, classifier=config)


CLASSIFIER = classifier()
DIFFUSION, MASKED, HYBRID, CAUSAL = map(model_of, ("diffusion", "masked", "hybrid", "causal"))


@pytest.mark.parametrize("llm", [DIFFUSION, MASKED, HYBRID])
@pytest.mark.parametrize("order", list(DecodingOrder))
def test_fill_replaces_the_masks_and_keeps_the_rest(llm: LanguageModel, order: DecodingOrder) -> None:
    texts = [HOLES, "[MASK] fox", "The<|endoftext|>  [MASK]"]
    filled = llm.fill(texts, order=order, seed=1)
    assert filled == [llm.fill(text, order=order.value, seed=1) for text in texts]
    assert filled != llm.fill(texts, order=order, seed=2)
    for text, found in zip(texts, filled, strict=True):
        # a mask takes the space before it
        between = [re.escape(part.removesuffix(" ")) for part in text.split("[MASK]")]
        assert re.fullmatch(".*".join(between), found, re.DOTALL), found
        assert "[MASK]" not in found


def test_one_mask_at_temperature_0_is_the_best_prediction() -> None:
    for llm in (DIFFUSION, MASKED, HYBRID):
        best = llm.predict_mask("The [MASK] fox", top_k=1)[0][0].text
        assert llm.fill("The [MASK] fox", temperature=0) == best


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0, "order": "margin"}, {"seed": 3, "steps": 5}, {"seed": 4, "block_length": 4}]
)
def test_a_diffusion_model_continues_prompts(options: dict[str, Any]) -> None:
    """A string, a list and a stream agree; prompts of different lengths do not change each other's text."""
    prompts = ["The", "", "The quick brown fox"]
    together = DIFFUSION.generate(prompts, max_new_tokens=12, **options)
    assert together == [DIFFUSION.generate(prompt, max_new_tokens=12, **options) for prompt in prompts]
    assert all(text.startswith(prompt) for prompt, text in zip(prompts, together, strict=True))
    assert "".join(DIFFUSION.stream("The", max_new_tokens=12, **options)) == together[0].removeprefix("The")
    (completion,) = DIFFUSION.complete(["The"], max_new_tokens=12, **options)
    assert len(completion.tokens) == len(completion.log_probabilities) <= 12
    assert all(value < 0 for value in completion.log_probabilities)
    first = completion.text[:1] or "stop"
    assert not completion.text or DIFFUSION.generate("The", max_new_tokens=12, stop=first, **options) == "The"
    assert "LanguageModel(diffusion, " in repr(DIFFUSION)


def test_each_prompt_of_a_diffusion_model_has_room_of_its_own() -> None:
    """Without max_new_tokens; what ends at the context has ended by its length."""
    prompts = ["The", TEXT, "The quick"]
    together = DIFFUSION.generate(prompts, seed=5)
    assert together == [DIFFUSION.generate(prompt, seed=5) for prompt in prompts]
    never_ends = DIFFUSION._suppress_in_masks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DIFFUSION, "_suppress_next", never_ends)
        whole = DIFFUSION.complete(prompts, seed=5)
    assert {each.finish_reason for each in whole} == {FinishReason.length}
    rows = [DIFFUSION.prompt_ids(prompt) for prompt in prompts]
    assert [len(each.tokens) for each in whole] == [64 - len(row) for row in rows]


@pytest.mark.parametrize("method", ["fill", "generate"])
def test_guidance_keeps_the_begin_token_in_the_text_without_a_prompt(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a prompt, where the end token may be drawn, and is the begin token too."""
    assert BPE.bos_id == BPE.eos_id
    read: list[list[int]] = []
    forward = DIFFUSION.model.forward
    monkeypatch.setattr(
        DIFFUSION.model, "forward", lambda x, *a, **k: (read.extend(x.tolist()), forward(x, *a, **k))[1]
    )
    if method == "fill":
        DIFFUSION.fill("The[MASK]", guidance_scale=1.0)
    else:
        DIFFUSION.generate("The", max_new_tokens=1, guidance_scale=1.0)
    given, bare = read
    assert given[0] == bare[0] == BPE.bos_id
    assert {*bare} == {BPE.bos_id, BPE.mask_id}


def test_a_hybrid_model_continues_from_left_to_right() -> None:
    assert HYBRID.generate("The", max_new_tokens=4, temperature=0, use_cache=False).startswith("The")


@pytest.mark.parametrize(
    ("llm", "options", "message"),
    [
        (DIFFUSION, {"repetition_penalty": 1.1}, r"repetition_penalty=1\.1 means nothing for a diffusion model"),
        (DIFFUSION, {"use_cache": False}, r"use_cache=false means nothing for a diffusion model.* Leave use_cache out"),
        (CAUSAL, {"steps": 8}, r"steps=8 means nothing for a causal model.* Leave steps out"),
        (CAUSAL, {"order": DecodingOrder.margin}, r"order=margin means nothing for a causal model"),
        (HYBRID, {"guidance_scale": 1.0}, r"guidance_scale=1\.0 means nothing for a causal model"),
        (DIFFUSION, {"order": "left"}, r"order=left is none of random, confidence, margin, entropy\. Try order=random"),
        (DIFFUSION, {"max_new_tokens": 10, "steps": 11}, r"steps=11 is more than the 10 masks"),
        (DIFFUSION, {"max_new_tokens": 70}, r"do not fit into the model's context of 64 tokens"),
        (DIFFUSION, {"step": 3}, r"step is not an option of generate\(\)\. Did you mean steps\?"),
        (MASKED, {"steps": 3}, r"trained to fill masks and cannot complete a prompt"),
    ],
)
def test_options_that_mean_nothing_are_refused(llm: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.generate("The", **options)


def test_what_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trained to complete prompts and cannot fill masks\. Use generate"):
        CAUSAL.fill("a [MASK]")
    with pytest.raises(ConfigError, match=r"use_cache is not an option of fill\(\)"):
        DIFFUSION.fill("a [MASK]", use_cache=True)  # type: ignore[call-overload, call-arg]
    with pytest.raises(ConfigError, match=r"the text has no \[MASK\] to fill\. Try: The quick"):
        DIFFUSION.fill(["a [MASK]", "a"])
    with pytest.raises(ConfigError, match=r"the text has 72 tokens, the model's context 64"):
        DIFFUSION.fill(70 * "[MASK]")
    with pytest.raises(ConfigError, match=r"fill\(\) needs at least one text, and the list is empty"):
        DIFFUSION.fill([])
    with pytest.raises(ConfigError, match=r"a prompt holds \[MASK\], and generate\(\) only adds text after it"):
        DIFFUSION.generate(f"a {BPE.token(BPE.mask_id or 0)} b")


def test_the_canvas_can_be_watched() -> None:
    hidden: list[int] = []
    DIFFUSION.fill(HOLES, steps=2, on_step=lambda canvases: hidden.append(len(canvases[0].hidden)))
    assert hidden == [3, 1, 0]


@pytest.fixture(params=["diffusion", "masked", "causal", "hybrid", "classifier"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    models = {"diffusion": DIFFUSION, "masked": MASKED, "causal": CAUSAL, "hybrid": HYBRID, "classifier": CLASSIFIER}
    monkeypatch.setattr(loading, "chosen_model", lambda *_: "")
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: models[request.param])
    return request.param


def written(capsys: pytest.CaptureFixture[str], **settings: Any) -> str:
    tasks.generate(GenerateConfig(**{"prompt": "The"} | settings), [])
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["diffusion"], indirect=True)
def test_generate_py_with_a_diffusion_model(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = DIFFUSION.generate("The", max_new_tokens=8, seed=0)
    assert written(capsys, max_new_tokens=8) == f"{tasks.printable(text)}\n"
    lines = written(capsys, prompt=HOLES, trace="true", steps=2).split("\n")
    assert [line[:8] for line in lines[:3]] == ["step 0  ", "step 1  ", "step 2  "]
    assert "\n".join(lines[3:]) == f"{tasks.printable(DIFFUSION.fill(HOLES, seed=0, steps=2))}\n"
    assert written(capsys, trace="true", max_new_tokens=8).count("step ") == 9
    assert written(capsys, log_probabilities=True, max_new_tokens=3).count("\n   -") >= 1
    written(capsys, prompt=HOLES, trace=str(tmp_path / "a.html"))
    assert (tmp_path / "a.html").read_text(encoding="utf8").startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"there is no folder .*missing\. Try trace=a\.html"):
        written(capsys, trace=str(tmp_path / "missing" / "a.html"))
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(
        ConfigError, match=r"folder\.html cannot be written: Is a directory\. Name a new file in a folder "
    ):
        written(capsys, trace=str(tmp_path / "folder.html"))
    for name, value in {
        "max_new_tokens": 3,
        "stop": ["a"],
        "log_probabilities": True,
        "repetition_penalty": 1.1,
    }.items():
        with pytest.raises(ConfigError, match=rf"{name}=.* means nothing where masks are filled"):
            written(capsys, prompt=HOLES, **{name: value})
    with pytest.raises(ConfigError, match=r"repetition_penalty=1\.1 means nothing for a diffusion model"):
        written(capsys, repetition_penalty=1.1)
    with pytest.raises(ConfigError, match=r"trace=steps\.txt is neither true, false nor a file that ends in \.html"):
        GenerateConfig(trace="steps.txt")


WITHOUT_EFFECT = {
    "max_new_tokens": 3, "repetition_penalty": 1.2, "stop": ["a"], "log_probabilities": True,
    "temperature": 0.5, "top_p": 0.5, "min_p": 0.5, "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["masked", "hybrid", "classifier"], indirect=True)
@pytest.mark.parametrize("name", list(WITHOUT_EFFECT))
def test_generate_py_refuses_settings_without_effect(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=\S+ means nothing .*\. Leave {name} out, or (take|fill)"):
        written(capsys, prompt="The [MASK]", **{name: WITHOUT_EFFECT[name]})
    assert written(capsys, prompt="The [MASK]")


@pytest.mark.parametrize("kind", ["causal"], indirect=True)
def test_generate_py_writes_the_log_probabilities_of_a_response(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CAUSAL, "prompt_template", ("Say: ", "\n"))
    options: Any = {"max_new_tokens": 4, "repetition_penalty": 1.1, "seed": 0}
    (completion,) = CAUSAL.complete([CAUSAL.response_ids("The")], **options)
    lines = [f"  {value:8.4f}  {BPE.token(token)!r}" for token, value in zip(
        completion.tokens, completion.log_probabilities, strict=True)]  # fmt: skip
    expected = "\n".join([CAUSAL.respond("The", **options), *lines])
    assert written(capsys, max_new_tokens=4, log_probabilities=True) == f"{tasks.printable(expected)}\n"


@pytest.mark.parametrize("kind", ["causal", "diffusion"], indirect=True)
def test_generate_py_converses(kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(LanguageModel, "chat", lambda _, text, **options: asked.append((text, options)) or "yes")
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nbye\n"))
    assert written(capsys, chat=True, stop=["\\n"], seed=5) == "yes\nyes\n"
    assert [(text, options["seed"], options["stop"]) for text, options in asked] == [
        ("hi", 5, ["\n"]),
        ("bye", 7, ["\n"]),
    ]
    penalty = {"repetition_penalty": 1.1} if kind == "causal" else {}  # what null means everywhere
    assert {name: value for name, value in asked[0][1].items() if name == "repetition_penalty"} == penalty
    for name, value in {"trace": "true", "log_probabilities": True, "prompt": "hello"}.items():
        with pytest.raises(
            ConfigError, match=rf"{name}=\S+ means nothing in a conversation\. Leave {name} out, or leave"
        ):
            written(capsys, chat=True, **{name: value})


@pytest.mark.parametrize("kind", ["masked"], indirect=True)
def test_generate_py_fills_with_a_masked_model_if_an_order_is_named(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(capsys, prompt=HOLES).startswith("mask 1\n")
    filled = MASKED.fill(HOLES, order="confidence", seed=0)
    assert written(capsys, prompt=HOLES, order=DecodingOrder.confidence) == f"{tasks.printable(filled)}\n"


@pytest.mark.parametrize("kind", ["causal"], indirect=True)
def test_generate_py_refuses_settings_of_diffusion_for_a_causal_model(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = CAUSAL.generate("The", max_new_tokens=8, repetition_penalty=1.1, seed=0)
    assert written(capsys, max_new_tokens=8) == f"{tasks.printable(usual)}\n"
    with pytest.raises(ConfigError, match=r"block_length=4 means nothing for a causal model"):
        written(capsys, block_length=4)
    with pytest.raises(ConfigError, match=r"trace=true means nothing for a causal model"):
        written(capsys, trace="true")


def test_samples_of_training_continue_and_fill() -> None:
    prompts = [SamplePrompt("The quick"), SamplePrompt("The [MASK] fox", truth="brown")]
    text = sample_text(DIFFUSION, SampleConfig(max_new_tokens=5), 3, prompts)
    completed, filled = text.split("\n\n")
    assert "no sample" not in text
    assert completed.startswith("The quick")
    assert filled.startswith("The [MASK] fox\n")
    assert filled.endswith("(the document has 'brown')")
    assert text == sample_text(DIFFUSION, SampleConfig(max_new_tokens=5), 3, prompts)
    penalty = SampleConfig(max_new_tokens=5, repetition_penalty=1.5)  # nothing that a diffusion model has
    assert sample_text(DIFFUSION, penalty, 3, prompts) == text


def test_bytes_are_filled_too() -> None:
    tokenizer = byte_tokenizer()
    llm = LanguageModel(random_model(shape("bert"), tokenizer.vocab_size, False), tokenizer, denoises=True)
    assert re.fullmatch("Th.* fox", llm.fill("Th[MASK] fox", seed=0), re.DOTALL)
