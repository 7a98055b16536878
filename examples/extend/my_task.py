"""An evaluation task of your own: how often the right sum is more likely under the model than the one beside it.

PYTHONPATH=examples/extend python src/eval.py 'plugins=[my_task]' 'tasks=[right_sums]'
PYTHONPATH=examples/extend python src/eval.py 'plugins=[my_task]' 'tasks=[{kind: right_sums, count: 500}]'
"""

from dataclasses import dataclass
from random import Random

from pretrain import LanguageModel
from pretrain.config.registry import register
from pretrain.config.setting import setting
from pretrain.evaluation.task import TaskConfig


@dataclass
class RightSumsConfig(TaskConfig):
    kind: str = "right_sums"
    count: int = setting(100, "Sums to compare.", bounds="[1, inf)", unit="sums")

    def score(self, model: LanguageModel) -> dict[str, float]:
        pairs = [Random(-number).choices(range(100), k=2) for number in range(1, self.count + 1)]
        right = model.score([f"{a} + {b} = {a + b}" for a, b in pairs])
        wrong = model.score([f"{a} + {b} = {a + b + 1}" for a, b in pairs])
        better = [one.log_likelihood > other.log_likelihood for one, other in zip(right, wrong, strict=True)]
        return {"accuracy": sum(better) / len(better)}


register("task", RightSumsConfig)
