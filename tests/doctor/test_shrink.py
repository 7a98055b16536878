"""A small run has the architecture and recipe of the user's run."""

from dataclasses import dataclass, replace

import pytest

from pretrain.config.compose import compose
from pretrain.config.preset_folders import CONFIG_FOLDER
from pretrain.doctor.config import Part
from pretrain.doctor.examination import examine
from pretrain.doctor.shrink import CONTEXT_LENGTH, shrink, shrink_model, with_dropout
from pretrain.errors import ConfigError
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.size import parameter_count
from pretrain.optim.config import AdamWConfig
from pretrain.optim.groups import adamw_groups
from pretrain.training.config import Precision, Strategy

PRESETS = sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml") if path.stem != "imported")
SIZES = {
    "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "context_length", "sliding_window", "dropout",
    "attention_dropout",
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_its_form(name: str):
    full = compose("train", [f"model={name}"]).model
    small = shrink_model(full)
    changed = {key for key, value in vars(small).items() if value != getattr(full, key)}
    assert changed <= SIZES
    assert (small.kv_heads < small.n_heads) == (full.kv_heads < full.n_heads)
    assert small.attention_head_dim % 2 == 0
    local = [small.layer_window(layer) is not None for layer in range(small.n_layers)]
    assert any(local) == any(full.layer_window(layer) is not None for layer in range(full.n_layers))
    assert all(local) == all(full.layer_window(layer) is not None for layer in range(full.n_layers))
    assert small.sliding_window is None or small.sliding_window < small.context_length <= CONTEXT_LENGTH
    assert parameter_count(small, 2048) < 1_000_000


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (TransformerConfig(n_heads=8, n_kv_heads=1, d_model=64), (2, 1, None)),
        (TransformerConfig(n_heads=1, d_model=8, n_layers=1), (1, 1, None)),
        (TransformerConfig(n_heads=6, n_kv_heads=2, d_model=60, head_dim=16, d_ff=30), (4, 2, 32)),
    ],
)
def test_heads_keep_their_groups(shape: TransformerConfig, expected: tuple[int, int, int | None]):
    small = shrink_model(shape)
    assert (small.n_heads, small.kv_heads, small.head_dim) == expected
    fitting = shape.attention_head_dim * shape.n_heads == shape.d_model
    assert (small.attention_head_dim * small.n_heads == small.d_model) == fitting


def test_a_run_becomes_one_of_seconds_on_one_processor():
    config = compose(
        "train",
        [
            "model=llama_1b",
            "trainer=fsdp",
            "trainer.accelerator=cpu",
            "trainer.devices=4",
            "trainer.max_time=9",
            "trainer.precision=bf16",
            "trainer.half_residual_stream=true",
            "storage.url=s3://bucket/logs",
            "scores.every_n_steps=2",
            "scores.cloze=[passages.jsonl]",
            "init_from=base",
            "lora.rank=4",
        ],
    )
    small = shrink(replace(config, resume="x", init_from=None), "folder")
    assert small.storage.url is None  # or the small runs would be copied there
    assert (small.scores.every_n_steps, small.lora.rank) == (0, 0)
    assert (small.trainer.strategy, small.trainer.devices, small.trainer.precision) == (
        Strategy.single, 1, Precision.fp32,
    )  # fmt: skip
    assert (small.trainer.max_time, small.resume, small.paths.run_dir) == (None, None, "folder")
    assert small.optimizer.kind == config.optimizer.kind
    assert small.model.dropout == 0.0
    assert with_dropout(small).model.attention_dropout == 0.1


def test_a_small_run_leaves_out_groups_of_layers_that_it_has_not():
    groups = {
        "late": {"match": ["blocks.5.*", "blocks.4.*"], "learning_rate_ratio": 2.0},
        "vectors": {"match": ["*norm*", "blocks.3.*"], "weight_decay": 0.0},
        "wrong": {"match": ["block.0.*"], "learning_rate_ratio": 2.0},
    }
    config = compose("train", ["model=gpt_nano", "model.n_layers=6"])
    small = shrink(replace(config, optimizer=replace(config.optimizer, groups=groups)))
    assert isinstance(small.optimizer, AdamWConfig)
    assert small.optimizer.groups == {"vectors": {**groups["vectors"], "match": ["*norm*"]}, "wrong": groups["wrong"]}
    with pytest.raises(ConfigError, match=r"wrong\.match=block\.0\.\* matches no trained parameter"):
        adamw_groups(small.optimizer, small.model.build(64, causal=True))
    groups = {
        "first": {"match": ["blocks.0.*", "blocks.1.*"], "weight_decay": 0.0},
        "rest": {"match": ["blocks.*"], "learning_rate_ratio": 2.0},  # of the small model the first group has all
        "taken": {"match": ["*.up.weight"], "learning_rate_ratio": 2.0},  # gets nothing of the full model either
    }
    small = shrink(replace(config, optimizer=replace(config.optimizer, groups=groups)))
    assert isinstance(small.optimizer, AdamWConfig)
    assert list(small.optimizer.groups) == ["first", "taken"]


@dataclass
class Foreign(ModelConfig):
    kind: str = "foreign"


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"model.kind=foreign cannot be scaled down to a small run.*doctor=data"):
        shrink_model(Foreign())


@pytest.mark.slow
def test_the_data_of_a_model_of_another_kind_can_be_checked(context, capfd):
    config = replace(context().config, model=Foreign(context_length=32))
    with pytest.raises(ConfigError, match=r"model.kind=foreign cannot be scaled down"):
        examine(config, Part.machine)
    assert examine(config, Part.data)
    assert "6 passed, 0 failed, 1 skipped" in capfd.readouterr().out
