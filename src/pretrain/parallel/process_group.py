"""The group of processes, and how to leave it."""

import os
import sys
import time

LET_GO_S = 0.2  # a thread of gloo that waits for the interpreter gets it as soon as this thread sleeps


def leave_group() -> None:
    """Take leave of the other processes, where there are any, after work that went well.

    gloo's threads let go of tensors for which they need the interpreter; one that asks for it while it is torn down
    aborts the process (https://github.com/pytorch/pytorch/issues/190489). Groups that a mesh still holds are not
    destroyed, and their threads go on: so they are given the time to let go.
    """
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        time.sleep(LET_GO_S)


def end_process() -> None:
    """Leave the group and end this process, whose work is done, without tearing the interpreter down."""
    leave_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
