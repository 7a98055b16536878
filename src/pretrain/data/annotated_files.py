"""Documents for fine-tuning from files of this machine: prompts with responses, and texts with labels."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pretrain.data.file_streams import opened
from pretrain.data.fine_tuning_config import AnnotatedConfig, LabelledTextConfig, PairsConfig
from pretrain.data.sources import Document, Source, printable
from pretrain.data.text_files import file_format, find_files, hash_files, json_records, lines_of
from pretrain.errors import DataError


class AnnotatedFiles(Source):
    """The pairs or labelled texts of a file, of a folder's files, or of the files that match a pattern."""

    config: AnnotatedConfig

    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        self.files = find_files(config.path, "data.path")
        self.validation_files = (
            find_files(config.validation_path, "data.validation_path") if config.validation_path else None
        )

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_path`; None where it is not set."""
        if self.validation_files is None:
            return None
        origin = f"data.validation_path={printable(self.config.validation_path)}"
        return self._screened(self._read_files(self.validation_files), origin)

    def fingerprint(self) -> str:
        """Return the hash of all files' formats and bytes, in order, and of the columns and the template."""
        import xxhash

        names = ("kind", "template", "prompt_column", "response_column", "text_column", "label_column")
        digest = xxhash.xxh3_128(json.dumps([getattr(self.config, name, None) for name in names]).encode())
        for files in (self.files, self.validation_files or {}):
            digest.update(hash_files(files))
        return digest.hexdigest()

    def _origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def _read(self, place: Any = None) -> Iterator[Document]:
        return self._read_files(self.files)

    def _read_files(self, files: dict[str, Path]) -> Iterator[Document]:
        for name, path in files.items():
            shown, is_json = printable(name), file_format(path) == "json"
            with opened(path) as stream:
                if isinstance(self.config, PairsConfig):
                    yield from self._pairs(stream, shown, is_json, self.config)
                elif isinstance(self.config, LabelledTextConfig):
                    read = self._labelled_records if is_json else self._labelled_lines
                    yield from read(stream, shown, self.config)

    def _pairs(self, stream: IO[bytes], name: str, is_json: bool, config: PairsConfig) -> Iterator[Document]:
        """Yield each prompt with its response as the template has them.

        White space before the response counts as the response's, as in scores of continuations: so a prompt without it
        is what the model learns to go on from, and byte-level BPE has a word's space in the word's own token.
        """
        if not is_json:
            raise DataError(
                f"{name} is no file of JSON lines. Name one that ends in .jsonl, with or without .gz .xz .zst."
            )
        before, between = config.around_prompt()
        columns = {"data.prompt_column": config.prompt_column, "data.response_column": config.response_column}
        for place, record in json_records(stream, name, columns, self.skipped):
            values = [record.get(column) for column in columns.values()]
            if not all(isinstance(value, str) for value in values):
                self.skipped["prompt or response is no string"] += 1
                continue
            prompt, response = (value.removeprefix("\ufeff") for value in values)  # type: ignore[union-attr]
            if not response.strip():
                self.skipped["empty response"] += 1
                continue
            given = f"{before}{prompt}{between}"
            yield Document(given + response, place, prompt_characters=len(given.rstrip()))

    def _labelled_records(self, stream: IO[bytes], name: str, config: LabelledTextConfig) -> Iterator[Document]:
        columns = {"data.text_column": config.text_column, "data.label_column": config.label_column}
        for place, record in json_records(stream, name, columns, self.skipped):
            text, label = (record.get(column) for column in columns.values())
            if isinstance(text, str) and isinstance(label, str | int) and str(label).strip():
                yield Document(text, place, label=str(label))
            else:
                self.skipped["text is no string, or label neither string nor whole number"] += 1

    def _labelled_lines(self, stream: IO[bytes], name: str, config: LabelledTextConfig) -> Iterator[Document]:
        """Yield the text before the last tab of each line with the label after it."""
        for number, line in lines_of(stream, name):
            try:
                text, tab, label = line.decode().rstrip("\r\n").rpartition("\t")
            except UnicodeDecodeError:
                self.skipped["invalid UTF-8"] += 1
                continue
            if number == 1 and not tab:
                raise DataError(
                    f"{name}:1 has no tab. Write lines of text, tab, label; or JSON lines in a .jsonl file."
                )
            if number == 1 and label == config.label_column:
                continue  # a heading
            if tab and label.strip():
                yield Document(text, f"{name}:{number}", label=label.strip())
            elif text or label:
                self.skipped["no label"] += 1
