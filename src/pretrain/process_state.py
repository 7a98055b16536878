"""The state of a process that a run changes: given back where the run was started inside another program."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretrain.stop_signals import STOP_SIGNALS


@contextmanager
def process_restored() -> Iterator[None]:
    """Give signal handlers, environment and torch's number of threads back as they were."""
    environment = dict(os.environ)
    in_main = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS} if in_main else {}
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)


@contextmanager
def generators_and_logs_restored() -> Iterator[None]:
    """Give the global random generators, torch's determinism, warning filters and log levels back as they were.

    Loads torch, which has a generator of its own on each GPU.
    """
    import numpy as np
    import torch

    python, numpy_state = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002  (the global one is meant)
    cpu, gpus = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    deterministic, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    before = _log_levels()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if apple is not None:
            torch.mps.set_rng_state(apple)
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        for name, level in _log_levels().items():
            if before.get(name, logging.NOTSET) != level and name.startswith(_QUIETED):
                logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))


_QUIETED = ("lightning.", "torch.distributed.elastic", "torch.multiprocessing")  # loggers that a run makes quiet


def _log_levels() -> dict[str, int]:
    known: dict[str, Any] = logging.root.manager.loggerDict
    return {name: logger.level for name, logger in known.items() if isinstance(logger, logging.Logger)}
