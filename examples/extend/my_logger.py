"""A logger of your own, any of Lightning's: every figure as a line of JSON.

PYTHONPATH=examples/extend python src/train.py loggers.lines.class_path=my_logger.JSONLines
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class JSONLines(Logger):
    name, version = "lines", ""

    def __init__(self, path: str = "figures.jsonl") -> None:  # loggers.lines.init_args.path=other.jsonl
        super().__init__()
        self.path = Path(path)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml has them

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
