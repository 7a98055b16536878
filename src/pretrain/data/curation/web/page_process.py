"""A process that reads pages and may die: what hangs, crashes or fills the memory costs one page, not the run."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from pretrain.data.curation.engine import end_with_parent
from pretrain.data.curation.web.config import Extractor, Precision
from pretrain.data.curation.web.extraction import MEMORY, Extraction, read_page
from pretrain.data.curation.web.responses import UnusableError
from pretrain.errors import DataError
from pretrain.stop_signals import keep_from_children

TOO_LONG, DIED = "page takes longer than html.limit_s", "page ends the process that reads it"
NOT_REPRODUCIBLE = (TOO_LONG, DIED, MEMORY)  # another machine may read these
PAGES_OF_A_PROCESS = 5000  # then it is replaced: trafilatura's caches grow
_START_S, _IDLE_S = 300.0, 60.0  # longest imports; after so long without a page the process ends by itself


class PageProcess:
    """Reads pages in another process, one at a time; starts a new one where the last has ended."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Take the settings `html` as plain JSON."""
        self._settings = settings
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._pages = 0

    def read(self, content: bytes, charset: str | None) -> dict[str, Any]:
        """Return what `read_page` returns; raises UnusableError with the reason by which a page is counted."""
        for _ in range(2):  # the idle process may have ended just now, and a crash may be the system's
            answer = self._ask(content, charset)
            if answer is not None:
                break
        else:
            raise UnusableError(DIED)
        if "unusable" in answer:
            raise UnusableError(answer["unusable"])
        return answer

    def _ask(self, content: bytes, charset: str | None) -> dict[str, Any] | None:
        """Return the answer; None if the process died."""
        if self._pages >= PAGES_OF_A_PROCESS:
            self.close()
        try:
            pipe = self._pipe or self._start()
            pipe.send_bytes((charset or "").encode("ascii", "ignore"))
            pipe.send_bytes(content)
            if not pipe.poll(float(self._settings["limit_s"])):
                self.close()
                raise UnusableError(TOO_LONG)
            answer: dict[str, Any] = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            self.close()
            return None
        self._pages += 1
        return answer

    def _start(self) -> Connection:
        keep_from_children()
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not pipe.poll(_START_S):
                raise EOFError
            pipe.recv_bytes()
        except (EOFError, OSError):
            pipe.close()
            self.close()
            raise DataError(
                "the process that reads pages does not start; its own error stands above. Install the libraries again: "
                "pip install --force-reinstall -e '.[curate]'. A script needs if __name__ == '__main__'."
            ) from None
        self._pipe, self._pages = pipe, 0
        return pipe

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._pipe = self._process = None


@cache
def page_process(settings: str) -> PageProcess:
    """Return this process's reader of pages for settings as JSON; it goes on from task to task."""
    return PageProcess(json.loads(settings))


def _serve(pipe: Connection, settings: dict[str, Any], parent: int) -> None:
    """Answer pages until the other end is closed or nothing is asked for a while."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(5000)
    how = Extraction(
        Extractor(settings["extractor"]), Precision(settings["precision"]), settings["max_depth"],
        settings["max_elements"],
    )  # fmt: skip
    read_page(b"<html><body><p>The first page loads the libraries.</p></body></html>", None, how)
    if sys.platform == "linux":  # others refuse it
        resource.setrlimit(resource.RLIMIT_AS, (settings["max_memory"], settings["max_memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send_bytes(b"ready")
    while pipe.poll(_IDLE_S):
        try:
            charset, content = pipe.recv_bytes().decode() or None, pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(json.dumps(_answer(content, charset, how)).encode())


def _answer(content: bytes, charset: str | None, how: Extraction) -> dict[str, Any]:
    try:
        return read_page(content, charset, how)
    except UnusableError as error:
        return {"unusable": str(error)}
    except MemoryError:
        return {"unusable": MEMORY}
    except Exception as error:  # a library's own error on a hostile page
        if type(error).__name__ == "HTMLParserException":  # HTML5 refuses no markup: the parser got no memory
            return {"unusable": MEMORY}
        return {"unusable": f"page is refused by {how.extractor.value} ({type(error).__name__})"}
