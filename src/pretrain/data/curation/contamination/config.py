"""Settings of decontamination: which evaluation sets a corpus is compared with, and what becomes of its documents."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError

SHORTEST = 8  # words of a part of an item below which it cannot be found: "yes" stands everywhere
MAX_SETS = 64  # a document names its sets by the bits of a number


class Action(Enum):
    """What becomes of a document that holds an item of an evaluation set."""

    mark = "mark"  # its column `contaminates` names the sets
    drop = "drop"


@dataclass
class DecontaminateConfig(Settings):
    """Evaluation sets that the corpus is compared with, by runs of words (Brown et al. 2020, arXiv 2005.14165, C)."""

    prefix: ClassVar[str] = "decontaminate."
    sets: list[str] = setting(
        default_factory=list,
        about="Files of evaluation items, as eval.py reads them; a set is named after its file.",
    )
    fields: list[str] | None = setting(
        None, "Fields of an item that are looked for; null: by its layout, such as query and the correct choice."
    )
    words: int = setting(13, "Words of a run; the published definitions' 8 and 11 come with it.", bounds="[8, 100]")
    share: float = setting(
        0.5, "A document is contaminated if it holds more than this share of an item's runs.", bounds="[0.0, 1.0)"
    )
    ignore_above: int = setting(
        10, "Runs in more documents than this are boilerplate and count nowhere.", bounds="[1, inf)", unit="documents"
    )
    action: Action = setting(Action.mark, "Mark contaminated documents, or drop them.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sets) > MAX_SETS:
            raise ConfigError(
                f"decontaminate.sets names {len(self.sets)} files, and at most {MAX_SETS} can be named. Join some."
            )
        if self.fields is not None and not self.fields:
            raise ConfigError("decontaminate.fields=[] names no field of an item. Try decontaminate.fields=[question].")
