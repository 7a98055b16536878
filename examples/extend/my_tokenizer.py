"""A tokenizer of your own: one token for each character of the training documents.

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_tokenizer]' tokenizer=characters
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pretrain.config.registry import register
from pretrain.data.config import TokenizerConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer


@dataclass
class CharactersConfig(TokenizerConfig):
    trains: ClassVar[bool] = True
    kind: str = "characters"

    def train(self, texts: Iterator[str], report: Callable[[str], object]) -> Tokenizer:
        characters = sorted({character for text in texts for character in text})
        ids = {token: number for number, token in enumerate(["[UNK]", "[END]", *characters])}
        inner = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        inner.add_special_tokens(["[UNK]", "[END]"])
        return Tokenizer(inner, {"eos_token": "[END]", "unk_token": "[UNK]"})


register("tokenizer", CharactersConfig)
