"""Tokens a second, utilisation and memory of the presets on the GPU at hand: `python benchmarks/gpu.py`.

Each preset trains for some steps by `src/train.py` in bf16, compiled, on the built-in corpus with bytes as tokens and
the preset's own vocabulary size. Utilisation (MFU) is against the dense bf16 peak that the GPU's maker documents. The
targets beside it are for the GPUs named; without a GPU there is nothing to measure.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison import Result, typed

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
PRESETS: dict[str, list[str]] = {
    "gpt_small": ["model.context_length=2048", "model.vocab_multiple=50304", "micro_batch_size=16", "batch_size=64"],
    "llama_1b": ["model.vocab_multiple=32000", "micro_batch_size=4", "batch_size=16"],
    "bert_base": ["model.context_length=128", "model.vocab_multiple=30528", "micro_batch_size=256", "batch_size=1024"],
    "modernbert_base": ["model.vocab_multiple=50368", "micro_batch_size=32", "batch_size=128"],
}
TARGETS = {
    ("gpt_small", "A100"): 0.45,
    ("gpt_small", "H100"): 0.40,
    ("llama_1b", "A100"): 0.55,
    ("llama_1b", "H100"): 0.45,
}


def settings(preset: str, steps: int, folder: Path, extra: list[str]) -> list[str]:
    """Return the words behind src/train.py."""
    return [
        f"model={preset}", *PRESETS[preset], "trainer=gpu", "trainer.precision=bf16", "parallel.compile=true",
        "tokenizer=bytes", f"trainer.max_steps={steps}", "trainer.val_check_interval=1000000",
        "trainer.log_every_n_steps=5", "checkpoint.every_n_steps=1000000", "sample.max_new_tokens=1",
        "data.validation_fraction=0", f"paths.run_dir={folder / preset}", f"paths.cache_dir={folder / 'cache'}", *extra,
    ]  # fmt: skip


def measure(preset: str, steps: int, folder: Path, extra: list[str]) -> dict[str, Any]:
    """Return the middle of the later logged figures of one run, and its target where this GPU has one."""
    subprocess.run([sys.executable, str(TRAIN), *settings(preset, steps, folder, extra)], check=True)
    with (folder / preset / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def middle(name: str) -> float:
        values = [float(row["value"]) for row in rows if row["name"] == name]
        return median(values[len(values) // 3 :])  # the first steps compile

    name = torch.cuda.get_device_name()
    aim = next((share for (of, gpu), share in TARGETS.items() if of == preset and gpu in name), None)
    return {
        "preset": preset,
        "tokens_per_s": round(middle("speed/tokens_per_s")),
        "mfu": round(middle("speed/mfu"), 3),
        "memory_gib": round(middle("speed/memory_gib"), 2),
        "target_mfu": aim,
    }


def main() -> None:
    """Measure every preset asked for, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("settings", nargs="*", help="of src/train.py, on top: micro_batch_size=8")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: this machine has no GPU that torch can use, so there is nothing to measure.")
    result = Result("gpu", typed(), {"steps": given.steps, "settings": given.settings})
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(preset, given.steps, Path(folder), given.settings) for preset in given.presets]
    result.figures = {"gpu": torch.cuda.get_device_name(), **{row["preset"]: row for row in rows}}
    result.finish()


if __name__ == "__main__":
    main()
