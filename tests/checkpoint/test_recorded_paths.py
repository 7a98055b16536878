"""Relative paths of a run are found again from another folder than the one in which it was started."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import shape

from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.run import RunConfig
from pretrain.data.config import BytesTokenizerConfig
from pretrain.data.fine_tuning_config import ChatConfig
from pretrain.objectives.config import CausalConfig
from pretrain.optim.config import AdamWConfig
from pretrain.optim.schedules import CosineConfig


@pytest.mark.parametrize(("typed", "is_file"), [("turns.jinja", True), ("plain", False)])
def test_a_chat_template_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, is_file: bool
) -> None:
    """But `plain` is a word, whatever the folder holds."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (home / typed).write_text("{{ eos_token }}")
    run = RunConfig(
        data=ChatConfig(path="dialogs.jsonl", chat_template=typed), tokenizer=BytesTokenizerConfig(),
        objective=CausalConfig(), model=shape("gpt"), optimizer=AdamWConfig(), schedule=CosineConfig(),
    )  # fmt: skip
    saved: Any = SimpleNamespace(
        run_config=lambda: run, working_folder="../..", folder=home / "logs" / "run" / "checkpoints" / "step-1"
    )
    monkeypatch.chdir(elsewhere)
    data = settings_of(saved).data
    assert isinstance(data, ChatConfig)
    assert data.chat_template == (str(home / typed) if is_file else typed)
