"""The source of documents that the data settings name."""

from collections.abc import Iterator
from typing import Any

from pretrain.data.config import DataConfig, HuggingFaceConfig, PythonDocsConfig, TextFilesConfig
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.data.sources.source import Document, Source
from pretrain.errors import ConfigError


class PythonDocs(Source):
    """The help topics and docstrings of the Python that runs."""

    def fingerprint(self) -> str:
        """Return the hash of the Python version and of the files read."""
        from pretrain.data.sources import python_docs

        return python_docs.fingerprint()

    def _read(self, place: Any = None) -> Iterator[Document]:
        from pretrain.data.sources import python_docs

        return python_docs.documents()

    def _origin(self) -> str:
        return f"data.kind={self.config.kind}: this Python's standard library"


def open_source(config: DataConfig) -> Source:
    """Return the source that the class of `config` stands for.

    Raises ConfigError for settings of no known source, DataError where the named files are not there.
    """
    if isinstance(config, TextFilesConfig):
        from pretrain.data.sources.text_files import TextFiles

        return TextFiles(config)
    if isinstance(config, AnnotatedConfig):
        from pretrain.data.sources.labelled_files import AnnotatedFiles

        return AnnotatedFiles(config)
    if isinstance(config, HuggingFaceConfig):
        from pretrain.data.sources.hugging_face import HuggingFace

        return HuggingFace(config)
    if isinstance(config, PythonDocsConfig):
        return PythonDocs(config)
    raise ConfigError(f"data.kind={config.kind} is not a source of text. Try data=python_docs.")
