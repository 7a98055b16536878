"""Values of parameters come from seeds and files alone, not from where a caller would put new tensors."""

import torch
from families import shape

from pretrain.models.init import initial_tensor
from pretrain.parallel.mesh import load_parameters


def test_values_do_not_depend_on_the_callers_device() -> None:
    """Lightning builds models inside `with torch.device(...)` of the GPU: here of a device that can draw nothing."""
    config = shape("llama")
    models = [config.build(50, True) for _ in range(2)]
    load_parameters(models[0], lambda name, size: initial_tensor(name, size, config, 0))
    with torch.device("meta"):
        load_parameters(models[1], lambda name, size: initial_tensor(name, size, config, 0))
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name
