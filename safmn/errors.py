"""Errors that a user can act on, and how the entry points turn them into a message and an exit status.

Exit statuses: 0 success; 1 the command ran, but part of the work failed (a result differs from the expected one, an
image could not be read); 2 a mistake in the user's input (an option, a file, a data set); 130 Ctrl-C; 141 the reader of
the output is gone; 143 SIGTERM. Others are documented where they are raised.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from safmn.system.console import complain, escape_last_resort

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


WITHOUT_DESKTOP = (
    "Where there is no desktop: apt install libgl1 libglib2.0-0 (Debian, Ubuntu), or pip uninstall opencv-python && "
    "pip install opencv-python-headless"
)
"""What to do if OpenCV cannot be imported."""


FILE_ONLY = {"file_only": True}
"""``extra`` of a log call that goes to the log file only, because the console shows the same in another way."""


class UserError(ValueError):
    """A mistake in the user's input. The message names the file, key or image and says what to do.

    Attributes:
        status: the exit status of a command that ends with this error.
    """

    status = EXIT_USER_ERROR


class OptionError(UserError):
    """A mistake in an option file. The message names the file and the key path."""


class DataError(UserError):
    """An image, data set or store that is missing, is unreadable or does not match its counterpart."""


class WeightsError(UserError):
    """A weight file that is missing, unreadable, damaged or made for another network."""


class CheckpointError(UserError):
    """A training checkpoint that is damaged, incomplete, or belongs to other options."""


class RankError(UserError):
    """Another rank of the job stopped. The message says which rank and why.

    Args:
        message: the message.
        status: the exit status of that rank.
        fatal: whether the job must stop. After a mistake in one data set, for example, it can continue with the others.
    """

    def __init__(self, message: str, *, status: int = EXIT_USER_ERROR, fatal: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.fatal = fatal


class Terminated(KeyboardInterrupt):
    """SIGTERM, for example from ``timeout``, a scheduler or a stopping container. It is handled like Ctrl-C."""


def status_after(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status for an interrupt: 128 + the signal's number, as shells report it."""
    return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED


_LONG = 6  # letters: a name of more that begins a known one is meant for it


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'scale'?"`` for the nearest known name, or an empty string if none is similar."""
    text, names = str(name), [str(each) for each in known]
    longer = [each for each in names if len(text) > _LONG and each.startswith(text)]  # batch_size, batch_size_per_gpu
    longer.sort(key=len)
    near = longer or difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the exception's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix the message of a ``UserError`` raised in the block with ``where`` (for example file and key)."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error


def _reported(error: Exception, *, debug: bool) -> int:
    """Print the message of an error and return the exit status; raise it again if it is a bug in SAFMN."""
    from safmn import own_code

    own = own_code.is_from_own_code(error)
    if not own and not isinstance(error, (UserError, OSError)):
        raise error
    text = own_code.described(error) if own and not isinstance(error, UserError) else str(error)
    if own:
        text += own_code.causes_missing_in(text, error)
        whole = own_code.full_traceback(error)
        text += f"\n    {_where_to_find(whole, debug=debug)}"
        if debug:
            complain(whole)
    complain(f"safmn: error: {text}")
    return error.status if isinstance(error, UserError) else EXIT_USER_ERROR


def _where_to_find(traceback: str, *, debug: bool) -> str:
    """Write a traceback to the log files, if there are any, and return a sentence that says where it is."""
    logger = logging.getLogger("safmn")
    files = [handler.baseFilename for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    if files:
        logger.error("traceback of the error:\n%s", traceback, extra=FILE_ONLY)
        return f"The whole traceback is in {files[0]}."
    return "The whole traceback is above." if debug else "--debug shows the whole traceback."


def exit_status(run: Callable[..., int]) -> Callable[..., int]:
    """Decorate an entry point: a user's mistake (``UserError``, ``OSError``) becomes a message on stderr and status 2.

    Ctrl-C also becomes a message, with status 130. If the reader of the output is gone (``| head``), the status is 141,
    as for SIGPIPE. An exception in the user's own code (a network, a metric) becomes a message with file and line, and
    status 2; the whole traceback goes to the log file, if there is one, and to stderr with ``--debug``. Any other
    exception is a bug in SAFMN and keeps its traceback.
    """

    @functools.wraps(run)
    def entry_point(*args: object, **kwargs: object) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
        escape_last_resort()
        try:
            return run(*args, **kwargs)
        except BrokenPipeError:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # else Python complains at the last flush
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except KeyboardInterrupt as interrupt:
            complain("safmn: interrupted")
            return status_after(interrupt)
        except Exception as error:
            return _reported(error, debug="--debug" in (next(iter(args), None) or sys.argv[1:]))  # type: ignore[operator]

    return entry_point
