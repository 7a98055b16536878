"""Number formats and kernels of a model for inference only."""

import torch

from pretrain.errors import ConfigError
from pretrain.inference.config import InferenceDtype
from pretrain.inference.int8 import Int8Matrix, quantize
from pretrain.kernels.onednn_linear import install_for_inference
from pretrain.models.interface import LanguageModule
from pretrain.models.transformer import Transformer, VocabularyHead


def prepare_for_inference(
    model: LanguageModule, device: str | torch.device, dtype: InferenceDtype | str
) -> LanguageModule:
    """Return the model on a device with its weights in `dtype`, ready for inference only.

    Raises ConfigError for an unknown dtype, one that the device cannot use, and a device that is not available.
    """
    try:
        wanted = InferenceDtype(dtype)
    except ValueError as error:
        names = ", ".join(known.value for known in InferenceDtype)
        raise ConfigError(f"dtype={dtype} is not a number format of weights. Choose one of: {names}.") from error
    if wanted is InferenceDtype.int8:
        if not str(device).startswith("cpu"):
            raise ConfigError(
                f"dtype=int8 works on CPUs only, and device={device} is not one. Try device=cpu, or dtype=fp32."
            )
        if not isinstance(model, Transformer):
            raise ConfigError(
                f"dtype=int8 quantizes transformers of model.kind=transformer, and this model is a "
                f"{type(model).__name__}. Try dtype=fp32."
            )
        quantize(model.eval())
        return model
    model = model.to(_available(device), torch.bfloat16 if wanted is InferenceDtype.bf16 else None)
    install_for_inference(model, model.head if isinstance(model.head, VocabularyHead) else None)
    return model


def _available(device: str | torch.device) -> torch.device:
    """Return the device; raise ConfigError if it cannot be used."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used here: {reason} Try device=cpu.") from error


def count_parameters(model: LanguageModule) -> int:
    """Return the number of parameters, quantized ones included; shared ones count once."""
    matrices = {id(module): module.shape.numel() for module in model.modules() if isinstance(module, Int8Matrix)}
    if isinstance(model, Transformer) and model.config.tie_embeddings:
        matrices.pop(id(model.head.weight), None)  # the embedding, still a parameter, counts
    return sum(parameter.numel() for parameter in model.parameters()) + sum(matrices.values())
