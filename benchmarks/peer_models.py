"""Models of transformers and litgpt in the shapes that the benchmarks compare; each needs its library alone."""

from typing import Any

from shapes import Shape
from torch import Tensor, nn

CLASSES = {
    "gpt": "GPT2LMHeadModel", "bert": "BertForMaskedLM", "modernbert": "ModernBertForMaskedLM",
    "llama": "LlamaForCausalLM",
}  # fmt: skip


def transformers_model(shape: Shape) -> nn.Module:
    """Return transformers' model of the shape's family, with random weights and without dropout."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": shape.vocab_size, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if shape.family == "gpt":
        sizes |= {"n_positions": shape.length, "n_embd": shape.d_model, "n_layer": shape.n_layers}
        sizes |= {"n_head": shape.n_heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes |= {
            "hidden_size": shape.d_model,
            "num_hidden_layers": shape.n_layers,
            "intermediate_size": shape.ff_width,
        }
        sizes |= {"num_attention_heads": shape.n_heads, "max_position_embeddings": shape.length}
    if shape.family == "bert":
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if shape.family == "modernbert":
        sizes |= {"local_attention": 128, "global_attn_every_n_layers": 3, "attn_implementation": "sdpa"}
    if shape.family == "llama":
        sizes |= {"num_key_value_heads": shape.n_kv_heads or shape.n_heads, "tie_word_embeddings": True}
        sizes |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    model_class: Any = getattr(transformers, CLASSES[shape.family])
    model: nn.Module = model_class(model_class.config_class(**sizes))
    return model


class Logits(nn.Module):
    """The logits alone of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of tokens (B, T)."""
        logits: Tensor = self.model(tokens).logits
        return logits


def litgpt_model(shape: Shape) -> nn.Module:
    """Return litgpt's GPT or Llama of the shape, with the head tied to the embedding."""
    from litgpt.config import Config
    from litgpt.model import GPT

    sizes: dict[str, Any] = {
        "name": shape.family, "block_size": shape.length, "vocab_size": shape.vocab_size,
        "padded_vocab_size": shape.vocab_size, "n_layer": shape.n_layers, "n_head": shape.n_heads,
        "n_embd": shape.d_model, "rotary_percentage": 1.0, "parallel_residual": False,
        "intermediate_size": shape.ff_width,
    }  # fmt: skip
    if shape.family == "llama":
        sizes |= {"n_query_groups": shape.n_kv_heads or shape.n_heads, "bias": False, "rope_base": 500_000}
        sizes |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
    else:
        sizes |= {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP"}
    model: Any = GPT(Config(**sizes))
    model.lm_head.weight = model.transformer.wte.weight
    found: nn.Module = model
    return found
