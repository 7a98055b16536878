"""A damaged, hostile or foreign Hugging Face folder is refused in one sentence, and no code of it runs."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from folders import BYTES, Bomb, write_ours
from safetensors.torch import load_file, save_file

from pretrain.data.tokenizers.train_bpe import train_bpe
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score
from pretrain.files.untrusted_files import MAX_JSON_BYTES
from pretrain.interop.families import (
    APERTUS_FAMILY,
    BERT_FAMILY,
    GPT2_FAMILY,
    LLAMA_FAMILY,
    MODERN_BERT_FAMILY,
    QWEN3_FAMILY,
)
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.models.choices import Activation

SHAPES = {
    "llama": (LLAMA_FAMILY, shape("llama", qk_norm=False)),
    "qwen3": (QWEN3_FAMILY, shape("llama", sliding_window=4, global_attention_every=0)),
    "apertus": (APERTUS_FAMILY, shape("llama", feed_forward=Activation.relu2)),
    "gpt2": (GPT2_FAMILY, shape("gpt")),
    "bert": (BERT_FAMILY, shape("bert")),
    "modernbert": (MODERN_BERT_FAMILY, shape("modern_bert")),
}
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def whole_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a sound folder of each family."""
    found = {}
    for name, (family, config) in SHAPES.items():
        model = random_model(config, BYTES.vocab_size, family.causal)
        found[name] = write_ours(tmp_path_factory.mktemp("sound") / name, family, model)
    return found


@pytest.fixture
def make(whole_folders: dict[str, Path], tmp_path: Path) -> Make:
    """Return make(family, **keys): a copy of a sound folder with keys of config.json changed, or taken away by None."""

    def copy(name: str = "llama", **keys: Any) -> Path:
        folder = shutil.copytree(whole_folders[name], tmp_path / name)
        if keys:
            record = json.loads((folder / "config.json").read_text()) | keys
            record = {key: value for key, value in record.items() if value is not None}
            (folder / "config.json").write_text(json.dumps(record))
        return folder

    return copy


def refused(folder: Path) -> str:
    """Return the one sentence that a folder is refused with."""
    with pytest.raises(CheckpointError) as caught:
        open_model(folder).load()
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert caught.value.exit_code == 4
    return message


@pytest.mark.parametrize("name", SHAPES)
def test_a_sound_folder_is_a_language_model(make: Make, name: str) -> None:
    family, config = SHAPES[name]
    llm = LanguageModel.load(make(name))
    assert llm.causal is family.causal
    assert llm.trained == {"architecture": family.architecture}
    assert not llm.model.config.differences(config)
    if family.causal:
        assert llm.generate("the", max_new_tokens=3, seed=0).startswith("the")
    else:
        assert len(llm.predict_mask("the [MASK] fox")[0]) == 5
        wrong: Any = 2.5
        for top_k in (0, wrong):
            with pytest.raises(ConfigError, match=rf"top_k={top_k} is not a whole number above 0\. Try top_k=5"):
                llm.predict_mask("the [MASK] fox", top_k)


WRONG_KEYS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "gemma3n"}, 'model_type="gemma3n" is not supported, only '),
    ("llama", {"model_type": "smollm3", "no_rope_layers": [0, 1]}, "only a 0 for the last of every n layers"),
    ("llama", {"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers=[1] is not 0 or 1 for each layer"),
    ("llama", {"model_type": "smollm3", "use_sliding_window": True}, "only full_attention in all layers"),
    ("bert", {"model_type": "roberta", "pad_token_id": -1}, "pad_token_id=-1 is not the id of a token"),
    ("bert", {"model_type": "roberta", "pad_token_id": 40}, "leaves no position, because the first is 41"),
    ("llama", {"model_type": "gpt_neox", "rope_theta": None, "hidden_act": "gelu",
               "rms_norm_eps": None, "head_dim": None,
               "num_key_value_heads": None, "mlp_bias": None, "attention_bias": True,
               "rope_parameters": {"partial_rotary_factor": 2.0}}, "is above 1, all channels of a head"),
    ("llama", {"model_type": "t5"}, 'model_type="t5" is not supported, only gpt2, llama, mistral'),
    ("llama", {"model_type": 3}, "model_type=3 is not text"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "names code in the model's folder, which is never run"),
    ("llama", {"quantization_config": {"bits": 4}}, "means quantized weights; only float weights are read"),
    ("llama", {"num_hidden_layers": None}, "has no num_hidden_layers, which a model needs"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not a whole number from 1 to 10,000"),
    ("llama", {"num_hidden_layers": 9999}, "has 9,999 layers, and the files hold 21 tensors. Is config.json"),
    ("llama", {"num_hidden_layers": 3}, "lacks model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj."),
    ("llama", {"num_hidden_layers": 1}, "holds model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj."),
    ("llama", {"hidden_size": "32"}, 'hidden_size="32" is not a whole number from 1 to 259, the largest dimension'),
    ("llama", {"hidden_size": True}, "hidden_size=true is not a whole number"),
    ("llama", {"intermediate_size": 50}, "has shape (48, 32), the model's (50, 32). Is config.json that of these"),
    *(("llama", {key: 2**31 - 1}, f"{key}=2147483647 is not a whole number from 1 to 259, the largest dimension of its")
      for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "intermediate_size",
                  "vocab_size")),
    *(("bert", {key: 2**31 - 1}, f"{key}=2147483647 is not a whole number from 1 to 259, the largest dimension of its")
      for key in ("num_attention_heads", "max_position_embeddings", "type_vocab_size")),
    ("gpt2", {"n_head": 2**31 - 1}, "n_head=2147483647 is not a whole number from 1 to 259, the largest dimension"),
    ("gpt2", {"n_positions": 10**400}, "is not a whole number from 1 to 259, the largest dimension of its weights"),
    ("llama", {"rms_norm_eps": 10**400}, "is not a finite number"),
    ("llama", {"logit_scale": 2.0}, "logit_scale=2.0 is unknown in a llama and may change its outputs. Remove"),
    ("llama", {"a\nkey": {"is": 1}}, '{"is": 1} is unknown in a llama'),
    ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "is unknown in a modernbert"),
    ("modernbert", {"sliding_window": 4}, "sliding_window=4 is unknown in a modernbert"),
    ("modernbert", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta=5.0 must be inside full_attention"),
    ("gpt2", {"num_attention_heads": 2}, "num_attention_heads=2 is unknown in a gpt2"),
    ("llama", {"is_causal": False}, "is_causal=false is not supported, only true"),
    ("bert", {"is_causal": True}, "is_causal=true is not supported, only false"),
    ("llama", {"rope_theta": 0}, "rope_theta=0 is not above 0"),
    ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_parameters: rope_theta=0 is not above 0"),
    ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_theta=null is not supported, because versions"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling: factor=0 is not above 0"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "has no factor, which the rope type linear needs"),
    ("llama", {"rope_scaling": {"factor": 2.0}}, "factor=2.0 has no effect with the rope type default. Remove it, or"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "mscale=1.0 does not belong to the"),
    ("apertus", {"rope_theta": 7.0, "rope_parameters": None}, "rope_theta=7.0 is not inside rope_parameters"),
    ("qwen3", {"use_sliding_window": False}, "names a window, and use_sliding_window or sliding_window turns it off"),
    ("llama", {"num_attention_heads": 3, "head_dim": None}, "describes a model that cannot be built: model.d_model=32"),
    ("llama", {"rms_norm_eps": "small"}, 'rms_norm_eps="small" is not a finite number'),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=Infinity is not a finite number"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 is neither true nor false"),
    ("llama", {"hidden_act": "relu"}, 'hidden_act="relu" is not supported, only silu, swish, gelu'),
    ("llama", {"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
    ("modernbert", {"mlp_bias": True}, "mlp_bias=true differs from classifier_bias, which is not supported"),
    ("llama", {"architectures": "Llama"}, 'architectures="Llama" is not a list of texts'),
    ("llama", {"rope_parameters": [1]}, "rope_parameters=[1] is not an object"),
    ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, 'type="longrope" is not supported, only default'),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 64.0}},
     "rope_scaling describes positions that cannot be: model.rope_scaling.beta_slow=64.0 must be below"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}},
     "rope_scaling describes positions that cannot be: model.rope_scaling.factor=0.5 is not a number from 1 up"),
    ("llama", {"model_type": "olmo3", "rope_theta": 7.0, "rope_parameters": None},
     "rope_theta=7.0 is not inside rope_parameters of sliding_attention, and versions of transformers"),
    ("llama", {"model_type": "phi3", "head_dim": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
     'rope_type="linear" is not supported in this architecture, only default'),
    ("llama", {"model_type": "phi3", "head_dim": None, "partial_rotary_factor": 1.5},
     "partial_rotary_factor=1.5 is above 1, all channels of a head"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}},
     "up to max_position_embeddings it changes nothing, and may be removed"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "full_attention={} differs from layer to layer"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported, only 1.0"),
    ("llama", {"vocab_size": None}, "has no vocab_size, which a model needs"),
    ("llama", {"vocab_size": 200}, "vocab_size=200, and the tokenizer beside it has ids up to 258"),
    ("llama", {"vocab_size": 300}, "vocab_size=300 is not a whole number from 1 to 259, the largest dimension of its"),
    ("llama", {"eos_token_id": 5}, "eos_token_id=5 is no special token of the tokenizer beside it"),
    ("llama", {"eos_token_id": [5, 256]}, ""),
    ("llama", {"eos_token_id": []}, ""),
    ("llama", {"eos_token_id": [[2], 5]}, "eos_token_id=[[2], 5] is no special token of the tokenizer beside it"),
    ("llama", {"model_type": "mistral", "layer_types": ["full_attention"]}, "is not supported here, only one window"),
    ("qwen3", {"layer_types": ["full_attention"]}, "is not sliding_attention or full_attention for each"),
    ("qwen3", {"layer_types": ["full_attention", "chunked"]}, "is not sliding_attention or full_attention for"),
    ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, ""),
    ("qwen3", {"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true is not supported"),
    ("bert", {"position_embedding_type": "relative_key"}, 'position_embedding_type="relative_key" is not supported'),
    ("bert", {"is_decoder": True}, "is_decoder=true is not supported, only false"),
    ("bert", {"architectures": ["BertModel"]}, "holds cls.predictions.bias, cls.predictions.transform.LayerNorm.bias"),
    ("modernbert", {"classifier_activation": "relu"}, 'classifier_activation="relu" is not supported, only "gelu"'),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, ""),
    ("modernbert", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "scales the positions of sliding_attention otherwise than those of full_attention"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "message"), WRONG_KEYS)
def test_a_config_that_is_not_of_these_weights_is_refused(
    make: Make, name: str, keys: dict[str, Any], message: str
) -> None:
    folder = make(name, **keys)
    if message:
        assert message in refused(folder)
    else:
        assert open_model(folder).load()


def test_settings_of_older_versions_are_understood(make: Make) -> None:
    older = make("llama", rope_parameters=None, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2})
    found: Any = open_model(older).shape
    assert (found.rope_base, found.rope_scaling.kind.name, found.rope_scaling.factor) == (500.0, "linear", 2.0)
    modern = make("modernbert", rope_parameters=None, layer_types=None, global_rope_theta=7.0, local_rope_theta=8.0)
    found = open_model(modern).shape
    assert (found.rope_base, found.rope_base_local, found.sliding_window, found.global_attention_every) == (
        7.0,
        8.0,
        8,
        3,
    )
    usual = make("qwen3", layer_types=None, use_sliding_window=None, max_window_layers=2)
    assert open_model(usual).shape.sliding_window is None  # type: ignore[attr-defined]


def test_names_of_older_files_are_understood(make: Make) -> None:
    """Without what stands before the body's names, with gamma and beta, buffers, and a pooler."""
    for name, before in (("bert", "bert."), ("gpt2", "transformer.")):
        folder = make(name)
        new = load_file(folder / "model.safetensors")
        old = {key.removeprefix(before): value for key, value in new.items()}
        old = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in old.items()}
        old = {key.replace("LayerNorm.bias", "LayerNorm.beta"): value.clone() for key, value in old.items()}
        old |= {"h.0.attn.bias": torch.ones(1), "h.0.attn.masked_bias": torch.ones(1)} if name == "gpt2" else {
            "pooler.dense.weight": torch.ones(1), "pooler.dense.bias": torch.ones(1),
            "embeddings.position_ids": torch.arange(4), "cls.seq_relationship.weight": torch.ones(2),
        }  # fmt: skip
        before_change = open_model(folder).load().state_dict()
        save_file(old, folder / "model.safetensors")
        after = open_model(folder).load().state_dict()
        assert all(torch.equal(after[key], value) for key, value in before_change.items())


def test_tensors_that_must_be_one_are_one(make: Make) -> None:
    """A tied head or a second bias with other values is what transformers computes with, and we could not."""
    for name, keys, copy, original in (
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight", "model.embed_tokens.weight"),
        ("gpt2", {}, "lm_head.weight", "transformer.wte.weight"),
        ("bert", {}, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert", {}, "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("modernbert", {}, "decoder.weight", "model.embeddings.tok_embeddings.weight"),
    ):
        folder = make(name, **keys)
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {copy: weights[original].half().float()}, folder / "model.safetensors")
        message = refused(folder)
        assert f"holds {copy} with other values than {original}, and its config ties the two" in message
        assert f"or remove {copy}." in message
        save_file(weights | {copy: weights[original].clone()}, folder / "model.safetensors")
        assert open_model(folder).load()
        shutil.rmtree(folder)
    folder = make("bert", architectures=["BertModel"])
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "cls." not in name}
    save_file(weights | {"cls.predictions.decoder.bias": torch.ones(259)}, folder / "model.safetensors")
    assert "holds cls.predictions.decoder.bias, which its model does not have." in refused(folder)


def test_a_model_without_a_head_embeds_and_predicts_nothing(make: Make) -> None:
    """Such as all-MiniLM-L6-v2: the logits of its embeddings' matrix would mean nothing."""
    folder = make("bert", architectures=["BertModel"])
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "cls." not in name}
    save_file(weights, folder / "model.safetensors")
    llm = LanguageModel.load(folder)
    assert llm.embed("a fox").shape == (32,)
    assert "embeds texts" in repr(llm)
    for predicts in (lambda: llm.predict_mask("a [MASK]"), lambda: llm.score("a fox")):
        with pytest.raises(
            ConfigError, match=r"this model embeds texts and has no head that predicts tokens\. Use embed"
        ):
            predicts()
    with pytest.raises(ConfigError, match=r"embeds texts, and task=documents scores predictions of tokens"):
        score(EvalConfig(checkpoint=str(folder), path=str(folder / "config.json")), folder)


def test_one_tensor_under_two_names_is_refused(make: Make) -> None:
    folder = make()
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"norm.weight": torch.zeros(32)}, folder / "model.safetensors")
    assert "holds model.norm.weight, norm.weight, which are two names of one tensor." in refused(folder)


def test_an_empty_tensor_vouches_for_no_number(make: Make) -> None:
    folder = make("llama", num_attention_heads=2**31 - 1)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"empty": torch.zeros(2**31 - 1, 0)}, folder / "model.safetensors")
    assert "num_attention_heads=2147483647 is not a whole number from 1 to 259" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_formats_become_float32(make: Make, dtype: torch.dtype) -> None:
    folder = make()
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    found = open_model(folder).load()
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert torch.equal(found.embeddings.tokens.weight, weights["model.embed_tokens.weight"].float())


def test_whole_numbers_are_no_weights(make: Make) -> None:
    folder = make()
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")
    assert "model.norm.weight is of dtype I8, weights are of F64, F32, F16, BF16" in refused(folder)


def test_damaged_files_are_refused(make: Make) -> None:
    folder = make()
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert "model.safetensors cannot be read: " in refused(folder)
    weights.write_bytes(whole)
    for wrong, message in (
        (text[:-20], "config.json cannot be read: "),
        ("[]", "config.json cannot be read: it is not a JSON object."),
        ("[" * 100_000, "config.json cannot be read: it is nested deeper than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "config.json cannot be read: it is nested deeper than 100 levels"),
        (" " * (MAX_JSON_BYTES + 1), "config.json cannot be read: it is larger than the 16,000,000 bytes"),
    ):
        config.write_text(wrong)
        assert message in refused(folder)
    config.unlink()
    assert "config.json cannot be read: " in refused(folder)


def test_a_tokenizer_that_is_missing_or_of_another_model_is_refused(make: Make, tmp_path: Path) -> None:
    folder = make()
    train_bpe(["the quick brown fox " * 50] * 3, 262).save(folder)
    assert "is not this model's" in refused(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "has no usable tokenizer: " in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert "has no usable tokenizer: " in refused(folder)


def test_shards_are_read_by_their_index_alone(make: Make) -> None:
    folder = make()
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    first, second = names[:9], names[9:]
    (folder / "model.safetensors").unlink()
    save_file({name: weights[name] for name in first}, folder / "a.safetensors")
    save_file({name: weights[name] for name in second}, folder / "b.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(first, "a.safetensors") | {second[0]: "b.safetensors"}}))
    found = open_model(folder).load()
    assert torch.equal(found.embeddings.tokens.weight, weights["model.embed_tokens.weight"])

    save_file({name: weights[name] for name in names}, folder / "b.safetensors")
    assert f"b.safetensors and a.safetensors both hold {names[0]!r}." in refused(folder)
    for wrong in ("../a.safetensors", "/etc/passwd", "a.bin", "sub/a.safetensors", ".a.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"x": wrong}}))
        assert f"names '{wrong}', which is not the name of a safetensors file" in refused(folder)
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert "gone.safetensors cannot be read: " in refused(folder)
    os.mkfifo(folder / "pipe.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": "pipe.safetensors"}}))
    assert "pipe.safetensors cannot be read: it is a FIFO, and only a regular file is read here." in refused(folder)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "has neither model.safetensors nor model.safetensors.index.json." in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(make: Make, tmp_path: Path, name: str) -> None:
    folder, marker = make(), tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    message = refused(folder)
    assert f"holds its weights as {name}, a pickle, which can run code and is never read." in message
    assert not marker.exists()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    assert "model.safetensors cannot be read: " in refused(folder) or "declares a header" in refused(folder)
    (folder / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')")
    shutil.rmtree(folder)
    own = make("llama", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (own / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')")
    assert "never run" in refused(own)
    assert not marker.exists()


def test_what_a_file_says_is_escaped(make: Make) -> None:
    message = refused(make("llama", model_type="\x1b[31mred\u202e"))
    assert "\x1b" not in message
    assert "\u202e" not in message
