"""Token stores of earlier versions, whose manifest holds no hashes of pieces: read whole once, and given them."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from pretrain.data.piece_hashes import hashes_of
from pretrain.data.store_files import MAGIC, write_atomically
from pretrain.errors import printable
from pretrain.records import sealed

if TYPE_CHECKING:
    from pretrain.data.store import Store

log = logging.getLogger(__name__)


def add_pieces(store: Store) -> None:
    """Compare a store with the hashes of its whole files, and put hashes of pieces into its manifest.

    Where its folder cannot be written to, they stay in memory, and who opens it next reads it whole again. Raises
    DataError as `Store.verify` does.
    """
    start = time.monotonic()
    store.verify()
    read = 0
    for number, shard in enumerate(store.manifest["shards"]):
        for suffix in MAGIC:
            shard["files"][suffix]["pieces"] = hashes_of(store.body(number, suffix))
            read += shard["files"][suffix]["bytes"]
    seconds = time.monotonic() - start
    where = printable(store.folder, one_line=True)
    if read:
        log.warning(
            "%s is of an earlier version, without hashes of its pieces: its %.1f MB were read whole, at %.0f MB/s",
            where, read / 1e6, read / 1e6 / max(seconds, 1e-9),
        )  # fmt: skip
    try:
        write_atomically(store.folder / "manifest.json", json.dumps(sealed(store.manifest), indent=1).encode())
    except OSError as error:
        log.warning("%s cannot be given them (%s), so it is read whole whenever it is opened", where, error)
