"""Which scores of texts a curation computes, the thresholds of the best, and what the manifest says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.data.curation.bits_per_byte import bits_record, bits_stage
from pretrain.data.curation.quality import QualityConfig, quality_record, quality_stages
from pretrain.data.curation.score_columns import threshold_of_top
from pretrain.data.curation.toxicity import ToxicityConfig, toxicity_record, toxicity_stage


class Scoring:
    """The scores of one curation."""

    def __init__(self, quality: QualityConfig, toxicity: ToxicityConfig, known: dict[str, str], units: int) -> None:
        """Find the stages, and add their folders to `known`, which has that of read.

        Raises ConfigError, DataError or CheckpointError for a list, model or checkpoint that cannot be read.
        """
        self.quality, self.toxicity, self.units = quality, toxicity, units
        bits = bits_stage(quality, known, units)
        self.stages = quality_stages(quality, known, units) + bits + toxicity_stage(toxicity, known, units)
        self._checkpoint = bits[0] if bits else None
        self._folders = {stage.name: stage.folder for stage in self.stages}

    def thresholds(self, work: Path) -> dict[str, float]:
        """Return the settings of rules that keep the best texts only; none without quality.keep_top."""
        share = self.quality.keep_top
        if share is None:
            return {}
        if self._checkpoint is not None:
            folder = work / self._folders["bits"]
            return {"max_bits_per_byte": threshold_of_top(folder, self.units, share, least_is_best=True)}
        return {"min_quality": threshold_of_top(work / self._folders["quality"], self.units, share)}

    def records(self, work: Path) -> dict[str, Any]:
        """Return what the manifest says of the scores that were computed."""
        found: dict[str, Any] = {}
        if "classifier" in self._folders:
            found["quality"] = quality_record(self.quality, work / self._folders["classifier"])
        if self._checkpoint is not None:
            found["quality"] = bits_record(self.quality, self._checkpoint)
        if "toxicity" in self._folders:
            found["toxicity"] = toxicity_record(self.toxicity, work / self._folders["toxicity"])
        return found
