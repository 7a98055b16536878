"""Tiny models of every family, with random weights that all affect the output."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.safetensors_file import TensorFiles, write_tensors
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import Family, choose_family
from pretrain.models.choices import Activation, AttentionGate, Head, Norm, NormPosition, Parametrization, Position
from pretrain.models.config import TransformerConfig
from pretrain.models.lora import add_adapters, is_adapter
from pretrain.models.lora_config import LoraConfig
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig
from pretrain.models.transformer import Transformer

GPT = TransformerConfig(n_layers=2, d_model=32, n_heads=4, context_length=32)
LLAMA = replace(
    GPT, norm=Norm.rms, position=Position.rope, feed_forward=Activation.swiglu, bias=False, n_kv_heads=2, qk_norm=True,
    tie_embeddings=False, d_ff=48,
)  # fmt: skip
BERT = replace(
    GPT, norm_position=NormPosition.post, norm_eps=1e-12, embedding_norm=True, token_types=2, head=Head.mlm,
    feed_forward=Activation.gelu,
)  # fmt: skip
MODERN_BERT = replace(
    GPT, n_layers=4, norm_bias=False, norm_first_block=False, embedding_norm=True, position=Position.rope,
    rope_base=160_000.0, rope_base_local=10_000.0, feed_forward=Activation.geglu, bias=False, head=Head.mlm,
    sliding_window=8,
    global_attention_every=3,
)  # fmt: skip
NEOX = replace(
    GPT, position=Position.rope, rope_fraction=0.25, parallel_residual=True, feed_forward=Activation.gelu,
    tie_embeddings=False, d_ff=48,
)  # fmt: skip
OLMO = replace(  # with layers without positions, which no released OLMo has
    LLAMA, norm_position=NormPosition.output, qk_norm_across_heads=True, n_layers=3, nope_every=2
)
GEMMA = replace(  # two of three layers with a window, positions of the third stretched
    LLAMA, norm_position=NormPosition.sandwich, norm_unit_offset=True, scale_embeddings=True, attention_scale=7**-0.5,
    logit_softcap=2.0,
    feed_forward=Activation.geglu_tanh, n_layers=3, sliding_window=5, global_attention_every=3,
    global_attention_offset=2, rope_base_local=300.0, qkv_bias=True, attention_output_bias=True,
    rope_scaling=RopeScalingConfig(RopeScaling.yarn, 4.0, original_context_length=16, global_layers_only=True),
)  # fmt: skip
GEMMA2 = replace(
    GEMMA, qk_norm=False, rope_base_local=None, attention_softcap=1.5, n_layers=2, global_attention_every=2,
    global_attention_offset=1, rope_scaling=RopeScalingConfig(),
)  # fmt: skip
GATED = replace(  # no released model; the second layer of two has a value embedding
    LLAMA, attention_gate=AttentionGate.channel, value_embeddings_every=2, residual_scalars=True, embedding_norm=True
)
MUP = replace(LLAMA, parametrization=Parametrization.mup, base_width=16, base_head_dim=4)
SHAPES = {
    "gpt": GPT,
    "llama": LLAMA,
    "local": replace(LLAMA, n_layers=3, sliding_window=5, global_attention_every=2),  # a causal model with windows
    "neox": NEOX,
    "olmo": OLMO,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gated": GATED,
    "mup": MUP,
    "bert": BERT,
    "modern_bert": MODERN_BERT,
}
CAUSAL = ["gpt", "llama", "local", "neox", "olmo", "gemma", "gemma2", "gated", "mup"]


def shape(name: str, **changes: Any) -> TransformerConfig:
    """Return tiny settings of a family, some of them changed."""
    return replace(SHAPES[name], **changes)


def random_model(config: TransformerConfig, vocab_size: int, causal: bool, seed: int = 0) -> Transformer:
    """Return a model whose every bias, norm and matrix matters to its output."""
    model = config.build(vocab_size, causal)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            parameter += float("norm" in name and name.endswith("weight") and not config.norm_unit_offset)
    return model.eval()


def with_adapters(name: str, config: LoraConfig, folder: Path) -> tuple[Transformer, Family, TensorFiles]:
    """Return a model whose adapters have random values, its family, and the tensors of its checkpoint."""
    model = random_model(shape(name), 260, name in CAUSAL)
    add_adapters(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if is_adapter(parameter_name):
                parameter.normal_(std=0.3, generator=generator)
    path = folder / "model.safetensors"
    write_tensors(path, dict(model.named_parameters()))
    return model, choose_family(model.config, name in CAUSAL, FAMILIES), TensorFiles([path])
