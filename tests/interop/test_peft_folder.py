"""Adapters as a PEFT folder: what is written computes the same when it is read, and damage is refused."""

import json
from typing import Any

import pytest
import torch
from families import CAUSAL, random_model, shape, with_adapters
from torch import Tensor
from torch.testing import assert_close

from pretrain.checkpoint.safetensors_file import TensorFiles, write_tensors
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.load import open_model
from pretrain.interop.peft_folder import CONFIG, WEIGHTS, read_adapters, write_adapters
from pretrain.models.lora import adapted, add_adapters, initial_adapter, merged
from pretrain.models.lora_config import LoraConfig
from pretrain.models.transformer import Transformer

ALL = LoraConfig(rank=3, alpha=5.0)


def added(model: Transformer, values: Any, config: LoraConfig) -> dict[str, Tensor]:
    """Return what each adapter adds to its matrix."""
    names = adapted(dict(model.named_parameters()).keys())
    zeros = {name: torch.zeros_like(model.get_parameter(f"{name}.weight")) for name in names}
    return {name: merged(f"{name}.weight", zero, values, config.scale) for name, zero in zeros.items()}


@pytest.mark.parametrize("name", ["gpt", "llama", "modern_bert", "bert"])
@pytest.mark.parametrize("targets", [["blocks.*"], ["*.query", "*.value", "blocks.1.feed_forward.up.weight"]])
def test_what_is_written_computes_the_same(tmp_path, name, targets):
    """Also into adapters of a larger rank and of another scale."""
    config = LoraConfig(rank=3, alpha=5.0, targets=targets)
    model, family, saved = with_adapters(name, config, tmp_path)
    write_adapters(tmp_path, saved, family, config, base="somebody/base")
    larger = LoraConfig(rank=5, alpha=2.0, targets=targets)
    other = random_model(shape(name), 260, name in CAUSAL)
    add_adapters(other, larger)
    sizes = {key: parameter.shape for key, parameter in other.named_parameters()}
    load = read_adapters(tmp_path, sizes, larger, family)
    theirs = added(other, lambda key: load(key, initial_adapter(key, sizes[key], 0)), larger)
    ours = added(model, model.get_parameter, config)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert_close(theirs[key], value.detach(), atol=1e-5, rtol=1e-5)
    first = next(iter(ours))
    assert load(f"{first}.lora.a", initial_adapter(f"{first}.lora.a", sizes[f"{first}.lora.a"], 0))[3:].any()


def test_adapters_of_queries_that_are_stored_by_head_are_refused_and_others_written(tmp_path):
    _, family, saved = with_adapters("neox", ALL, tmp_path)
    with pytest.raises(ConfigError, match=r"adapts blocks\.0\.attention\.query, and GPTNeoXForCausalLM keeps .* Try"):
        write_adapters(tmp_path, saved, family, ALL, base=None)
    others = LoraConfig(rank=3, alpha=5.0, targets=["blocks.*.output", "blocks.*.feed_forward.*"])
    (folder := tmp_path / "others").mkdir()
    _, family, saved = with_adapters("neox", others, folder)
    write_adapters(folder, saved, family, others, base=None)
    targets = json.loads((folder / CONFIG).read_text())["target_modules"]
    assert sorted(targets) == ["dense", "dense_4h_to_h", "dense_h_to_4h"]


def test_names_are_short_where_all_matrices_have_an_adapter(tmp_path):
    _, family, saved = with_adapters("gpt", ALL, tmp_path)
    write_adapters(tmp_path, saved, family, ALL, base=None)
    record = json.loads((tmp_path / CONFIG).read_text())
    assert record["target_modules"] == ["c_attn", "c_proj", "c_fc"]
    assert record["rank_pattern"] == {"c_attn": 9}  # query, key and value
    assert record["alpha_pattern"] == {"c_attn": 15.0}
    assert record["fan_in_fan_out"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r'peft_type="IA3" is not supported, only LORA'),
        ({"use_dora": True}, r"use_dora=true is not supported, only false"),
        ({"bias": "all"}, r'bias="all" is not supported, only "none"'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\] is not supported, only null'),
        ({"init_lora_weights": "pissa"}, r'init_lora_weights="pissa" may have changed the base'),
        ({"lora_alpha": 0}, r"lora_alpha=0 is not above 0"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens=\[1, 2\] is not supported, only null"),
        ({"alpha_pattern": {r"layers\.[01].*q_proj": 64}}, r"alpha_pattern=.* holds the pattern .*only names of modul"),
    ],
)
def test_settings_that_compute_something_else_are_refused(tmp_path, changes, message):
    model, family, saved = with_adapters("llama", ALL, tmp_path)
    write_adapters(tmp_path, saved, family, ALL, base=None)
    record = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(record | changes))
    sizes = {key: parameter.shape for key, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        read_adapters(tmp_path, sizes, ALL, family)("blocks.0.attention.query.lora.b", torch.zeros(32, 3))


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ({"q_proj": 20}, 20.0),
        ({"^model.layers.0.self_attn.q_proj": 20}, 20.0),  # as in PEFT's own example
        ({"^layers.0.self_attn.q_proj": 20}, 5.0),  # not its whole name
        ({"layers.0.self_attn.q_proj": 20, "q_proj": 7}, 20.0),  # the first one counts
    ],
)
def test_a_module_has_the_alpha_that_peft_gives_it(tmp_path, pattern, alpha):
    model, family, saved = with_adapters("llama", ALL, tmp_path)
    write_adapters(tmp_path, saved, family, ALL, base=None)
    record = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(record | {"alpha_pattern": pattern}))
    sizes = {key: parameter.shape for key, parameter in model.named_parameters()}
    name = "blocks.0.attention.query.lora.b"
    found = read_adapters(tmp_path, sizes, ALL, family)(name, torch.zeros(sizes[name]))
    assert_close(found, saved[name] * (alpha / ALL.alpha))


def test_a_part_of_a_fused_matrix_that_has_no_adapter_here_is_not_lost(tmp_path):
    """An adapter of GPT-2's c_attn changes queries, keys and values at once."""
    model, family, saved = with_adapters("gpt", LoraConfig(rank=3, targets=["*.query", "*.value"]), tmp_path)
    write_adapters(tmp_path, saved, family, ALL, base=None)
    del model
    for targets, lost in ((["*.query"], "blocks.0.attention.value"), (["*.value"], "blocks.0.attention.query")):
        fewer = random_model(shape("gpt"), 260, causal=True)
        add_adapters(fewer, LoraConfig(rank=3, targets=targets))
        sizes = {key: parameter.shape for key, parameter in fewer.named_parameters()}
        with pytest.raises(ConfigError, match=rf"adapts 'transformer\.h\.0\.attn\.c_attn', in which {lost} is changed"):
            read_adapters(tmp_path, sizes, ALL, family)


def test_damaged_folders_are_refused(tmp_path):
    model, family, saved = with_adapters("llama", ALL, tmp_path)
    sizes = {key: parameter.shape for key, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        read_adapters(tmp_path, sizes, ALL, family)
    write_adapters(tmp_path, saved, family, ALL, base=None)
    good = dict(TensorFiles([tmp_path / WEIGHTS]))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(tensors: dict[str, Tensor], config: LoraConfig, error: type[Exception], message: str) -> None:
        (tmp_path / WEIGHTS).unlink(missing_ok=True)
        write_tensors(tmp_path / WEIGHTS, tensors)
        with pytest.raises(error, match=message):
            read_adapters(tmp_path, sizes, config, family)("blocks.0.attention.query.lora.a", torch.zeros(2, 32))

    less = {key: value for key, value in good.items() if key != name}
    refused(less, ALL, CheckpointError, "only one half of the adapter of 'model.layers.0.self_attn.q_proj'")
    refused(good | {"x.y": torch.zeros(1)}, ALL, CheckpointError, "holds 'x.y', which is no adapter of a matrix")
    refused(good | {name: torch.zeros(3, 7)}, ALL, CheckpointError, r"has shape \(3, 7\), the model's \(3, 32\)")
    refused(good | {name: torch.zeros(3)}, ALL, CheckpointError, r"has shape \(3,\)")
    refused(
        good, LoraConfig(rank=2), ConfigError, r"adapters of rank 3, and lora\.rank=2 is below that\. Try lora\.rank=3"
    )
    other = {
        key.replace("q_proj", "lm_head"): value for key, value in good.items() if "layers.0.self_attn.q_proj" in key
    }
    refused(other, ALL, ConfigError, r"adapts 'model\.layers\.0\.self_attn\.lm_head', and no matrix")
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"holds adapter_model\.bin, a pickle"):
        read_adapters(tmp_path, sizes, ALL, family)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        read_adapters(tmp_path, sizes, ALL, family)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds adapters of PEFT, and no model"):
        open_model(tmp_path)
