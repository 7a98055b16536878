"""An objective of your own: predict the next token, but only in the second half of each row.

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_objective]' objective=second_half
"""

from dataclasses import dataclass, replace

from torch import Tensor

from pretrain.config.registry import register
from pretrain.data.collate import IGNORE
from pretrain.objectives.batch import Batch, TokenRows
from pretrain.objectives.causal import Causal
from pretrain.objectives.config import ObjectiveConfig, Vocabulary


@dataclass
class SecondHalfConfig(ObjectiveConfig):
    kind: str = "second_half"

    @property
    def causal(self) -> bool:
        return True

    def create(self, vocabulary: Vocabulary, seed: int) -> "SecondHalf":
        return SecondHalf()


class SecondHalf(Causal):
    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        batch = super().collate(rows, sample_indices)
        targets = batch.targets.clone()
        targets[:, : targets.shape[1] // 2] = IGNORE
        return replace(batch, targets=targets)


register("objective", SecondHalfConfig)
