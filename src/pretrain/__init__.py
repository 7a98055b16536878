"""Pre-train Transformer language models, causal and masked, with PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["LanguageModel", "__version__"]

if TYPE_CHECKING:
    from pretrain.language_model import LanguageModel


def __getattr__(name: str) -> object:
    """Load `LanguageModel` when it is first asked for, so that importing the package stays free of torch."""
    if name == "LanguageModel":
        from pretrain.language_model import LanguageModel

        return LanguageModel
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
