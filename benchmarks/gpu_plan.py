"""Compare the GPU memory that `src/plan.py` estimates with that of `gpu.py`: `python benchmarks/gpu_plan.py`.

Needs no GPU: it reads benchmarks/results/gpu.json.
"""

import json
from pathlib import Path

from comparison import RESULTS, Result, typed
from shapes import SHAPES

from pretrain.config.compose import compose, register_schemas
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import forecast, target_of

MEASURES = ("src/pretrain/planning", "src/pretrain/models")


def forecast_mib(name: str) -> float:
    """Return the peak memory of one shape that the dry run estimates."""
    shape = SHAPES[name]
    of_the_run = ("trainer.accelerator", "data", "tokenizer")  # which a plan of a given vocabulary does not read
    words = [word for word in shape.settings(Path()) if not word.startswith(of_the_run)]
    config: PlanConfig = compose("plan", [*words, "device=h200", "dry_run=false", f"vocab_size={shape.vocab_size}"])
    return forecast(config, target_of(config), simulate=True).peak / 2**20


def main() -> None:
    """Compare every measured shape, print the table and save it."""
    register_schemas("plan", PlanConfig)
    measured = json.loads((RESULTS / "gpu.json").read_text(encoding="utf8"))["figures"]
    result = Result("gpu_plan", typed(), {})
    for what, figures in measured.items():
        name = what.partition(",")[0].replace(" ", "_")
        expected = forecast_mib(name)
        result.figures[name] = {
            "forecast_mib": round(expected),
            "measured_mib": figures["peak_mib"],
            "error": f"{expected / figures['peak_mib'] - 1:+.1%}",
        }
    result.finish()


if __name__ == "__main__":
    main()
