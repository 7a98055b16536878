"""What a process of a run does with a defect: named, so that a process that is started anew finds it."""

from typing import Any

from pretrain.training.elastic import work


def work_with_undivided_gradients(text: str) -> str:
    """Run one process's part with gradients that are not divided as the sum over processes needs it."""
    from pretrain.training.lightning_module import TrainingModule

    original = TrainingModule.configure_gradient_clipping

    def undivided(self: Any, *given: Any, **named: Any) -> None:
        self.expected_targets /= 2
        original(self, *given, **named)
        self.expected_targets *= 2

    TrainingModule.configure_gradient_clipping = undivided  # type: ignore[method-assign]
    return work(text)
