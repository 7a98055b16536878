"""A block of any model can be tried before a run compiles its blocks."""

import torch
from families import shape

from pretrain.kernels.block_gradient import TrialBlock


def test_a_model_that_lists_its_global_layers_has_a_block_to_try() -> None:
    """The list names layers that a model of one block has not."""
    config = shape("local", global_attention_layers=[2])
    block = TrialBlock(config, (1, 8), causal=True, half=None, device=torch.device("cpu"))
    assert bool(block.gradient().any())
