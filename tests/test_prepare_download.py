"""safmn prepare download with a local host: resume, verify, extract, and errors."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import itertools
import re
import socketserver
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from safmn.cli.prepare import main
from safmn.errors import DataError
from safmn.imaging import encode_png, read_rgb
from safmn.prepare import download as module
from safmn.prepare.download import SETS, Archive, DataSet, Part, download, extract, fetch


class Host:
    """A local HTTP server with range requests; ``limit`` cuts every answer after so many bytes.

    ``ranges`` records the Range header of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.limit: int | None = None
        self.etag = '"one"'
        self.ranges: list[str | None] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        content, wanted = self.files.get(request.path[1:]), request.headers.get("Range")
        self.ranges.append(wanted)
        if content is None:
            request.send_error(404)
            return
        start = 0
        if wanted and request.headers.get("If-Range", self.etag) == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
        if start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        end = len(content) if self.limit is None else min(len(content), start + self.limit)
        request.wfile.write(content[start:end])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


CONTENT = np.random.default_rng(0).bytes(300_000)


def archive_of(host: Host, name: str = "data.zip", content: bytes = CONTENT) -> Archive:
    """Put a file on the host and return its description."""
    host.files[name] = content
    return Archive(host.url(name), len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")


def test_a_download_resumes_after_every_broken_connection(host: Host, tmp_path: Path) -> None:
    archive, path = archive_of(host), tmp_path / "downloads" / "data.zip"
    host.limit = 70_000
    fetch(archive, path, tries=2, pause=0)
    assert path.read_bytes() == CONTENT
    assert host.ranges == [None, *(f"bytes={number * module._CHUNK}-" for number in (1, 2, 3, 4))]
    assert [p.name for p in path.parent.iterdir()] == ["data.zip"]
    fetch(archive, path, tries=1, pause=0)
    assert len(host.ranges) == 5  # an existing file is not downloaded again


def test_a_second_command_resumes(host: Host, tmp_path: Path) -> None:
    archive, path = archive_of(host), tmp_path / "data.zip"
    host.limit = 0
    with pytest.raises(DataError, match="same command again") as error:
        fetch(archive, path, tries=2, pause=0)
    assert archive.url in str(error.value)
    assert f"{path}" in str(error.value)
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:100_000])
    host.limit, host.ranges = None, []
    fetch(archive, path, tries=1, pause=0)
    assert host.ranges == ["bytes=100000-"]
    assert path.read_bytes() == CONTENT


def test_a_complete_partial_file_is_accepted(host: Host, tmp_path: Path) -> None:
    archive = archive_of(host)
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    fetch(archive, tmp_path / "data.zip", tries=1, pause=0)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert host.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_partial_file_longer_than_the_file_is_replaced(host: Host, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    fetch(archive_of(host), tmp_path / "data.zip", tries=2, pause=0)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_changed_file_is_not_mixed_with_the_old_one(host: Host, tmp_path: Path) -> None:
    archive = archive_of(host)
    host.limit = module._CHUNK + 5
    with pytest.raises(DataError, match="cannot download"):
        module._download(archive, tmp_path / "data.zip.part", tmp_path / "data.zip", 0, 0)
    assert (tmp_path / "data.zip.part").stat().st_size == module._CHUNK
    host.limit, host.etag = None, '"two"'
    archive = archive_of(host, content=CONTENT[::-1])
    fetch(archive, tmp_path / "data.zip", tries=1, pause=0)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT[::-1]


def test_a_damaged_download_is_refused_and_removed(host: Host, tmp_path: Path) -> None:
    archive = archive_of(host)
    host.files["data.zip"] = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match=r"data\.zip.*sha256"):
        fetch(archive, tmp_path / "data.zip", tries=1, pause=0)
    assert list(tmp_path.iterdir()) == []
    host.files["data.zip"] = CONTENT + b"more"
    with pytest.raises(DataError, match="300004 bytes"):
        fetch(archive, tmp_path / "data.zip", tries=1, pause=0)


def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(host: Host, tmp_path: Path) -> None:
    archive = archive_of(host)
    (tmp_path / "data.zip").write_bytes(b"something else")
    with pytest.raises(DataError, match="delete it"):
        fetch(archive, tmp_path / "data.zip", tries=1, pause=0)
    assert (tmp_path / "data.zip").read_bytes() == b"something else"
    assert host.ranges == []


def test_a_missing_file_is_not_retried_and_a_missing_host_is_reported(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="404"):
        fetch(Archive(host.url("none.zip")), tmp_path / "none.zip", tries=3, pause=0)
    assert len(host.ranges) == 1  # the host's answer is final
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(DataError, match=r"cannot download.*refused") as error:
        fetch(Archive(host.url("data.zip")), tmp_path / "data.zip", tries=2, pause=0)
    assert "By hand" in str(error.value)


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8))


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def local(part: Part, host: Host, content: bytes, counts: tuple[tuple[str, int], ...]) -> Part:
    """Return a part of a published set with its archive on the local host and other image counts."""
    return Part(archive_of(host, part.archive.name, content), part.pattern, part.target, counts)


def test_df2k_is_laid_out(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    div2k, flickr2k = SETS["df2k"].parts
    first = zip_of(
        {"DIV2K_train_HR/": b"", "DIV2K_train_HR/0001.png": png(1), "__MACOSX/DIV2K_train_HR/._0001.png": b"x"}
    )
    second = tar_of(
        {
            "Flickr2K/Flickr2K_HR/000001.png": png(2),
            "Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png": png(3),
            "Flickr2K/Flickr2K_HR/../../../escaped.png": png(4),
        }
    )
    parts = (
        local(div2k, host, first, (("DF2K/HR/????.png", 1),)),
        local(flickr2k, host, second, (("DF2K/HR/??????.png", 1),)),
    )
    monkeypatch.setitem(SETS, "df2k", DataSet("", parts, SETS["df2k"].then))
    root = tmp_path / "datasets"
    assert main(["download", "df2k", "--root", str(root)]) == 0
    assert f"next: safmn prepare lr --hr {root}/DF2K/HR --scales 2 3 4" in capsys.readouterr().out
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["datasets/DF2K/HR/000001.png", "datasets/DF2K/HR/0001.png"]
    np.testing.assert_array_equal(encode_png(read_rgb(root / "DF2K/HR/0001.png")), png(1))
    requests = len(host.ranges)
    assert main(["download", "df2k", "--root", str(root)]) == 0
    assert len(host.ranges) == requests  # the set is complete, so nothing is requested


def test_benchmarks_and_validation_are_laid_out(host: Host, tmp_path: Path) -> None:
    (part,) = SETS["benchmark"].parts
    content = tar_of(
        {
            "benchmark/Set5/HR/baby.png": png(1),
            "benchmark/Set5/LR_bicubic/X4/babyx4.png": png(2),
            "benchmark/B100/HR/101085.png": png(3),
            "benchmark/Set5/bin/HR/baby.pt": b"cache",
            "benchmark/Other/HR/a.png": png(4),
        }
    )
    download([local(part, host, content, (("benchmark/Set5/HR/[!.]*.png", 1),))], tmp_path)
    x3 = SETS["div2k-val"].parts[2]
    assert "X3" in x3.archive.name
    content = zip_of({"DIV2K_valid_LR_bicubic/X3/0801x3.png": png(5)})
    pattern = x3.counts[0][0]
    download([local(x3, host, content, ((pattern, 1),))], tmp_path, keep=True)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [
        "benchmark/B100/HR/101085.png",
        "benchmark/DIV2K_val100/LR_bicubic/X3/0801x3.png",
        "benchmark/Set5/HR/baby.png",
        "benchmark/Set5/LR_bicubic/X4/babyx4.png",
        "downloads/DIV2K_valid_LR_bicubic_X3.zip",
    ]


def test_extraction_keeps_complete_files_and_replaces_truncated_ones(tmp_path: Path) -> None:
    part = SETS["div2k"].parts[0]
    archive = tmp_path / "downloads" / part.archive.name
    archive.parent.mkdir()
    archive.write_bytes(zip_of({f"DIV2K_train_HR/000{n}.png": png(n) for n in range(1, 4)}))
    folder = tmp_path / "DIV2K" / "HR"
    folder.mkdir(parents=True)
    (folder / "0001.png").write_bytes(png(1))
    (folder / "0002.png").write_bytes(png(2)[:40])
    before = (folder / "0001.png").stat().st_mtime_ns
    extract(archive, part, tmp_path)
    assert [(folder / f"000{n}.png").read_bytes() == png(n) for n in (1, 2, 3)] == [True] * 3
    assert (folder / "0001.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["data.zip", "data.tar"])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, name: str) -> None:
    members = {f"DIV2K_train_HR/000{n}.png": png(n) * 50 for n in range(1, 4)}
    content = zip_of(members) if name.endswith("zip") else tar_of(members)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        extract(tmp_path / name, SETS["div2k"].parts[0], tmp_path)


def test_an_archive_without_the_images_is_refused(tmp_path: Path, host: Host) -> None:
    part = SETS["div2k"].parts[0]
    content = zip_of({"DIV2K_train_HR/0001.png": png(1)})
    with pytest.raises(DataError, match=r"2 of 3 DIV2K/HR/\?\?\?\?\.png"):
        download([local(part, host, content, (("DIV2K/HR/????.png", 3),))], tmp_path)


def test_without_a_network_the_command_ends_with_status_2(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.server.shutdown()
    host.server.server_close()
    part = SETS["div2k"].parts[0]
    gone = Part(Archive(host.url("DIV2K_train_HR.zip")), part.pattern, part.target, part.counts)
    monkeypatch.setitem(SETS, "div2k", DataSet("", (gone,)))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    assert main(["download", "div2k", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "cannot download" in error
    assert str(tmp_path / "downloads/DIV2K_train_HR.zip") in error
    assert "Traceback" not in error


def test_the_published_table_is_well_formed() -> None:
    for data_set in SETS.values():
        for part in data_set.parts:
            assert part.archive.url.startswith("https://")
            algorithm, _, digest = (part.archive.digest or "").partition(":")
            assert len(digest) == hashlib.new(algorithm).digest_size * 2
            assert re.compile(part.pattern).groups >= 1
            assert part.counts


class Rude:
    """A server that gives every connection the same answer: headers, then all pieces; ``sent`` counts their bytes."""

    def __init__(self, head: str, pieces: Callable[[], Iterator[bytes]]) -> None:
        self.sent = 0
        rude = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline().strip():
                    pass
                with contextlib.suppress(OSError):
                    self.wfile.write(f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode())
                    for piece in itertools.islice(pieces(), 10_000):
                        self.wfile.write(piece)
                        rude.sent += len(piece)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/data.zip"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def rude(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rude]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hosts = []

    def make(head: str, pieces: Callable[[], Iterator[bytes]] = lambda: iter(())) -> Rude:
        hosts.append(Rude(head, pieces))
        return hosts[-1]

    yield make
    for host in hosts:
        host.server.shutdown()
        host.server.server_close()


PIECE = bytes(2**16)
ENDLESS = {
    "no length": ("200 OK", lambda: itertools.repeat(PIECE)),
    "chunked": (
        "200 OK\r\nTransfer-Encoding: chunked",
        lambda: itertools.repeat(b"%x\r\n%b\r\n" % (len(PIECE), PIECE)),
    ),
    "huge length": ("200 OK\r\nContent-Length: 10000000000000", lambda: itertools.repeat(PIECE)),
    "wrong length": ("200 OK\r\nContent-Length: lots", lambda: itertools.repeat(PIECE)),
    "negative length": ("200 OK\r\nContent-Length: -5", lambda: itertools.repeat(PIECE)),
    "gzip": ("200 OK\r\nContent-Encoding: gzip", lambda: iter([gzip.compress(bytes(10**7))])),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("size_known", [True, False])
def test_too_long_answers_are_refused_early(
    rude: Callable[..., Rude], tmp_path: Path, kind: str, size_known: bool
) -> None:
    """The server offers 600 MB, 300 kB are expected, and the socket buffers hold a few MB."""
    host = rude(*ENDLESS[kind])
    archive = Archive(host.url, 300_000) if size_known else Archive(host.url, at_most=300_000)
    with pytest.raises(DataError, match=r"300000 bytes|compressed"):
        fetch(archive, tmp_path / "data.zip", tries=1, pause=0)
    assert host.sent < 50_000_000
    assert list(tmp_path.iterdir()) == []


def test_a_very_slow_host_is_given_up(
    rude: Callable[..., Rude], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCHED", 0.2)

    def slow() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b"x"

    start = time.monotonic()
    with pytest.raises(DataError, match=r"only [0-9]+ bytes"):
        fetch(Archive(rude("200 OK", slow).url, 300_000), tmp_path / "data.zip", tries=2, pause=0)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/data.zip"])
def test_redirects_to_other_schemes_are_not_followed(rude: Callable[..., Rude], tmp_path: Path, place: str) -> None:
    host = rude(f"302 Found\r\nLocation: {place}\r\nContent-Length: 0")
    with pytest.raises(DataError, match="No connection adapters"):
        fetch(Archive(host.url, 300_000), tmp_path / "data.zip", tries=3, pause=60)
    assert not (tmp_path / "data.zip").exists()


def test_a_range_with_another_offset_is_not_appended(rude: Callable[..., Rude], tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])
    host = rude(
        "206 Partial Content\r\nContent-Range: bytes 0-9/300000\r\nContent-Length: 10", lambda: iter([bytes(10)])
    )
    with pytest.raises(DataError, match="removed"):
        fetch(Archive(host.url, 300_000), tmp_path / "data.zip", tries=1, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(host)
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"data\.zip\.part cannot be written.*0 MB are free.*same command"):
        fetch(archive, tmp_path / "data.zip", tries=3, pause=0)
    assert len(host.ranges) == 1

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    (tmp_path / "a.zip").write_bytes(zip_of({"DIV2K_train_HR/0001.png": png(1)}))
    with pytest.raises(DataError, match=r"not enough space for .*a\.zip"):
        extract(tmp_path / "a.zip", SETS["div2k"].parts[0], tmp_path)


def test_an_archive_cannot_leave_its_folder_or_exceed_its_size(tmp_path: Path) -> None:
    """Names that lead out of the folder and a zip bomb are refused; links and pipes are skipped."""
    root = tmp_path / "root"
    free = Part(Archive("https://x/a.tar"), r"in/(?P<name>.*\.png)", "{name}", ())
    for name in ("in/../escaped.png", f"in/{tmp_path}/escaped.png"):
        (tmp_path / "a.tar").write_bytes(tar_of({name: png(1)}))
        with pytest.raises(DataError, match="not the expected file"):
            extract(tmp_path / "a.tar", free, root)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("in/link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    extract(tmp_path / "a.tar", free, root)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("in/0001.png", bytes(80_000_000))
    with pytest.raises(DataError, match="80000000 bytes"):
        extract(tmp_path / "a.zip", free, root)
    assert not root.exists() or not [path for path in root.rglob("*") if path.is_file()]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.tar", "a.zip"]
