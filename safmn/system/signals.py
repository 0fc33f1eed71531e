"""Handle signals that tell a run to finish its step, save and exit. The exit status is 128 + the signal's number.

The signals are SIGTERM and SIGUSR1 (from schedulers), SIGINT (Ctrl-C), SIGHUP (the terminal was closed) and SIGQUIT.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from safmn.errors import Terminated
from safmn.runtime.distributed import launched_by_torchrun

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


class Interrupt:
    """Context in which the signals set :attr:`signal_number`. A second Ctrl-C raises ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
            self._previous = {}
            return self
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        wanted = [number for number in _SIGNALS if not (nohup and number == signal.SIGHUP)]
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

        On Linux: 129 SIGHUP, 130 SIGINT, 131 SIGQUIT, 138 SIGUSR1, 143 SIGTERM. Also 143 if another rank's signal ended
        a validation early.
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
