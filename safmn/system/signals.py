"""Handle signals that tell a run to finish its step, save and exit. The exit status is 128 + the signal's number.

The signals are SIGTERM and SIGUSR1 (from schedulers), SIGINT (Ctrl-C), SIGHUP (the terminal was closed) and SIGQUIT.
On Windows they are SIGINT, SIGTERM, and SIGBREAK (Ctrl-Break, or the console window was closed).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from safmn.errors import Terminated
from safmn.runtime.distributed import launched_by_torchrun

logger = logging.getLogger(__name__)

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT", "SIGBREAK")
_SIGNALS: tuple[int, ...] = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))


def ignore_group_signals() -> None:
    """Ignore, in a worker process, the signals that a terminal or a scheduler sends to all processes of a run.

    SIGTERM is blocked, where the system can block it, so that the worker can ask who sent it; see
    :func:`wait_for_sigterm`.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32" and hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def wait_for_sigterm(parent: int, seconds: float) -> bool:
    """Wait; return True as soon as the parent process sends SIGTERM. macOS and Windows only wait."""
    if sys.platform == "linux":
        received = signal.sigtimedwait({signal.SIGTERM}, seconds)
        return received is not None and received.si_pid == parent
    time.sleep(seconds)
    return False


class Interrupt:
    """Context in which the signals set :attr:`signal_number`. A second Ctrl-C raises ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
            self._previous = {}
            return self
        hangup = getattr(signal, "SIGHUP", None)  # ignored under nohup
        wanted = [number for number in _SIGNALS if number != hangup or signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # After an error, torchrun sends SIGTERM to the other ranks. This rank is exiting anyway and must still
            # report its error.
            leaving = isinstance(error, Exception) and number == signal.SIGTERM and launched_by_torchrun()
            signal.signal(number, signal.SIG_IGN if leaving else handler)

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells report it.

        On Linux: 129 SIGHUP, 130 SIGINT, 131 SIGQUIT, 138 SIGUSR1, 143 SIGTERM. On Windows also 149 SIGBREAK. Also 143
        if another rank's signal ended a validation early.
        """
        return 128 + (self.signal_number or signal.SIGTERM)

    def join(self, number: int) -> None:
        """Adopt the signal that the ranks agreed on, whichever rank received it; 0 means none."""
        self.signal_number = number or self.signal_number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal_number = number
        logger.warning("%s: finishing the step, then saving and exiting", signal.Signals(number).name)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM in the block, so that finished work stays and partial files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
