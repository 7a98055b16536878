"""Files of parquet, written and read row group by row group; equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class RowGroups:
    """A parquet file written one row group at a time; equal rows give equal bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, columns: dict[str, Any]) -> None:
        """Write one row group."""
        table = pa.table([pa.array(columns[name], kind) for name, kind in _types(self.schema)], schema=self.schema)
        self._writer.write_table(table, row_group_size=max(1, len(table)))


def _types(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield each row group of a parquet file as a table of these columns."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns)
