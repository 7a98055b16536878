"""Settings of how a model is spread over devices and how its activations are kept."""

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    """What changes memory and speed, but not the result."""

    activation_checkpointing: bool = False  # keep only each block's input and compute the rest again (Chen et al. 2016)
    compile: bool = False  # torch.compile each block
    reshard_after_forward: bool = True  # fsdp: free a block's gathered weights until the backward pass needs them
