"""Check that a resumed run equals an uninterrupted one, and that a damaged checkpoint is detected."""

import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pretrain.checkpoint.read import PARTS, open_checkpoint, step_folders
from pretrain.config.run import RunConfig
from pretrain.doctor.check import CheckResult
from pretrain.doctor.context import Context
from pretrain.doctor.runs import figure_difference, figures, in_folder, state_difference, train_here
from pretrain.doctor.shrink import HALF, ROWS, STEPS, with_dropout
from pretrain.errors import CheckpointError


class ResumedRuns:
    """An uninterrupted small run, and runs resumed from its middle; with dropout and two micro-batches per step."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.folder = context.folder / "resume"

    @cached_property
    def config(self) -> RunConfig:
        """Settings of the small runs."""
        return replace(with_dropout(self.context.small), micro_batch_size=ROWS // 2)

    @cached_property
    def uninterrupted(self) -> Path:
        """The folder of the uninterrupted run."""
        return train_here(in_folder(self.config, self.folder / "uninterrupted"))

    def resumed(self, name: str, prefetch: int) -> Path:
        """Resume from the uninterrupted run's checkpoint of step `HALF`; return the run folder."""
        folder = self.folder / name
        half = step_folders(self.uninterrupted / "checkpoints")[0]
        shutil.copytree(half, folder / "checkpoints" / half.name)
        data = replace(self.config.data, prefetch=prefetch)
        return train_here(replace(self.config, data=data, resume=str(folder)), f"data.prefetch={prefetch}")

    def goes_on_exactly(self) -> CheckResult:
        """Compare N steps with k + (N - k) steps bit for bit: weights, optimizer, random generators, losses."""
        return self._compare(self.resumed("cut", prefetch=0))

    def prefetch_changes_nothing(self) -> CheckResult:
        """Compare a resumed run with prefetching to the uninterrupted one without it, bit for bit."""
        return self._compare(self.resumed("prefetch", prefetch=2))

    def damage_is_noticed(self) -> CheckResult:
        """Check that the checkpoint verifies, and that a copy with one bit flipped in any file does not."""
        good = open_checkpoint(self.uninterrupted)
        names = [path.relative_to(good.folder) for path in sorted(good.folder.rglob("*")) if path.is_file()]
        names = [name for name in names if name.name != "manifest.json"]  # it holds the hashes of the others
        copy = self.folder / "damaged" / good.folder.name
        shutil.copytree(good.folder, copy)
        open_checkpoint(copy)
        undetected = []
        for name in names:
            flip_bit(copy / name)
            try:
                open_checkpoint(copy)
                undetected.append(str(name))
            except CheckpointError:
                pass
            flip_bit(copy / name)
        shutil.rmtree(copy.parent)
        return CheckResult(
            not undetected and bool(names),
            f"the checkpoint of step {good.step} is intact; one bit flipped in each of {len(names)} files: "
            + (f"not detected in {', '.join(undetected)}" if undetected else "all detected"),
        )

    def _compare(self, resumed: Path) -> CheckResult:
        state = state_difference(self.uninterrupted, resumed, *PARTS)
        losses = figure_difference(
            figures(self.uninterrupted, "train/loss")[HALF:], figures(resumed, "train/loss")[HALF - STEPS :]
        )
        return CheckResult(
            state == 0.0 and losses == 0.0,
            f"{STEPS} steps against {HALF} + {STEPS - HALF}, with dropout: weights, optimizer and random state differ "
            f"by {state:.1e}, losses by {losses:.1e}",
        )


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file; a second call restores the file."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
