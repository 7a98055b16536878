"""Fit a scaling law to a ladder on English novels: `PRETRAIN_ASSETS=... python benchmarks/scaling_ladder.py`.

Runs `src/scale.py`: five sizes with three lengths, then a run of about four times the compute of the largest, whose
loss is written to a file before it starts. A finished run is not trained again: typed again, the script goes on. The
saved result has the law with its intervals, the losses and what was predicted.

The runs have the same tokens for each parameter at every size. With the same lengths for all sizes, small models
end above the law at many tokens for each parameter, large ones below it, and the interval of the larger run is twice as
wide.

`--objective masked` does so for masked models. Half of their layers attend to 16 tokens: where all layers attend to the
whole row, a small masked model learns little but the frequencies of tokens for a million tokens or more. Its runs read
more tokens for each parameter: losses after less than a million tokens lie far from any law.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from comparison import Result, typed
from corpora import assets

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/planning/ladder.py",
    "src/pretrain/planning/scaling_fit.py",
    "configs/model/gpt_nano.yaml",
    "configs/recipe/gpt_nano.yaml",
)

SCALE = Path(__file__).parents[1] / "src" / "scale.py"
SHARED = [
    "tokenizer=bpe", "logger=csv", "trainer.accelerator=cpu",
    "sample.every_n_steps=0", "model=gpt_nano", "data.max_validation_rows=1024",
]  # fmt: skip
LADDERS = {
    "causal": [
        "ladder.tokens_per_parameter=[1.25,2.5,5]", "ladder.sizes=[2x96,3x96,3x128,4x128,4x160]",
        "ladder.held_out=5x224", "ladder.held_out_tokens=14000000",
    ],
    "masked": [
        "objective=masked_30", "model.n_heads=4", "model.sliding_window=16", "model.global_attention_every=2",
        "ladder.tokens_per_parameter=[2,4,8]", "ladder.sizes=[2x96,3x96,2x128,3x128,4x128]",
        "ladder.held_out=4x192", "ladder.held_out_tokens=16300000",
        "trainer.val_check_interval=100000",
    ],
}  # fmt: skip
KEPT = ("size", "parameters", "tokens", "loss", "fitted")


def main() -> None:
    """Train what is missing, print the law and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=LADDERS, default="causal", help="what the models learn")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    parser.add_argument("words", nargs="*", help="more words for scale.py, such as hydra/launcher=joblib")
    given = parser.parse_args()
    ladder, name = [*SHARED, *LADDERS[given.objective]], f"novels_{given.objective}"
    novels = assets() / "corpora" / "english_novels"
    text = [f"data.path={novels / 'train.jsonl.xz'}", f"data.validation_path={novels / 'valid.jsonl.xz'}"]
    command = [sys.executable, str(SCALE), "data=text_files", *text, *ladder, f"name={name}", *given.words]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((Path("logs/scale") / name / "scale.json").read_text(encoding="utf8"))
    held_out = found["held_out"]
    folders = [Path(run["folder"]) for run in (*found["runs"], held_out["run"])]
    reports = [json.loads((folder / "report.json").read_text(encoding="utf8")) for folder in folders]
    saved_as = "scaling_ladder" if given.objective == "causal" else f"scaling_ladder_{given.objective}"
    result = Result(saved_as, typed(), {"ladder": " ".join(ladder)})
    result.figures = {
        "constants": found["constants"],
        "confidence": found["confidence"],
        "runs": [{name: run[name] for name in KEPT} for run in found["runs"]],
        "held out": {
            **{name: held_out["run"][name] for name in KEPT if name != "fitted"},
            "predicted": held_out["predicted"],
            "inside": held_out["inside"],
        },
        "seconds": sum(report["wall_s"] for report in reports),
    }
    result.finish(keep=not given.no_keep)


if __name__ == "__main__":
    main()
