"""Compare windows of attention in small models that see both sides: `python benchmarks/local_attention.py`.

`src/train.py` trains a masked and a diffusion model of 1 M parameters on 1.2 M tokens of english_novels (in
PRETRAIN_ASSETS): once with layers that all attend to the whole row, and with windows in a part of the layers. Each is
scored on unseen novels with the loss that it was trained on: of masked tokens, or the bound of the diffusion per token.
Typed again, the script goes on after the runs that are done.

At first such a model learns the frequencies of tokens alone, until some head has found the neighbors of a token. With a
window there are few positions to find them among.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from comparison import Result
from corpora import assets, novels_file

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "configs/recipe/modernbert_nano.yaml",
    "configs/recipe/diffusion_nano.yaml",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
WINDOWS = {  # by model: the window in tokens, and every which layer attends to the whole row beside it
    "modernbert_nano": {"none": ("null", 1), "64": (64, 3), "16": (16, 3)},
    "diffusion_nano": {"none": ("null", 1), "16": (16, 2)},
}
SHARED = [
    "data=text_files", "tokenizer=bpe", "tokenizer.vocab_size=4096", "trainer.max_tokens=1200000",
    "trainer.max_steps=-1", "trainer.val_check_interval=2000", "data.max_validation_rows=256", "sample.every_n_steps=0",
    "logger=csv", "logging.report=false",
]  # fmt: skip


def losses(given: argparse.Namespace, model: str, window: str) -> list[float]:
    """Return the loss on unseen novels of each seed, trained unless it has been."""
    size, every = WINDOWS[model][window]
    validation = assets() / "corpora" / "english_novels" / "valid.jsonl.xz"
    found = []
    for seed in given.seeds:
        folder: Path = given.folder / f"{model}-{window}-{seed}"
        words = [
            *SHARED, f"data.path={novels_file(given.folder, 5)}", f"data.validation_path={validation}",
            f"model={model}", f"model.sliding_window={size}", f"model.global_attention_every={every}", f"seed={seed}",
            f"paths.run_dir={folder}", f"paths.cache_dir={given.folder / 'cache'}",
        ]  # fmt: skip
        if not (folder / "report.json").exists():
            resume = ["resume=auto"] if folder.exists() else []
            subprocess.run([sys.executable, str(TRAIN), *words, *resume], check=True, stdout=sys.stderr)
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf8"))
        found.append(float(report["validation"]["val/loss"]))
    return found


def main() -> None:
    """Train what is missing, print the losses and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=Path("logs/local_attention"))
    given = parser.parse_args()
    command = f"python benchmarks/local_attention.py --seeds {' '.join(map(str, given.seeds))}"
    result = Result("local_attention", command, {"seeds": given.seeds, "shared": " ".join(SHARED)})
    rows = list[dict[str, Any]]()
    result.figures["rows"] = rows
    for model, windows in WINDOWS.items():
        for window in windows:
            each = losses(given, model, window)
            rows.append({"model": model, "window": window, "losses": each})
            print(f"{model:<16} window {window:<5} {fmean(each):.3f}  {each}", flush=True)
            result.save()
    result.finish(keep=False)


if __name__ == "__main__":
    main()
