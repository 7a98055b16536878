"""Compare the training of two checkouts bit for bit: `python benchmarks/compare_checkouts.py BEFORE AFTER`.

Every family trains 20 steps in each checkout: on one process, and on two with DDP and FSDP2. The logged losses and the
bytes of the final weights are compared. Overrides may use the names of either checkout: `--before` and `--after` add
overrides to one side.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

FAMILIES = {
    "gpt": ["model=gpt_nano"],
    "gpt, adamw": ["model=gpt_nano", "optimizer=adamw", "optimizer.learning_rate=0.001"],
    "llama": ["model=llama_nano"],
    "bert": ["model=bert_nano"],
    "modernbert": ["model=modernbert_nano"],
    "hybrid": ["model=hybrid_nano"],
}
PROCESSES = {
    "one": [],
    "two, ddp": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
    "two, fsdp": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"],
}
COMMON = [
    "data=text_files", "tokenizer=bytes", "model.n_layers=2", "model.d_model=32", "model.n_heads=2",
    "model.context_length=64", "model.dropout=0.1", "batch_size=8", "micro_batch_size=2", "trainer.precision=fp32",
    "parallel.compile=false", "trainer.max_steps=20", "trainer.log_every_n_steps=1", "trainer.val_check_interval=10",
    "sample.every_n_steps=0", "logger=csv",
]  # fmt: skip


def main() -> None:
    """Print a table of family, processes and first difference; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--before-overrides", nargs="*", default=[])
    parser.add_argument("--after-overrides", nargs="*", default=[])
    parser.add_argument("--families", default="", help="part of the names to compare; default: all")
    given = parser.parse_args()
    sides = {given.before: given.before_overrides, given.after: given.after_overrides}
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus.txt")
        for family, settings in FAMILIES.items():
            for processes, devices in PROCESSES.items() if given.families in family else ():
                words = [*COMMON, f"data.path={corpus}", *settings, *devices]
                runs = [
                    train(checkout, [*words, *more], Path(folder) / f"{family} {processes} {number}")
                    for number, (checkout, more) in enumerate(sides.items())
                ]
                verdict = verdict_on(*runs)
                differ += verdict != "equal"
                print(
                    f"{family:<12} {processes:<10} {len(runs[0][0]):>3} figures, weights {runs[0][1][:12]}: {verdict}",
                    flush=True,
                )
    sys.exit(bool(differ))


def write_corpus(path: Path) -> Path:
    """Write some thousand lines of random words, the same in every call."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 7))) for _ in range(200)]
    path.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(2000)))
    return path


def train(checkout: Path, words: list[str], folder: Path) -> tuple[list[str], str]:
    """Train in a checkout; return the logged losses, as text, and the hash of the final weights."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    paths = [f"paths.run_dir={folder}", f"paths.cache_dir={folder}/cache"]
    command = [sys.executable, str(checkout / "src" / "train.py"), *words, *paths]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stderr[-2000:]}")
    with (folder / "metrics.csv").open() as table:
        losses = [
            f"{row['step']} {row['name']} {row['value']}" for row in csv.DictReader(table) if "loss" in row["name"]
        ]
    (last,) = sorted((folder / "checkpoints").iterdir())[-1:]
    digest = hashlib.sha256()
    for file in sorted(last.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return losses, digest.hexdigest()


def verdict_on(before: tuple[list[str], str], after: tuple[list[str], str]) -> str:
    """Return "equal", or the first difference."""
    for one, other in zip(before[0], after[0], strict=False):
        if one != other:
            return f"{one!r} became {other!r}"
    if len(before[0]) != len(after[0]):
        return f"{len(before[0])} figures became {len(after[0])}"
    return "equal" if before[1] == after[1] else "the weights differ"


if __name__ == "__main__":
    main()
