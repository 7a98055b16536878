"""Pre-train Transformer language models, causal, masked and diffusion, with PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["LanguageModel", "TrainedRun", "__version__", "train"]

if TYPE_CHECKING:
    from pretrain.commands.from_python import TrainedRun, train
    from pretrain.language_model import LanguageModel


def __getattr__(name: str) -> object:
    """Load what is first asked for, so that importing the package stays free of torch."""
    if name == "LanguageModel":
        from pretrain.language_model import LanguageModel

        return LanguageModel
    if name in ("TrainedRun", "train"):
        from pretrain.commands import from_python

        return getattr(from_python, name)
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
