"""Serve a folder with the two headers that WebAssembly needs for threads.

    python scripts/serve_page.py docs/browser --port 8000

For trying pages on this machine: it answers to this machine alone.
"""

from __future__ import annotations

import argparse
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Isolated(SimpleHTTPRequestHandler):
    """Files of a folder, for pages that are isolated from other origins."""

    # Windows' registry may name other types, with which browsers refuse modules and WebAssembly.
    extensions_map = {  # noqa: RUF012  # the base class's
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def end_headers(self) -> None:
        """Add the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def main() -> int:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser(description="Serve a folder with the headers that WebAssembly needs for threads.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    handler = functools.partial(Isolated, directory=str(options.folder))
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}/\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
