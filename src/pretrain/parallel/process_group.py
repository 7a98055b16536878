"""Leave the process group at the end of a run."""

import os
import sys
import time

RELEASE_S = 0.2  # a gloo thread that waits for the interpreter lock gets it as soon as this thread sleeps


def leave_group() -> None:
    """Destroy the process group, if there is one, after all processes have succeeded.

    gloo's threads need the interpreter lock to release tensors; one that requests it while the interpreter shuts down
    aborts the process (https://github.com/pytorch/pytorch/issues/190489). Groups that a mesh still references are not
    destroyed and their threads go on, so this waits for them to release their tensors.
    """
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        time.sleep(RELEASE_S)


def end_process() -> None:
    """Leave the group and end this process with exit code 0, without shutting the interpreter down."""
    leave_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
