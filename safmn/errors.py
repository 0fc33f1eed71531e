"""Errors that a person can act on, and how the doors turn them into a message and an exit status.

Exit statuses: 0 done; 1 the work ran but something in it failed (a number drifted, an image could not be read);
2 a mistake in what the user gave (an option, a file, a data set); 130 Ctrl-C; 141 nobody reads the output any more;
others are documented where they are raised.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from safmn.system.console import complain, escape_last_resort

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


class UserError(ValueError):
    """A mistake in what the user gave. The message names the file, key or image and says what to do.

    Attributes:
        status: the exit status of a command that ends with it.
    """

    status = EXIT_USER_ERROR


class OptionError(UserError):
    """A mistake in an option file: names the file and the key path."""


class DataError(UserError):
    """An image, data set or store that is missing, unreadable or does not fit its counterpart."""


class WeightsError(UserError):
    """A weight file that is missing, unreadable, damaged or made for another network."""


class CheckpointError(UserError):
    """A training checkpoint that is damaged, incomplete, or belongs to other options."""


class RankError(UserError):
    """Another rank of the job stopped; the message says which, and why.

    Args:
        status: the exit status of that rank.
        fatal: it cannot go on with anything else, as it can after a mistake in one data set.
    """

    def __init__(self, message: str, *, status: int = EXIT_USER_ERROR, fatal: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.fatal = fatal


class Terminated(KeyboardInterrupt):
    """SIGTERM (of ``timeout``, a scheduler, a container that stops), which leaves as Ctrl-C does."""


def status_after(interrupt: KeyboardInterrupt) -> int:
    """128 + the signal's number, as shells report it."""
    return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'scale'?"`` for the nearest known name, or the empty string where none is near."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that may be anybody's; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` (file and key, say) before the message of a user's mistake in the block."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error


def exit_status(run: Callable[..., int]) -> Callable[..., int]:
    """Decorate a door: a user's mistake (``UserError``, ``OSError``) becomes one message on stderr and status 2.

    So does Ctrl-C, with status 130. A reader of the output that is gone (``| head``) ends it with status 141, as
    SIGPIPE does. Anything else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(run)
    def door(*args: object, **kwargs: object) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
        escape_last_resort()
        try:
            return run(*args, **kwargs)
        except BrokenPipeError:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # else Python complains when it flushes it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except (UserError, OSError) as error:
            complain(f"safmn: error: {error}")
            return error.status if isinstance(error, UserError) else EXIT_USER_ERROR
        except KeyboardInterrupt as interrupt:
            complain("safmn: interrupted")
            return status_after(interrupt)

    return door
