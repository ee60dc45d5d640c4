"""Files that are either whole or not there: written beside their name, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipstem.question import ClipstemError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says that is full or read-only, or that does not belong to us."""


@contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a path to write to; what was written there becomes `path` when the block ends well.

    Raises:
        ClipstemError: if `path` exists, unless it is to be replaced.
    """
    if not replace:
        refuse_existing(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            _flush(partial)
            partial.chmod(0o644)
            if not replace:
                refuse_existing(path)  # somebody may have made it meanwhile
            partial.rename(path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder and all the files in it."""
    refuse_existing(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
        try:
            yield partial
            partial.chmod(0o755)
            for entry in sorted(partial.rglob("*")):
                entry.chmod(0o755 if entry.is_dir() else 0o644)
                _flush(entry)
            refuse_existing(path)
            partial.rename(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file a disk does not take, which the error itself often does not know."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ClipstemError(
            f"{path}: could not be written ({error.strerror}); what was there is as it was"
        ) from error


def refuse_existing(path: Path, setting: str = "") -> None:
    """Refuse a path that exists; `setting` is how another one is given, such as out=<folder>.

    Raises:
        ClipstemError: if it does.
    """
    if path.exists():
        instead = f"give another {setting}" if setting else "choose another name or move it away"
        raise ClipstemError(f"{path} exists and is never overwritten; {instead}")


def _flush(path: Path) -> None:
    """Make the kernel write a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
