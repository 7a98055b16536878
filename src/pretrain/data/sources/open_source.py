"""The source of documents that the data settings name."""

from pretrain.data.config import DataConfig, HuggingFaceConfig, PythonDocsConfig, TextFilesConfig
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.data.sources.source import Source
from pretrain.errors import ConfigError


def open_source(config: DataConfig) -> Source:
    """Return the source of a settings class.

    Raises ConfigError for settings of no known source, DataError if the named files do not exist.
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
        from pretrain.data.sources.python_docs import PythonDocs

        return PythonDocs(config)
    raise ConfigError(f"data.kind={config.kind} is not a source of text. Try data=python_docs.")
