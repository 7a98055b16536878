"""An exported classifier gives transformers the same probabilities, of texts in padded batches; others are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import shape
from folders import BYTES, quiet_transformers

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig
from pretrain.config.serialize import to_dict
from pretrain.data.config import BytesTokenizerConfig
from pretrain.data.fine_tuning_config import LabeledTextConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.interop.classifiers import CLASSIFIERS, classifier_family
from pretrain.interop.export import export_adapters, export_model
from pretrain.interop.families import FAMILIES
from pretrain.language_model import LanguageModel
from pretrain.models.choices import Activation, ClassifierHead, NormPosition, Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.lora_config import LoraConfig
from pretrain.models.size import classifier_head_parameters
from pretrain.objectives.fine_tuning_config import ClassifyConfig, Pooling
from pretrain.optim.config import AdamWConfig
from pretrain.optim.schedules import CosineConfig

LABELS = ["bad", "good", "so so"]
TEXTS = ["A film.", "The dullest three hours of a year, and then it rained", "naïve – 中文", "x"]
LLAMA = shape("llama", qk_norm=False)
OLMO = shape("olmo", nope_every=0)
ROBERTA = shape("bert", feed_forward=Activation.gelu, position_offset=BYTES.pad_id + 1)
SHAPES = {
    "gpt2": shape("gpt"), "llama": LLAMA, "mistral": replace(LLAMA, sliding_window=5, global_attention_every=0),
    "qwen2": replace(LLAMA, qkv_bias=True), "qwen3": shape("local"), "smollm3": replace(LLAMA, nope_every=2),
    "olmo2": OLMO, "olmo3": replace(OLMO, sliding_window=5, global_attention_every=2), "gemma3_text": shape("gemma"),
    "gemma2": shape("gemma2"),
    "gpt_neox": shape("neox"), "bert": shape("bert"), "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA,
    "distilbert": shape("bert", feed_forward=Activation.gelu, token_types=0), "modernbert": shape("modern_bert"),
    "eurobert": LLAMA, "phi3": replace(LLAMA, rope_fraction=0.5),
}  # fmt: skip


def classifier_run(
    folder: Path, config: TransformerConfig, causal: bool, pooling: Pooling = Pooling.auto, **settings: Any
) -> Path:
    """Write what a run leaves behind that made a classifier of random weights, and return its folder."""
    run = RunConfig(
        name="tiny", tokenizer=BytesTokenizerConfig(), model=config, optimizer=AdamWConfig(), schedule=CosineConfig(),
        data=LabeledTextConfig(path="reviews.tsv"),
        objective=ClassifyConfig(left_to_right=causal, pooling=pooling, labels=LABELS), **settings,
    )  # fmt: skip
    model = config.build(BYTES.vocab_size, causal, len(LABELS))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    parts: dict[str, Any] = {"model": dict(model.named_parameters()), "optimizer": {}, "random": {}}
    progress = {"tokens_seen": 7000, "data_fingerprint": "d" * 64, "tokenizer_fingerprint": BYTES.fingerprint}
    manifest = {"config": to_dict(run), "progress": progress}
    checkpoint_writing.write(folder / "checkpoints", 5, checkpoint_writing.Contents(parts, manifest, BYTES.save))
    return folder


def test_every_class_is_tried() -> None:
    assert SHAPES.keys() == CLASSIFIERS.keys()
    assert [family.model_type for family in FAMILIES if family.model_type not in CLASSIFIERS] == ["apertus"]


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "bert"])
def test_the_factors_of_mup_are_in_an_exported_classifier(model_type: str, tmp_path: Path) -> None:
    kind = CLASSIFIERS[model_type]
    config = replace(
        SHAPES[model_type], classifier_head=kind.head, context_length=64, parametrization=Parametrization.mup,
        base_width=16, base_head_dim=4, tie_embeddings=True,  # a classifier has no tied head
    )  # fmt: skip
    pooling = next(iter(kind.poolings))
    run = classifier_run(tmp_path / "run", config, pooling is Pooling.last, pooling)
    found = export_model(ExportConfig(output=str(tmp_path / "out"), family=model_type), run)
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "pooling"), [(name, pooling) for name in SHAPES for pooling in CLASSIFIERS[name].poolings]
)
def test_transformers_classifies_texts_as_we_do(model_type: str, pooling: Pooling, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    kind, causal = CLASSIFIERS[model_type], pooling is Pooling.last
    config = replace(SHAPES[model_type], classifier_head=kind.head, context_length=64)
    run, output = classifier_run(tmp_path / "run", config, causal, pooling), tmp_path / "exported"
    with quiet_transformers():
        exported = export_model(ExportConfig(output=str(output), family=model_type), run)
        model = AutoModelForSequenceClassification.from_pretrained(output).eval()
        tokenizer = AutoTokenizer.from_pretrained(output)
    assert exported.card.architecture == type(model).__name__ == f"{kind.architecture}ForSequenceClassification"
    assert "into the labels bad, good, so so" in str(exported.card)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        theirs = model(**batch).logits.softmax(-1)
    assert model.config.id2label == dict(enumerate(LABELS))
    ours = LanguageModel.load(run).classify(TEXTS)
    torch.testing.assert_close(
        torch.tensor([[each[label] for label in LABELS] for each in ours]), theirs, atol=1e-5, rtol=1e-4
    )
    assert theirs.std() > 0.01
    assert not (output / "generation_config.json").exists()


@pytest.mark.parametrize("kind", list(ClassifierHead))
@pytest.mark.parametrize("bias", [True, False])
def test_the_head_has_as_many_parameters_as_its_formula(kind: ClassifierHead, bias: bool) -> None:
    config = shape("bert", classifier_head=kind, bias=bias)
    with torch.device("meta"):
        model = config.build(50, False, 3)
    assert classifier_head_parameters(config, 3) == sum(each.numel() for each in model.head.parameters())
    assert config.parameter_count(50, 3) == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("config", "causal", "settings", "message"),
    [
        (shape("gpt"), True, {}, r"classifier_head=linear with objective\.pooling=last is not what GPT2ForSequenceC.*"
         r"Train with model\.classifier_head=score objective\.pooling=last"),
        (shape("bert"), False, {}, r"Train with model\.classifier_head=pooler objective\.pooling=first"),
        (shape("llama", feed_forward=Activation.relu2), True, {}, "Apertus.*, of which transformers has none"),
        (shape("gpt"), True, {"sentence_transformers": True}, "is for models that embed .* Try sentence_transformers="),
        (shape("gpt", norm_position=NormPosition.output), True, {}, r"because of model\.norm_position=output"),
    ],
)  # fmt: skip
def test_classifiers_that_transformers_lacks_are_refused(
    config: TransformerConfig, causal: bool, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = replace(config, classifier_head=ClassifierHead.score) if settings else config
    run = classifier_run(tmp_path / "run", config, causal)
    with pytest.raises(ConfigError, match=message):
        export_model(ExportConfig(output=str(tmp_path / "out"), **settings), run)


def test_adapters_of_a_classifier_are_refused(tmp_path: Path) -> None:
    config = shape("gpt", classifier_head=ClassifierHead.score)
    run = classifier_run(tmp_path / "run", config, True, lora=LoraConfig(rank=2), init_from="base")
    with pytest.raises(ConfigError, match=r"adapters=true writes no head, and the classifier .* Try adapters=false"):
        export_adapters(ExportConfig(output=str(tmp_path / "out"), adapters=True), run)


def test_a_padding_token_that_ends_texts_is_refused() -> None:
    tokenizer = Tokenizer(BYTES._inner, BYTES.roles | {"pad_token": BYTES.roles["eos_token"]})
    config = shape("gpt", classifier_head=ClassifierHead.score)
    with pytest.raises(ConfigError, match="GPT2ForSequenceClassification pools the last token that is not padding"):
        classifier_family(FAMILIES[0], config, ClassifyConfig(left_to_right=True, labels=LABELS), tokenizer)
