"""Files that are either whole or not there: written beside their name, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipstem.question import ClipstemError


@contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a path to write to; what was written there becomes `path` when the block ends well.

    Raises:
        ClipstemError: if `path` exists, unless it is to be replaced.
    """
    if not replace:
        _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _flush(partial)
        partial.chmod(0o644)
        if not replace:
            _refuse_existing(path)  # somebody may have made it meanwhile
        partial.rename(path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder and all the files in it."""
    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        yield partial
        partial.chmod(0o755)
        for file in sorted(partial.rglob("*")):
            _flush(file)
        _refuse_existing(path)
        partial.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ClipstemError(
            f"{path} exists and is never overwritten; choose another name or move it away"
        )


def _flush(path: Path) -> None:
    """Make the kernel write a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
