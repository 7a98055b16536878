"""Score a trained model on documents: `python src/eval.py --help`."""

import json
from pathlib import Path

from pretrain.command_line import main
from pretrain.script_config import EvalConfig


def evaluate(config: EvalConfig, overrides: list[str]) -> None:
    """Print loss, perplexity, accuracy and, for a causal model, bits per byte; of a mixture, also for each source."""
    from pretrain.checkpoint import latest_run
    from pretrain.score import score_documents

    path = latest_run(config.paths.logs_dir) if config.checkpoint == "auto" else config.checkpoint
    figures = score_documents(config, path)
    width = max(16, *(len(name) for name in figures))
    for name, value in figures.items():
        print(f"{name:<{width}} {value:,.4f}" if isinstance(value, float) else f"{name:<{width}} {value}")
    if config.output:
        Path(config.output).write_text(json.dumps(figures, indent=1), encoding="utf8")


if __name__ == "__main__":
    main("eval", EvalConfig, evaluate)
