"""What a disk refuses while prepared data is written becomes one clear error."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import CheckpointError

_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ELOOP, errno.ENOTDIR)


@contextmanager
def storage_errors(cache: Path) -> Iterator[None]:
    """Raise CheckpointError, naming the folder, where the storage refuses to write to it; other errors go on."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(cache)
        if error.errno not in _OF_STORAGE or elsewhere:
            raise
        raise CheckpointError(
            f"prepared data cannot be written to {cache}: {os.strerror(error.errno)}. It must be writable and have "
            "room; or try another folder: paths.cache_dir=/another/disk/cache."
        ) from error
