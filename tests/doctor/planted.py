"""Process functions with a defect, importable by name in a new process."""

from typing import Any

from pretrain.training.elastic import work


def work_with_undivided_gradients(text: str) -> str:
    """Run one process's part with gradients that are not divided as the sum over processes needs it."""
    from pretrain.training.lightning_module import TrainingModule

    original = TrainingModule.measure_gradients

    def undivided(self: Any, *given: Any) -> Any:
        self.expected_targets /= 2
        scale = original(self, *given)
        self.expected_targets *= 2
        return scale

    TrainingModule.measure_gradients = undivided  # type: ignore[method-assign]
    return work(text)
