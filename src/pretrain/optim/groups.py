"""Which parameters are treated alike: decided by the module that owns them, before anything is wrapped or sharded."""

from dataclasses import dataclass, field

from torch import nn


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model, shared ones once, under names without the marks that wrappers leave in them."""
    return {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
    }


@dataclass
class ParameterNames:
    """Names of all parameters of a model by their role; every parameter is in exactly one list."""

    matrices: list[str] = field(default_factory=list)  # weights of linear layers inside blocks: decay, and Muon's part
    head: list[str] = field(default_factory=list)  # other linear weights, an untied head's among them: decay
    rest: list[str] = field(default_factory=list)  # embeddings, norms, biases: no decay


def parameter_names(model: nn.Module) -> ParameterNames:
    """Sort the parameters of `model` by role; a head that shares the embedding's matrix counts as an embedding."""
    names = ParameterNames()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, parameter in parameters_by_name(model).items():
        if id(parameter) in embeddings or name.endswith("bias") or "norm" in name:
            names.rest.append(name)
        elif id(parameter) in linear and ".blocks." in f".{name}":
            names.matrices.append(name)
        else:
            names.head.append(name)
    return names
