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

PARTIAL = ".{}.partial-"  # a name until it is whole, and eight characters of tempfile's


@contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a path to write to; what was written there becomes `path` when the block ends well.

    Raises:
        ClipstemError: if `path` exists, unless it is to be replaced.
    """
    if not replace:
        require_new(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL.format(path.name))
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            _flush(partial)
            partial.chmod(0o644)
            if not replace:
                require_new(path)  # somebody may have made it meanwhile
            partial.rename(path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder and all the files in it."""
    require_new(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL.format(path.name)))
        try:
            yield partial
            partial.chmod(0o755)
            for entry in sorted(partial.rglob("*")):
                entry.chmod(0o755 if entry.is_dir() else 0o644)
                _flush(entry)
            require_new(path)
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


def require_new(path: Path, setting: str = "") -> None:
    """Refuse a path that exists or could not be made, so that no long work is done for nothing.

    `setting` is how another one is given, such as out=<folder>.

    Raises:
        ClipstemError: if it exists, lies in what is no folder or cannot be written, or is no name.
    """
    instead = f"give another {setting}" if setting else "choose another name or move it away"
    try:
        if _is_there(path):
            raise ClipstemError(f"{path} exists and is never overwritten; {instead}")
        _is_there(path.with_name(PARTIAL.format(path.name) + 8 * "x"))  # may be too long a name
        above = next(it for it in path.absolute().parents if _is_there(it))
        for name in path.absolute().relative_to(above).parts:
            _is_there(above / name)
    except OSError as error:
        raise ClipstemError(f"{path}: cannot be made ({error.strerror}); {instead}") from None
    if not above.is_dir():
        raise ClipstemError(f"{path}: cannot be made, {above} is no folder; {instead}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ClipstemError(f"{path}: cannot be made, {above} cannot be written to; {instead}")


def _is_there(path: Path) -> bool:
    """Whether a path exists, be it a link that leads nowhere; any Python raises alike here."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _flush(path: Path) -> None:
    """Make the kernel write a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
