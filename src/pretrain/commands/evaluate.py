"""`pretrain eval`: score a trained model on documents or a task."""

import json
from pathlib import Path

from pretrain.config import cli
from pretrain.config.serialize import to_dict
from pretrain.evaluation.config import EvalConfig


def evaluate(config: EvalConfig, overrides: list[str]) -> None:
    """Print the figures of the task, one a line, and write them with the settings where `output` names a file."""
    from pretrain.errors import printable
    from pretrain.evaluation.run import score
    from pretrain.interop.load import chosen_model

    path = chosen_model(config.checkpoint, config.paths.logs_dir)
    figures = score(config, path)
    width = max(16, *(len(name) for name in figures))
    for name, value in figures.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else value
        print(printable(f"{name:<{width}} {shown}"))
    if config.output:
        Path(config.output).write_text(json.dumps(figures | {"settings": to_dict(config)}, indent=1), encoding="utf8")


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("eval", EvalConfig, evaluate, free_text="delimiter", subcommand=subcommand)
