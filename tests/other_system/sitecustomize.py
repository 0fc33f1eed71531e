"""Make a Python process on Linux look like Windows or macOS to the code of SAFMN, and only to it.

Python imports this file when it starts if the folder is on PYTHONPATH; so do the processes that it starts.
``tests/test_other_systems.py`` sets the environment variables and has written the list of missing names.

The code of SAFMN gets stand-ins for ``os``, ``signal``, ``sys`` and others. These lack what the system lacks, and
``sys.platform`` is the system's. Other libraries keep the real modules, because on Windows they would not run the code
that they run here. For everybody:

- Nothing can fork. Worker processes are spawned.
- Reading or writing a text file of SAFMN without ``encoding`` is an error.
- On Windows, in the test's folder: an open file cannot be renamed, replaced or deleted, nor a folder with one; a folder
  cannot be opened or replaced; a file cannot have a name that Windows does not allow.
"""

import builtins
import errno
import io
import json
import multiprocessing
import os
import signal
import sys
import warnings
from types import ModuleType

SYSTEM = os.environ["SAFMN_TEST_SYSTEM"]  # win32 or darwin, as in sys.platform
FOLDER = os.path.realpath(os.environ["SAFMN_TEST_FOLDER"])  # files of the test
ROOT = os.environ["SAFMN_TEST_ROOT"]  # of the repository
MISSING = json.loads(os.environ["SAFMN_TEST_MISSING"])  # module -> names that it lacks; None: there is no such module
CODE = tuple(os.path.join(ROOT, part) + os.sep for part in ("safmn", "scripts"))
REPORT = os.environ.get("SAFMN_TEST_REPORT")


class StandIn(ModuleType):
    """A module without some of its names."""

    def __init__(self, real, missing, own):
        super().__init__(real.__name__)
        for name, value in {"_real": real, "_missing": missing, "_own": own}.items():
            object.__setattr__(self, name, value)

    def __getattribute__(self, name):
        if name in ("_real", "_missing", "_own"):
            return object.__getattribute__(self, name)
        if name in self._missing:
            raise AttributeError(f"module {self._real.__name__!r} has no attribute {name!r} on {SYSTEM}", name=name)
        return self._own[name] if name in self._own else getattr(self._real, name)

    def __setattr__(self, name, value):
        setattr(self._real, name, value)


def set_handler(number, handler):
    """As ``signal.signal``; Windows knows few signals."""
    if number not in (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM):
        raise ValueError("invalid signal value")
    return signal.signal(number, handler)


OWN = {"sys": {"platform": SYSTEM}}
if SYSTEM == "win32":
    OWN |= {"os": {"name": "nt"}, "signal": {"signal": set_handler}}
stand_ins = {}
import_module = builtins.__import__


def import_for(name, globals=None, locals=None, fromlist=(), level=0):
    """As ``__import__``; the code of SAFMN gets stand-ins."""
    asked = globals is not None and level == 0 and str(globals.get("__file__", "")).startswith(CODE)
    first = name.partition(".")[0]
    if not asked or (first not in MISSING and first not in OWN):
        return import_module(name, globals, locals, fromlist, level)
    missing = MISSING.get(first, ())
    if missing is None:
        raise ModuleNotFoundError(f"No module named {first!r} on {SYSTEM}", name=first)
    found = import_module(name, globals, locals, fromlist, level)
    if found.__name__ != first:  # from os.path import ...
        return found
    if first not in stand_ins:
        stand_ins[first] = StandIn(found, missing, OWN.get(first, {}))
    return stand_ins[first]


def no_fork():
    """Instead of ``os.fork``."""
    raise RuntimeError(f"something forks, which {SYSTEM} cannot or should not do")


RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))}


def refuse(number, path, windows_number, why):
    """Raise what Windows raises, and note it for the test: the command may handle it."""
    if REPORT:
        with open(REPORT, "a", encoding="utf-8") as file:
            file.write(f"{os.fsdecode(path)!r}: {why}\n")
    error = PermissionError(number, why, os.fsdecode(path)) if number == errno.EACCES else OSError(number, why, path)
    error.winerror = windows_number
    raise error


def check_name(path):
    """Refuse what Windows does not allow as the name of a file."""
    for part in os.path.relpath(path, FOLDER).split(os.sep):
        bad = set(part) & set('<>:"|?*\\') or any(ord(character) < 32 for character in part)
        if bad or part.partition(".")[0].rstrip().lower() in RESERVED or (part not in (".", "..") and part[-1] in ". "):
            refuse(errno.EINVAL, path, 123, "Windows does not allow this name")


def open_files():
    """Files of the test's folder that this process has open or mapped."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {slash + path for _, slash, path in (line.rstrip("\n").partition("/") for line in maps)}
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return {path for path in found | mapped if path.startswith(FOLDER + os.sep) and os.path.isfile(path)}


def whole(path, folder=-1):
    """The absolute path, or None if it is not in the test's folder."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
    return path if path.startswith(FOLDER + os.sep) else None


busy = False


def watch(event, arguments):
    """Refuse what Windows refuses (an audit hook of Python's)."""
    global busy
    if busy or event not in ("open", "os.rename", "os.remove", "os.mkdir"):
        return
    busy = True
    try:
        if event == "os.rename":
            source, target = whole(arguments[0], arguments[2]), whole(arguments[1], arguments[3])
            places = [place for place in (source, target) if place]
            if target:
                check_name(target)
                if os.path.isdir(target):
                    refuse(errno.EACCES, target, 5, "a folder cannot be replaced")
            check_closed(places)
        elif event == "os.remove":
            check_closed([place for place in (whole(arguments[0], arguments[1]),) if place])
        elif event == "os.mkdir":
            if place := whole(arguments[0], arguments[2]):
                check_name(place)
        elif place := whole(arguments[0]):
            if os.path.isdir(place) and not isinstance(arguments[1], type(None)) and arguments[2] & os.O_DIRECTORY == 0:
                refuse(errno.EACCES, place, 5, "a folder cannot be opened")
            if arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                check_name(place)
    finally:
        busy = False


def check_closed(places):
    """Refuse if one of the files, or a file in one of the folders, is open."""
    for path in open_files() if places else ():
        for place in places:
            if path == place or path.startswith(place + os.sep):
                refuse(errno.EACCES, path, 32, "the file is open")


def open_text(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    """As ``open``; on Windows, lines of text files end in CR LF unless the caller says otherwise."""
    if "b" not in mode:
        encoding = io.text_encoding(encoding)
        if newline is None and set(mode) & set("wax") and whole(file):
            newline = "\r\n"
    return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)


real_open = open
builtins.__import__ = import_for
os.fork = no_fork
multiprocessing.set_start_method("spawn")
warnings.filterwarnings("error", category=EncodingWarning, module=r"safmn\.")
if SYSTEM == "win32":
    io.open = builtins.open = open_text
    sys.addaudithook(watch)
