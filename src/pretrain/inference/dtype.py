"""How the weights of a model are held where it is only read."""

import torch

from pretrain.errors import ConfigError
from pretrain.inference.config import Weights
from pretrain.inference.int8 import Int8Matrix, quantize
from pretrain.kernels.onednn_linear import install_for_inference
from pretrain.models.transformer import Transformer, VocabularyHead


def hold(model: Transformer, device: str | torch.device, weights: Weights | str) -> Transformer:
    """Return the model on a device, its weights held as `weights` says, and read only from now on.

    Raises ConfigError for a way that there is not, or not on this device, and for a device that there is not.
    """
    try:
        wanted = Weights(weights)
    except ValueError as error:
        names = ", ".join(each.value for each in Weights)
        raise ConfigError(f"weights={weights} is no way to hold the weights of a model. There are: {names}.") from error
    if wanted is Weights.int8:
        if torch.device(device).type != "cpu":
            raise ConfigError(
                f"weights=int8 works on processors, and device={device} is none. Try device=cpu, or weights=fp32."
            )
        quantize(model.eval())
        return model
    model = model.to(_there(device), torch.bfloat16 if wanted is Weights.bf16 else None)
    install_for_inference(model, model.head if isinstance(model.head, VocabularyHead) else None)
    return model


def _there(device: str | torch.device) -> torch.device:
    """Return a device that can be used here."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used here: {reason} Try device=cpu.") from error


def count_parameters(model: Transformer) -> int:
    """Return the number of parameters, shared ones counted once, in whatever way they are held."""
    matrices = {id(each): each.shape.numel() for each in model.modules() if isinstance(each, Int8Matrix)}
    if model.config.tie_embeddings:
        matrices.pop(id(model.head.weight), None)  # it is the embedding's own, which is a parameter still
    return sum(parameter.numel() for parameter in model.parameters()) + sum(matrices.values())
