"""Lightning's profiler, which times every hook, left out: `trainer.profile_steps` traces steps by torch's instead."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING: AbstractContextManager[None] = nullcontext()


class Unprofiled(PassThroughProfiler):
    """Times nothing, and takes no time for it: Lightning's makes a generator at each of some thirty hooks a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return _NOTHING
