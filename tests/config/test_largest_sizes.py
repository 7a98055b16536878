"""Sizes that no run needs are refused in one line, typed or saved, before anything is counted or built."""

from pathlib import Path

import pytest
import yaml

from pretrain.config.compose import compose, register_schemas
from pretrain.config.largest_sizes import LARGEST, TOKENS_PER_STEP
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.launch.run_folder import saved_settings

WORDS = ["data=text_files", "data.path=x", "trainer.max_steps=1", "trainer.accelerator=cpu"]
FITTING = {  # what else is refused of a size first
    "model.n_heads": ["model.head_dim=64"],
    "model.d_model": ["model.head_dim=64"],
    "model.head_dim": ["model.position=learned"],
    "trainer.devices": ["trainer.strategy=ddp"],
    "trainer.num_nodes": ["trainer.strategy=ddp"],
}


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_schemas("train", RunConfig)


@pytest.mark.parametrize("key", LARGEST)
@pytest.mark.parametrize("beyond", [1, 10**12])
def test_a_size_that_no_run_needs_is_refused_typed_or_saved(key: str, beyond: int, tmp_path: Path) -> None:
    most, usual = LARGEST[key]
    message = rf"{key}={most + beyond} is above {most}, more than any run needs\. Try {key}={usual}\."
    fitting = FITTING.get(key, [])
    with pytest.raises(ConfigError, match=message):
        compose("train", [*WORDS, *fitting, f"{key}={most + beyond}"])
    saved = to_dict(compose("train", [*WORDS, *fitting]))
    part = saved
    for name in key.split(".")[:-1]:
        part = part[name]
    part[key.rpartition(".")[2]] = most + beyond
    with pytest.raises(ConfigError, match=message):  # a checkpoint's manifest
        from_dict(saved)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {message}"):  # what plan.py compares
        saved_settings(tmp_path)
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {message}"):
        next(rows_of_step(tmp_path, 1))


def test_a_step_of_too_many_tokens_is_refused() -> None:
    rows, length = 1 << 15, 1 << 14
    message = (
        rf"batch_size={rows} rows of model.context_length={length} are {rows * length} tokens .* {TOKENS_PER_STEP}"
    )
    with pytest.raises(ConfigError, match=message):
        compose("train", [*WORDS, f"batch_size={rows}", f"model.context_length={length}"])


def test_the_usual_and_the_largest_sizes_are_accepted() -> None:
    for key, (most, usual) in LARGEST.items():
        others = ["model.head_dim=64"] if key.startswith("model.") else []
        others += ["batch_size=1"] if key == "model.context_length" else []
        others += ["model.n_kv_heads=1"] if key == "model.n_heads" else []
        if not key.startswith("trainer."):  # of which a batch must be a multiple
            for value in (most, usual):
                compose("train", [*WORDS, "model.context_length=16", *others, f"{key}={value}"])
