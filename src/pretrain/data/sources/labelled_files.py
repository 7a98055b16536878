"""Documents for fine-tuning from files of this machine: prompts with responses, and texts with labels."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from pretrain.data.config import Format
from pretrain.data.fine_tuning_config import AnnotatedConfig, LabelledTextConfig, PairsConfig
from pretrain.data.sources.column_files import BYTE_ORDER_MARK, lines_of, read_records
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.corpus_files import FilePosition, find_files, hash_corpus, hash_files
from pretrain.data.sources.file_formats import HEAD_BYTES, FileKind, kind_of_file
from pretrain.data.sources.source import Document, Source, printable
from pretrain.errors import DataError


class AnnotatedFiles(Source):
    """The pairs or labelled texts of a file, of a folder's files, or of the files that match a pattern."""

    config: AnnotatedConfig

    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        self.files = find_files(config.path, "data.path", self.passed_over)
        self._place = FilePosition(self.files)
        self.validation_files = (
            find_files(config.validation_path, "data.validation_path", self.passed_over)
            if config.validation_path
            else None
        )

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_path`; None where it is not set."""
        if self.validation_files is None:
            return None
        origin = f"data.validation_path={printable(self.config.validation_path)}"
        return self._screened(self._read_files(self.validation_files), origin)

    def fingerprint(self) -> str:
        """Return the hash of all files' formats and bytes, in order, and of the columns and the template."""
        names = ("kind", "template", "prompt_column", "response_column", "text_column", "label_column")
        hash_set = partial(hash_files, kind_of=self._kind, hashed=self.hashed)
        return hash_corpus(
            [getattr(self.config, name, None) for name in names], (self.files, self.validation_files or {}), hash_set
        )

    def share_read(self) -> float | None:
        """Return which share of the files' bytes has been read, 0 to 1."""
        return self._place.share()

    def _origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def _read(self, place: Any = None) -> Iterator[Document]:
        return self._read_files(self.files)

    def _kind(self, path: Path) -> FileKind:
        """Return how a file is read; lines of text, tab, label are plain text here, whatever a table looks like."""
        return kind_of_file(path, self.config.format, tabs_are_text=isinstance(self.config, LabelledTextConfig))

    def _read_files(self, files: dict[str, Path]) -> Iterator[Document]:
        for name, path in files.items():
            shown, kind = printable(name), self._kind(path)
            was = self.hashed.get(str(path))
            with opened(path, kind.compression, partial(self._place.enter, path), was) as stream:
                if isinstance(self.config, PairsConfig):
                    yield from self._pairs(stream, shown, kind.form, self.config)
                elif isinstance(self.config, LabelledTextConfig):
                    if kind.form is Format.text or (kind.form is Format.tsv and not _has_heading(stream, self.config)):
                        yield from self._labelled_lines(stream, shown, self.config)
                    else:
                        yield from self._labelled_records(stream, shown, kind.form, self.config)

    def _pairs(self, stream: IO[bytes], name: str, form: Format, config: PairsConfig) -> Iterator[Document]:
        """Yield each prompt with its response as the template has them.

        White space before the response counts as the response's, as in scores of continuations: so a prompt without it
        is what the model learns to go on from, and byte-level BPE has a word's space in the word's own token.
        """
        if form is Format.text:
            raise DataError(
                f"{name} is plain text, and pairs have two columns. Name a file of JSON lines (.jsonl), .csv, .tsv or "
                ".parquet, also as .gz, .xz, .zst or .bz2."
            )
        before, between = config.prompt_template()
        columns = {"data.prompt_column": config.prompt_column, "data.response_column": config.response_column}
        for place, record in read_records(form, stream, name, columns, self.skipped):
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

    def _labelled_records(
        self, stream: IO[bytes], name: str, form: Format, config: LabelledTextConfig
    ) -> Iterator[Document]:
        columns = {"data.text_column": config.text_column, "data.label_column": config.label_column}
        for place, record in read_records(form, stream, name, columns, self.skipped):
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


def _has_heading(stream: IO[bytes], config: LabelledTextConfig) -> bool:
    """Return whether the first line of a .tsv names more columns than two, those of text and label among them."""
    head = stream.peek(HEAD_BYTES) if hasattr(stream, "peek") else b""
    names = head.removeprefix(BYTE_ORDER_MARK).splitlines()[:1]
    columns = names[0].decode("utf8", "replace").split("\t") if names else []
    return len(columns) > 2 and {config.text_column, config.label_column} <= set(columns)
