"""Token stores of earlier versions, whose manifest holds no hashes of pieces: read whole once, and given them."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from pretrain.data.token_store.format import MAGIC, write_atomically
from pretrain.data.token_store.piece_hashes import hashes_of
from pretrain.errors import printable
from pretrain.files.records import sealed

if TYPE_CHECKING:
    from pretrain.data.token_store.store import Store

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
    if read:
        line = (
            f"{store.folder} is of an earlier version, without hashes of its pieces: its {read / 1e6:.1f} MB were read "
            f"whole, at {read / 1e6 / max(seconds, 1e-9):.0f} MB/s"
        )
        log.warning("%s", printable(line, one_line=True))
    try:
        write_atomically(store.folder / "manifest.json", json.dumps(sealed(store.manifest), indent=1).encode())
    except OSError as error:
        line = f"{store.folder} cannot be given them ({error}), so it is read whole whenever it is opened"
        log.warning("%s", printable(line, one_line=True))
