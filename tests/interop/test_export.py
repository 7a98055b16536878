"""An exported folder gives the same results in plain transformers; a failed export leaves no folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import random_model, shape
from folders import BYTES, quiet_transformers, without_mask

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig
from pretrain.config.serialize import to_dict
from pretrain.data.config import BytesTokenizerConfig, PythonDocsConfig, TextFilesConfig
from pretrain.data.fine_tuning_config import ChatConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop import comparison, export
from pretrain.interop.export import export_adapters, export_model
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.models.choices import Head, Parametrization
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.lora_config import LoraConfig
from pretrain.objectives.classify import token_types
from pretrain.objectives.config import CausalConfig, DiffusionConfig, MaskedConfig
from pretrain.optim.config import AdamWConfig
from pretrain.optim.schedules import CosineConfig

NANO = shape("llama", vocab_multiple=64, context_length=64)


def run_of(
    folder: Path, config: TransformerConfig, causal: bool, tokenizer: Tokenizer = BYTES, **settings: Any
) -> Path:
    """Write what a run of a random model leaves behind, and return its folder."""
    objective = CausalConfig() if causal else MaskedConfig()
    chosen: dict[str, Any] = {"data": PythonDocsConfig(), "seed": 3, "objective": objective} | settings
    run = RunConfig(
        name="tiny",
        tokenizer=BytesTokenizerConfig(),
        model=config,
        optimizer=AdamWConfig(),
        schedule=CosineConfig(),
        **chosen,
    )
    model = random_model(config, config.vocabulary(BYTES.vocab_size), causal)
    parts: dict[str, Any] = {"model": dict(model.named_parameters()), "optimizer": {}, "random": {}}
    progress = {"tokens_seen": 7000, "data_fingerprint": "d" * 64, "tokenizer_fingerprint": BYTES.fingerprint}
    manifest = {"config": to_dict(run), "progress": progress}
    checkpoint_writing.write(folder / "checkpoints", 5, checkpoint_writing.Contents(parts, manifest, tokenizer.save))
    (folder / "report.json").write_text(json.dumps({"steps": 5, "validation": {"val/loss": 1.25}}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run of a causal and one of a masked model."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "causal": run_of(folder / "causal", NANO, causal=True),
        "masked": run_of(folder / "masked", shape("modern_bert", context_length=64), causal=False),
    }


@pytest.mark.slow
def test_a_causal_run_goes_on_in_transformers_with_the_same_tokens(runs: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = export_model(ExportConfig(output=str(tmp_path / "out")), runs["causal"])
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-4
    assert "as        Qwen3ForCausalLM" in str(found)
    assert "without" not in str(found)
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "out"}")' in str(found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    ours = LanguageModel.load(runs["causal"]).generate("the fox", temperature=0, max_new_tokens=30)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        row = theirs.generate(**tokenizer("the fox", return_tensors="pt"), max_new_tokens=30, do_sample=False)
    assert tokenizer.model_max_length == 64
    assert tokenizer.decode(row[0], skip_special_tokens=True) == ours
    assert LanguageModel.load(tmp_path / "out").generate("the fox", temperature=0, max_new_tokens=30) == ours


def test_a_conversing_model_may_write_the_end_of_its_turn_and_stops_there(tmp_path: Path) -> None:
    """Its template ends a turn with another token than a document, as that of Qwen2.5's bases does."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ pad_token }}{% endfor %}"
    tokenizer = Tokenizer(BYTES._inner, BYTES.roles, template)
    data = ChatConfig(path="dialogs.jsonl")
    export_model(ExportConfig(output=str(tmp_path / "out")), run_of(tmp_path / "run", NANO, True, tokenizer, data=data))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [BYTES.eos_id, BYTES.pad_id]
    assert written["suppress_tokens"] == [BYTES.mask_id, *range(BYTES.vocab_size, 320)]
    assert "in the chat template of its tokenizer" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_excluded_padding_of_the_vocabulary_is_not_exported(tied: bool, tmp_path: Path) -> None:
    config = shape("llama", vocab_multiple=64, context_length=64, exclude_vocab_padding=True, tie_embeddings=tied)
    run = run_of(tmp_path / "run", config, causal=True)
    found = export_model(ExportConfig(output=str(tmp_path / "out")), run)
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-4
    theirs = open_model(tmp_path / "out")
    assert theirs.without_weights().vocab_size == BYTES.vocab_size < config.vocabulary(BYTES.vocab_size)
    tokens = torch.arange(40).reshape(1, 40)
    logits = [source.load().eval() for source in (open_model(run), theirs)]
    ours, exported = (model.head(model(tokens)) for model in logits)
    assert (ours[..., BYTES.vocab_size :] == -torch.inf).all()
    torch.testing.assert_close(ours[..., : BYTES.vocab_size], exported, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_masked_run_fills_masks_in_transformers(runs: dict[str, Path], tmp_path: Path) -> None:
    from transformers import pipeline

    export_model(ExportConfig(output=str(tmp_path / "out")), runs["masked"])
    ours = LanguageModel.load(runs["masked"]).predict_mask("the [MASK]ox", top_k=3)[0]
    with quiet_transformers():
        theirs = pipeline("fill-mask", model=str(tmp_path / "out"))("the [MASK]ox", top_k=250)
    text = [each["token_str"] for each in theirs if each["token"] < 256]
    assert [answer.token for answer in ours] == text[:3]
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_an_export_says_that_transformers_has_no_head_for_a_masked_model_with_a_plain_one(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shape("bert", head=Head.linear, context_length=64), causal=False)
    found = export_model(ExportConfig(output=str(tmp_path / "out")), run)
    assert "as        BertModel" in str(found)
    assert "without   its head" in str(found)
    assert "model.head=linear" in str(found)


@pytest.mark.parametrize("tie_embeddings", [None, True])
@pytest.mark.parametrize("name", ["gpt", "llama", "neox", "gemma", "gemma2", "bert", "modern_bert"])
def test_the_factors_of_mup_are_in_the_exported_weights(name: str, tie_embeddings: bool | None, tmp_path: Path) -> None:
    mup: dict[str, Any] = {"parametrization": Parametrization.mup, "base_width": 16, "base_head_dim": 4}
    if tie_embeddings is not None:
        mup["tie_embeddings"] = tie_embeddings
    causal = name not in ("bert", "modern_bert")
    run = run_of(tmp_path / "run", shape(name, context_length=64, **mup), causal=causal)
    found = export_model(ExportConfig(output=str(tmp_path / "out")), run)
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-4
    again = open_model(tmp_path / "out").shape.transformer
    assert again is not None
    assert again.parametrization is Parametrization.standard
    with pytest.raises(ConfigError, match=r"adapters=true writes the adapters of a LoRA run"):
        export_adapters(ExportConfig(output=str(tmp_path / "adapters")), run)


def test_adapters_are_not_written_over_a_folder(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shape("gpt"), causal=True, init_from="base", lora=LoraConfig(rank=2))
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"output=.*there exists already\. Choose another folder, or delete it\."):
        export_adapters(ExportConfig(output=str(tmp_path / "there"), adapters=True), run)


def test_adapters_of_a_mup_base_are_refused(tmp_path: Path) -> None:
    config = shape("gpt", context_length=64, parametrization=Parametrization.mup, base_width=16)
    run = run_of(tmp_path / "run", config, causal=True, init_from="base", lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"model.parametrization=mup, .* Try adapters=false, which merges them\."):
        export_adapters(ExportConfig(output=str(tmp_path / "out")), run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "architecture"),
    [
        ("bert", {}, "BertForMaskedLM"),
        ("modern_bert", {}, "ModernBertForMaskedLM"),
        ("llama", {"qk_norm": False}, "EuroBertForMaskedLM"),
    ],
)
def test_a_diffusion_is_exported_as_a_masked_model(
    name: str, changes: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    config = shape(name, context_length=64, **changes)
    run = run_of(tmp_path / "run", config, causal=False, objective=DiffusionConfig())
    found = export_model(ExportConfig(output=str(tmp_path / "out")), run)
    assert architecture in str(found)
    assert found.card.auto_class == "AutoModelForMaskedLM"
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-3
    page = (tmp_path / "out" / "README.md").read_text()
    assert "A masked diffusion model: it fills any share of masks in a text" in page
    assert "completes text like its training data" not in page
    before, after = LanguageModel.load(run), LanguageModel.load(tmp_path / "out")  # it writes, from either folder
    assert after.denoises
    options = {"max_new_tokens": 8, "steps": 4, "seed": 0}
    assert after.generate("The ", **options) == before.generate("The ", **options)
    assert after.fill("The [MASK][MASK] fox", seed=0) == before.fill("The [MASK][MASK] fox", seed=0)
    score = after.score("The quick fox")
    assert score.is_bound
    assert score.log_likelihood == pytest.approx(before.score("The quick fox").log_likelihood, rel=1e-5)
    without_mask(BYTES).save(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r'pretrain_objective="diffusion" needs a mask token, and the tokenizer'):
        open_model(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(record | {"pretrain_objective": "hybrid"}))
    with pytest.raises(CheckpointError, match=r'pretrain_objective="hybrid" is not supported, only "diffusion" of a'):
        open_model(tmp_path / "out")


@pytest.mark.slow
def test_the_exported_tokenizer_numbers_the_texts_of_a_pair_as_training_did(tmp_path: Path) -> None:
    """BERT has token types and ModernBERT none; the ids are those of training in both."""
    from transformers import AutoTokenizer

    pairs = [("the fox", "a dog"), ("one", "two words")]
    for name, types in (("bert", True), ("modern_bert", False)):
        source = run_of(tmp_path / name, shape(name, context_length=64), causal=False)
        out = tmp_path / f"{name}_out"
        export_model(ExportConfig(output=str(out)), source)
        theirs = AutoTokenizer.from_pretrained(out)
        for pair, expected in zip(pairs, BYTES.encode_text_pairs(pairs), strict=True):
            encoded = theirs(*pair)
            assert encoded["input_ids"] == expected.tolist()
            assert ("token_type_ids" in encoded) is types
            if types:
                row, one_document = expected.astype("int64")[None], np.zeros((1, len(expected)), np.int32)
                ours = token_types(row, one_document, BYTES.eos_id)
                assert ours is not None
                assert encoded["token_type_ids"] == ours[0].tolist()


def test_the_card_says_where_the_model_comes_from(runs: dict[str, Path], tmp_path: Path) -> None:
    export_model(ExportConfig(output=str(tmp_path / "mine"), license="apache-2.0"), runs["causal"])
    page = (tmp_path / "mine" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: apache-2.0\n")
    for line in (
        "# mine",
        "| data | python_docs |",
        "| license of the data | Python Software Foundation License 2.0, https://docs.python.org/3/license.html |",
        f"| data fingerprint | {'d' * 64} |",
        f"| tokenizer fingerprint | {BYTES.fingerprint} |",
        "| tokens seen | 7,000 |",
        "| optimizer steps | 5 |",
        "| seed | 3 |",
        "| loss | 1.2500 |",
        "Weights: apache-2.0. The license of the data, if known, is in the tables above.",
    ):
        assert line in page.splitlines()
    assert "trained with `pretrain`. A base model" in page
    again = tmp_path / "again"
    export_model(ExportConfig(output=str(again)), tmp_path / "mine")
    assert "| converted from | mine |" in (again / "README.md").read_text()
    assert "from a model trained elsewhere" in (again / "README.md").read_text()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()


@pytest.mark.slow
def test_the_card_shows_scores_of_this_checkpoint(runs: dict[str, Path], tmp_path: Path) -> None:
    scores = tmp_path / "bias.json"
    figures = {"checkpoint": str(open_model(runs["causal"]).folder), "objective": "causal", "task": "bias",
               "stereotype_percent": 51.5, "age/stereotype_percent": 40.0, "pairs": 9, "elapsed_s": 1.5}  # fmt: skip
    scores.write_text(json.dumps(figures | {"settings": {"task": "bias"}}))
    export_model(ExportConfig(output=str(tmp_path / "out"), evaluations=[str(scores)]), runs["causal"])
    page = (tmp_path / "out" / "README.md").read_text()
    assert "## Scores: bias" in page
    for line in ("| stereotype_percent | 51.5000 |", "| age/stereotype_percent | 40.0000 |", "| pairs | 9 |"):
        assert line in page.splitlines()
    assert "a figure near 50 does not show that the model is harmless" in page
    assert "elapsed_s" not in page
    assert "`clean/`" not in page
    quiz = figures | {
        "task": "multiple_choice",
        "clean/accuracy": 0.5,
        "settings": {"path": "/home/me/sets/quiz.jsonl"},
    }
    scores.write_text(json.dumps(quiz))
    export_model(ExportConfig(output=str(tmp_path / "quiz"), evaluations=[str(scores)]), runs["causal"])
    page = (tmp_path / "quiz" / "README.md").read_text()
    assert "## Scores: multiple_choice on quiz.jsonl\n" in page
    assert "/home/me" not in page
    assert "clean by the definition of GPT-3: no run of `decontaminate.words` words of them stands in the" in page
    for text, message in (
        ("[]", r"evaluations=.*bias\.json has scores of None, and the model is .*\. Score it: "),
        (json.dumps(figures | {"checkpoint": "other"}), r"has scores of other, and the model is "),
        ("{", r"evaluations=.*bias\.json cannot be read: "),
    ):
        scores.write_text(text)
        with pytest.raises(ConfigError, match=message):
            export_model(ExportConfig(output=str(tmp_path / "no"), evaluations=[str(scores)]), runs["causal"])


@pytest.mark.slow
def test_the_card_shows_no_folder_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "alice"
    data = TextFilesConfig(path=str(secret / "te|xts"))
    run = run_of(tmp_path / "run", shape("gpt"), True, data=data, init_from=str(secret / "first"))
    (run / "report.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"report\.json cannot be read: it has no steps"):
        export_model(ExportConfig(output=str(tmp_path / "out")), run)
    (run / "report.json").write_text(json.dumps({"steps": 9, "validation": {"val/loss": 1.25}}))  # of other weights
    export_model(ExportConfig(output=str(tmp_path / "out")), run)
    page = (tmp_path / "out" / "README.md").read_text()
    assert "alice" not in page
    assert "| data | text_files path=te\\|xts |" in page
    assert "| started from | first |" in page
    assert "1.25" not in page


@pytest.mark.slow
def test_large_weights_are_split(runs: dict[str, Path], tmp_path: Path) -> None:
    export_model(ExportConfig(output=str(tmp_path / "out"), max_shard_bytes=20_000), runs["causal"])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    before, after = open_model(runs["causal"]).load(), open_model(tmp_path / "out").load()
    assert all(torch.equal(value, after.get_parameter(name)) for name, value in before.named_parameters())
    assert index["metadata"]["total_size"] == 4 * sum(parameter.numel() for parameter in before.parameters())
    with pytest.raises(ConfigError, match=r"max_shard_bytes=0 is below 1\. Try max_shard_bytes=5000000000\."):
        ExportConfig(output="x", max_shard_bytes=0)


def failed(output: Path, run: Path, **settings: Any) -> str:
    """Return the message of an export that leaves nothing behind."""
    with pytest.raises(CheckpointError) as caught, quiet_transformers():
        export_model(ExportConfig(output=str(output), **settings), run)
    assert not output.exists()
    assert not list(output.parent.glob("*.tmp"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_what_computes_something_else_is_not_exported(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export.write_weights

    def off(value: torch.Tensor, amount: float) -> torch.Tensor:
        value = value.clone()
        value.view(-1)[0] += amount
        return value

    for amount, differs in ((1e-3, True), (float("nan"), True), (1e-12, False)):

        def write(folder: Path, family: Any, model: Any, values: Any, size: int, amount: float = amount) -> None:
            changed = lambda name, shape: off(values(name, shape), amount * ("query_norm" in name))  # noqa: E731
            original(folder, family, model, changed, size)

        monkeypatch.setattr(export, "write_weights", write)
        if differs:
            message = failed(tmp_path / "out", runs["causal"])
            assert message.startswith("transformers computes other outputs with the exported folder: logits differ by")
            assert message.endswith("Nothing was exported.")
        else:
            export_model(ExportConfig(output=str(tmp_path / "out")), runs["causal"])


@pytest.mark.slow
def test_what_transformers_cannot_load_is_not_exported(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export.write_settings

    def wrong(changes: dict[str, Any]) -> Any:
        def write(folder: Path, *arguments: Any) -> None:
            original(folder, *arguments)
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return write

    gpt = run_of(tmp_path / "run", shape("gpt"), causal=True)
    for changes, message in (
        ({"n_layer": 3}, "transformers and the exported folder disagree on ['transformer.h.2."),
        ({"n_embd": "wide"}, "transformers cannot load the exported folder: "),
    ):
        monkeypatch.setattr(export, "write_settings", wrong(changes))
        assert message in failed(tmp_path / "out", gpt)
    monkeypatch.setattr(export, "write_settings", original)

    def write(folder: Path, *arguments: Any) -> None:
        (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(export, "write_tokenizer", write)
    assert "transformers cannot load the exported folder: " in failed(tmp_path / "out", gpt)


@pytest.mark.slow
def test_a_tokenizer_that_transformers_reads_otherwise_is_not_exported(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export.write_tokenizer

    def write(folder: Path, tokenizer: Tokenizer, added_ids: Any, config: Any) -> None:
        original(folder, tokenizer, ([], []), config)

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_tokenizer", write)
        assert "transformers' tokenizer encodes 'The quick brown fox" in failed(tmp_path / "out", runs["causal"])

    def write_roles(folder: Path, *arguments: Any) -> None:
        original(folder, *arguments)
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text().replace('"pad_token": "[PAD]"', '"pad_token": "[MASK]"'))

    monkeypatch.setattr(export, "write_tokenizer", write_roles)
    assert "transformers' tokenizer has the roles {" in failed(tmp_path / "out", runs["causal"])


def test_without_transformers_the_export_says_that_nothing_was_compared(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    found = export_model(ExportConfig(output=str(tmp_path / "out")), runs["causal"])
    assert found.largest_difference is None
    assert "compared  no: transformers is not installed" in str(found)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"there exists already\. Choose another folder, or delete it\."):
        export_model(ExportConfig(output=str(tmp_path / "there")), runs["causal"])
    (tmp_path / "file").write_text("")
    assert "cannot be written: " in failed(tmp_path / "file" / "out", runs["causal"])
    masked_gpt = run_of(tmp_path / "run", shape("gpt"), causal=False)
    with pytest.raises(ConfigError, match=r"no supported architecture .* because of "):
        export_model(ExportConfig(output=str(tmp_path / "out")), masked_gpt)
    found = open_model(runs["causal"])
    object.__setattr__(found, "shape", ModelConfig(kind="perceptron"))
    monkeypatch.setattr(export, "open_model", lambda *_: found)
    with pytest.raises(ConfigError, match=r"model\.kind=perceptron is not a transformer, and only .* is exported"):
        export_model(ExportConfig(output=str(tmp_path / "out")), runs["causal"])
    assert not (tmp_path / "out").exists()
