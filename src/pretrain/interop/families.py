"""The supported families: the keys of config.json of each, and our settings for them.

Source of keys, defaults and architectures: https://github.com/huggingface/transformers,
src/transformers/models/<model_type>/configuration_<model_type>.py and modeling_<model_type>.py, version 5.
"""

from dataclasses import replace

from pretrain.interop.family import OF_BERT, OF_DECODERS, OF_GPT2, OF_MODERN_BERT, Family, Key
from pretrain.interop.keys import (
    LOCAL_AND_GLOBAL,
    OPTIONAL_WINDOW,
    POSITIONS_AFTER_PADDING,
    QUERY_SCALAR,
    WINDOW_BY_LAYER,
    WINDOW_EVERYWHERE,
    biases,
    layer_kinds,
    softcaps,
    window_by_kind,
)
from pretrain.interop.names import BERT, DISTIL_BERT, GEMMA3, GPT2, GPT_NEOX, LLAMA, MODERN_BERT, OLMO2, PHI3, ROBERTA
from pretrain.interop.rope_keys import LAYERS_WITHOUT_ROPE, partial_rope, rope, rope_by_kind
from pretrain.models.choices import Activation, Head, Norm, NormPosition, Position

PLAIN = {
    "gelu_new": Activation.gelu_tanh,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu": Activation.gelu,
    "relu2": Activation.relu2,
}
GATED = {
    "silu": Activation.swiglu,
    "swish": Activation.swiglu,
    "gelu": Activation.geglu,
    "gelu_pytorch_tanh": Activation.geglu_tanh,
    "gelu_new": Activation.geglu_tanh,
}
_OF_ATTENTION = biases(["attention_bias"])
_OF_BOTH = biases(["attention_bias"], ["mlp_bias"])

_PLAIN = {  # options of all architectures in some version of transformers, which none of ours has
    "is_encoder_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False, "pruned_heads": {},
}  # fmt: skip
_DECODER = _PLAIN | {"is_causal": True}
_ENCODER = _PLAIN | {"is_causal": False, "is_decoder": False}
_LLAMA_REQUIRED = {"rope_interleaved": False, "use_mrope": False, "hidden_dropout": 0.0}

GPT2_FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    causal=True,
    names=GPT2,
    fixed={"norm": Norm.layer, "norm_bias": True, "position": Position.learned, "bias": True, "head": Head.linear},
    keys=(
        Key("n_layers", "n_layer", "layers"),
        Key("d_model", "n_embd", "count"),
        Key("n_heads", "n_head", "count"),
        Key("d_ff", "n_inner", "count", None),
        Key("context_length", "n_positions", "count"),
        Key("feed_forward", "activation_function", PLAIN, "gelu_new"),
        Key("norm_eps", "layer_norm_epsilon", "number", 1e-5),
        Key("tie_embeddings", "tie_word_embeddings", "flag", True),
        Key("dropout", "resid_pdrop", "number", 0.1, also=("embd_pdrop",)),
        Key("attention_dropout", "attn_pdrop", "number", 0.1),
        Key("init_std", "initializer_range", "number", 0.02),
    ),
    required=_DECODER | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    harmless=OF_GPT2,
)

_LLAMA_KEYS = (
    Key("n_layers", "num_hidden_layers", "layers"),
    Key("d_model", "hidden_size", "count"),
    Key("n_heads", "num_attention_heads", "count"),
    Key("n_kv_heads", "num_key_value_heads", "count", None),
    Key("head_dim", "head_dim", "count", None),
    Key("d_ff", "intermediate_size", "count"),
    Key("context_length", "max_position_embeddings", "length"),
    Key("norm_eps", "rms_norm_eps", "number"),
    Key("tie_embeddings", "tie_word_embeddings", "flag", False),
    Key("attention_dropout", "attention_dropout", "number", 0.0),
    Key("init_std", "initializer_range", "number", 0.02),
)
_GATED_KEY = Key("feed_forward", "hidden_act", GATED, "silu")
_LLAMA_FIXED = {"norm": Norm.rms, "position": Position.rope, "head": Head.linear, "bias": False}

LLAMA_FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    causal=True,
    names=LLAMA,
    fixed=_LLAMA_FIXED,
    keys=(*_LLAMA_KEYS, _GATED_KEY),
    groups=(rope(), _OF_BOTH),
    required=_DECODER | _LLAMA_REQUIRED,
    harmless=OF_DECODERS,
    even_heads=True,
)

MISTRAL_FAMILY = replace(
    LLAMA_FAMILY,
    model_type="mistral",
    architecture="MistralForCausalLM",
    groups=(rope(), WINDOW_EVERYWHERE),
    required=_DECODER | _LLAMA_REQUIRED | {"attention_bias": False, "mlp_bias": False},
    even_heads=False,
)

QWEN2_FAMILY = replace(
    MISTRAL_FAMILY,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed=_LLAMA_FIXED | {"qkv_bias": True},
    groups=(rope(), WINDOW_BY_LAYER),
    required=_DECODER | _LLAMA_REQUIRED | {"mlp_bias": False},
)

QWEN3_FAMILY = replace(
    QWEN2_FAMILY,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fixed=_LLAMA_FIXED | {"qk_norm": True},
    groups=(rope(), WINDOW_BY_LAYER, _OF_ATTENTION),
)

APERTUS_FAMILY = Family(  # rotary positions, RMS norms of queries and keys, no gate in the feed-forward layer
    model_type="apertus",
    architecture="ApertusForCausalLM",
    causal=True,
    names=replace(
        LLAMA,
        inside={
            **LLAMA.inside, "attention_norm": "attention_layernorm", "feed_forward_norm": "feedforward_layernorm"
        },
    ),
    fixed=_LLAMA_FIXED | {"qk_norm": True},
    keys=(*_LLAMA_KEYS, Key("feed_forward", "hidden_act", PLAIN)),
    groups=(rope(12_000_000.0, {
        "rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }), _OF_ATTENTION),
    required=_DECODER | _LLAMA_REQUIRED | {
        "mlp_bias": False, "qk_norm": True, "post_norm": False,
    },
    harmless=OF_DECODERS,
)  # fmt: skip

SMOLLM3_FAMILY = replace(  # Llama's shape, and layers without positions
    LLAMA_FAMILY,
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    keys=(*(key for key in LLAMA_FAMILY.keys if key.ours != "tie_embeddings"),
          Key("tie_embeddings", "tie_word_embeddings", "flag", True)),
    groups=(rope(2_000_000.0), _OF_BOTH, LAYERS_WITHOUT_ROPE),
    harmless=OF_DECODERS | {"sliding_window", "max_window_layers"},  # of no layer, because each sees its whole row
    even_heads=False,
)  # fmt: skip

OLMO2_FAMILY = replace(  # norms of what a layer adds, and of the queries and keys of all heads
    LLAMA_FAMILY,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    names=OLMO2,
    fixed=_LLAMA_FIXED | {"norm_position": NormPosition.output, "qk_norm": True, "qk_norm_across_heads": True},
    groups=(rope(), _OF_ATTENTION),
    required=_DECODER | _LLAMA_REQUIRED | {"mlp_bias": False},
    even_heads=False,
)

_OLMO3_KINDS = layer_kinds(4)
OLMO3_FAMILY = replace(  # windows in three of four layers, and scaled positions in the others only
    OLMO2_FAMILY,
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    groups=(rope_by_kind(500_000.0, 500_000.0, None, _OLMO3_KINDS), window_by_kind(_OLMO3_KINDS), _OF_ATTENTION),
)

_GEMMA_KINDS = layer_kinds(6, "sliding_window_pattern")
_GEMMA_KEYS = (
    *(key for key in _LLAMA_KEYS if key.ours not in ("n_kv_heads", "head_dim", "tie_embeddings")),
    Key("n_kv_heads", "num_key_value_heads", "count", 4),
    Key("head_dim", "head_dim", "count", 256),
    Key("tie_embeddings", "tie_word_embeddings", "flag", True),
    Key("feed_forward", "hidden_activation", GATED, "gelu_pytorch_tanh"),
)
_GEMMA_FIXED = _LLAMA_FIXED | {
    "norm_position": NormPosition.sandwich, "norm_unit_offset": True, "scale_embeddings": True,
}  # fmt: skip
GEMMA3_FAMILY = replace(
    LLAMA_FAMILY,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    names=GEMMA3,
    fixed=_GEMMA_FIXED | {"qk_norm": True},
    keys=(*_GEMMA_KEYS, Key("logit_softcap", "final_logit_softcapping", "positive", None)),
    groups=(
        rope_by_kind(1_000_000.0, 10_000.0, "rope_local_base_freq", _GEMMA_KINDS),
        window_by_kind(_GEMMA_KINDS, "sliding_window_pattern"),
        _OF_ATTENTION,
        QUERY_SCALAR,
    ),
    required=_DECODER | _LLAMA_REQUIRED | {
        "mlp_bias": False, "use_bidirectional_attention": False, "attn_logit_softcapping": None,
    },
    harmless=OF_DECODERS | {"hidden_act", "cache_implementation", "_sliding_window_pattern"},
)  # fmt: skip

_GEMMA2_KINDS = layer_kinds(2)
GEMMA2_FAMILY = replace(  # one base of rotary positions, no norms of queries and keys, bounded scores and logits
    GEMMA3_FAMILY,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fixed=_GEMMA_FIXED,
    keys=_GEMMA_KEYS,
    groups=(rope(), window_by_kind(_GEMMA2_KINDS), _OF_ATTENTION, QUERY_SCALAR, softcaps(50.0, 30.0)),
    required=_DECODER | _LLAMA_REQUIRED | {"mlp_bias": False},
    harmless=OF_DECODERS | {"hidden_act", "cache_implementation"},
)

PHI3_FAMILY = replace(  # Llama's shape with fused matrices, positions of a share of the channels, and dropout
    LLAMA_FAMILY,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    names=PHI3,
    keys=(
        *(key for key in _LLAMA_KEYS if key.ours != "head_dim"),
        _GATED_KEY,
        Key("dropout", "resid_pdrop", "number", 0.0, also=("embd_pdrop",)),
    ),
    groups=(partial_rope("partial_rotary_factor", "rope_theta", 1.0, is_scaled=False), OPTIONAL_WINDOW),
    required=_DECODER | _LLAMA_REQUIRED | {"attention_bias": False, "mlp_bias": False},
    harmless=OF_DECODERS | {"original_max_position_embeddings"},  # of scaled positions only
)

BERT_FAMILY = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    bare="BertModel",
    causal=False,
    names=BERT,
    fixed={
        "norm": Norm.layer, "norm_bias": True, "norm_position": NormPosition.post, "embedding_norm": True,
        "position": Position.learned, "bias": True, "head": Head.mlm,
        "tie_embeddings": True,
    },
    keys=(
        Key("n_layers", "num_hidden_layers", "layers"),
        Key("d_model", "hidden_size", "count"),
        Key("n_heads", "num_attention_heads", "count"),
        Key("d_ff", "intermediate_size", "count"),
        Key("context_length", "max_position_embeddings", "count"),
        Key("token_types", "type_vocab_size", "count", 2),
        Key("feed_forward", "hidden_act", PLAIN, "gelu"),
        Key("norm_eps", "layer_norm_eps", "number", 1e-12),
        Key("dropout", "hidden_dropout_prob", "number", 0.1),
        Key("attention_dropout", "attention_probs_dropout_prob", "number", 0.1),
        Key("init_std", "initializer_range", "number", 0.02),
    ),
    required=_ENCODER | {
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,  # else its head has two biases
    },
    harmless=OF_BERT,
)  # fmt: skip

MODERN_BERT_FAMILY = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    bare="ModernBertModel",
    causal=False,
    names=MODERN_BERT,
    fixed={
        "norm": Norm.layer, "norm_first_block": False, "embedding_norm": True, "position": Position.rope,
        "head": Head.mlm,
    },
    keys=(
        Key("n_layers", "num_hidden_layers", "layers"),
        Key("d_model", "hidden_size", "count"),
        Key("n_heads", "num_attention_heads", "count"),
        Key("d_ff", "intermediate_size", "count"),
        Key("context_length", "max_position_embeddings", "length"),
        Key("feed_forward", "hidden_activation", {"gelu": Activation.geglu, "silu": Activation.swiglu}, "gelu"),
        Key("norm_eps", "norm_eps", "number", 1e-5),
        Key("norm_bias", "norm_bias", "flag", False),
        Key("tie_embeddings", "tie_word_embeddings", "flag", True),
        Key("dropout", "mlp_dropout", "number", 0.0, also=("embedding_dropout",)),
        Key("attention_dropout", "attention_dropout", "number", 0.0),
        Key("init_std", "initializer_range", "number", 0.02),
    ),
    groups=(LOCAL_AND_GLOBAL, biases(["attention_bias"], ["mlp_bias", "classifier_bias"])),
    required=_ENCODER | {"decoder_bias": True, "classifier_activation": "gelu"},
    harmless=OF_MODERN_BERT,
)  # fmt: skip

EURO_BERT_FAMILY = replace(  # Llama's shape with bidirectional attention
    LLAMA_FAMILY,
    model_type="eurobert",
    architecture="EuroBertForMaskedLM",
    causal=False,
    harmless=frozenset(),
    groups=(rope(),),
    required=_ENCODER | _LLAMA_REQUIRED | {
        "attention_bias": False, "mlp_bias": False,  # with the latter its head would have one too
    },
)  # fmt: skip

ROBERTA_FAMILY = replace(  # BERT, but positions start after the padding token's id, and the head's activation is GELU
    BERT_FAMILY,
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    bare="RobertaModel",
    names=ROBERTA,
    keys=(*(key for key in BERT_FAMILY.keys if key.ours not in ("context_length", "feed_forward")),
          Key("feed_forward", "hidden_act", {"gelu": Activation.gelu}, "gelu")),
    groups=(POSITIONS_AFTER_PADDING,),
    required=_ENCODER | {"position_embedding_type": "absolute", "tie_word_embeddings": True},
    harmless=frozenset(),
)  # fmt: skip
XLM_ROBERTA_FAMILY = replace(
    ROBERTA_FAMILY, model_type="xlm-roberta", architecture="XLMRobertaForMaskedLM", bare="XLMRobertaModel"
)
CAMEMBERT_FAMILY = replace(
    ROBERTA_FAMILY, model_type="camembert", architecture="CamembertForMaskedLM", bare="CamembertModel"
)

DISTIL_BERT_FAMILY = Family(  # BERT without token types
    model_type="distilbert",
    architecture="DistilBertForMaskedLM",
    bare="DistilBertModel",
    causal=False,
    names=DISTIL_BERT,
    fixed=BERT_FAMILY.fixed | {"norm_eps": 1e-12},
    keys=(
        Key("n_layers", "n_layers", "layers"),
        Key("d_model", "dim", "count"),
        Key("n_heads", "n_heads", "count"),
        Key("d_ff", "hidden_dim", "count"),
        Key("context_length", "max_position_embeddings", "count"),
        Key("feed_forward", "activation", {"gelu": Activation.gelu}, "gelu"),
        Key("dropout", "dropout", "number", 0.1),
        Key("attention_dropout", "attention_dropout", "number", 0.1),
        Key("init_std", "initializer_range", "number", 0.02),
    ),
    required=_ENCODER | {"tie_word_embeddings": True},
    harmless=frozenset({"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_"}),
)

GPT_NEOX_FAMILY = Family(  # Pythia
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    causal=True,
    names=GPT_NEOX,
    fixed={"norm": Norm.layer, "norm_bias": True, "position": Position.rope, "bias": True, "head": Head.linear},
    keys=(
        Key("n_layers", "num_hidden_layers", "layers"),
        Key("d_model", "hidden_size", "count"),
        Key("n_heads", "num_attention_heads", "count"),
        Key("d_ff", "intermediate_size", "count"),
        Key("context_length", "max_position_embeddings", "length"),
        Key("feed_forward", "hidden_act", PLAIN, "gelu"),
        Key("norm_eps", "layer_norm_eps", "number", 1e-5),
        Key("tie_embeddings", "tie_word_embeddings", "flag", False),
        Key("parallel_residual", "use_parallel_residual", "flag", True),
        Key("dropout", "hidden_dropout", "number", 0.0),
        Key("attention_dropout", "attention_dropout", "number", 0.0),
        Key("init_std", "initializer_range", "number", 0.02),
    ),
    groups=(partial_rope("rotary_pct", "rotary_emb_base", 0.25, is_scaled=True),),
    required=_DECODER | {"attention_bias": True},
    harmless=OF_DECODERS,
    even_heads=True,
)

FAMILIES = (GPT2_FAMILY, LLAMA_FAMILY, MISTRAL_FAMILY, QWEN2_FAMILY, QWEN3_FAMILY, APERTUS_FAMILY, BERT_FAMILY,
            MODERN_BERT_FAMILY, EURO_BERT_FAMILY, ROBERTA_FAMILY, XLM_ROBERTA_FAMILY, CAMEMBERT_FAMILY,
            DISTIL_BERT_FAMILY, GPT_NEOX_FAMILY, SMOLLM3_FAMILY, OLMO2_FAMILY, OLMO3_FAMILY, GEMMA3_FAMILY,
            GEMMA2_FAMILY, PHI3_FAMILY)  # fmt: skip
