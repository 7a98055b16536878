"""Plug-ins in a run of several processes: by name, and registered by a script before `main()`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BY_NAME = """
import sys
from pretrain.config.compose import compose, register_schemas
from pretrain.config.registry import load_plugins
from pretrain.config.run import RunConfig
from pretrain.training.launch import launch

if __name__ == "__main__":
    load_plugins(["my_model"])
    register_schemas("train", RunConfig)
    launch(compose("train", sys.argv[1:]), sys.argv[1:])
"""
BY_SCRIPT = """
import my_model
from pretrain.config.cli import main
from pretrain.config.run import RunConfig
from pretrain.training.launch import launch

main("train", RunConfig, launch)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(BY_NAME, ["plugins=[my_model]"], id="by name"),
        pytest.param(BY_SCRIPT, [], id="by a script"),
    ],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_process_of_a_run_has_the_plugin(
    tmp_path: Path, corpus: Path, script: str, words: list[str], strategy: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(script)
    typed = [
        *words, "model=convolution", "model.n_layers=2", "model.width=16", "model.context_length=32",
        "data.document_mask=false", "data=text_files", f"data.path={corpus}", "tokenizer=bytes", f"trainer={strategy}",
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=3", "trainer.enable_progress_bar=false",
        "batch_size=4", f"paths.cache_dir={tmp_path / 'cache'}", f"paths.run_dir={tmp_path / 'run'}",
        "sample.max_new_tokens=2",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples" / "extend")])}
    found = subprocess.run(
        [sys.executable, str(path), *typed], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "report.json").is_file()
