"""Documents of a Hugging Face data set, a local folder or a hub name, read as a stream."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.data.config import HuggingFaceConfig
from pretrain.data.sources.column_files import missing_column
from pretrain.data.sources.corpus_files import all_files, hash_files, refuse_remote
from pretrain.data.sources.file_formats import is_corpus_file, suffix_of
from pretrain.data.sources.source import Document, ResumeToken, Source, counted, printable
from pretrain.errors import ConfigError, DataError, shown

_CARD = ".md"
_OF_SAVED = ("dataset_dict.json", "state.json")  # one of them is in a folder that save_to_disk wrote


class HuggingFace(Source):
    """One or two splits of a data set; nothing is copied into a cache."""

    config: HuggingFaceConfig

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__(config)
        refuse_remote(config.path, "data.path")
        path = Path(config.path).expanduser()
        self.folder = path if path.is_dir() else None
        # raises DataError for a FIFO or device, which the library would wait for or read
        self._files = {} if self.folder is None else _state_of_files(self.folder)
        self._rows_read = 0
        self._opened: Any = None  # the data set of `documents`
        if self.folder is None and (path.exists() or config.path.startswith(("/", ".", "~"))):
            raise DataError(
                f"data.path={printable(config.path)} is not a folder. "
                "Name a folder or a hub data set such as HuggingFaceFW/fineweb-edu; files are read by data=text_files."
            )

        self._is_saved = self.folder is not None and any((self.folder / name).is_file() for name in _OF_SAVED)
        if self._is_saved:
            self._refuse_parts()

    def _refuse_parts(self) -> None:
        """Raise ConfigError for settings that a saved data set has no use for: it is one version of one subset."""
        for name in ("subset", "revision"):
            if (value := getattr(self.config, name)) is not None:
                raise ConfigError(
                    f"data.{name}={printable(value)} chooses nothing in data.path={printable(self.config.path)}, which "
                    f"save_to_disk wrote: it holds one data set. Try data.{name}=null, or name another folder."
                )

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_split`; None if it is not set."""
        split = self.config.validation_split
        if split is None:
            return None
        return self._screened(self._read_split(split, "data.validation_split"), f"data.validation_split={split}")

    def resume_token(self) -> ResumeToken | None:
        """Return the position after the last row read, from which no earlier row is fetched again.

        The `state_dict` of a streamed data set is exact, as no buffer shuffles it.
        """
        if self._opened is None:
            return None
        state = self._opened.state_dict() if hasattr(self._opened, "state_dict") else None
        return ResumeToken(self.kept, dict(self.skipped), [self._rows_read, state])

    def remarks(self) -> list[str]:
        """Return a line about files that the library puts into no split: of another kind, or beside those of splits."""
        unread = self._unread_files()
        if not unread:
            return super().remarks()
        return [
            f"data.path={printable(self.config.path)}: files that the datasets library puts into no split are not "
            f"read: {counted(unread)}. To read all files of a folder: data=text_files"
        ]

    def _unread_files(self) -> Counter[str]:
        """Return how many data files of the folder the library reads in no split, by suffix."""
        if self.folder is None or self._is_saved or self.config.subset is not None:
            return Counter()
        import datasets

        try:
            found = datasets.load_dataset_builder(str(self.folder.resolve())).config.data_files or {}
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise self._unreadable(error) from error
        read = {Path(path).resolve() for paths in found.values() for path in paths}
        files = {name: path for name, path in all_files(self.folder).items() if is_corpus_file(name)}
        return Counter(
            suffix_of(name) for name, path in files.items()
            if path.resolve() not in read and not name.endswith(_CARD)
        )  # fmt: skip

    def share_read(self) -> float | None:
        """Return the fraction of rows read; None if their number is unknown before reading."""
        rows = self.config.max_documents or (len(self._opened) if hasattr(self._opened, "__len__") else 0)
        return min(1.0, self._rows_read / rows) if rows else None

    def fingerprint(self) -> str:
        """Return the hash of the reading settings and of a folder's bytes or a hub repository's commit."""
        import xxhash

        config = self.config
        reading = [config.subset, config.split, config.validation_split, config.text_column, config.max_documents]
        if self.folder:
            files = all_files(self.folder)  # their names decide which split they belong to
            identity = [*files, hash_files(files).hex()]
        else:
            identity = [config.path, self._commit()]
        return xxhash.xxh3_128(json.dumps([identity, reading]).encode()).hexdigest()

    def check_as_opened(self) -> None:
        """Raise DataError if a file of the folder was added, removed or changed in size or time.

        The library opens the files itself, so their blocks cannot be compared while it reads.
        """
        if self.folder is None:
            return
        now = _state_of_files(self.folder)
        changed = sorted(path for path in now.keys() | self._files.keys() if now.get(path) != self._files.get(path))
        if changed:
            raise DataError(
                f"{printable(changed[0])} of data.path={printable(self.config.path)} has changed since reading began, "
                "so the rows read with it are dropped. Start again once nothing changes the folder, or read a copy."
            )

    def _commit(self) -> str:
        """Return the commit of the hub repository that the settings resolve to."""
        import datasets

        try:
            builder = datasets.load_dataset_builder(
                self.config.path, name=self.config.subset, revision=self.config.revision
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise self._unreadable(error) from error  # RuntimeError: a data set that is a script
        return str(builder.hash)

    def origin(self) -> str:
        return f"data.path={printable(self.config.path)}, data.split={self.config.split}"

    def read(self, position: Any = None) -> Iterator[Document]:
        rows_before, state = position or (0, None)
        yield from self._read_split(self.config.split, "data.split", rows_before, state)

    def _read_split(self, split: str, key: str, rows_before: int = 0, state: Any = None) -> Iterator[Document]:
        column, limit = self.config.text_column, self.config.max_documents
        for number, row in enumerate(self._rows(split, key, rows_before, state), start=rows_before + 1):
            self._rows_read = number
            if number == 1 and column not in row:
                raise missing_column(f"data.path={printable(self.config.path)} ({key}={split})", column, row)
            if isinstance(row.get(column), str):
                yield Document(row[column], f"{printable(split)}:{number}")
            else:
                self.skipped["text is no string"] += 1
            if number == limit:
                return

    def records(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of `data.split` with these columns alone; DataError as `documents`."""
        return self._rows(self.config.split, "data.split", 0, None, columns)

    def _rows(
        self, split: str, key: str, rows_before: int, state: Any, columns: list[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split; errors of the library are raised as DataError."""
        import datasets

        try:
            rows = _only(self._open(split, key), columns or [self.config.text_column])
            if state is not None:
                rows.load_state_dict(state)
            elif rows_before:
                rows = rows.select(range(rows_before, len(rows)))
            self._opened = rows
            yield from rows
        except (OSError, ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise self._unreadable(error) from error

    def _open(self, split: str, key: str) -> Any:
        import datasets

        config, folder = self.config, self.folder
        if folder and self._is_saved:
            return self._chosen(datasets.load_from_disk(str(folder)), split, key)
        path = str(folder.resolve()) if folder else config.path
        splits = datasets.load_dataset(path, name=config.subset, revision=config.revision, streaming=True)
        return self._chosen(splits, split, key)

    def _chosen(self, loaded: Any, split: str, key: str) -> Any:
        """Return one split; a saved data set without splits is "train"."""
        splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
        if split not in splits:
            raise DataError(
                f"{key}={split} is not a split of data.path={printable(self.config.path)}. "
                f"Try one of its splits: {', '.join(printable(name) for name in splits)}."
            )
        return splits[split]

    def _unreadable(self, error: Exception) -> DataError:
        config = self.config
        subset, revision = shown(config.subset), shown(config.revision)
        chosen = f"data.path={printable(config.path)} (data.subset={subset}, data.revision={revision})"
        where = "this folder's files" if self.folder else "the name, and that this machine can reach the hub"
        reason = " ".join(str(error).split())
        return DataError(f"{chosen} cannot be read: {type(error).__name__}: {reason} Check {where}.")


def files_digest(folder: Path) -> int:
    """Return a hash of the names, sizes and times of all files of a folder."""
    import xxhash

    states = [[name, *state[:2]] for name, state in _state_of_files(folder).items()]
    return xxhash.xxh3_64_intdigest(json.dumps(states).encode())


def _state_of_files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return size (bytes), modification time (ns) and inode of each file, by name."""
    states = {}
    for name, path in all_files(folder).items():
        status = path.stat()
        states[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return states


def _only(rows: Any, columns: list[str]) -> Any:
    """Return the rows with only these columns, if columns are known: others are not decoded."""
    return rows.select_columns(columns) if set(columns) <= set(rows.column_names or []) else rows
