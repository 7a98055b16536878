"""Work of a library that listens to no signal, done in a thread so that this one still does."""

import threading
from collections.abc import Callable

POLL_S = 0.2


def in_background(work: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run `work` in a thread and call `meanwhile` a few times a second until it is done.

    A signal's exception, such as KeyboardInterrupt, leaves at once: the thread ends with the process. Raises what
    `work` raises.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # the thread that waits raises it
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        meanwhile()
    if raised:
        raise raised[0]
