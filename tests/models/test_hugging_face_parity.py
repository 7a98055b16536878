"""The same weights give the same logits here and in transformers: GPT-2, Llama, BERT and ModernBERT.

Each family's name map is written out once: our parameter, theirs, and how one becomes the other.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from families import shape
from torch import Tensor, nn
from torch.testing import assert_close

from pretrain.models.config import RopeScaling, RopeScalingConfig, TransformerConfig
from pretrain.models.transformer import Transformer

VOCAB = 61
IMPLEMENTATIONS = ["eager", "sdpa"]


def lively_weights(model: nn.Module) -> nn.Module:
    """Give every parameter, biases and norms too, a value that matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            parameter += float("norm" in name.lower() or "ln_" in name) * float(name.endswith("weight"))
    return model.eval()


def assert_same_logits(
    config: TransformerConfig, causal: bool, theirs: Any, values: Mapping[str, Tensor], length: int = 20
) -> None:
    """Load `values` into our model, leaving nothing out, and compare logits at every position."""
    ours: Transformer = config.build(VOCAB, causal).eval()
    parameters = dict(ours.named_parameters())
    assert parameters.keys() == values.keys()
    for name, parameter in parameters.items():
        assert parameter.shape == values[name].shape, name
        parameter.data.copy_(values[name])
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    tokens = torch.randint(VOCAB, (3, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        found = ours.head(ours(tokens))
    assert expected.std() > 0.3  # neither is flat
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_gpt2(attention: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = lively_weights(
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_implementation=attention,
                bos_token_id=0, eos_token_id=0,
            )
        )
    )  # fmt: skip
    state = theirs.state_dict()
    values = {
        "embeddings.tokens.weight": state["transformer.wte.weight"],
        "embeddings.positions.weight": state["transformer.wpe.weight"],
        "final_norm.weight": state["transformer.ln_f.weight"],
        "final_norm.bias": state["transformer.ln_f.bias"],
    }
    for i in range(2):
        ours, his = f"blocks.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            fused = state[f"{his}attn.c_attn.{kind}"].t().chunk(3)  # Conv1D keeps its weight transposed
            for name, part in zip(("query", "key", "value"), fused, strict=True):
                values[f"{ours}attention.{name}.{kind}"] = part
            values[f"{ours}attention.output.{kind}"] = state[f"{his}attn.c_proj.{kind}"].t()
            values[f"{ours}feed_forward.up.{kind}"] = state[f"{his}mlp.c_fc.{kind}"].t()
            values[f"{ours}feed_forward.down.{kind}"] = state[f"{his}mlp.c_proj.{kind}"].t()
            values[f"{ours}attention_norm.{kind}"] = state[f"{his}ln_1.{kind}"]
            values[f"{ours}feed_forward_norm.{kind}"] = state[f"{his}ln_2.{kind}"]
    assert_same_logits(shape("gpt"), True, theirs, values)


@pytest.mark.parametrize("scaling", [RopeScaling.none, RopeScaling.linear, RopeScaling.llama3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_llama(attention: str, tied: bool, scaling: RopeScaling) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if scaling is not RopeScaling.none:
        rope |= {"rope_type": scaling.name, "factor": 4.0}
    if scaling is RopeScaling.llama3:
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    theirs = lively_weights(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=tied,
                rope_parameters=rope, attn_implementation=attention, bos_token_id=0, eos_token_id=0,
            )
        )
    )  # fmt: skip
    state = theirs.state_dict()
    values = {
        "embeddings.tokens.weight": state["model.embed_tokens.weight"],
        "final_norm.weight": state["model.norm.weight"],
    }
    if not tied:
        values["head.weight"] = state["lm_head.weight"]
    names = {
        "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
        "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj", "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    }  # fmt: skip
    for i in range(2):
        values |= {f"blocks.{i}.{our}.weight": state[f"model.layers.{i}.{his}.weight"] for our, his in names.items()}
    factor = 1.0 if scaling is RopeScaling.none else 4.0
    ours_scaling = RopeScalingConfig(scaling, factor, original_context_length=16)
    config = shape("llama", qk_norm=False, norm_eps=1e-6, tied=tied, rope_scaling=ours_scaling)
    assert_same_logits(config, True, theirs, values)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_bert(attention: str) -> None:
    from transformers import BertConfig, BertForMaskedLM

    theirs = lively_weights(
        BertForMaskedLM(
            BertConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                max_position_embeddings=32, attn_implementation=attention,
            )
        )
    )  # fmt: skip
    state = theirs.state_dict()
    names = {
        "embeddings.norm": "bert.embeddings.LayerNorm",
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
    }
    parts = {
        "attention.query": "attention.self.query", "attention.key": "attention.self.key",
        "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense", "feed_forward_norm": "output.LayerNorm",
    }  # fmt: skip
    for i in range(2):
        names |= {f"blocks.{i}.{our}": f"bert.encoder.layer.{i}.{his}" for our, his in parts.items()}
    values = {f"{our}.{kind}": state[f"{his}.{kind}"] for our, his in names.items() for kind in ("weight", "bias")}
    values["head.bias"] = state["cls.predictions.bias"]
    for our, his in {
        "tokens": "word_embeddings",
        "positions": "position_embeddings",
        "types": "token_type_embeddings",
    }.items():
        values[f"embeddings.{our}.weight"] = state[f"bert.embeddings.{his}.weight"]
    assert_same_logits(shape("bert"), False, theirs, values)


@pytest.mark.parametrize("window", [2, 7, 8])
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_modern_bert(attention: str, window: int) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    theirs = lively_weights(
        ModernBertForMaskedLM(
            ModernBertConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
                max_position_embeddings=64, local_attention=window, attn_implementation=attention, pad_token_id=0,
                eos_token_id=1, bos_token_id=2, cls_token_id=2, sep_token_id=1,
            )
        )
    )  # fmt: skip
    state = theirs.state_dict()
    values = {
        "embeddings.tokens.weight": state["model.embeddings.tok_embeddings.weight"],
        "embeddings.norm.weight": state["model.embeddings.norm.weight"],
        "final_norm.weight": state["model.final_norm.weight"],
        "head.dense.weight": state["head.dense.weight"],
        "head.norm.weight": state["head.norm.weight"],
        "head.bias": state["decoder.bias"],
    }
    for i in range(4):
        ours, his = f"blocks.{i}.", f"model.layers.{i}."
        fused = state[f"{his}attn.Wqkv.weight"].chunk(3)
        for name, part in zip(("query", "key", "value"), fused, strict=True):
            values[f"{ours}attention.{name}.weight"] = part
        gate, up = state[f"{his}mlp.Wi.weight"].chunk(2)
        values |= {
            f"{ours}feed_forward.gate.weight": gate,
            f"{ours}feed_forward.up.weight": up,
            f"{ours}feed_forward.down.weight": state[f"{his}mlp.Wo.weight"],
            f"{ours}attention.output.weight": state[f"{his}attn.Wo.weight"],
            f"{ours}feed_forward_norm.weight": state[f"{his}mlp_norm.weight"],
        }
        if i:
            values[f"{ours}attention_norm.weight"] = state[f"{his}attn_norm.weight"]
    assert_same_logits(shape("modern_bert", d_ff=48, window=window), False, theirs, values)
