"""Progress of ``safmn upscale`` over its files."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

from safmn.inference.file_jobs import FileJob
from safmn.system.console import one_line, say_line


class FileBar:
    """Progress over all files and within each: a bar on a terminal, otherwise a line for each file."""

    def __init__(self, total: int, watch: Callable[[float], None] | None = None) -> None:
        self.total = total
        self.watch = watch
        self.done = 0.0  # files, with the part of the current one
        self.finished = 0
        layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        self.bar = tqdm(
            total=total,
            bar_format=layout,
            disable=not total or sys.stderr is None or not sys.stderr.isatty(),
            leave=False,
        )
        self.plain = self.bar.disable

    def __enter__(self) -> FileBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def start(self, job: FileJob) -> None:
        """Show the name of the next file."""
        self.name = job.source.name
        self.note("")

    def advance(self, part: float) -> None:
        """Advance by a part (0 to 1) of a file."""
        part = min(part, self.total - self.done)
        self.done += part
        self.bar.update(part)
        if self.watch is not None:
            self.watch(self.done / self.total)

    def note(self, text: str) -> None:
        """Show a text beside the bar."""
        self.bar.set_postfix_str(one_line(f"{self.finished}/{self.total} {self.name} {text}"), refresh=False)

    def finish(self, message: str) -> None:
        """Count a file in full, even if it failed halfway; without a bar, print the message."""
        self.finished += 1
        self.advance(max(self.finished - self.done, 0))
        if self.plain:
            say_line(f"[{self.finished}/{self.total}] {message}")
