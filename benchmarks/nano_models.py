"""Compare all families of 1 M parameters on the same tokens: `python benchmarks/nano_models.py TEXT VALIDATION`.

`src/train.py` trains each model with its own preset on the same text, tokenizer and number of tokens, one after the
other. Each is scored on the same held-out documents:

bits per byte    of the text, causal; lower is better
masked accuracy  share of masked tokens (30 %) that are predicted correctly; higher is better
A hybrid model has both, each trained on half of its rows.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import machine

from pretrain.kernels.device import bf16_is_fast

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/data",
    "configs/model",
    "configs/recipe",
)

ROOT = Path(__file__).parents[1]
MODELS = ("gpt_nano", "llama_nano", "hybrid_nano", "bert_nano", "modernbert_nano")


def train(model: str, words: list[str], folder: Path) -> dict[str, Any]:
    """Return the report of a run of this preset."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), f"model={model}", *words]
    command += [f"paths.run_dir={folder / model}", "trainer.max_steps=-1", "logger=csv"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((folder / model / "report.json").read_text(encoding="utf8"))
    return found


def row(model: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table."""
    figures = report["validation"]
    masked = figures.get("val/masked/accuracy", None if "val/bits_per_byte" in figures else figures["val/accuracy"])
    return {
        "model": model,
        "parameters": report["parameters"],
        "tokens": report["tokens_seen"],
        "seconds": round(report["training_s"], 1),
        "bits_per_byte": figures.get("val/bits_per_byte"),
        "masked_accuracy": masked,
    }


def main() -> None:
    """Train all models, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="documents to train on, as data=text_files reads them")
    parser.add_argument("validation", help="documents to score")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="to train each model on")
    parser.add_argument("--folder", type=Path, default=Path("logs/nano_models"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/nano_models.json"))
    arguments = parser.parse_args()
    words = ["data=text_files", f"data.path={arguments.text}", f"data.validation_path={arguments.validation}"]
    words += ["tokenizer.vocab_size=4096", f"trainer.max_tokens={arguments.tokens}"]
    rows = [row(model, train(model, words, arguments.folder)) for model in MODELS]
    precision = "bf16" if bf16_is_fast(torch.device("cpu")) else "fp32"
    here = machine() | {"precision": precision}
    result = {"machine": here, "text": Path(arguments.text).name, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(f"{here}; {Path(arguments.text).name}")
    print(f"{'model':<16} {'parameters':>10} {'tokens':>10} {'seconds':>8} {'bits/byte':>10} {'masked acc.':>12}")
    for line in rows:
        bits, masked = line["bits_per_byte"], line["masked_accuracy"]
        print(
            f"{line['model']:<16} {line['parameters']:>10,} {line['tokens']:>10,} {line['seconds']:>8} "
            f"{'' if bits is None else format(bits, '.3f'):>10} {'' if masked is None else format(masked, '.1%'):>12}"
        )


if __name__ == "__main__":
    main()
