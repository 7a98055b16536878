"""Documents for fine-tuning from files: prompts with responses, and texts with labels."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from pretrain.data.config import Format
from pretrain.data.fine_tuning_config import (
    AnnotatedConfig,
    ChatConfig,
    LabeledTextConfig,
    PairsConfig,
    RelatedTextsConfig,
)
from pretrain.data.sources.column_files import read_records, table_lines
from pretrain.data.sources.compressed_files import BYTE_ORDER_MARK, head_of, opened
from pretrain.data.sources.corpus_files import FileSource
from pretrain.data.sources.file_formats import HEAD_BYTES, FileKind, kind_of_file
from pretrain.data.sources.source import Document, fault_of, printable
from pretrain.data.tokenizers.chat_template import ASSISTANT, checked_messages
from pretrain.errors import DataError

_OF_RELATED = ("anchor_column", "positive_column", "negative_columns")


class AnnotatedFiles(FileSource):
    """The annotated documents of files."""

    config: AnnotatedConfig

    def _reading_settings(self) -> list[str | None]:
        names = (
            "kind",
            "template",
            "prompt_column",
            "response_column",
            "text_column",
            "label_column",
            "pair_column",
            "messages_column",
        )
        own = [getattr(self.config, name) for name in _OF_RELATED if hasattr(self.config, name)]
        own += ["numbers"] if self.config.has_numbers else []
        return [getattr(self.config, name, None) for name in names] + [str(value) for value in own]

    def _kind(self, path: Path) -> FileKind:
        """Return how a file is read; lines of text, tab, label are plain text even if they look like a table."""
        return kind_of_file(path, self.config.format, tabs_are_text=self.config.has_labels)


class Pairs(AnnotatedFiles):
    """The prompts of files with their responses."""

    config: PairsConfig

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        """Yield each prompt with its response, in the template.

        White space before the response belongs to the response, as in scores of completions: the model learns to
        complete a prompt without trailing space, and byte-level BPE keeps a word's space in the word's token.
        """
        if form is Format.text:
            raise DataError(
                f"{name} is plain text, but pairs need two columns. Name a file of JSON lines (.jsonl), .csv, .tsv or "
                ".parquet, also as .gz, .xz, .zst or .bz2."
            )
        config = self.config
        before, between = config.prompt_template()
        columns = {"data.prompt_column": config.prompt_column, "data.response_column": config.response_column}
        for origin, record in read_records(form, stream, name, columns, self.skipped):
            values = [record.get(column) for column in columns.values()]
            if not all(isinstance(value, str) for value in values):
                self.skipped["prompt or response is no string"] += 1
                continue
            prompt, response = (value.removeprefix("\ufeff") for value in values)  # type: ignore[union-attr]
            if not response.strip():
                self.skipped["empty response"] += 1
                continue
            templated = f"{before}{prompt}{between}"
            yield Document(templated + response, origin, prompt_characters=len(templated.rstrip()))


class Conversations(AnnotatedFiles):
    """The conversations of files of JSON."""

    config: ChatConfig

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        if form not in (Format.jsonl, Format.json):
            raise DataError(
                f"{name} is no JSON, and conversations are lists of messages. Name a file of JSON lines (.jsonl), each "
                'like {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'
            )
        column = self.config.messages_column
        for origin, record in read_records(form, stream, name, {"data.messages_column": column}, self.skipped):
            messages = checked_messages(record.get(column))
            if isinstance(messages, str):
                self.skipped[messages] += 1
            elif not any(role == ASSISTANT and content for role, content in messages):
                self.skipped["no turn of the assistant"] += 1
            else:
                text = "\n\n".join(f"{role}:\n{content}" for role, content in messages)
                yield Document(text, origin, messages=tuple(messages))


class RelatedTexts(AnnotatedFiles):
    """The texts of files that belong together, with hard negatives."""

    config: RelatedTextsConfig

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        if form is Format.text:
            raise DataError(
                f"{name} is plain text, but texts that belong together need two columns. Name a file of JSON lines "
                "(.jsonl), .csv, .tsv or .parquet, also as .gz, .xz, .zst or .bz2."
            )
        config = self.config
        columns = {"data.anchor_column": config.anchor_column, "data.positive_column": config.positive_column}
        columns |= {f"data.negative_columns[{n}]": column for n, column in enumerate(config.negative_columns)}
        for origin, record in read_records(form, stream, name, columns, self.skipped):
            texts = [record.get(column) for column in columns.values()]
            related = tuple(text.removeprefix("\ufeff").strip() for text in texts if isinstance(text, str))
            if len(related) < len(texts) or not all(related):
                self.skipped["a text is empty or no string"] += 1
            else:
                yield Document("\n".join(related), origin, related=related)


class LabeledTexts(AnnotatedFiles):
    """The texts of files with their labels or numbers."""

    config: LabeledTextConfig

    def _reading_settings(self) -> list[str | None]:
        files = [*self.files.values(), *(self.validation_files or {}).values()]
        swapped = ["label first"] if any(map(self._begins_label_first, files)) else []  # as earlier versions did not
        return super()._reading_settings() + swapped

    def _begins_label_first(self, path: Path) -> bool:
        kind = self._kind(path)
        if kind.form not in (Format.text, Format.tsv):
            return False
        with opened(path, kind.compression) as stream:
            line = head_of(stream, HEAD_BYTES).removeprefix(BYTE_ORDER_MARK).splitlines()[:1]
        return bool(line) and self._is_label_first(line[0].decode("utf8", "replace"))

    def _is_label_first(self, line: str) -> bool:
        """Return whether a line is a heading of two columns, the label before the text."""
        return line.split("\t") == [self.config.label_column, self.config.text_column]

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        if form is Format.text or (form is Format.tsv and not _has_heading(stream, self.config)):
            if self.config.pair_column is not None:
                raise DataError(
                    f"{name} has no columns, but data.pair_column={printable(self.config.pair_column)} names one. Name "
                    "a file of JSON lines (.jsonl), .csv, .tsv with a heading, or .parquet; or leave pair_column out."
                )
            return self._labeled_lines(stream, name)
        return self._labeled_records(stream, name, form)

    def _labeled_records(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        config = self.config
        columns = {"data.text_column": config.text_column, "data.label_column": config.label_column}
        if config.pair_column is not None:
            columns["data.pair_column"] = config.pair_column
        for origin, record in read_records(form, stream, name, columns, self.skipped):
            text, label = record.get(config.text_column), record.get(config.label_column)
            second = None if config.pair_column is None else record.get(config.pair_column)
            if not (isinstance(text, str) and self._is_label(label)):
                self.skipped[f"text is no string, or label {self._no_label}"] += 1
            elif config.pair_column is not None and (not isinstance(second, str) or fault_of(second)):
                self.skipped["second text is empty or no text"] += 1
            else:
                yield self._document(text, origin, str(label), second)

    def _labeled_lines(self, stream: IO[bytes], name: str) -> Iterator[Document]:
        """Yield the text before the last tab of each line with the label after it.

        Below a heading of label, tab, text: the label before the first tab with the text after it.
        """
        is_label_first = False
        for number, encoded in table_lines(stream, name, has_heading=False):
            try:
                line = encoded.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                self.skipped["invalid UTF-8"] += 1
                continue
            if number == 1 and self._is_label_first(line):
                is_label_first = True
                continue
            text, tab, label = line.partition("\t")[::-1] if is_label_first else line.rpartition("\t")
            if number == 1 and not tab:
                raise DataError(
                    f"{name}:1 has no tab. Write lines of text, tab, label; or JSON lines in a .jsonl file."
                )
            if number == 1 and label == self.config.label_column:
                continue  # a heading
            if tab and self._is_label(label):
                yield self._document(text, f"{name}:{number}", label)
            elif text or label:
                self.skipped["no number" if self.config.numeric_labels else "no label"] += 1

    def _document(self, text: str, origin: str, label: str, second_text: str | None = None) -> Document:
        if self.config.numeric_labels:
            return Document(text, origin, number=float(label), second_text=second_text)
        return Document(text, origin, label=label.strip(), second_text=second_text)

    @property
    def _no_label(self) -> str:
        return "no finite number" if self.config.numeric_labels else "neither string nor whole number"

    def _is_label(self, value: object) -> bool:
        if not self.config.numeric_labels:
            return isinstance(value, str | int) and bool(str(value).strip())
        if isinstance(value, bool):
            return False
        try:
            return isinstance(value, str | int | float) and math.isfinite(np.float32(value))
        except (ValueError, OverflowError):
            return False


def _has_heading(stream: IO[bytes], config: LabeledTextConfig) -> bool:
    """Return whether a .tsv begins with a heading: three names or more, with text and label."""
    names = head_of(stream, HEAD_BYTES).splitlines()[:1]
    columns = names[0].decode("utf-8-sig", "replace").split("\t") if names else []
    needed = {config.text_column, config.label_column}
    return len(columns) > 2 and needed | ({config.pair_column} if config.pair_column else set()) <= set(columns)
