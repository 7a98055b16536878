"""Guard calls of the `tokenizers` library, whose Rust code panics on some files and texts."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.errors import DataError, PretrainError, printable

MAX_REASON = 300  # characters of the library's message
_STDERR = threading.RLock()  # file descriptor 2 is shared by all threads


@contextmanager
def library_errors(problem: str, advice: str) -> Iterator[None]:
    """Raise DataError `<problem>: <reason>. <advice>` if the library fails.

    A Rust panic derives from BaseException, so `except Exception` misses it.
    """
    try:
        yield
    except PretrainError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and the like
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"{problem}: {printable(reason[:MAX_REASON])}. {advice}") from error


@contextmanager
def suppressed_panics() -> Iterator[None]:
    """Suppress a Rust panic's output to stderr; other output follows after the block.

    For short calls only: output of other threads is delayed too.
    """
    with _STDERR, tempfile.TemporaryFile() as delayed:
        sys.stderr.flush()
        try:
            real = os.dup(2)
        except OSError:  # a process without stderr
            yield
            return
        os.dup2(delayed.fileno(), 2)
        try:
            yield
        except DataError:
            delayed.truncate(0)
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
            delayed.seek(0)
            sys.stderr.flush()
            if rest := delayed.read():
                os.write(2, rest)
