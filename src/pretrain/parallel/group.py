"""The group of processes, and how to leave it."""


def leave_group() -> None:
    """Take leave of the other processes, where there are any, after work that went well.

    Without it gloo's threads may still run while the interpreter is torn down, which aborts the process now and then
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
