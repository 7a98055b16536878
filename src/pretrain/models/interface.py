"""What training and inference ask of a model: any `nn.Module` with `forward(tokens, ...)` and a head.

`ModelConfig` documents it for those who write one. Shapes: B batch, T positions, d hidden channels.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.models.config import ModelConfig

Outputs = TypeVar("Outputs")
_INPUTS = ("positions", "documents", "is_causal", "token_types")


class LanguageModule(nn.Module):
    """The attributes that `build_model` gives a model beside its own head; no class has to derive from this."""

    config: ModelConfig
    vocab_size: int  # rows of the embedding
    causal: bool
    head: Any  # maps hidden states (..., d) to logits; has `weight` and `bias`


def build_model(config: ModelConfig, vocab_size: int, causal: bool, n_labels: int | None = None) -> LanguageModule:
    """Return the model on the current default device; it also gets the attributes config, vocab_size and causal."""
    if n_labels is None:
        model: Any = config.build(vocab_size, causal)
    elif "n_labels" in inspect.signature(config.build).parameters:
        model = config.build(vocab_size, causal, n_labels)
    else:
        raise ConfigError(
            f"model.kind={config.kind} has no head that classifies texts. Try model=gpt_nano, or objective=causal."
        )
    model.config, model.vocab_size, model.causal = config, vocab_size, causal
    built: LanguageModule = model
    return built


def inputs_of(model: nn.Module) -> frozenset[str]:
    """Return the names among positions, documents, is_causal and token_types that the model's `forward` takes."""
    return _inputs_of(type(model))  # type: ignore[arg-type]  # a class is hashable


@cache
def _inputs_of(model_class: type[nn.Module]) -> frozenset[str]:
    parameters = inspect.signature(model_class.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return frozenset(_INPUTS)
    return frozenset(parameter.name for parameter in parameters) & frozenset(_INPUTS)


def hidden_states(
    model: nn.Module,
    tokens: Tensor,
    positions: Tensor | None = None,
    documents: Tensor | None = None,
    is_causal: Tensor | None = None,
    token_types: Tensor | None = None,
) -> Tensor:
    """Return the model's last hidden states (B, T, d) of tokens (B, T); it gets the inputs that its `forward` takes."""
    given = {
        "positions": positions, "documents": documents, "is_causal": is_causal, "token_types": token_types
    }  # fmt: skip
    taken = inputs_of(model)
    hidden: Tensor = model(tokens, **{name: value for name, value in given.items() if name in taken})
    return hidden


def features_of(head: Any, hidden: Tensor) -> Tensor:
    """Return the input of the matmul with the head's weight, (..., d); a plain `nn.Linear` takes the hidden states."""
    features: Callable[[Tensor], Tensor] | None = getattr(head, "features", None)
    return hidden if features is None else features(hidden)


def n_tokens_of(head: object) -> int | None:
    """Return the number of ids that a head predicts, from 0 on; None where that is every row of its matrix.

    The rows after them are padding of the vocabulary, which `model.exclude_vocab_padding` leaves out.
    """
    n_tokens = getattr(head, "n_tokens", None)
    return n_tokens if isinstance(n_tokens, int) else None


def hide_padding(logits: Tensor, n_tokens: int | None, start: int = 0) -> Tensor:
    """Return logits (..., V) of the ids from `start` on, changed in place: minus infinity from id `n_tokens` on."""
    if n_tokens is not None:
        logits[..., max(0, n_tokens - start) :] = -torch.inf
    return logits


def through_head(head: Any, compute: Callable[..., Outputs], hidden: Tensor, *others: Any) -> Outputs:
    """Return `compute(hidden, head, *others)`: all that a step computes with a head's weights, in one call.

    FSDP2 gathers the weights of a head that is a unit of its own before that call, and reduces their gradients when
    that of `hidden` (..., d) is known. A head without `compute`, of another kind of model, is never such a unit.
    """
    call: Callable[..., Outputs] | None = getattr(head, "compute", None)
    return compute(hidden, head, *others) if call is None else call(compute, hidden, *others)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the blocks that are compiled, sharded and recomputed one by one; none for a model without."""
    blocks = getattr(model, "blocks", None)
    return blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList()


def shared_parameters(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that a model has under several names, such as embedding and head."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def allocate(model: nn.Module, device: torch.device | str, build: Callable[[], nn.Module]) -> None:
    """Give a model on the meta device memory on `device`, in place; parameters have no values yet.

    Shared parameters stay shared. Buffers keep their values; those without any are the ones of `build()`, which is
    called on the CPU only then and names them alike.
    """
    shared, buffers = shared_parameters(model), _buffers(model)
    if any(buffer.is_meta for buffer in buffers.values()):
        with torch.device("cpu"):
            buffers |= {name: buffer for name, buffer in build().named_buffers() if buffers[name].is_meta}
    model.to_empty(device=torch.device(device))
    for first, *others in shared:
        _share(model, first, others)
    with torch.no_grad():
        for name, buffer in _buffers(model).items():
            buffer.copy_(buffers[name])


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move a model's buffers to a device; its parameters stay on theirs."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's buffers by name, without the prefixes of wrappers."""
    return {name.replace("_checkpoint_wrapped_module.", ""): buffer for name, buffer in model.named_buffers()}


def _share(model: nn.Module, first: str, others: Iterable[str]) -> None:
    """Let a model have the parameter `first` under the other names too."""
    parameter = model.get_parameter(first)
    for name in others:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, parameter)
