"""Files of a local folder or under a URL, whole or in pieces."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipstem.question import ClipstemError

TIMEOUT_S = 60
MAX_WHOLE_BYTES = 2**30  # of a manifest or an index: 100 bytes for each of ten million questions
RETRY_WAITS_S = (1.0, 4.0)  # before the second and the third try of a read over the network
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)  # what a server says that is busy or restarts

Span = tuple[int, int]  # bytes: first, and one after the last


@dataclass(frozen=True)
class Folder:
    """Files of a local folder."""

    path: Path
    gap_bytes = 64 * 2**10  # reading over a small gap is cheaper than a second call

    def name(self, file: str) -> str:
        return str(self.path / file)

    def whole(self, file: str) -> bytes:
        """All of a file.

        Raises:
            ClipstemError: if it cannot be read.
        """
        path = self.path / file
        try:
            # A pipe or a device has no end.
            if path.exists() and not path.is_file():
                raise OSError(0, "is no plain file")
            if path.exists() and path.stat().st_size > MAX_WHOLE_BYTES:
                raise OSError(0, f"has more than {MAX_WHOLE_BYTES:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise ClipstemError(
                f"{self.name(file)}: cannot be read ({error.strerror}); prepare the data again"
            ) from None

    def pieces(self, file: str, size: int, spans: Sequence[Span]) -> Iterator[bytes]:
        """Pieces of a file that has `size` bytes.

        Raises:
            ClipstemError: if it cannot be read or has another size.
        """
        self.check_size(file, size)
        with (self.path / file).open("rb", buffering=0) as opened:
            for start, stop in spans:
                yield os.pread(opened.fileno(), stop - start, start)

    def check_size(self, file: str, size: int) -> None:
        """Refuse a file that is missing or does not have `size` bytes."""
        try:
            found = (self.path / file).stat().st_size
            if not (self.path / file).is_file():
                raise OSError
        except OSError:
            raise ClipstemError(
                f"{self.name(file)}: is missing; copy it again or prepare the data again"
            ) from None
        if found != size:
            raise _wrong_size(self.name(file), found, size)


@dataclass(frozen=True)
class Site:
    """Files under an http(s) URL, whose server must know `Range`. Same methods as `Folder`.

    A read that fails in a way that may pass is tried again after each of `RETRY_WAITS_S`.
    """

    url: str
    gap_bytes = 2**20  # a request costs more than a megabyte

    def name(self, file: str) -> str:
        return f"{self.url.rstrip('/')}/{file}"

    def whole(self, file: str) -> bytes:
        return self._get(file, None)[1]

    def pieces(self, file: str, size: int, spans: Sequence[Span]) -> Iterator[bytes]:
        for span in spans:
            found, piece = self._get(file, span)
            if found not in (None, size):  # where the server does not know it, hashes are enough
                raise _wrong_size(self.name(file), found, size)
            yield piece

    def _get(self, file: str, span: Span | None) -> tuple[int | None, bytes]:
        """The file's size, if a span was asked for and the server knows it; the reply's body."""
        name = self.name(file)
        waits = iter(RETRY_WAITS_S)
        while True:
            try:
                return _get_once(name, span)
            except ClipstemError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: bad URL
                may_pass = _may_pass(error)
                reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
                reason = reason or type(error).__name__
            if not may_pass:
                raise ClipstemError(
                    f"{name}: cannot be read ({reason}); "
                    "expected the files that python -m clipstem.prepare makes"
                )
            if (wait := next(waits, None)) is None:
                raise ClipstemError(
                    f"{name}: cannot be read in {len(RETRY_WAITS_S) + 1} tries ({reason}); "
                    "check the address and the server, or copy the data to a local folder"
                )
            time.sleep(wait)


def _get_once(url: str, span: Span | None) -> tuple[int | None, bytes]:
    headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        if span is not None and reply.status != 206:
            raise ClipstemError(
                f"{url}: the server ignores Range requests; use one that "
                "knows them, or copy the data to a local folder"
            )
        range_sent = reply.headers.get("Content-Range", "")
        most = MAX_WHOLE_BYTES if span is None else span[1] - span[0]
        body = reply.read(most + 1)
        if len(body) > most:
            raise ClipstemError(f"{url}: the server sends more than {most:,} bytes")
        if reply.length:
            raise http.client.IncompleteRead(body, reply.length)
    if span is None:
        return None, body
    if not (sent := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", range_sent)):
        raise ClipstemError(
            f"{url}: the server's Content-Range is '{range_sent}'; expected one like "
            "'bytes 0-511/2048'; use another server, or copy the data to a local folder"
        )
    missing = int(sent[2]) + 1 - int(sent[1]) - len(body)
    if missing > 0:
        raise http.client.IncompleteRead(body, missing)
    return None if sent[3] == "*" else int(sent[3]), body


def _may_pass(error: Exception) -> bool:
    """Whether a second try may succeed: not where the URL is wrong or the file is not there."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in RETRIED_STATUS
    return not isinstance(error, http.client.InvalidURL | ValueError)


def storage(location: str) -> Folder | Site:
    """The files at a path or an http(s) URL; any other kind of URL is taken for a path."""
    if re.match(r"https?://", location):
        return Site(location)
    return Folder(Path(location))


def file_sha256(path: Path) -> str:
    """The hash of a local file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _wrong_size(where: str, found: int, size: int) -> ClipstemError:
    return ClipstemError(
        f"{where}: has {found:,} bytes, the manifest says {size:,}; "
        "copy it again or prepare the data again"
    )
