"""Settings of the data for fine-tuning: prompts with their responses, and texts with their labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import read_escapes, setting
from pretrain.data.config import DataConfig, Format, Mode, Packing
from pretrain.errors import ConfigError, printable
from pretrain.files.untrusted_files import MAX_JSON_BYTES, read_text

if TYPE_CHECKING:
    from pretrain.data.sources.source import Source

_PLACEHOLDERS = ("{prompt}", "{response}")


@dataclass
class AnnotatedConfig(DataConfig):
    """Settings of annotated documents, which are never split over rows."""

    reads: ClassVar[str]  # the content of the files, in words
    path: str = setting("???", "A file, a folder (read recursively, in sorted order) or a glob pattern.")
    validation_path: str | None = setting(
        None, "A file, folder or pattern of validation documents, instead of validation_fraction."
    )
    format: Format = setting(Format.auto, "Format of the files; auto: by each file's name and its beginning.")
    packing: Packing = setting(Packing.whole, "How documents share rows of a fixed length: whole.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is Mode.stream:
            raise ConfigError(
                f"data.mode=stream reads text without end, and data.kind={self.kind} reads {self.reads}, all before "
                "the first step. Try data.mode=prepare."
            )
        if self.packing is not Packing.whole:
            raise ConfigError(
                f"data.packing={self.packing.name} may split a document, and {self.reads} must each stay in "
                "one row. Try data.packing=whole."
            )
        if not self.document_mask:
            raise ConfigError(
                f"data.document_mask=False lets documents that share a row see one another, and {self.reads} are "
                "learned one by one. Try data.document_mask=true."
            )

    def check_files(self) -> None:
        self.open()


@dataclass
class PairsConfig(AnnotatedConfig):
    """Prompts with their responses, of which a causal model learns the responses: columns of .jsonl, .csv, .parquet."""

    reads: ClassVar[str] = "pairs of prompt and response"
    has_prompts: ClassVar[bool] = True
    kind: str = "pairs"
    prompt_column: str = setting("prompt", "Column of the prompt.")
    response_column: str = setting("response", "Column of the response.")
    # without text between the two, no token would mark the end of a prompt
    template: str = setting("{prompt}\\n{response}", r"Prompt template; \n is a new line, \t a tab.")

    def __post_init__(self) -> None:
        super().__post_init__()
        found = re.findall(r"\{[^{}]*\}|[{}]", self.template)
        if found != list(_PLACEHOLDERS) or not self.template.endswith("{response}"):
            raise ConfigError(
                f"data.template={self.template!r} must hold {{prompt}} once, then {{response}} once as its end, and no "
                "other braces. Try 'data.template=\"User: {prompt}\\nAssistant: {response}\"'."
            )

    def open(self) -> Source:
        from pretrain.data.sources.labeled_files import Pairs

        return Pairs(self)

    def prompt_template(self) -> tuple[str, str]:
        """Return the template's text before the prompt, and between prompt and response."""
        before, between = read_escapes(self.template).removesuffix("{response}").split("{prompt}")
        return before, between


def prompt_templates(data: DataConfig) -> list[tuple[str, str]]:
    """Return the text before and after a prompt in each template of the pairs that are read, of a mixture's too."""
    found = (part.prompt_template() for part in data.parts().values())
    return list(dict.fromkeys(each for each in found if each is not None))


@dataclass
class ChatConfig(AnnotatedConfig):
    """Conversations, of which a causal model learns the assistant's turns: a list of messages a line, in .jsonl.

    A message has a role (system, user or assistant) and a content.
    """

    reads: ClassVar[str] = "conversations"
    has_messages: ClassVar[bool] = True
    kind: str = "chat"
    messages_column: str = setting("messages", "Key of the messages in each line's object.")
    chat_template: str = setting(
        "auto", "auto: the tokenizer's own chat template, or plain where it has none; plain; or a file of Jinja."
    )

    def open(self) -> Source:
        from pretrain.data.sources.labeled_files import Conversations

        return Conversations(self)

    def check_files(self) -> None:
        super().check_files()
        self.template_of(None)

    def template_of(self, own: str | None) -> str:
        """Return the chat template, `own` that of the tokenizer; ConfigError if the file cannot be read."""
        from pretrain.data.tokenizers.chat_template import PLAIN

        if self.chat_template in ("auto", "plain"):
            return own if own is not None and self.chat_template == "auto" else PLAIN
        try:
            return read_text(Path(self.chat_template).expanduser(), MAX_JSON_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"data.chat_template={printable(self.chat_template)} cannot be read: {printable(str(error))}. Name a "
                "file of Jinja, or try data.chat_template=plain."
            ) from None


@dataclass
class LabeledTextConfig(AnnotatedConfig):
    """Texts or pairs with one label or number each: lines of text, tab, label, or columns of .jsonl, .csv, .parquet."""

    reads: ClassVar[str] = "texts with labels"
    has_labels: ClassVar[bool] = True
    kind: str = "labeled"
    text_column: str = setting("text", "Column of the text, in files with columns.")
    label_column: str = setting(
        "label", "Column of the label; a first line of text, tab, label that ends in this name is a heading."
    )
    pair_column: str | None = setting(
        None, "Column of a second text, read after the first one and a separator; null: single texts."
    )
    numeric_labels: bool = setting(False, "Labels are numbers that objective=regress predicts, not classes.")

    @property
    def has_numbers(self) -> bool:
        return self.numeric_labels

    def open(self) -> Source:
        from pretrain.data.sources.labeled_files import LabeledTexts

        return LabeledTexts(self)


@dataclass
class RelatedTextsConfig(AnnotatedConfig):
    """Pairs of texts that belong together, with hard negatives if there are any: columns of .jsonl, .csv, .parquet."""

    reads: ClassVar[str] = "texts that belong together"
    has_related: ClassVar[bool] = True
    kind: str = "related"
    anchor_column: str = setting("anchor", "Column of a text, such as a question.")
    positive_column: str = setting("positive", "Column of the text that belongs to it, such as its answer.")
    negative_columns: list[str] = setting(
        default_factory=list, about="Columns of texts that look alike and do not belong to it: hard negatives."
    )

    def open(self) -> Source:
        from pretrain.data.sources.labeled_files import RelatedTexts

        return RelatedTexts(self)
