"""Settings of the data for fine-tuning: prompts with their responses, and texts with their labels."""

import re
from dataclasses import dataclass
from typing import ClassVar

from pretrain.data.config import DataConfig, Format, Mode, Packing
from pretrain.data.escapes import read_escapes
from pretrain.errors import ConfigError

_PLACEHOLDERS = ("{prompt}", "{response}")


@dataclass
class AnnotatedConfig(DataConfig):
    """What documents with something to learn beside their text have in common: they stand whole in their rows."""

    reads: ClassVar[str]  # what is in the files, in words
    path: str = "???"  # a file, a folder (read recursively, in sorted order) or a glob pattern
    validation_path: str | None = None  # a file, folder or pattern of its own instead of `validation_fraction`
    format: Format = Format.auto  # text, jsonl, json, csv, tsv, parquet; auto: by each file's name and its beginning
    packing: Packing = Packing.whole

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is Mode.stream:
            raise ConfigError(
                f"data.mode=stream reads text without end, and data.kind={self.kind} reads {self.reads}, all before "
                "the first step. Try data.mode=prepare."
            )
        if self.packing is not Packing.whole:
            raise ConfigError(
                f"data.packing={self.packing.name} may cut a document in two, and of {self.reads} each has to stand in "
                "one row. Try data.packing=whole."
            )
        if not self.document_mask:
            raise ConfigError(
                f"data.document_mask=False lets documents that share a row see one another, and {self.reads} are "
                "learned one by one. Try data.document_mask=true."
            )


@dataclass
class PairsConfig(AnnotatedConfig):
    """Prompts with their responses, of which a causal model learns the responses: columns of .jsonl, .csv, .parquet."""

    reads: ClassVar[str] = "pairs of prompt and response"
    kind: str = "pairs"
    prompt_column: str = "prompt"
    response_column: str = "response"
    # \n is a new line, \t a tab; something has to part the two, or its tokens would not tell where a prompt ends
    template: str = "{prompt}\\n{response}"

    def __post_init__(self) -> None:
        super().__post_init__()
        found = re.findall(r"\{[^{}]*\}|[{}]", self.template)
        if found != list(_PLACEHOLDERS) or not self.template.endswith("{response}"):
            raise ConfigError(
                f"data.template={self.template!r} must hold {{prompt}} once, then {{response}} once as its end, and no "
                "other braces. Try 'data.template=\"User: {prompt}\\nAssistant: {response}\"'."
            )

    def prompt_template(self) -> tuple[str, str]:
        """Return what the template has before the prompt, and between prompt and response."""
        before, between = read_escapes(self.template).removesuffix("{response}").split("{prompt}")
        return before, between


@dataclass
class LabelledTextConfig(AnnotatedConfig):
    """Texts with one label each: lines of text, tab, label, or columns of .jsonl, .csv, .parquet."""

    reads: ClassVar[str] = "texts with labels"
    kind: str = "labelled"
    text_column: str = "text"  # of files with columns
    label_column: str = "label"  # a first line of text, tab, label that ends in it is a heading and passed over
