"""Map tensors of a Hugging Face model to our parameters and back: one table per family.

A table maps modules to modules, with their `weight` and `bias`. Several of our modules may map to one of theirs, a
fused matrix with ours stacked along dimension 0. GPT-2's Conv1D stores its weights transposed.
Source of the names: https://github.com/huggingface/transformers, src/transformers/models/<family>/modeling_<family>.py.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_IN_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
_QKV = ("attention.query", "attention.key", "attention.value")


@dataclass(frozen=True)
class Stored:
    """A Hugging Face tensor with our parameters stacked in it along dimension 0."""

    name: str
    parts: Mapping[str, torch.Size]  # our parameters with their shapes
    transposed: bool = False
    heads: int = 1  # of which each has its rows of every part together; 1: the parts one after the other

    @property
    def shape(self) -> torch.Size:
        """Shape of their tensor."""
        first = next(iter(self.parts.values()))
        stacked = (sum(shape[0] for shape in self.parts.values()), *first[1:])
        return torch.Size(reversed(stacked) if self.transposed else stacked)

    def join(self, values: Callable[[str], Tensor]) -> Tensor:
        """Return the Hugging Face tensor from the values of our parameters."""
        if self.heads > 1:
            return torch.stack([values(name).unflatten(0, (self.heads, -1)) for name in self.parts], 1).flatten(0, 2)
        tensor = torch.cat([values(name) for name in self.parts])
        return tensor.t() if self.transposed else tensor

    def part(self, tensor: Tensor, name: str) -> Tensor:
        """Return our parameter `name` from the Hugging Face tensor."""
        if self.heads > 1:
            number = list(self.parts).index(name)
            return tensor.unflatten(0, (self.heads, len(self.parts), -1))[:, number].flatten(0, 1)
        tensor = tensor.t() if self.transposed else tensor
        first = 0
        for other, shape in self.parts.items():
            if other == name:
                return tensor[first : first + shape[0]]
            first += shape[0]
        raise KeyError(name)


@dataclass(frozen=True)
class NameTable:
    """Names of our modules in a family."""

    body: str  # prefix of every name but those of the head; absent in a model saved without a head
    outside: Mapping[str, str]  # our modules and parameters outside of the blocks
    layer: str  # prefix of the names in a layer; {} is its number
    inside: Mapping[str | tuple[str, ...], str]  # our modules in a block
    head: Mapping[str, str]  # our modules and parameters of the head
    transposed: tuple[str, ...] = ()  # of their modules in a layer
    renamed: Mapping[str, str] = field(default_factory=dict)  # prefix in some version of transformers -> the one here
    by_head: tuple[str, ...] = ()  # fused modules in a layer with the rows of each head together
    ignored: tuple[str, ...] = ()  # patterns of their tensors that a language model does not use
    copies: Mapping[str, str] = field(default_factory=dict)  # of their tensors: second name -> first name

    def stored(self, parameters: Mapping[str, torch.Size], n_heads: int = 1) -> list[Stored]:
        """Return the tensors that hold these parameters of ours, in the order of the first parameter in each.

        `n_heads` is the model's number of attention heads. Raises KeyError for a parameter without a name in the
        family.
        """
        tensors: dict[str, Stored] = {}
        for name in parameters:
            theirs, ours, transposed = self._locate(name)
            if theirs not in tensors:
                heads = n_heads if theirs.rpartition(".")[0].endswith(self.by_head) else 1
                tensors[theirs] = Stored(theirs, {other: parameters[other] for other in ours}, transposed, heads)
        return list(tensors.values())

    def _locate(self, name: str) -> tuple[str, tuple[str, ...], bool]:
        """Return the name of their tensor, all of our parameters in it, and whether it is transposed."""
        module, _, kind = name.rpartition(".")
        in_layer = _IN_LAYER.fullmatch(module)
        if in_layer is None:
            for table, prefix in ((self.head, ""), (self.outside, self.body)):
                if name in table:
                    return prefix + table[name], (name,), False
                if module in table:
                    return f"{prefix}{table[module]}.{kind}", (name,), False
            raise KeyError(name)
        number, module = in_layer.groups()
        for ours, theirs in self.inside.items():
            modules = (ours,) if isinstance(ours, str) else ours
            if module in modules:
                transposed = theirs in self.transposed and kind == "weight"
                fused = tuple(f"blocks.{number}.{other}.{kind}" for other in modules)
                return f"{self.body}{self.layer.format(number)}{theirs}.{kind}", fused, transposed
        raise KeyError(name)

    def canonical(self, name: str) -> str:
        """Return a tensor's name as transformers writes it today, with the prefix of the body."""
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # of layer norms before 2019
        for other, theirs in self.renamed.items():
            name = theirs + name.removeprefix(other) if name.startswith(other) else name
        in_head = (*self.head.values(), *self.copies)
        of_head = any(name == theirs or name.startswith(f"{theirs}.") for theirs in in_head)
        return name if of_head or name.startswith(self.body) or self.is_ignored(name) else self.body + name

    def is_ignored(self, name: str) -> bool:
        """Whether a language model does not use a tensor: buffers, poolers."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


GPT2 = NameTable(
    body="transformer.",
    outside={"embeddings.tokens": "wte", "embeddings.positions": "wpe", "final_norm": "ln_f"},
    layer="h.{}.",
    inside={
        "attention_norm": "ln_1",
        _QKV: "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    },
    head={"head": "lm_head"},
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    ignored=(r".*\.attn\.(masked_)?bias",),  # causal masks in old files
)

LLAMA = NameTable(  # of Mistral, Qwen and Apertus, too
    body="model.",
    outside={"embeddings.tokens": "embed_tokens", "final_norm": "norm"},
    layer="layers.{}.",
    inside={
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
    head={"head": "lm_head"},
    ignored=(r".*\.rotary_emb\.inv_freq",),
)

OLMO2 = replace(
    LLAMA,
    inside={
        **LLAMA.inside, "attention_norm": "post_attention_layernorm", "feed_forward_norm": "post_feedforward_layernorm"
    },
)  # fmt: skip

GEMMA3 = replace(
    LLAMA,
    inside={
        **LLAMA.inside,
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
)

_FUSED = ("attention.query", "attention.key", "attention.value", "feed_forward.gate", "feed_forward.up")
PHI3 = replace(
    LLAMA,
    inside={name: theirs for name, theirs in LLAMA.inside.items() if name not in _FUSED}
    | {_QKV: "self_attn.qkv_proj", ("feed_forward.gate", "feed_forward.up"): "mlp.gate_up_proj"},
)

BERT = NameTable(
    body="bert.",
    outside={
        "embeddings.tokens": "embeddings.word_embeddings",
        "embeddings.positions": "embeddings.position_embeddings",
        "embeddings.types": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
    },
    layer="encoder.layer.{}.",
    inside={
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    },
    head={
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.weight": "cls.predictions.decoder.weight",
        "head.bias": "cls.predictions.bias",
    },
    ignored=(r"(bert\.)?pooler\..*", r"(bert\.)?embeddings\.position_ids", r"cls\.seq_relationship\..*"),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
)

MODERN_BERT = NameTable(
    body="model.",
    outside={
        "embeddings.tokens": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "final_norm": "final_norm",
    },
    layer="layers.{}.",
    inside={
        "attention_norm": "attn_norm",
        _QKV: "attn.Wqkv",
        "attention.output": "attn.Wo",
        "feed_forward_norm": "mlp_norm",
        ("feed_forward.gate", "feed_forward.up"): "mlp.Wi",
        "feed_forward.down": "mlp.Wo",
    },
    head={"head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"},
)

ROBERTA = NameTable(  # of XLM-RoBERTa and CamemBERT, too
    body="roberta.",
    outside=BERT.outside,
    layer=BERT.layer,
    inside=BERT.inside,
    head={
        "head.dense": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "head.weight": "lm_head.decoder.weight",
        "head.bias": "lm_head.bias",
    },
    ignored=(r"(roberta\.)?pooler\..*", r"(roberta\.)?embeddings\.position_ids"),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)

DISTIL_BERT = NameTable(
    body="distilbert.",
    outside={name: theirs for name, theirs in BERT.outside.items() if name != "embeddings.types"},
    layer="transformer.layer.{}.",
    inside={
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feed_forward.up": "ffn.lin1",
        "feed_forward.down": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    },
    head={"head.dense": "vocab_transform", "head.norm": "vocab_layer_norm", "head": "vocab_projector"},
    ignored=(r"(distilbert\.)?embeddings\.position_ids",),
)

GPT_NEOX = NameTable(
    body="gpt_neox.",
    outside={"embeddings.tokens": "embed_in", "final_norm": "final_layer_norm"},
    layer="layers.{}.",
    inside={
        "attention_norm": "input_layernorm",
        _QKV: "attention.query_key_value",
        "attention.output": "attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.up": "mlp.dense_h_to_4h",
        "feed_forward.down": "mlp.dense_4h_to_h",
    },
    head={"head": "embed_out"},
    renamed={"lm_head.": "embed_out."},
    by_head=("attention.query_key_value",),
    ignored=(r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
)
