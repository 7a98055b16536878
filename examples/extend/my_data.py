"""A source of text of your own: sums, such as "12 + 30 = 42", computed as they are read.

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_data]' data=sums data.count=20000
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from pretrain.config.registry import register
from pretrain.config.setting import setting
from pretrain.data.config import DataConfig
from pretrain.data.sources.source import Document, Source


@dataclass
class SumsConfig(DataConfig):
    kind: str = "sums"
    count: int = setting(1000, "Sums to read.", bounds="[1, inf)", unit="documents")

    def open(self) -> Source:
        return Sums(self)


class Sums(Source):
    config: SumsConfig

    def read(self, position: Any = None) -> Iterator[Document]:
        for number in range(self.config.count):
            a, b = Random(number).choices(range(100), k=2)
            yield Document(f"{a} + {b} = {a + b}", name=f"sum {number}")

    def origin(self) -> str:
        return f"data.count={self.config.count}"

    def fingerprint(self) -> str:
        return f"{self.config.count:032x}"


register("data", SumsConfig)
