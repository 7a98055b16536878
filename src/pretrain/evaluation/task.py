"""The base of evaluation tasks of your own, which `src/eval.py` scores a model on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import Settings

if TYPE_CHECKING:
    from pretrain.language_model import LanguageModel


@dataclass
class TaskConfig(Settings):
    """Settings that all tasks of your own share.

    A task is a subclass with a `kind`, its settings as fields, and `score()`.
    """

    prefix: ClassVar[str] = "tasks."
    kind: str = "?"

    def score(self, model: LanguageModel) -> dict[str, float]:
        """Return the metrics of the model by name; `eval.py` prints them as `<kind>/<name>`.

        Raises DataError for examples that cannot be read, ConfigError for a model that cannot do the task.
        """
        raise TypeError(f"task {self.kind!r} has no score()")
