"""Bits per byte of texts under a checkpoint of one's own: the idea of CCNet, with a Transformer for its n-grams.

Text like that of the checkpoint's training has few bits per byte. So have texts that repeat themselves, which is why
the rule has a lower threshold too. Source: Wenzek et al. 2020, https://arxiv.org/abs/1911.00359, section 3.2.
"""

from __future__ import annotations

from typing import Any

from pretrain.data.curation.engine import Counts, Stage, Task
from pretrain.data.curation.quality import QualityConfig
from pretrain.data.curation.score_columns import SCORES, write_scores
from pretrain.errors import DataError, printable

BITS_VERSION = 1  # increase when the bits of a text change


def bits_stage(config: QualityConfig, known: dict[str, str], units: int) -> list[Stage]:
    """Return the stage, and add its folder to `known`; none without a checkpoint.

    Raises CheckpointError for a checkpoint that cannot be read, ConfigError for a device that is not there.
    """
    if config.checkpoint is None:
        return []
    from pretrain.evaluation.checkpoint_bits import checkpoint_record  # here: it loads torch

    settings = {"path": config.checkpoint, "device": config.device, "characters": config.characters}
    settings["record"] = checkpoint_record(config.checkpoint, config.device)
    stage = Stage("bits", measure_bits, units, BITS_VERSION, settings, {"read": known["read"]})
    known["bits"] = stage.folder
    return [stage]


def bits_record(config: QualityConfig, stage: Stage) -> dict[str, Any]:
    """Return what the manifest says of the checkpoint."""
    return {**stage.settings["record"], "characters": config.characters, "keep_top": config.keep_top}


def measure_bits(task: Task) -> Counts:
    """Write the bits per byte of the beginning of each document of a unit. Raises DataError for other weights."""
    from pretrain.evaluation.checkpoint_bits import bits_per_byte, checkpoint_record

    settings = task.settings
    path, device, characters = settings["path"], settings["device"], settings["characters"]
    if checkpoint_record(path, device) != settings["record"]:
        raise DataError(
            f"quality.checkpoint={printable(path)} has other weights than when this curation began. Name one "
            "checkpoint of the run, such as <run>/checkpoints/step-00001000."
        )
    score = bits_per_byte(path, device)
    write_scores(task, SCORES["bits"], lambda texts: score([text[:characters] for text in texts]))
    return {}
