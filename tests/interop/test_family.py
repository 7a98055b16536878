"""Export picks the family that computes the same function, or names the settings that no family has."""

from typing import Any

import pytest
from families import shape

from pretrain.config.compose import compose
from pretrain.errors import ConfigError
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.models.choices import Activation, AttentionGate, Head, Norm, NormPosition, Position, SoftcapKind
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig

LLAMA: dict[str, Any] = {"qk_norm": False}
FITTING = [
    ("gpt", True, {}, "GPT2LMHeadModel"),
    ("llama", True, LLAMA, "LlamaForCausalLM"),
    ("llama", True, LLAMA | {"sliding_window": 4}, "LlamaForCausalLM"),  # in no layer
    ("llama", True, LLAMA | {"bias": True}, "LlamaForCausalLM"),
    ("llama", True, LLAMA | {"d_model": 34, "head_dim": 10}, "MistralForCausalLM"),  # others want whole heads
    (
        "llama",
        True,
        LLAMA | {"sliding_window": 4, "global_attention_every": 0, "rope_base_local": 7.0},
        "MistralForCausalLM",
    ),
    ("llama", True, LLAMA | {"qkv_bias": True}, "Qwen2ForCausalLM"),
    ("llama", True, {}, "Qwen3ForCausalLM"),
    ("local", True, {}, "Qwen3ForCausalLM"),
    ("llama", True, {"feed_forward": Activation.relu2}, "ApertusForCausalLM"),
    ("bert", False, {}, "BertForMaskedLM"),
    ("bert", False, {"head": Head.linear}, "BertModel"),
    ("modern_bert", False, {}, "ModernBertForMaskedLM"),
    ("modern_bert", False, {"head": Head.linear}, "ModernBertModel"),
    ("llama", False, LLAMA, "EuroBertForMaskedLM"),
    ("bert", False, {"position_offset": 2, "feed_forward": Activation.gelu}, "RobertaForMaskedLM"),
    ("bert", False, {"token_types": 0, "feed_forward": Activation.gelu}, "DistilBertForMaskedLM"),
    ("neox", True, {}, "GPTNeoXForCausalLM"),
    ("olmo", True, {"nope_every": 0}, "Olmo2ForCausalLM"),
    ("gemma", True, {}, "Gemma3ForCausalLM"),
    ("gemma2", True, {}, "Gemma2ForCausalLM"),
    ("gemma", True, {"global_attention_layers": [0, 1]}, "Gemma3ForCausalLM"),
    ("olmo", True, {"nope_every": 0, "sliding_window": 4, "global_attention_every": 2}, "Olmo3ForCausalLM"),
    ("llama", True, LLAMA | {"rope_fraction": 0.5}, "Phi3ForCausalLM"),
    ("llama", True, LLAMA | {"nope_every": 2}, "SmolLM3ForCausalLM"),
]
UNSUPPORTED = [
    ("gemma", True, {"norm_unit_offset": False}, "model.norm_unit_offset=false", "model.norm_unit_offset=true"),
    ("gemma", True, {"softcap_kind": SoftcapKind.sqrt}, "model.softcap_kind=sqrt", "model.softcap_kind=tanh"),
    ("gpt", True, {"logit_softcap": 30.0}, "model.logit_softcap=30.0", "model.logit_softcap=null"),
    ("gemma", True, {"scale_embeddings": False}, "model.scale_embeddings=false", "model.scale_embeddings=true"),
    ("gemma", True, {"attention_output_bias": None}, "model.attention_output_bias=false", "output_bias=true"),
    ("gpt", True, {"attention_scale": 0.5}, "model.attention_scale=0.5", "model.attention_scale=0.35355339"),
    ("olmo", True, {}, "model.nope_every=2", "model.nope_every=0"),
    ("llama", True, {"attention_gate": AttentionGate.head}, "model.attention_gate=head", "attention_gate=none"),
    ("llama", True, {"value_embeddings_every": 2}, "value_embeddings_every=2", "value_embeddings_every=0"),
    ("llama", True, {"residual_scalars": True}, "residual_scalars=true", "residual_scalars=false"),
    ("gpt", True, {"norm_bias": False}, "model.norm_bias=false", "model.norm_bias=true"),
    ("gpt", True, {"bias": False, "qkv_bias": True}, "model.bias=false", "model.bias=true"),
    ("gpt", True, {"n_kv_heads": 2}, "model.n_kv_heads=2", "model.n_kv_heads=4"),
    ("gpt", True, {"d_model": 30, "head_dim": 8}, "model.head_dim=8", "model.head_dim=null"),
    ("llama", True, {"norm": Norm.layer}, "model.norm=layer", "model.norm=rms"),
    ("llama", True, {"norm_position": NormPosition.post}, "model.norm_position=post", "model.norm_position=pre"),
    ("llama", True, {"position": Position.learned}, "model.position=learned", "model.position=rope"),
    (
        "llama",
        True,
        LLAMA | {"sliding_window": 4, "global_attention_every": 2},
        "model.sliding_window=4",
        "model.sliding_window=null",
    ),
    ("local", True, {"rope_base_local": 9.0}, "model.rope_base_local=9.0", "model.rope_base_local=10000.0"),
    (
        "llama",
        True,
        LLAMA | {"bias": True, "qkv_bias": False},
        "model.attention_output_bias=true",
        "model.attention_output_bias=false",
    ),
    ("bert", False, {"token_types": 0, "norm_eps": 1e-5}, "model.token_types=0", "model.token_types=1"),
    ("bert", False, {"tie_embeddings": False}, "model.tie_embeddings=false", "model.tie_embeddings=true"),
    ("bert", False, {"feed_forward": Activation.swiglu}, "model.feed_forward=swiglu", "model.feed_forward=gelu_tanh"),
    ("modern_bert", False, {"norm_first_block": True}, "model.norm_first_block=true", "model.norm_first_block=false"),
    ("modern_bert", False, {"qk_norm": True}, "model.qk_norm=true", "model.qk_norm=false"),
]


@pytest.mark.parametrize(("name", "causal", "changes", "architecture"), FITTING)
def test_the_architecture_that_computes_the_same_is_found(
    name: str, causal: bool, changes: dict[str, Any], architecture: str
) -> None:
    config = shape(name, **changes)
    family = choose_family(config, causal, FAMILIES)
    assert family.class_of(config) == architecture
    auto = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
    assert family.auto_class(config) == ("AutoModel" if architecture.endswith("BertModel") else auto)


@pytest.mark.parametrize(("name", "causal", "changes", "ours", "theirs"), UNSUPPORTED)
def test_settings_without_a_family_are_named(
    name: str, causal: bool, changes: dict[str, Any], ours: str, theirs: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_family(shape(name, **changes), causal, FAMILIES)
    before, _, after = str(caught.value).partition(". The nearest, ")
    assert before.startswith("no supported architecture of transformers computes exactly this model, because of ")
    assert ours in before
    assert theirs in after


def test_a_family_may_be_asked_for() -> None:
    plain = shape("llama", qk_norm=False)
    assert choose_family(plain, True, FAMILIES, "mistral").architecture == "MistralForCausalLM"
    with pytest.raises(ConfigError, match=r"family=lama does not exist\. Try auto, gpt2, llama, mistral, "):
        choose_family(plain, True, FAMILIES, "lama")
    with pytest.raises(ConfigError, match=r"family=bert is masked, and this model is causal\."):
        choose_family(plain, True, FAMILIES, "bert")
    with pytest.raises(ConfigError, match=r"family=gpt2 is causal, and this model is masked\."):
        choose_family(plain, False, FAMILIES, "gpt2")
    with pytest.raises(ConfigError, match=r"because of model\.qkv_bias=false\. The nearest, Qwen2ForCausalLM"):
        choose_family(plain, True, FAMILIES, "qwen2")


PRESETS = {
    "gpt_nano": "ApertusForCausalLM",
    "hybrid_nano": "ApertusForCausalLM",
    "llama_nano": "LlamaForCausalLM",
    "modernbert_nano": "ModernBertForMaskedLM",
    "gpt_xl": "GPT2LMHeadModel",
    "llama_1b": "LlamaForCausalLM",
    "bert_large": "BertForMaskedLM",
    "modernbert_large": "ModernBertForMaskedLM",
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_an_architecture(preset: str) -> None:
    config: Any = compose("train", [f"model={preset}"])
    assert choose_family(config.model, config.objective.causal, FAMILIES).architecture == PRESETS[preset]


def test_shapes_differ_by_what_they_compute() -> None:
    """What is left out counts as what it stands for; what has no effect does not count."""
    llama, gpt = shape("llama"), shape("gpt")
    same = [
        (
            llama,
            shape("llama", head_dim=8, qkv_bias=False, dropout=0.5, context_length=7, sliding_window=9, init_std=1.0),
        ),
        (gpt, shape("gpt", n_kv_heads=4, d_ff=128, rope_base=3.0)),
        (llama, shape("llama", rope_scaling=RopeScalingConfig(RopeScaling.llama3))),  # by a factor of 1
        (llama, shape("llama", norm_bias=False)),
    ]
    assert [one.differences(other) for one, other in same] == [{}] * 4
    assert gpt.differences(shape("gpt", context_length=33)) == {"context_length": (32, 33)}
    assert llama.differences(shape("llama", n_kv_heads=None, norm_eps=1.0)) == {
        "norm_eps": (1e-5, 1.0),
        "n_kv_heads": (2, 4),
    }
    stretched = shape("llama", rope_scaling=RopeScalingConfig(RopeScaling.linear, 2.0))
    assert stretched.differences(shape("llama", rope_scaling=RopeScalingConfig(RopeScaling.linear, 3.0))) == {
        "rope_scaling.factor": (2.0, 3.0)
    }
    local = shape("local", global_attention_every=0)
    assert local.differences(shape("local")) == {"global_attention_every": (0, 2)}
    assert local.differences(shape("local", sliding_window=None)) == {"sliding_window": (5, None)}
