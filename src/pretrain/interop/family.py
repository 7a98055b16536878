"""A Hugging Face architecture: names of its tensors, and the keys of config.json for our settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.interop.config_json import ConfigJson
from pretrain.interop.names import NameTable
from pretrain.models.choices import Head
from pretrain.models.config import TransformerConfig

# Keys of config.json that do not change the logits. A family reads a key, requires one value of it, or lists it here;
# any other key is an error. Source: https://github.com/huggingface/transformers, configuration_utils.py,
# generation/configuration_utils.py and models/<model_type>/configuration_<model_type>.py, earlier versions included.
_ALL_FAMILIES = """
    architectures model_type name_or_path _name_or_path _model_name_or_path _commit_hash transformers_version
    transformers.js_config is_llama_config unsloth_version unsloth_fixed tokenizer_class language license

    return_dict use_return_dict output_attentions output_hidden_states output_past tie_last_hidden_states use_cache
    torchscript dtype torch_dtype use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled gradient_checkpointing chunk_size_feed_forward pretraining_tp

    bos_token_id eos_token_id pad_token_id cls_token_id sep_token_id mask_token_id unk_token_id decoder_start_token_id
    bos_token eos_token pad_token mask_token prefix

    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params classifier_dropout
    classifier_pooling clf_pooling

    initializer_range initializer_factor initializer_cutoff_factor tf_legacy_loss max_sequence_length

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
"""
_GPT2 = """
    is_decoder n_ctx reorder_and_upcast_attn summary_type summary_use_proj summary_activation summary_first_dropout
    summary_last_dropout summary_proj_to_labels
"""
_BERT = """
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
"""
_MODERN_BERT = """
    deterministic_flash_attn layer_norm_eps position_embedding_type reference_compile repad_logits_with_grad
    sparse_prediction sparse_pred_ignore_index
"""

OBJECTIVE = "pretrain_objective"  # our own key: "diffusion" of a masked model that was trained to write
EVERYWHERE = frozenset(_ALL_FAMILIES.split()) | {OBJECTIVE}
OF_DECODERS = frozenset({"is_decoder"})  # without effect: their attention is always causal
OF_GPT2 = frozenset(_GPT2.split())
OF_BERT = frozenset(_BERT.split())
OF_MODERN_BERT = frozenset(_MODERN_BERT.split())

Settings = dict[str, Any]
REQUIRED = object()  # instead of a default


@dataclass(frozen=True)
class Key:
    """A setting of ours that corresponds to one key of config.json."""

    ours: str
    theirs: str
    kind: str | Mapping[str, Any]  # a method of `ConfigJson` (count, layers, ...), or our choices by their names
    default: Any = REQUIRED  # of the architecture
    also: tuple[str, ...] = ()  # keys that are written with the same value

    def read(self, record: ConfigJson) -> Any:
        """Return our value; raises CheckpointError for one that is missing or not supported.

        Null means the default if that is null too; otherwise versions of transformers differ on it.
        """
        if self.default is REQUIRED and record.values.get(self.theirs) is None:
            raise CheckpointError(f"{record.location} has no {self.theirs}, which a model needs.")
        if self.default is not None:
            record.reject_null(self.theirs)
        if isinstance(self.kind, str):
            return getattr(record, self.kind)(self.theirs, self.default)
        name = record.text(self.theirs, self.default)
        if name not in self.kind:
            raise record.error(self.theirs, f"is not supported, only {', '.join(self.kind)}")
        return self.kind[name]

    def write(self, config: TransformerConfig) -> Settings:
        """Return the key with our value; the first name if the architecture has none for it."""
        resolved = {"n_kv_heads": config.kv_heads, "head_dim": config.attention_head_dim, "d_ff": config.ff_width}
        resolved["token_types"] = max(1, config.token_types)  # an architecture with token types has at least one
        value = resolved.get(self.ours, getattr(config, self.ours))
        if not isinstance(self.kind, str):
            value = next((name for name, ours in self.kind.items() if ours is value), next(iter(self.kind)))
        return dict.fromkeys((self.theirs, *self.also), value)


class Group(NamedTuple):
    """Settings of ours that correspond to several keys of config.json, in both directions."""

    read: Callable[[ConfigJson], Settings]
    write: Callable[[TransformerConfig], Settings]
    keys: Sequence[str]  # of config.json that `read` reads


@dataclass(frozen=True)
class Family:
    """An architecture of transformers; writing a shape and reading it back finds the settings that it lacks."""

    model_type: str
    architecture: str  # the class of transformers with the head
    causal: bool
    names: NameTable
    fixed: Settings  # settings of ours that have one value in it
    keys: Sequence[Key]
    groups: Sequence[Group] = ()
    required: Mapping[str, Any] = field(default_factory=dict)  # keys that must have this value, if present
    harmless: frozenset[str] = frozenset()  # keys without effect in this family, besides those of all families
    bare: str | None = None  # the class without a head, if the family has one
    further: Mapping[str, Any] = field(default_factory=dict)  # keys that are written with the others
    even_heads: bool = False  # hidden_size must be divisible by the heads, whatever head_dim is

    def read(self, record: ConfigJson) -> TransformerConfig:
        """Return our settings for the shape in config.json.

        Raises CheckpointError naming the key whose value is damaged or not supported, or that is unknown.
        """
        self._check_keys(record)
        for key, value in self.required.items():
            if record.values.get(key, value) != value:
                raise record.error(key, f"is not supported, only {json.dumps(value)}")
        settings = dict(self.fixed) | {key.ours: key.read(record) for key in self.keys}
        if self.bare in (record.texts("architectures") or ()):
            settings |= {"head": Head.linear, "tie_embeddings": True}  # no parameters besides the body's
        for group in self.groups:
            settings |= group.read(record)
        try:
            return TransformerConfig(**settings)
        except ConfigError as error:
            raise CheckpointError(f"{record.location} describes a model that cannot be built: {error}") from error

    def _check_keys(self, record: ConfigJson) -> None:
        known = EVERYWHERE | self.harmless | self.required.keys() | {"vocab_size"}
        known |= {name for key in self.keys for name in (key.theirs, *key.also)}
        known |= {name for group in self.groups for name in group.keys}
        for key, value in record.values.items():
            if key not in known and value is not None:
                raise record.error(
                    key,
                    f"is unknown in a {self.model_type} and may change its outputs. Remove it if it does not",
                )

    def write(self, config: TransformerConfig) -> Settings:
        """Return config.json for this shape; settings without a key are left out."""
        record: Settings = {"architectures": [self.class_of(config)], "model_type": self.model_type}
        parts: list[Key | Group] = [*self.keys, *self.groups]
        for part in parts:
            record |= part.write(config)
        return record | dict(self.further)

    def class_of(self, config: TransformerConfig) -> str:
        """Return the class of transformers for a model of this shape."""
        headless = self.bare is not None and config.head is Head.linear
        return str(self.bare) if headless else self.architecture

    def auto_class(self, config: TransformerConfig) -> str:
        """Return the Auto class of transformers for a model of this shape."""
        if self.class_of(config) == self.bare:
            return "AutoModel"
        if self.architecture.endswith("ForSequenceClassification"):
            return "AutoModelForSequenceClassification"
        return "AutoModelForCausalLM" if self.causal else "AutoModelForMaskedLM"

    def obstacles(self, config: TransformerConfig) -> dict[str, tuple[Any, Any]]:
        """Return the settings that the architecture changes: (ours, theirs) by name.

        If there are none, the architecture computes exactly the same outputs.
        """
        try:
            changed = config.differences(self.read(ConfigJson(self.write(config), "config.json")))
        except CheckpointError:  # these numbers and the fixed settings make no valid model
            fixed = self.fixed.items()
            changed = {name: (getattr(config, name), value) for name, value in fixed if getattr(config, name) != value}
            changed["head_dim"] = (config.attention_head_dim, None)
        if self.even_heads and config.d_model % config.n_heads:
            changed["head_dim"] = (config.attention_head_dim, None)
        return changed


def open_family(record: ConfigJson, families: Sequence[Family]) -> Family:
    """Return the family of `model_type` in config.json; raises CheckpointError for one that is not supported."""
    if "auto_map" in record.values:
        raise record.error("auto_map", "names code in the model's folder, which is never run")
    if "quantization_config" in record.values:
        raise record.error("quantization_config", "means quantized weights; only float weights are read")
    model_type = record.text("model_type", "")
    for family in families:
        if family.model_type == model_type:
            return family
    raise record.error("model_type", f"is not supported, only {', '.join(f.model_type for f in families)}")


def choose_family(config: TransformerConfig, causal: bool, families: Sequence[Family], name: str = "auto") -> Family:
    """Return the first family, or the one of this name, that computes exactly the outputs of this shape.

    Raises ConfigError naming the settings that no family supports, and the values that the nearest one has.
    """
    candidates = [family for family in families if name in ("auto", family.model_type)]
    if not candidates:
        raise ConfigError(f"family={name} does not exist. Try auto, {', '.join(f.model_type for f in families)}.")
    candidates = [family for family in candidates if family.causal is causal]
    if not candidates:
        raise ConfigError(
            f"family={name} is {'masked' if causal else 'causal'}, and this model is "
            f"{'causal' if causal else 'masked'}. Try family=auto."
        )
    nearest = min(candidates, key=lambda family: len(family.obstacles(config)))
    changed = nearest.obstacles(config)
    if changed:
        ours = ", ".join(f"model.{key}={shown(value)}" for key, (value, _) in changed.items())
        theirs = ", ".join(f"model.{key}={shown(value)}" for key, (_, value) in changed.items())
        raise ConfigError(
            f"no supported architecture of transformers computes exactly this model, because of {ours}. The nearest, "
            f"{nearest.architecture}, needs {theirs}. Train with those to export."
        )
    return nearest
