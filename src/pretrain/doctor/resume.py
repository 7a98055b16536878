"""Whether a run that was cut goes on as if it had not been, and what is damaged on disk is noticed."""

import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.config.run import RunConfig
from pretrain.doctor.check import CheckResult
from pretrain.doctor.context import Context
from pretrain.doctor.runs import PARTS, figure_difference, figures, in_folder, state_difference, train_here
from pretrain.doctor.shrink import HALF, ROWS, STEPS, with_dropout
from pretrain.errors import CheckpointError


class ResumedRuns:
    """A run that was left alone, and what becomes of its first half: with dropout, in two micro-batches a step."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.folder = context.folder / "resume"

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the small runs."""
        return replace(with_dropout(self.context.small), micro_batch_size=ROWS // 2)

    @cached_property
    def whole(self) -> Path:
        """The folder of the run that was left alone."""
        return train_here(in_folder(self.config, self.folder / "whole"))

    def resumed(self, name: str, prefetch: int) -> Path:
        """Return the folder of a run that goes on from the uninterrupted one's checkpoint at half of its steps."""
        folder = self.folder / name
        half = step_folders(self.whole / "checkpoints")[0]
        shutil.copytree(half, folder / "checkpoints" / half.name)
        data = replace(self.config.data, prefetch=prefetch)
        return train_here(replace(self.config, data=data, resume=str(folder)), f"data.prefetch={prefetch}")

    def goes_on_exactly(self) -> CheckResult:
        """N steps are k + (N - k) steps bit for bit: weights, optimizer, random generators, losses."""
        return self._compare(self.resumed("cut", prefetch=0))

    def prefetch_changes_nothing(self) -> CheckResult:
        """Batches assembled ahead by a thread are those of the main thread, on resume too."""
        return self._compare(self.resumed("prefetch", prefetch=2))

    def damage_is_noticed(self) -> CheckResult:
        """The checkpoint verifies, and a copy of it no longer does once a bit of any of its files is another."""
        good = open_checkpoint(self.whole)
        names = [path.relative_to(good.folder) for path in sorted(good.folder.rglob("*")) if path.is_file()]
        names = [name for name in names if name.name != "manifest.json"]  # which holds the hashes of the others
        copy = self.folder / "damaged" / good.folder.name
        shutil.copytree(good.folder, copy)
        open_checkpoint(copy)
        unnoticed = []
        for name in names:
            flip_bit(copy / name)
            try:
                open_checkpoint(copy)
                unnoticed.append(str(name))
            except CheckpointError:
                pass
            flip_bit(copy / name)
        shutil.rmtree(copy.parent)
        return CheckResult(
            not unnoticed and bool(names),
            f"the checkpoint of step {good.step} verifies; one bit flipped in each of {len(names)} files: "
            + (f"unnoticed in {', '.join(unnoticed)}" if unnoticed else "each noticed"),
        )

    def _compare(self, resumed: Path) -> CheckResult:
        state = state_difference(self.whole, resumed, *PARTS)
        losses = figure_difference(
            figures(self.whole, "train/loss")[HALF:], figures(resumed, "train/loss")[HALF - STEPS :]
        )
        return CheckResult(
            state == 0.0 and losses == 0.0,
            f"{STEPS} steps against {HALF} + {STEPS - HALF}, with dropout: weights, optimizer and random state differ "
            f"by {state:.1e}, losses by {losses:.1e}",
        )


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file; twice leaves it as it was."""
    with path.open("r+b") as file:
        place = path.stat().st_size // 2
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
