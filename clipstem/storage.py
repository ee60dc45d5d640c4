"""Files of a local folder or under a URL, whole or in pieces."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipstem.question import ClipstemError

TIMEOUT_S = 60

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
        try:
            return (self.path / file).read_bytes()
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
        except OSError:
            raise ClipstemError(
                f"{self.name(file)}: is missing; copy it again or prepare the data again"
            ) from None
        if found != size:
            raise _wrong_size(self.name(file), found, size)


@dataclass(frozen=True)
class Site:
    """Files under an http(s) URL, whose server must know `Range`. Same methods as `Folder`."""

    url: str
    gap_bytes = 2**20  # a request costs more than a megabyte

    def name(self, file: str) -> str:
        return f"{self.url.rstrip('/')}/{file}"

    def whole(self, file: str) -> bytes:
        return self._get(file, {})[1]

    def pieces(self, file: str, size: int, spans: Sequence[Span]) -> Iterator[bytes]:
        for start, stop in spans:
            range_sent, piece = self._get(file, {"Range": f"bytes={start}-{stop - 1}"})
            found = range_sent.rpartition("/")[2]
            if found != str(size):
                raise _wrong_size(self.name(file), int(found), size)
            yield piece

    def _get(self, file: str, headers: dict[str, str]) -> tuple[str, bytes]:
        """The reply's Content-Range, if it is a part, and its body."""
        request = urllib.request.Request(self.name(file), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                if "Range" in headers and reply.status != 206:
                    raise ClipstemError(
                        f"{self.name(file)}: the server ignores Range requests; use one that "
                        "knows them, or copy the data to a local folder"
                    )
                return reply.headers.get("Content-Range", ""), reply.read()
        except (urllib.error.URLError, OSError) as error:
            raise ClipstemError(
                f"{self.name(file)}: cannot be read ({getattr(error, 'reason', error)}); "
                "expected the files that python -m clipstem.prepare makes"
            ) from None


def storage(location: str) -> Folder | Site:
    """The files at a path or an http(s) URL; any other kind of URL is taken for a path."""
    if re.match(r"https?://", location):
        return Site(location)
    return Folder(Path(location))


def _wrong_size(where: str, found: int, size: int) -> ClipstemError:
    return ClipstemError(
        f"{where}: has {found:,} bytes, the manifest says {size:,}; "
        "copy it again or prepare the data again"
    )
