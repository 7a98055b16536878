"""Classes of transformers that classify texts: their head's layers, its tensors' names, and their pooling.

Source: https://github.com/huggingface/transformers, src/transformers/models/<model_type>/modeling_<model_type>.py, and
modeling_layers.py for decoders, version 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.interop.family import Family, Settings
from pretrain.models.choices import ClassifierHead
from pretrain.models.config import TransformerConfig
from pretrain.objectives.fine_tuning_config import ClassifyConfig, Pooling


@dataclass(frozen=True)
class ClassifierClass:
    """A class of transformers with a head over labels."""

    architecture: str
    head: ClassifierHead
    names: Mapping[str, str]  # our modules of the head
    poolings: Mapping[Pooling, Settings]  # what it can pool, with the keys of config.json that say so


_FIRST: Mapping[Pooling, Settings] = {Pooling.first: {}}
_ROBERTA = {"head.dense": "classifier.dense", "head": "classifier.out_proj"}
_DECODERS = {
    "gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3",
    "olmo2": "Olmo2", "olmo3": "Olmo3", "gemma3_text": "Gemma3Text", "gemma2": "Gemma2", "gpt_neox": "GPTNeoX",
    "phi3": "Phi3",
}  # fmt: skip
_ENCODERS = {
    "bert": ClassifierClass("Bert", ClassifierHead.pooler, {"head.dense": "bert.pooler.dense", "head": "classifier"},
                            _FIRST),
    "roberta": ClassifierClass("Roberta", ClassifierHead.pooler, _ROBERTA, _FIRST),
    "xlm-roberta": ClassifierClass("XLMRoberta", ClassifierHead.pooler, _ROBERTA, _FIRST),
    "camembert": ClassifierClass("Camembert", ClassifierHead.pooler, _ROBERTA, _FIRST),
    "distilbert": ClassifierClass("DistilBert", ClassifierHead.relu,
                                  {"head.dense": "pre_classifier", "head": "classifier"}, _FIRST),
    "modernbert": ClassifierClass(
        "ModernBert", ClassifierHead.mlm,
        {"head.dense": "head.dense", "head.norm": "head.norm", "head": "classifier"},
        {Pooling.mean: {"classifier_pooling": "mean"}, Pooling.first: {"classifier_pooling": "cls"}},
    ),
    "eurobert": ClassifierClass(
        "EuroBert", ClassifierHead.gelu, {"head.dense": "dense", "head": "classifier"},
        {Pooling.mean: {"classifier_pooling": "mean"}, Pooling.first: {"classifier_pooling": "bos"}},
    ),
}  # fmt: skip
CLASSIFIERS: Mapping[str, ClassifierClass] = _ENCODERS | {
    name: ClassifierClass(prefix, ClassifierHead.score, {"head": "score"}, {Pooling.last: {}})
    for name, prefix in _DECODERS.items()
}  # by model_type


def classifier_family(
    family: Family, shape: TransformerConfig, objective: ClassifyConfig, tokenizer: Tokenizer
) -> Family:
    """Return a family with the head over labels instead of the one over the vocabulary.

    Raises ConfigError if the architecture has none, or computes another one than the model, with the settings to train
    with, or if its padding would hide the token that is pooled.
    """
    found = CLASSIFIERS.get(family.model_type)
    if found is None:
        raise ConfigError(
            f"this model is a classifier with the architecture {family.architecture}, of which transformers has none. "
            f"Those with one: {', '.join(sorted(CLASSIFIERS))}. Use LanguageModel.load(...).classify(text) instead."
        )
    name, pooling = f"{found.architecture}ForSequenceClassification", objective.chosen_pooling
    if shape.classifier_head is not found.head or pooling not in found.poolings:
        able = pooling if pooling in found.poolings else next(iter(found.poolings))
        raise ConfigError(
            f"model.classifier_head={shape.classifier_head.name} with objective.pooling={pooling.name} is not what "
            f"{name} of transformers computes. Train with model.classifier_head={found.head.name} "
            f"objective.pooling={able.name} to export."
        )
    if pooling is Pooling.last and tokenizer.pad_id == tokenizer.eos_id:
        raise ConfigError(
            f"{name} pools the last token that is not padding, and the end of a text is this tokenizer's padding "
            "token. Train with a tokenizer that has a padding token of its own to export."
        )
    return replace(
        family,
        architecture=name,
        bare=None,
        names=replace(family.names, head=found.names, copies={}),
        further=_keys_of(objective.labels) | found.poolings[pooling],
    )


def _keys_of(labels: Sequence[str]) -> Settings:
    names = {str(number): label for number, label in enumerate(labels)}
    numbers = {label: number for number, label in enumerate(labels)}
    return {"id2label": names, "label2id": numbers, "problem_type": "single_label_classification"}
