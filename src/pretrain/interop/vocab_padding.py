"""A model without the rows of its vocabulary that belong to no token, for export."""

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.interop.load import LoadParameter, ModelFolder
from pretrain.models.interface import LanguageModule


def without_vocab_padding(source: ModelFolder) -> ModelFolder:
    """Return a model with as many rows as its tokenizer has ids, with the same outputs for them.

    Unchanged if its softmax has all rows: what is after the last token then has a part in the outputs.
    """
    if not source.shape.exclude_vocab_padding:
        return source
    padded = source.without_weights()

    def values(model: LanguageModule) -> LoadParameter:
        load = source.values(padded)
        sizes = {name: parameter.shape for name, parameter in padded.named_parameters()}

        def rows_of_tokens(name: str, size: torch.Size) -> Tensor:
            return load(name, sizes[name])[: size[0]] if sizes[name] != size else load(name, size)

        return rows_of_tokens

    shape = replace(source.shape, vocab_multiple=1, exclude_vocab_padding=False)
    return replace(source, shape=shape, values=values)
