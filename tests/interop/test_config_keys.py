"""Each key of config.json, changed or removed: transformers' logits, or an error that names the key."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BYTES, lively_weights, quiet_transformers, write_theirs
from torch import Tensor
from torch.testing import assert_close

from pretrain.errors import CheckpointError
from pretrain.interop.config_json import ConfigJson
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import Family
from pretrain.interop.load import open_model

SIZES = {
    "vocab_size": BYTES.vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 256, "eos_token_id": 256,
    "pad_token_id": 257,
}  # fmt: skip
LLAMA_SIZES = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": {"rope_type": "default",
                                                                                   "rope_theta": 500.0}}  # fmt: skip
TWO_KINDS = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "rope_parameters": {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
ROBERTA_SIZES = SIZES | {"pad_token_id": 1}
OF_THEIRS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": BYTES.vocab_size, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "bos_token_id": 256, "eos_token_id": 256,
    },
    "llama": LLAMA_SIZES,
    "mistral": LLAMA_SIZES | {"sliding_window": 5},
    "qwen2": LLAMA_SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "qwen3": LLAMA_SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "apertus": LLAMA_SIZES | {"hidden_act": "relu2"},
    "bert": SIZES | {"bos_token_id": None},
    "modernbert": SIZES | {"cls_token_id": 256, "sep_token_id": 256, "local_attention": 6},
    "eurobert": LLAMA_SIZES | {"mask_token_id": 258},
    "roberta": ROBERTA_SIZES,
    "xlm-roberta": ROBERTA_SIZES,
    "camembert": ROBERTA_SIZES,
    "distilbert": {
        "vocab_size": BYTES.vocab_size, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 64, "pad_token_id": 257,
    },
    "gpt_neox": SIZES,
    "smollm3": LLAMA_SIZES,
    "olmo2": LLAMA_SIZES,
    "olmo3": TWO_KINDS,
    "gemma3_text": TWO_KINDS,
    "gemma2": TWO_KINDS | {"rope_parameters": LLAMA_SIZES["rope_parameters"]},
    "phi3": {key: value for key, value in LLAMA_SIZES.items() if key != "head_dim"} | {"sliding_window": 5},
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PLAIN = {"rope_type": "default"}
WINDOWS = ["sliding_attention", "full_attention"]
# What a key may be changed to besides what its own value suggests; keys that no class of a family has, too.
CHANGES: dict[str, list[Any]] = {
    "rope_parameters": [
        {}, LINEAR, LLAMA3, LINEAR | {"rope_theta": 7.0}, {"type": "linear", "factor": 2.0}, {"rope_theta": 0},
        {"rope_theta": None}, LINEAR | {"factor": 0}, {"rope_type": "linear"}, {"rope_type": "yarn", "factor": 2.0},
        LLAMA3 | {"low_freq_factor": 0}, {"rope_type": None}, {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "default", "factor": 2.0}, LINEAR | {"attention_factor": 2.0}, LINEAR | {"mscale": 2.0},
        LINEAR | {"original_max_position_embeddings": 8},
        {key: value for key, value in LLAMA3.items() if not key.startswith("original")},
        YARN, YARN | {"beta_fast": 2.0, "beta_slow": 0.5}, YARN | {"attention_factor": 1.5}, YARN | {"beta_fast": 0},
        YARN | {"truncate": False}, YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}, YARN | {"beta_slow": 64.0},
        YARN | {"attention_factor": None}, YARN | {"original_max_position_embeddings": None},
        {"full_attention": YARN, "sliding_attention": PLAIN}, {"full_attention": PLAIN, "sliding_attention": LINEAR},
        {"full_attention": LINEAR}, {"full_attention": LINEAR, "sliding_attention": LINEAR},
        {"full_attention": {"rope_theta": 3.0, "rope_type": "default"}, "sliding_attention": None},
    ],
    "rope_scaling": [{}, LINEAR, LLAMA3, {"type": "linear", "factor": 2.0}, {"rope_theta": 7.0},
                     {"rope_type": "dynamic", "factor": 2.0}],
    "rope_local_base_freq": [0, 77.0], "sliding_window_pattern": [1, 2, 3, 0], "_sliding_window_pattern": [2],
    "use_bidirectional_attention": [True, False],
    "rope_theta": [0, 0.0, -1.0, 77.0], "partial_rotary_factor": [0.5, 1.0],
    "original_max_position_embeddings": [8], "global_rope_theta": [0, 77.0], "local_rope_theta": [0, 77.0],
    "layer_types": [WINDOWS, WINDOWS[::-1], WINDOWS[:1] * 2, WINDOWS[1:] * 2, WINDOWS[:1]],
    "sliding_window": [3, 100], "use_sliding_window": [False, True], "max_window_layers": [0, 1, 5],
    "local_attention": [2, 3], "global_attn_every_n_layers": [0, 1, 2], "attention_chunk_size": [4],
    "is_causal": [True, False], "is_decoder": [True, False], "is_encoder_decoder": [True],
    "add_cross_attention": [True], "pruned_heads": [{"0": [1]}],
    "per_layer_config": [{"0": {"num_attention_heads": 2}}],
    "attention_multiplier": [3.0], "logits_scaling": [3.0], "logit_scale": [3.0], "residual_multiplier": [3.0],
    "embedding_multiplier": [3.0], "final_logit_softcapping": [3.0, 0], "attn_logit_softcapping": [3.0, 0],
    "query_pre_attn_scalar": [3, 8], "no_rope_layers": [[0, 1], [1, 0], [1, 1], [0, 0, 1], [1], [2, 0], "11"],
    "no_rope_layer_interval": [1, 2, 0], "rope_interleaved": [True, False],
    "hidden_act": ["gelu", "gelu_new", "silu", "relu", "relu2", "tanh", "quick_gelu"],
    "hidden_activation": ["gelu", "gelu_new", "silu", "relu"],
    "activation_function": ["gelu", "gelu_new", "relu", "relu2", "silu", "gelu_fast"],
    "attention_bias": [True, False], "mlp_bias": [True, False], "qkv_bias": [False], "qk_norm": [False, True],
    "use_qk_norm": [True], "post_norm": [True, False], "head_dim": [16, None], "hidden_dropout": [0.0, 0.5],
    "resid_pdrop": [0.0],
    "layer_norm_eps": [0, 0.5], "layer_norm_epsilon": [0, 0.5], "rms_norm_eps": [0, 0.5], "norm_eps": [0, 0.5],
    "norm_bias": [True], "position_embedding_type": ["absolute", "relative_key"], "tie_word_embeddings": [True, False],
    "scale_attn_weights": [False], "scale_attn_by_inverse_layer_idx": [True], "classifier_pooling": ["mean", "cls"],
    "classifier_bias": [True], "classifier_activation": ["relu"], "classifier_dropout": [0.5, None],
    "decoder_bias": [False], "sparse_prediction": [True], "hidden_size": [64], "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 8], "n_embd": [64], "n_ctx": [8], "n_inner": [48, 128], "type_vocab_size": [1, 3],
    "chunk_size_feed_forward": [0, 4], "pretraining_tp": [2], "num_key_value_heads": [1, 4], "use_cache": [False],
    "dtype": ["float32"], "id2label": [{"0": "a"}], "problem_type": [None], "transformers_weights": ["x.safetensors"],
    "a_key_of_next_year": [1, False],
}  # fmt: skip
TOKENS = torch.arange(5, 25).remainder(19).add(3).unsqueeze(0)


def their_class(family: Family) -> Any:
    import transformers

    return getattr(transformers, family.architecture)


@torch.no_grad()
def their_logits(family: Family, record: dict[str, Any], weights: dict[str, Tensor]) -> Tensor | None:
    """Return what transformers computes with a config.json, or None where it does not load these weights with it."""
    kind = their_class(family)
    try:
        config = kind.config_class.from_dict(json.loads(json.dumps(record)))
        model = kind(config)
        model.load_state_dict(weights)
        return model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits  # type: ignore[no-any-return]
    except Exception:  # it has as many ways to say no as there are keys
        return None


def variants(family: Family, record: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return keys with other values; `...` takes the key away."""
    names = {each.name for each in fields(their_class(family).config_class)} | record.keys() | CHANGES.keys()
    found: list[tuple[str, Any]] = []
    for name in sorted(names - {"architectures", "model_type", "transformers_version"}):
        found += [(name, ...)] if name in record else []
        found += [(name, value) for value in [*CHANGES.get(name, []), *_others(record.get(name)), None]]
    return found


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2 or 1]
    return ["other"] if isinstance(value, str) else []


BY_TYPE = {family.model_type: family for family in FAMILIES}
OLDER_FORM = ("layer_types", "rope_parameters")  # keys that versions of transformers before 5 did not write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "without"),
    [(name, OLDER_FORM if name in ("mistral", "qwen2") else ()) for name in BY_TYPE]
    + [(name, OLDER_FORM) for name in ("modernbert", "olmo3", "gemma3_text")],
)
def test_no_key_changes_the_result_in_silence(model_type: str, without: tuple[str, ...], tmp_path: Path) -> None:
    family = BY_TYPE[model_type]
    with quiet_transformers():
        kind = their_class(family)
        model = lively_weights(kind(kind.config_class(**OF_THEIRS[model_type])))
        folder = write_theirs(tmp_path / "theirs", model)
        weights = model.state_dict()
        record = json.loads((folder / "config.json").read_text())
        record = {key: value for key, value in record.items() if key not in without}
        ours = OurLogits(folder, family)
        refused: set[str] = set()
        compared: set[str] = set()
        for name, value in variants(family, record):
            changed = {key: each for key, each in record.items() if key != name} | (
                {} if value is ... else {name: value}
            )
            found = ours(changed)
            if found is None:
                refused.add(name)
                continue
            theirs = their_logits(family, changed, weights)
            if theirs is not None:
                compared.add(name)
                assert_close(found, theirs, atol=1e-4, rtol=1e-4, msg=f"{name}={value!r} changes the logits")
    assert {"a_key_of_next_year", "logit_scale", "per_layer_config"} <= refused
    assert {"use_cache", "dtype", "id2label", "problem_type"} <= compared
    assert len(compared) > 15


class OurLogits:
    """What we compute with a config.json, or None where it is refused: each shape once."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder, self.family = folder, family
        self.by_shape: dict[str, Tensor | None] = {}

    @torch.no_grad()
    def __call__(self, record: dict[str, Any]) -> Tensor | None:
        try:
            shape = repr(self.family.read(ConfigJson(record, "config.json")))  # most are refused here
        except CheckpointError:
            return None
        if shape not in self.by_shape:
            (self.folder / "config.json").write_text(json.dumps(record))
            self.by_shape[shape] = self._compute()
        return self.by_shape[shape]

    def _compute(self) -> Tensor | None:
        try:
            model = open_model(self.folder).load().eval()
        except CheckpointError:
            return None
        return model.head(model(TOKENS))
