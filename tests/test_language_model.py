"""A trained model from its checkpoint completes, fills and scores, or is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.data.config import BytesTokenizerConfig, PythonDocsConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.errors import CheckpointError, ConfigError, DivergenceError
from pretrain.evaluation.likelihood import Score
from pretrain.inference.dtype import prepare_for_inference
from pretrain.inference.generate import NewToken
from pretrain.language_model import LanguageModel
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import CausalConfig, MaskedConfig
from pretrain.optim.config import AdamWConfig
from pretrain.optim.schedules import CosineConfig
from pretrain.training.callbacks.sample_prompts import SamplePrompt
from pretrain.training.callbacks.samples import sample_text
from pretrain.training.config import SampleConfig

TEXT = "The quick brown fox jumps over the lazy dog."


def save(folder: Path, model: Transformer, config: TransformerConfig, tokenizer: Tokenizer) -> Path:
    """Write the folder of a run of this model and return it."""
    run = RunConfig(
        data=PythonDocsConfig(),
        tokenizer=BytesTokenizerConfig(),
        objective=CausalConfig() if model.causal else MaskedConfig(),
        model=config,
        optimizer=AdamWConfig(),
        schedule=CosineConfig(),
    )
    parts: dict[str, Any] = {"model": dict(model.named_parameters()), "optimizer": {}, "random": {}}
    manifest = {"config": to_dict(run), "progress": {"tokens_seen": 70}}
    checkpoint_writing.write(folder / "checkpoints", 5, checkpoint_writing.Contents(parts, manifest, tokenizer.save))
    return folder


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LanguageModel]:
    """Return load(family, causal): a tiny model saved as a run and loaded from it."""
    known: dict[tuple[str, bool], LanguageModel] = {}

    def loaded(family: str, causal: bool) -> LanguageModel:
        if (family, causal) not in known:
            config = shape(
                family, context_length=64, vocab_multiple=64
            )  # ids above the tokenizer's are never an answer
            tokenizer = byte_tokenizer()
            model = random_model(config, config.vocabulary(tokenizer.vocab_size), causal)
            folder = save(tmp_path_factory.mktemp("run"), model, config, tokenizer)
            known[family, causal] = LanguageModel.load(folder)
            for name, parameter in known[family, causal].model.named_parameters():
                assert torch.equal(parameter, model.get_parameter(name))
        return known[family, causal]

    return loaded


Load = Callable[..., LanguageModel]
ALL = [("gpt", True), ("llama", True), ("bert", False), ("modern_bert", False)]


@pytest.mark.parametrize(("family", "causal"), ALL)
def test_a_checkpoint_loads_as_it_was_saved(load: Load, family: str, causal: bool) -> None:
    language_model = load(family, causal)
    assert language_model.causal is causal
    assert not language_model.model.training
    assert language_model.trained == {"step": 5, "tokens_seen": 70}
    assert language_model.tokenizer.decode(language_model.tokenizer.encode(TEXT)) == TEXT
    assert language_model.model.vocab_size == 320


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3, "top_k": 20}])
def test_a_string_a_list_and_a_stream_agree(load: Load, family: str, options: dict[str, Any]) -> None:
    language_model = load(family, True)
    whole = language_model.generate("The quick", max_new_tokens=30, **options)
    assert whole.startswith("The quick")
    assert len(whole) > len("The quick")
    assert "".join(["The quick", *language_model.stream("The quick", max_new_tokens=30, **options)]) == whole
    assert language_model.generate(["The quick"], max_new_tokens=30, **options) == [whole]
    assert language_model.generate("The quick", max_new_tokens=30, use_cache=False, **options) == whole


def test_a_batch_of_prompts_gives_the_text_of_each_alone(load: Load) -> None:
    language_model = load("llama", True)
    prompts = ["The", "", "The quick brown fox"]
    together = language_model.generate(prompts, temperature=0, max_new_tokens=20)
    assert together == [language_model.generate(prompt, temperature=0, max_new_tokens=20) for prompt in prompts]


def test_characters_of_several_bytes_are_emitted_whole(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = load("gpt", True)
    tokens = [*"aé€😀".encode(), 0xE2, 0x82, ord("b"), 0xC3]  # the last two characters are cut short
    steps = [[NewToken(token, 0.0)] for token in tokens]
    monkeypatch.setattr(language_model, "_steps", lambda *_a, **_k: iter([*steps, [None]]))
    assert list(language_model.stream("x")) == ["a", "é", "€", "😀", "\ufffdb", "\ufffd"]


def test_what_cannot_be_generated_is_refused_at_the_call(load: Load) -> None:
    language_model = load("gpt", True)
    for method in (language_model.generate, language_model.stream):
        with pytest.raises(ConfigError, match=r"max_new_tokens=0 is below 1\. Try max_new_tokens=100"):
            method("a", max_new_tokens=0)
        with pytest.raises(ConfigError, match=r"do not fit into the model's context of 64 tokens"):
            method("a", max_new_tokens=70)
        with pytest.raises(ConfigError, match=r"trained to fill masks and cannot complete a prompt\. Use predict_mask"):
            getattr(load("bert", False), method.__name__)("a")
    with pytest.raises(ConfigError, match=r"generate\(\) needs at least one prompt, and the list is empty"):
        language_model.generate([])
    for prompts, kind in (("The", "text"), ([1, 2], "list of ids")):
        with pytest.raises(
            ConfigError, match=rf"complete\(\) takes a list of prompts, and this is one {kind}\. Try com"
        ):
            language_model.complete(prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 2.5}, r"max_new_tokens=2\.5 is not a whole number\. Try max_new_tokens=100"),
        ({"max_new_tokens": "5"}, r"max_new_tokens=5 is not a whole number"),
        ({"temperature": None}, r"temperature=None is no number\. Leave it out, or try temperature=0\.8"),
        ({"stop": None}, r"stop=None is neither a text nor a list of texts\. Leave it out, or try stop=\['\.'\]"),
        ({"stop": [1]}, r"stop=\[1\] is neither a text nor a list of texts"),
    ],
)
def test_options_of_the_wrong_type_are_refused(load: Load, options: dict[str, Any], message: str) -> None:
    for method in (load("gpt", True).generate, load("gpt", True).stream):
        with pytest.raises(ConfigError, match=message):
            method("a", **options)


@pytest.mark.parametrize("token", [-1, 320, 2.0, "a"])
def test_prompts_that_are_no_ids_of_the_model_are_refused(load: Load, token: Any) -> None:
    llm = load("gpt", True)
    ids = r"a prompt has the id {}, and the ids of the model's vocabulary are whole numbers from 0 to 319\. Try prompt_"
    with pytest.raises(ConfigError, match=ids.format(repr(token))):
        llm.complete([[1], [1, token]])
    with pytest.raises(
        ConfigError, match=r"a prompt has no ids, and a causal model continues at least one\. Try the emp"
    ):
        llm.complete([[1], []])


@pytest.mark.parametrize("draws", [2.0, 3, 0])
def test_the_draws_of_a_bound_are_an_even_number(draws: Any) -> None:
    model = random_model(shape("bert"), 259, causal=False)
    with pytest.raises(ConfigError, match=rf"draws={draws} is not an even number from 2 up\. Try draws=32"):
        LanguageModel(model, byte_tokenizer(), denoises=True).score("a", draws=draws)


@pytest.mark.parametrize("kind", ["causal", "masked", "diffusion"])
def test_weights_that_have_diverged_write_nothing(kind: str) -> None:
    model = random_model(shape("gpt" if kind == "causal" else "bert"), 259, causal=kind == "causal")
    llm = LanguageModel(model, byte_tokenizer(), denoises=kind == "diffusion")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    message = r"an embedding is not finite: the model's weights have diverged\. Take an earlier checkpoint\."
    with pytest.raises(DivergenceError, match=message):
        llm.embed("a")
    prompts = [SamplePrompt("a"), SamplePrompt("a[MASK]")]
    with pytest.raises(DivergenceError, match="no token can be drawn: its weights have diverged"):
        llm.predict_mask("a[MASK]") if kind == "masked" else llm.generate("a")
    text = sample_text(llm, SampleConfig(max_new_tokens=2), 0, prompts)  # the run's own settings decide what it does
    assert "(no sample: the model's probabilities are NaN" in text


@pytest.mark.parametrize("family", ["bert", "modern_bert"])
def test_masks_are_filled_with_the_most_likely_tokens(load: Load, family: str) -> None:
    language_model = load(family, False)
    tokenizer = language_model.tokenizer
    predictions = language_model.predict_mask("The [MASK]uick b[MASK]own fox", top_k=3)
    text = [*b"The ", tokenizer.mask_id, *b"uick b", tokenizer.mask_id, *b"own fox"]
    with torch.no_grad():
        hidden = language_model.model(torch.tensor([[tokenizer.bos_id, *text, tokenizer.eos_id]]))
        scores = language_model.model.head(hidden)[0, [5, 12], :256].softmax(-1)
    assert len(predictions) == 2
    for found, expected in zip(predictions, scores, strict=True):
        best = expected.topk(3)
        assert [answer.probability for answer in found] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert [answer.token for answer in found] == [tokenizer.decode([token]) for token in best.indices.tolist()]
    assert [answer.text for answer in predictions[0]] == [f"The {a.token}uick b[MASK]own fox" for a in predictions[0]]
    assert [answer.text for answer in predictions[1]] == [f"The [MASK]uick b{a.token}own fox" for a in predictions[1]]
    everything = language_model.predict_mask("[MASK]", top_k=1000)[0]
    assert len(everything) == 256  # neither special tokens nor ids that no token has
    assert sum(answer.probability for answer in everything) == pytest.approx(1.0, abs=1e-4)


def test_a_mask_that_takes_the_space_before_it_is_shown_with_it() -> None:
    tokenizer = train_bpe([TEXT] * 3, 300)
    model = random_model(shape("bert"), tokenizer.vocab_size, causal=False)
    first, second = LanguageModel(model, tokenizer).predict_mask("[MASK] quick [MASK] fox", top_k=2)
    assert [answer.text for answer in first] == [f"{answer.token} quick [MASK] fox" for answer in first]
    assert [answer.text for answer in second] == [f"[MASK] quick{answer.token} fox" for answer in second]


def test_what_cannot_be_filled_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"trained to complete prompts and cannot fill masks\. Use generate"):
        load("gpt", True).predict_mask("a [MASK]")
    language_model = load("bert", False)
    with pytest.raises(ConfigError, match=r"top_k=0 is not a whole number above 0\. Try top_k=5"):
        language_model.predict_mask("a [MASK]", top_k=0)
    with pytest.raises(ConfigError, match=r"the text has no \[MASK\] to fill"):
        language_model.predict_mask("a")
    with pytest.raises(ConfigError, match=r"the text has 73 tokens, the model's context 64"):
        language_model.predict_mask("[MASK]" + 70 * "a")


@torch.no_grad()
def slow_score(language_model: LanguageModel, text: str) -> float:
    """One position at a time; a text longer than the context restarts when a context is full."""
    tokenizer, model, total = language_model.tokenizer, language_model.model, 0.0
    if model.causal:
        tokens = [tokenizer.bos_id, *text.encode()]
        for position in range(1, len(tokens)):
            seen = tokens[(position - 1) // 64 * 64 : position]
            total += float(model.head(model(torch.tensor([seen]))[0, -1]).double().log_softmax(-1)[tokens[position]])
        return total
    tokens = [tokenizer.bos_id, *text.encode(), tokenizer.eos_id]
    for position in range(1, len(tokens) - 1):
        hidden = [*tokens[:position], tokenizer.mask_id, *tokens[position + 1 :]]
        start = position // 64 * 64
        scores = model.head(model(torch.tensor([hidden[start : start + 64]]))[0, position - start])
        total += float(scores.double().log_softmax(-1)[tokens[position]])
    return total


@pytest.mark.parametrize(("family", "causal"), ALL)
@pytest.mark.parametrize("text", ["a", TEXT, "é" * 32, TEXT * 4, ""])  # 64 tokens fill one context
def test_a_score_sums_the_log_probability_of_every_token(load: Load, family: str, causal: bool, text: str) -> None:
    score = load(family, causal).score(text)
    assert load(family, causal).score([text, "b"])[0].log_likelihood == pytest.approx(score.log_likelihood, rel=1e-5)
    assert load(family, causal).score([]) == []
    assert score.tokens == score.text_bytes == len(text.encode())
    assert score.log_likelihood == pytest.approx(slow_score(load(family, causal), text), rel=1e-5)


def test_figures_of_a_score_follow_from_its_sum() -> None:
    score = Score(log_likelihood=-12.0, tokens=4, text_bytes=6)
    assert score.loss == 3.0
    assert score.perplexity == pytest.approx(math.e**3)
    assert score.bits_per_byte == pytest.approx(2 / math.log(2))
    assert Score(-1e9, 1, 1).perplexity < math.inf
    nothing = Score(0.0, 0, 0)  # predicted: there is no figure, and none that would be the best one
    assert all(math.isnan(value) for value in (nothing.loss, nothing.perplexity, nothing.bits_per_byte))


def test_a_tokenizer_without_a_mask_cannot_score_a_masked_model() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.mask_id = None
    language_model = LanguageModel(random_model(shape("bert"), 259, causal=False), tokenizer)
    with pytest.raises(ConfigError, match=r"tokenizer has no mask token, so it cannot score a text"):
        language_model.score("a")
    with pytest.raises(ConfigError, match=r"cannot fill masks"):
        language_model.predict_mask("[MASK]")


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer, config = byte_tokenizer(), shape("gpt")
    model = random_model(config, tokenizer.vocab_size, causal=True)
    deeper = save(tmp_path / "deeper", model, shape("gpt", n_layers=3), tokenizer)
    with pytest.raises(CheckpointError, match=r"does not fit the model: it lacks \['blocks\.2\..*\] and has nothing "):
        LanguageModel.load(deeper)
    shallower = save(tmp_path / "shallower", model, shape("gpt", n_layers=1), tokenizer)
    with pytest.raises(CheckpointError, match=r"it lacks nothing and has \['blocks\.1\..*\] that the model does not"):
        LanguageModel.load(shallower)
    wider = save(tmp_path / "wider", model, shape("gpt", context_length=33), tokenizer)
    with pytest.raises(
        CheckpointError, match=r"embeddings\.positions\.weight has shape \(32, 32\), the model's \(33, 32\)"
    ):
        LanguageModel.load(wider)
    other = save(tmp_path / "other", model, config, train_bpe([TEXT] * 3, 300))
    with pytest.raises(CheckpointError, match=r"embeddings\.tokens\.weight has shape \(259, 32\), the model's \("):
        LanguageModel.load(other)
    with pytest.raises(CheckpointError, match=r"embeddings\.tokens\.weight has shape"):  # of the newest run below
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize(("name", "causal"), [("bert", False), ("gpt", True)])
def test_a_text_in_a_batch_is_embedded_as_if_alone(load: Load, name: str, causal: bool) -> None:
    llm = load(name, causal)
    texts = ["the quick brown fox jumps", "a dog", "", "the"]
    with pytest.raises(ConfigError, match="a text of 0 tokens cannot be embedded"):
        llm.embed(texts)
    texts.remove("")
    for pooling in ("last", "mean") if causal else ("last", "mean", "first"):
        vectors = llm.embed(texts, pooling)
        for text, vector in zip(texts, vectors, strict=True):
            ids = torch.from_numpy(llm.tokenizer.encode_documents([text])[0].astype("int64"))[None]
            with torch.no_grad():
                hidden = llm.model(ids)[0]
            expected = {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[pooling]
            torch.testing.assert_close(vector, expected)
            torch.testing.assert_close(llm.embed(text, pooling), vector)
    torch.testing.assert_close(llm.embed(texts), llm.embed(texts, "last" if causal else "mean"))
    short = llm.embed(texts, normalize=True, dimensions=3)
    torch.testing.assert_close(short, torch.nn.functional.normalize(llm.embed(texts)[:, :3], dim=-1))
    assert llm.embed([]).shape == (0, llm.model.config.d_model)
    with pytest.raises(ConfigError, match="dimensions=9999 is not between 1 and"):
        llm.embed("a", dimensions=9999)
    with pytest.raises(ConfigError, match=r"dimensions=3\.5 is not between 1 and"):
        llm.embed("a", dimensions=3.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pooling='frist' is none of"):
        llm.embed("a", "frist")


def test_a_model_names_itself_in_plain_text(load: Load) -> None:
    llm = load("bert", False)
    assert "LanguageModel(masked, " in repr(llm)
    llm.trained["data"] = "text\x1b[31m\nfiles"
    assert r"data text\x1b[31m\nfiles)" in repr(llm)


def test_what_cannot_be_embedded_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="pooling=first takes a position that attends to nothing"):
        load("gpt", True).embed("a", "first")
    with pytest.raises(ConfigError, match="cannot be embedded: between 1 and"):
        load("bert", False).embed("word " * 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "causal"), [("gpt", True), ("local", True), ("bert", False), ("modern_bert", False)]
)
def test_weights_in_16_bits_score_nearly_alike(family: str, causal: bool, tmp_path: Path) -> None:
    config = shape(family, context_length=64)
    model = config.build(259, causal)
    initialize(model, config, seed=0)
    folder = save(tmp_path, model, config, byte_tokenizer())
    whole, half = LanguageModel.load(folder), LanguageModel.load(folder, dtype="bf16")
    earlier = LanguageModel.load(folder, weights="bf16")  # the earlier name
    assert next(earlier.model.parameters()).dtype is torch.bfloat16
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.score(TEXT).loss == pytest.approx(whole.score(TEXT).loss, rel=1e-2)
    if causal:
        assert half.generate("The quick", max_new_tokens=4, seed=1).startswith("The quick")
    else:
        assert len(half.predict_mask("The [MASK] fox.", top_k=3)[0]) == 3


def test_a_device_that_int8_cannot_use_is_refused(load: Load) -> None:
    for device in ("cuda", "gpu"):
        with pytest.raises(ConfigError, match=rf"dtype=int8 works on CPUs only, and device={device} is not one"):
            prepare_for_inference(load("gpt", True).model, device, "int8")


def test_an_unavailable_device_is_refused(tmp_path: Path) -> None:
    config = shape("gpt")
    folder = save(tmp_path, random_model(config, 259, True), config, byte_tokenizer())
    with pytest.raises(ConfigError, match=r"device=nothing cannot be used here: .* Try device=cpu\."):
        LanguageModel.load(folder, device="nothing")
