"""Random shapes of every family: our settings, and models of transformers."""

from dataclasses import replace
from typing import Any

from families import shape
from folders import BYTES
from hypothesis import strategies as st

from pretrain.models.choices import Activation, Head, NormPosition, Position
from pretrain.models.config import TransformerConfig
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig

booleans = st.booleans()
attention_biases = st.sampled_from([{}, {"qkv_bias": True, "attention_output_bias": True}])
epsilons = st.sampled_from([1e-5, 1e-6, 1e-12])
scalings = st.sampled_from(
    [
        RopeScalingConfig(),
        RopeScalingConfig(RopeScaling.linear, 4.0),
        RopeScalingConfig(RopeScaling.llama3, 4.0, 1.0, 4.0, 16),
        RopeScalingConfig(RopeScaling.yarn, 4.0, original_context_length=16, beta_fast=2.0),
        RopeScalingConfig(RopeScaling.yarn, 2.0, original_context_length=8, attention_factor=1.25),
    ]
)


@st.composite
def gpt2(draw: Any) -> TransformerConfig:
    return shape(
        "gpt", n_layers=draw(st.integers(1, 3)), n_heads=draw(st.sampled_from([1, 4])), tie_embeddings=draw(booleans),
        d_ff=draw(st.sampled_from([None, 48])), norm_eps=draw(epsilons),
        feed_forward=draw(st.sampled_from([Activation.gelu, Activation.gelu_tanh, Activation.relu2])),
    )  # fmt: skip


@st.composite
def llama(draw: Any) -> TransformerConfig:
    return shape(
        "llama", n_layers=draw(st.integers(1, 3)), n_kv_heads=draw(st.sampled_from([None, 1, 2])), qk_norm=False,
        tie_embeddings=draw(booleans), bias=draw(booleans), head_dim=draw(st.sampled_from([None, 12])),
        norm_eps=draw(epsilons),
        rope_base=draw(st.sampled_from([1e4, 5e5])), rope_scaling=draw(scalings),
        feed_forward=draw(st.sampled_from([Activation.swiglu, Activation.geglu])),
    )  # fmt: skip


@st.composite
def mistral(draw: Any) -> TransformerConfig:
    config = draw(llama())
    return replace(config, bias=False, sliding_window=draw(st.integers(1, 30)), global_attention_every=0)


@st.composite
def qwen2(draw: Any) -> TransformerConfig:
    config = draw(llama())
    window = draw(st.sampled_from([None, 3, 8]))
    return replace(
        config, bias=False, qkv_bias=True, sliding_window=window, global_attention_every=draw(st.integers(0, 3))
    )


@st.composite
def qwen3(draw: Any) -> TransformerConfig:
    config = replace(draw(qwen2()), qk_norm=True, **{"qkv_bias": None} | draw(attention_biases))
    layers = st.sampled_from([[], [0], [0, config.n_layers - 1]]) if config.n_layers > 1 else st.just([])
    return replace(config, global_attention_layers=draw(layers))


@st.composite
def apertus(draw: Any) -> TransformerConfig:
    plain = st.sampled_from([Activation.relu2, Activation.gelu, Activation.gelu_tanh])
    return replace(draw(llama()), bias=False, qk_norm=True, feed_forward=draw(plain))


@st.composite
def eurobert(draw: Any) -> TransformerConfig:
    return replace(draw(llama()), bias=False, head_dim=None)


@st.composite
def bert(draw: Any) -> TransformerConfig:
    config = replace(draw(gpt2()), token_types=draw(st.integers(1, 3)))
    changes = {name: getattr(shape("bert"), name) for name in ("norm_position", "embedding_norm")}
    headless = draw(booleans)
    return replace(config, **changes, head=Head.linear if headless else Head.mlm, tie_embeddings=True)


@st.composite
def modernbert(draw: Any) -> TransformerConfig:
    return shape(
        "modern_bert", d_ff=48, sliding_window=draw(st.sampled_from([None, 2, 7, 8])),
        global_attention_every=draw(st.integers(0, 4)),
        tie_embeddings=draw(booleans), bias=draw(booleans), norm_bias=draw(booleans), rope_scaling=draw(scalings),
        feed_forward=draw(st.sampled_from([Activation.swiglu, Activation.geglu])), norm_eps=draw(epsilons),
    )  # fmt: skip


@st.composite
def roberta(draw: Any) -> TransformerConfig:
    return replace(draw(bert()), feed_forward=Activation.gelu, position_offset=BYTES.pad_id + 1)


@st.composite
def distilbert(draw: Any) -> TransformerConfig:
    return replace(draw(bert()), feed_forward=Activation.gelu, token_types=0, norm_eps=1e-12)


@st.composite
def gpt_neox(draw: Any) -> TransformerConfig:
    return replace(
        draw(gpt2()), position=Position.rope, rope_base=draw(st.sampled_from([1e4, 5e5])), rope_scaling=draw(scalings),
        rope_fraction=draw(st.sampled_from([0.25, 0.5, 1.0])), parallel_residual=draw(booleans),
    )  # fmt: skip


@st.composite
def smollm3(draw: Any) -> TransformerConfig:
    return replace(draw(llama()), nope_every=draw(st.integers(0, 3)))


@st.composite
def olmo2(draw: Any) -> TransformerConfig:
    norms = {"norm_position": NormPosition.output, "qk_norm": True, "qk_norm_across_heads": True}
    return replace(draw(llama()), bias=False, **norms)


@st.composite
def olmo3(draw: Any) -> TransformerConfig:
    return replace(draw(olmo2()), **draw(two_kinds_of_layers()), rope_base_local=draw(st.sampled_from([None, 300.0])))


@st.composite
def two_kinds_of_layers(draw: Any) -> dict[str, Any]:
    every = draw(st.integers(0, 3))
    scaling = draw(scalings)
    window = draw(st.sampled_from([3, 8, 100]))
    return {
        "sliding_window": window, "global_attention_every": every,
        "global_attention_offset": draw(st.integers(0, max(0, every - 1))),
        "rope_scaling": replace(scaling, global_layers_only=draw(booleans)),
    }  # fmt: skip


@st.composite
def gemma3(draw: Any) -> TransformerConfig:
    config = replace(draw(llama()), **draw(two_kinds_of_layers()), qk_norm=True, bias=False)
    return replace(
        config, norm_position=NormPosition.sandwich, norm_unit_offset=True, scale_embeddings=True,
        feed_forward=draw(st.sampled_from([Activation.geglu_tanh, Activation.swiglu])),
        attention_scale=draw(st.sampled_from([None, 5**-0.5, 168**-0.5])) if config.head_dim is None else 7**-0.5,
        rope_base_local=draw(st.sampled_from([None, 300.0])), logit_softcap=draw(st.sampled_from([None, 9.0])),
        **draw(attention_biases),
    )  # fmt: skip


@st.composite
def gemma2(draw: Any) -> TransformerConfig:
    caps = {name: draw(st.sampled_from([None, 3.0])) for name in ("attention_softcap", "logit_softcap")}
    config = replace(draw(gemma3()), qk_norm=False, rope_base_local=None, **caps)
    return replace(config, rope_scaling=replace(config.rope_scaling, global_layers_only=False))


@st.composite
def phi3(draw: Any) -> TransformerConfig:
    window = draw(st.sampled_from([{}, {"sliding_window": 5, "global_attention_every": 0}]))
    fraction = draw(st.sampled_from([0.5, 1.0]))
    return replace(
        draw(llama()), bias=False, head_dim=None, rope_fraction=fraction, rope_scaling=RopeScalingConfig(), **window
    )


STRATEGIES = {
    "gpt2": gpt2(), "llama": llama(), "mistral": mistral(), "qwen2": qwen2(), "qwen3": qwen3(), "apertus": apertus(),
    "bert": bert(), "modernbert": modernbert(), "eurobert": eurobert(),
    "roberta": roberta(), "xlm-roberta": roberta(), "camembert": roberta(), "distilbert": distilbert(),
    "gpt_neox": gpt_neox(), "smollm3": smollm3(), "olmo2": olmo2(), "olmo3": olmo3(), "gemma3_text": gemma3(),
    "gemma2": gemma2(), "phi3": phi3(),
}  # fmt: skip


def gpt2_of_theirs(draw: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=draw(st.sampled_from([None, 40])),
            activation_function=draw(st.sampled_from(["gelu_new", "gelu", "relu2"])),
            tie_word_embeddings=draw(booleans), **ids(draw),
        )
    )  # fmt: skip


def ids(draw: Any) -> dict[str, Any]:
    return {
        "vocab_size": BYTES.vocab_size + draw(st.integers(0, 40)), "bos_token_id": 256, "eos_token_id": 256,
        "attn_implementation": draw(st.sampled_from(["eager", "sdpa"])),
    }  # fmt: skip


def llama_like(draw: Any) -> dict[str, Any]:
    return ids(draw) | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])), "max_position_embeddings": 64,
        "tie_word_embeddings": draw(booleans), "head_dim": draw(st.sampled_from([8, 16])), "pad_token_id": 257,
        "rope_parameters": draw(st.sampled_from([
            {"rope_type": "default", "rope_theta": 10_000.0},
            {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
            {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
            {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16},
        ])),
    }  # fmt: skip


def llama_of_theirs(draw: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**llama_like(draw), attention_bias=draw(booleans), mlp_bias=draw(booleans)))


def mistral_of_theirs(draw: Any) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**llama_like(draw), sliding_window=draw(st.sampled_from([None, 4, 100]))))


def qwen_windows(draw: Any) -> dict[str, Any]:
    return {
        "use_sliding_window": draw(booleans),
        "sliding_window": 5,
        "max_window_layers": draw(st.sampled_from([0, 3])),
    }


def qwen2_of_theirs(draw: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**llama_like(draw), **qwen_windows(draw)))


def qwen3_of_theirs(draw: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    windows = qwen_windows(draw) | draw(st.sampled_from([{}, {"max_window_layers": 2}]))
    return Qwen3ForCausalLM(Qwen3Config(**llama_like(draw), **windows, attention_bias=draw(booleans)))


def bert_of_theirs(draw: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

    kind = draw(st.sampled_from([BertForMaskedLM, BertForPreTraining, BertModel]))
    return kind(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=32, hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
            **ids(draw) | {"bos_token_id": None},
        )
    )  # fmt: skip


def modernbert_of_theirs(draw: Any) -> Any:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    return ModernBertForMaskedLM(
        ModernBertConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, pad_token_id=257,
            max_position_embeddings=64, local_attention=draw(st.sampled_from([2, 7, 8])), cls_token_id=256,
            sep_token_id=256, global_attn_every_n_layers=draw(st.integers(1, 4)), **ids(draw),
        )
    )  # fmt: skip


def roberta_of_theirs(draw: Any) -> Any:
    import transformers

    name = draw(st.sampled_from(["Roberta", "XLMRoberta", "Camembert"]))
    kind = getattr(transformers, name + draw(st.sampled_from(["ForMaskedLM", "Model"])))
    pad = BYTES.pad_id
    return kind(
        kind.config_class(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=40 + pad, type_vocab_size=draw(st.sampled_from([1, 2])),
            **ids(draw) | {"pad_token_id": pad},
        )
    )  # fmt: skip


def distilbert_of_theirs(draw: Any) -> Any:
    from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel

    kind = draw(st.sampled_from([DistilBertForMaskedLM, DistilBertModel]))
    return kind(
        DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32,
            sinusoidal_pos_embds=draw(booleans), tie_weights_=True, **ids(draw),
        )
    )  # fmt: skip


def smollm3_of_theirs(draw: Any) -> Any:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    bias = draw(booleans)
    layers = draw(st.sampled_from([None, [1, 0, 1], [1, 1, 1, 0], [0, 0, 0]]))
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            **llama_like(draw), attention_bias=bias, mlp_bias=bias, no_rope_layers=layers,
            no_rope_layer_interval=draw(st.integers(1, 4)), max_window_layers=28,
        )
    )  # fmt: skip


def olmo2_of_theirs(draw: Any) -> Any:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM(Olmo2Config(**llama_like(draw)))


def olmo3_of_theirs(draw: Any) -> Any:
    from transformers import Olmo3Config, Olmo3ForCausalLM

    return Olmo3ForCausalLM(Olmo3Config(**two_kinds_of_theirs(draw)))


def two_kinds_of_theirs(draw: Any) -> dict[str, Any]:
    """A configuration with two kinds of layers, five here."""
    shared = llama_like(draw)
    scaling = shared.pop("rope_parameters")
    kinds = draw(st.sampled_from([None, ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
                                  ["full_attention"] * 2 + ["sliding_attention"] * 3]))  # fmt: skip
    return shared | {
        "num_hidden_layers": 5, "sliding_window": draw(st.sampled_from([4, 100])), "layer_types": kinds,
        "rope_parameters": draw(st.sampled_from([
            None, {"full_attention": scaling, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}},
        ])),
    }  # fmt: skip


def gemma3_of_theirs(draw: Any) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = two_kinds_of_theirs(draw)
    pattern = draw(st.sampled_from([{}, {"sliding_window_pattern": 2}]))
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**shape, **pattern, query_pre_attn_scalar=draw(st.sampled_from([8, 5, 256])),
                         attention_bias=draw(booleans), final_logit_softcapping=draw(st.sampled_from([None, 9.0])))
    )  # fmt: skip


def gemma2_of_theirs(draw: Any) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = llama_like(draw) | {"attn_implementation": "eager"}
    caps = {f"{name}_logit_softcapping": draw(st.sampled_from([None, 3.0])) for name in ("attn", "final")}
    windows = {"sliding_window": draw(st.sampled_from([4, 100])), "query_pre_attn_scalar": draw(st.integers(5, 9))}
    return Gemma2ForCausalLM(Gemma2Config(**shape, **caps, **windows, attention_bias=draw(booleans)))


def phi3_of_theirs(draw: Any) -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    shared = llama_like(draw)
    del shared["head_dim"]
    shared["rope_parameters"] = {"rope_type": "default", "rope_theta": draw(st.sampled_from([500.0, 10_000.0]))}
    share = draw(st.sampled_from([{}, {"partial_rotary_factor": 0.5}]))
    return Phi3ForCausalLM(Phi3Config(**shared, **share, sliding_window=draw(st.sampled_from([None, 5]))))


def gpt_neox_of_theirs(draw: Any) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=64, use_parallel_residual=draw(booleans), tie_word_embeddings=draw(booleans),
            rotary_pct=draw(st.sampled_from([0.25, 0.5, 1.0])), hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
            **ids(draw),
        )
    )  # fmt: skip


THEIRS = [
    gpt2_of_theirs, llama_of_theirs, mistral_of_theirs, qwen2_of_theirs, qwen3_of_theirs,
    bert_of_theirs, modernbert_of_theirs, roberta_of_theirs, distilbert_of_theirs, gpt_neox_of_theirs,
    smollm3_of_theirs, olmo2_of_theirs, olmo3_of_theirs, gemma3_of_theirs, gemma2_of_theirs,
    phi3_of_theirs,
]  # fmt: skip
