"""Copy a run to its object storage while it trains; at the end wait until the newest checkpoint has arrived."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pretrain.checkpoint.upload import Uploads
from pretrain.errors import CheckpointError
from pretrain.files.object_storage import RemoteFolder
from pretrain.launch.rank import log, rank
from pretrain.launch.remote_runs import FILES
from pretrain.launch.run_plan import RunPlan


@contextmanager
def uploaded(run_plan: RunPlan) -> Iterator[RunPlan]:
    """Give the plan with what copies its checkpoints, on rank 0 of a run that has a copy.

    The checkpoint that the run resumes from is copied, too, where the storage lacks it. Raises CheckpointError if the
    run ends well and its newest checkpoint or its report could not be copied; after another error that is a warning.
    """
    if run_plan.remote is None or rank() > 0:
        yield run_plan
        return
    config = run_plan.config
    remote = RemoteFolder(run_plan.remote, config.storage.retry_s)
    uploads = Uploads(run_plan.folder, remote, config.checkpoint.keep, FILES, lambda line: log(line, one_line=True))
    if run_plan.resumed is not None:
        uploads.submit(run_plan.resumed.folder)
    try:
        yield replace(run_plan, uploads=uploads)
    except BaseException:
        if problem := uploads.finish():
            log(f"warning: {_not_copied(run_plan, problem)}", one_line=True)
        raise
    if problem := uploads.finish():
        raise CheckpointError(_not_copied(run_plan, problem))


def _not_copied(run_plan: RunPlan, problem: str) -> str:
    return (
        f"all of the run is in {run_plan.folder}, but not in {run_plan.remote}: {problem.rstrip('.')}. "
        f"To copy it again: resume={run_plan.folder} storage.url=<the address of before>"
    )
