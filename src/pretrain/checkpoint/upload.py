"""Copy finished checkpoints of a run to an object storage while the run goes on, the manifest last."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition, Thread

from pretrain.checkpoint.read import MAX_MANIFEST_BYTES
from pretrain.checkpoint.remote import MANIFEST, runs_below
from pretrain.checkpoint.write import FILE_NAMES
from pretrain.errors import CheckpointError, PretrainError
from pretrain.files.object_storage import RemoteFolder

_PROBE = ".probe"
LEFT = f"{MANIFEST}.left"  # the manifest of a checkpoint that is set aside


def check_writable(folder: RemoteFolder) -> None:
    """Write and delete an object, so that a run whose checkpoints could not be copied never starts.

    Raises CheckpointError with the reason.
    """
    folder.write(_PROBE, b"pretrain")
    folder.delete(_PROBE)


def upload_checkpoint(local: Path, run: RemoteFolder) -> None:
    """Copy a checkpoint's folder to a run in the storage, read every file back, and write the manifest last.

    One that is there and equal is not copied again. Raises CheckpointError where the storage fails or returns other
    bytes, OSError where the folder cannot be read.
    """
    folder = run.below(f"checkpoints/{local.name}")
    data = (local / MANIFEST).read_bytes()
    files = json.loads(data)["files"]
    sizes = folder.files()
    if MANIFEST in sizes:
        complete = all(sizes.get(name) == entry["bytes"] for name, entry in files.items())
        if complete and folder.read(MANIFEST, MAX_MANIFEST_BYTES) == data:
            return
        folder.delete(MANIFEST)  # so that no state between the two is taken for a checkpoint
    if LEFT in sizes:
        folder.delete(LEFT)  # its files are replaced
    for name, entry in files.items():
        folder.upload(local / name, name)
        digest = hashlib.sha256()
        folder.blocks(name, digest.update)
        if digest.hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{folder.url}/{name} was written, and other bytes are read back.")
    folder.write(MANIFEST, data)


def set_aside_later(run: RemoteFolder, step: str) -> list[str]:
    """Hide the checkpoints of a run in the storage that are after `step`; return their names.

    They are of a course that the run has left, and the newest of them would be taken for the run's. The manifest of
    each gets another name. Nothing reads or deletes them from then on.
    """
    folder, number = run.below("checkpoints"), _number(step)
    complete = [each for found in runs_below(run) if found.folder == run for each in found.checkpoints]
    later = [each for each in complete if _number(each) > number]
    for each in later:
        folder.write(f"{each}/{LEFT}", folder.read(f"{each}/{MANIFEST}", MAX_MANIFEST_BYTES))
        folder.delete(f"{each}/{MANIFEST}")
    return later


def _number(step: str) -> int:
    return int(step.removeprefix("step-"))


def delete_old(run: RemoteFolder, keep: int, newest: str) -> None:
    """Delete all but the newest `keep` checkpoints of a run in the storage, and what an interrupted upload left.

    `keep` 0 deletes no checkpoint; `newest`, which has just been verified, always stays. The manifest goes first, so
    that a deletion that is interrupted leaves no damaged checkpoint. Objects that no run writes stay, and so do the
    checkpoints that are set aside.
    """
    folder = run.below("checkpoints")
    files: dict[str, list[str]] = {}
    left = set[str]()
    for name in folder.files():
        step, _, file = name.partition("/")
        if FILE_NAMES.fullmatch(file):
            files.setdefault(step, []).append(file)
        elif file == LEFT:
            left.add(step)
    complete = [step for each in runs_below(run) if each.folder == run for step in each.checkpoints]
    kept = {newest, *left, *(complete[-keep:] if keep else complete)}
    for step in sorted(files.keys() - kept):
        for file in sorted(files[step], key=lambda file: file != MANIFEST):
            folder.delete(f"{step}/{file}")


class Uploads:
    """Copies the newest checkpoint, and files of the run folder, to an object storage in a thread.

    A checkpoint that is written while another one is copied waits; only the newest does. A copy that fails is reported
    and does not end the training: the next one is tried again, and `finish` returns what went wrong with the newest.
    """

    def __init__(
        self, folder: Path, remote: RemoteFolder, keep: int, names: Sequence[str], report: Callable[[str], None]
    ) -> None:
        """Start nothing yet; `names` are the files of the run folder that go with each checkpoint."""
        self.folder, self.remote, self.keep, self.names, self.report = folder, remote, keep, names, report
        self._changed = Condition()
        self._waiting: Path | None = None
        self._copying: Path | None = None
        self._problem: str | None = None
        self._is_first = True  # no checkpoint of this course has been copied yet
        self._thread: Thread | None = None

    def submit(self, checkpoint: Path) -> None:
        """Copy a checkpoint, now or after the one being copied."""
        with self._changed:
            self._waiting = checkpoint
            if self._thread is None:
                self._thread = Thread(target=self._run, name="upload", daemon=True)  # a killed copy is not seen
                self._thread.start()
            self._changed.notify_all()

    def in_use(self) -> frozenset[Path]:
        """Return the checkpoints that must not be deleted before they are copied."""
        with self._changed:
            return frozenset(path for path in (self._waiting, self._copying) if path is not None)

    def finish(self) -> str | None:
        """Wait for the newest checkpoint, then copy the run's files; return what went wrong, None if nothing did."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and self._copying is None)
            problem = self._problem
        if problem is not None:
            return problem
        try:
            self._upload_files()
        except (PretrainError, OSError) as error:
            return str(error)
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._copying = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None)
                self._copying, self._waiting = self._waiting, None
                checkpoint = self._copying
            assert checkpoint is not None
            try:
                self._upload_files()
                self._leave_other_course(checkpoint.name)
                upload_checkpoint(checkpoint, self.remote)
                problem = None
            except Exception as error:  # of any library: a thread that ends would stop all later copies
                problem = str(error) or type(error).__name__
                self.report(f"warning: {checkpoint.name} is not in the object storage: {problem}")
            else:
                self._delete_old(checkpoint.name)
            with self._changed:
                self._problem = problem

    def _leave_other_course(self, first: str) -> None:
        """Set aside what the storage has of the steps after the first checkpoint, as the run folder does."""
        if self._is_first and (later := set_aside_later(self.remote, first)):
            self.report(
                f"warning: the run goes on from {first}. Its later checkpoints in the object storage are set aside, "
                f"free to delete: {', '.join(later)}"
            )
        self._is_first = False

    def _delete_old(self, newest: str) -> None:
        try:
            delete_old(self.remote, self.keep, newest)
        except Exception as error:  # as above
            self.report(f"warning: old checkpoints in the object storage were not deleted: {error}")

    def _upload_files(self) -> None:
        for name in self.names:
            path = self.folder / name
            if os.path.lexists(path):
                self.remote.upload(path, name)
