"""A command of SAFMN that saves and ends when the process that started it is gone, even if that one was killed.

``python -m safmn.system.guarded train -opt my.yml`` is ``safmn train -opt my.yml``. Its standard input is a pipe whose
other end the starting process holds, and writes nothing to: the operating system closes it when that process ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_starter() -> None:
    """Watch standard input in a thread; send SIGTERM to this process when it ends. Training then saves and ends."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run the command and return its exit status."""
    end_with_starter()
    from safmn.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
