"""A damaged or unsupported Hugging Face folder on a command line: one sentence, and exit code 4."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import forked_process
import pytest
from families import random_model, shape
from folders import BYTES, write_ours

from pretrain.data.tokenizers.train_bpe import train_bpe
from pretrain.interop.families import LLAMA_FAMILY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def change_config(**keys: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def cut_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:-20])


def put_other_tokenizer(folder: Path) -> None:
    train_bpe(["the quick brown fox " * 50] * 3, 262).save(folder)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (truncate_weights, "model.safetensors cannot be read: "),
    "cut config": (cut_config, "config.json cannot be read: "),
    "config of another size": (change_config(hidden_size=64, head_dim=16), "Is config.json that of these weights?"),
    "tokenizer of another model": (put_other_tokenizer, "is not this model's"),
    "unknown architecture": (
        change_config(model_type="mamba", architectures=["MambaForCausalLM"]), "is not supported, only ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in ("cut config", "truncated weights")))
        for name in WRONG
    ],
)
def test_every_command_refuses_a_wrong_folder_in_one_sentence(tmp_path: Path, corpus: Path, damage: str):
    config = shape("llama", qk_norm=False)
    folder = write_ours(tmp_path / "model", LLAMA_FAMILY, random_model(config, BYTES.vocab_size, causal=True))
    change, sentence = WRONG[damage]
    change(folder)
    train = ["train", "model=imported", "init_from=model", "data=text_files", f"data.path={corpus}"]
    for script, *words in (
        [*train, "trainer.max_steps=1", "schedule.warmup_steps=0"],
        ["eval", "checkpoint=model", f"path={corpus}"],
        ["export", "checkpoint=model", "output=out"],
        ["generate", "checkpoint=model", "prompt=the"],
    ):
        found = forked_process.run(
            [sys.executable, str(ROOT / "src" / f"{script}.py"), *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert found.returncode == 4, (script, found.stdout, found.stderr)
        assert sentence in found.stderr
        assert found.stderr.startswith("CheckpointError: ")
        assert (found.stderr.count("\n"), "Traceback" in found.stderr) == (1, False)
    assert not (tmp_path / "out").exists()
