"""A Hugging Face architecture: names of its tensors, and config.json in terms of our settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.interop.names import NameTable
from pretrain.interop.record import Record
from pretrain.models.config import Head, TransformerConfig

# Keys of config.json that leave the logits alone: transformers computes the same without them. A family reads a key,
# demands one value of it, or lists it here; any other key is refused by name. Names of the keys:
# https://github.com/huggingface/transformers, configuration_utils.py, generation/configuration_utils.py and
# models/<model_type>/configuration_<model_type>.py, with those that earlier versions wrote.
_ALL_FAMILIES = """
    architectures model_type name_or_path _name_or_path _commit_hash transformers_version transformers.js_config
    is_llama_config unsloth_version unsloth_fixed tokenizer_class language license

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

EVERYWHERE = frozenset(_ALL_FAMILIES.split())
OF_DECODERS = frozenset({"is_decoder"})  # their attention is causal without it
OF_GPT2 = frozenset(_GPT2.split())
OF_BERT = frozenset(_BERT.split())
OF_MODERN_BERT = frozenset(_MODERN_BERT.split())

Settings = dict[str, Any]
NEEDED = object()  # instead of a default: config.json must say


@dataclass(frozen=True)
class Key:
    """A setting of ours with a key of its own in config.json."""

    ours: str
    theirs: str
    kind: str | Mapping[str, Any]  # count, layers, ..., as `Record` reads them; or the words for our choices
    default: Any = NEEDED  # what the architecture takes where config.json does not say
    also: tuple[str, ...] = ()  # keys that get the same value in a file that we write

    def read(self, record: Record) -> Any:
        """Return our value; raises CheckpointError for one that is missing, or that we have no name for.

        A null stands for the default where the default is null, too; else versions of transformers differ on it.
        """
        if self.default is NEEDED and record.values.get(self.theirs) is None:
            raise CheckpointError(f"{record.where} has no {self.theirs}, which a model needs.")
        if self.default is not None:
            record.refuse_null(self.theirs)
        if isinstance(self.kind, str):
            return getattr(record, self.kind)(self.theirs, self.default)
        word = record.text(self.theirs, self.default)
        if word not in self.kind:
            raise record.refuse(self.theirs, f"is not supported, only {', '.join(self.kind)}")
        return self.kind[word]

    def write(self, config: TransformerConfig) -> Settings:
        """Return what config.json says for our value; the first word where the architecture has none for it."""
        filled = {"n_kv_heads": config.kv_heads, "head_dim": config.attention_head_dim, "d_ff": config.ff_width}
        filled["token_types"] = max(1, config.token_types)  # an architecture that has types has at least one
        value = filled.get(self.ours, getattr(config, self.ours))
        if not isinstance(self.kind, str):
            value = next((word for word, ours in self.kind.items() if ours is value), next(iter(self.kind)))
        return dict.fromkeys((self.theirs, *self.also), value)


class Group(NamedTuple):
    """Settings of ours that stand in several keys of config.json, in both directions."""

    read: Callable[[Record], Settings]
    write: Callable[[TransformerConfig], Settings]
    keys: Sequence[str]  # of config.json that `read` reads


@dataclass(frozen=True)
class Family:
    """An architecture of transformers. What it cannot say is found by writing a shape and reading it back."""

    model_type: str
    architecture: str  # the class of transformers with the head
    causal: bool
    names: NameTable
    fixed: Settings  # settings of ours that it always has
    keys: Sequence[Key]
    groups: Sequence[Group] = ()
    required: Mapping[str, Any] = field(default_factory=dict)  # keys that must have this value if they are there
    harmless: frozenset[str] = frozenset()  # keys that change nothing in this family, besides those of all families
    bare: str | None = None  # the class without the head, where a model may come without one
    even_heads: bool = False  # its width must split into its heads, whatever the width of one head

    def read(self, record: Record) -> TransformerConfig:
        """Return our settings of the shape that config.json describes.

        Raises CheckpointError, naming the key, for what is damaged or what we do not compute, and for a key of which we
        do not know what it changes.
        """
        self._check_keys(record)
        for key, value in self.required.items():
            if record.values.get(key, value) != value:
                raise record.refuse(key, f"is not supported, only {json.dumps(value)}")
        settings = dict(self.fixed) | {key.ours: key.read(record) for key in self.keys}
        if self.bare in (record.texts("architectures") or ()):
            settings |= {"head": Head.linear, "tie_embeddings": True}  # which adds nothing to the body's parameters
        for group in self.groups:
            settings |= group.read(record)
        try:
            return TransformerConfig(**settings)
        except ConfigError as error:
            raise CheckpointError(f"{record.where} describes no model: as settings of ours, {error}") from error

    def _check_keys(self, record: Record) -> None:
        known = EVERYWHERE | self.harmless | self.required.keys() | {"vocab_size"}
        known |= {name for key in self.keys for name in (key.theirs, *key.also)}
        known |= {name for group in self.groups for name in group.keys}
        for key, value in record.values.items():
            if key not in known and value is not None:
                raise record.refuse(
                    key,
                    f"is not known in a {self.model_type}, and may change what it computes. Remove it if it does not",
                )

    def write(self, config: TransformerConfig) -> Settings:
        """Return config.json for this shape, as far as the architecture has keys for it."""
        record: Settings = {"architectures": [self.class_of(config)], "model_type": self.model_type}
        parts: list[Key | Group] = [*self.keys, *self.groups]
        for part in parts:
            record |= part.write(config)
        return record

    def class_of(self, config: TransformerConfig) -> str:
        """Return the class of transformers for a model of this shape."""
        headless = self.bare is not None and config.head is Head.linear
        return str(self.bare) if headless else self.architecture

    def auto_class(self, config: TransformerConfig) -> str:
        """Return the Auto class of transformers for a model of this shape."""
        if self.class_of(config) == self.bare:
            return "AutoModel"
        return "AutoModelForCausalLM" if self.causal else "AutoModelForMaskedLM"

    def obstacles(self, config: TransformerConfig) -> dict[str, tuple[Any, Any]]:
        """Return each setting that the architecture does not have as it is, with its value and the one it would have.

        Without any, the architecture computes exactly what the model computes.
        """
        try:
            found = config.differences(self.read(Record(self.write(config), "config.json")))
        except CheckpointError:  # no model has these numbers and what is fixed here
            always = self.fixed.items()
            found = {name: (getattr(config, name), value) for name, value in always if getattr(config, name) != value}
            found["head_dim"] = (config.attention_head_dim, None)
        if self.even_heads and config.d_model % config.n_heads:
            found["head_dim"] = (config.attention_head_dim, None)
        return found


def open_family(record: Record, families: Sequence[Family]) -> Family:
    """Return the family that config.json names; raises CheckpointError for one that we do not have."""
    if "auto_map" in record.values:
        raise record.refuse("auto_map", "asks for code of the model's own, which is never run")
    if "quantization_config" in record.values:
        raise record.refuse("quantization_config", "means quantized weights; only float weights are read")
    named = record.text("model_type", "")
    for family in families:
        if family.model_type == named:
            return family
    raise record.refuse("model_type", f"is not supported, only {', '.join(f.model_type for f in families)}")


def choose_family(config: TransformerConfig, causal: bool, families: Sequence[Family], name: str = "auto") -> Family:
    """Return the family that computes exactly what a model of this shape computes, or the one of this name if it does.

    Raises ConfigError naming the settings that stand in the way, and what they would have to be.
    """
    candidates = [family for family in families if name in ("auto", family.model_type)]
    if not candidates:
        raise ConfigError(f"family={name} is none of auto, {', '.join(f.model_type for f in families)}.")
    candidates = [family for family in candidates if family.causal is causal]
    if not candidates:
        raise ConfigError(
            f"family={name} {'fills masks' if causal else 'continues texts'}, and this model was trained to "
            f"{'continue texts' if causal else 'fill masks'}. Try family=auto."
        )
    nearest = min(candidates, key=lambda family: len(family.obstacles(config)))
    found = nearest.obstacles(config)
    if found:
        ours = ", ".join(f"model.{key}={shown(value)}" for key, (value, _) in found.items())
        theirs = ", ".join(f"model.{key}={shown(value)}" for key, (_, value) in found.items())
        raise ConfigError(
            f"no architecture of transformers that we know computes exactly this model: {ours} stand in the way of the "
            f"nearest, {nearest.architecture}, which has {theirs}. Train with those to export."
        )
    return nearest
