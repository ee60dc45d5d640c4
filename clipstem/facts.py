"""JSON that anybody may have written, as a dataclass: each field there, and of its own type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from clipstem.question import ClipstemError

Facts = TypeVar("Facts")

FAR = 1e15  # no measured fact is that large; a NaN is not below it
WHOLE = 2**63  # no whole number is that large: it has a float, and a column of a table


class Newer(ClipstemError):
    """A file of a later format than this clipstem reads: made anew it would be no other."""


def read(
    kind: type[Facts],
    path: Path,
    most_bytes: int,
    advice: str,
    check: Callable[[Facts], object] = lambda found: None,
    newest: int | None = None,
) -> Facts:
    """The dataclass `kind` of a JSON file; `advice` ends errors: what to do, or was expected.

    `check` refuses what its types allow, by a `ClipstemError` without the file's name. With
    `newest` the file has a format version.

    Raises:
        ClipstemError: naming the file and the reason: it is missing, too large or not as expected.
    """
    try:
        values = load(path, most_bytes)
        found = of_type(kind, values) if newest is None else of_version(kind, values, newest)
        check(found)
    except Newer as error:
        raise Newer(f"{path}: {error}") from None
    except ClipstemError as error:
        raise ClipstemError(f"{path}: {error}; {advice}") from None
    return found


def load(path: Path, most_bytes: int) -> Any:
    """What a JSON file holds.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise ClipstemError("there is no such file")
        if path.stat().st_size > most_bytes:
            raise ClipstemError(f"has more than {most_bytes:,} bytes")
        return parse(path.read_bytes())
    except OSError as error:
        raise ClipstemError(f"cannot be read ({error.strerror})") from None


def parse(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise ClipstemError(f"is not JSON in UTF-8 ({error})") from None


def of_version(kind: type[Facts], values: Any, newest: int) -> Facts:
    """`values` as the dataclass `kind`, whose format `format_version` says.

    Raises:
        Newer: if it is later than `newest`.
        ClipstemError: see `of_type`.
    """
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is int and version > newest:
        raise Newer(
            f"has format {_shown(version)}, this clipstem reads up to {newest}; update clipstem"
        )
    return of_type(kind, values)


def of_type(kind: type[Facts], values: Any, name: str = "it") -> Facts:
    """`values` as the dataclass `kind`; what it does not have as a field is passed over.

    Raises:
        ClipstemError: naming the field that is missing or of another type.
    """
    made: Facts = _typed(kind, values, name)
    return made


def _typed(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _dataclass(hint, value, name)
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        hints = [it for it in args if it is not type(None)]
        return None if value is None else _typed(hints[0], value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _typed(args[1], item, f"{name}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) in (int, float) and abs(value) < FAR:
        return float(value)
    if hint is float or type(value) is not (origin or hint):  # a NaN is a float, and no number
        raise ClipstemError(f"{name} is {_shown(value)}; expected {_EXPECTED[origin or hint]}")
    if hint is int and abs(value) >= WHOLE:
        raise ClipstemError(f"{name} is {_shown(value)}; expected a whole number below 2^63")
    return value


def _dataclass(kind: Any, values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise ClipstemError(f"{name} is {_shown(values)}; expected an object")
    hints = _hints(kind)
    if missing := sorted(hints.keys() - values.keys()):
        raise ClipstemError(f"{'' if name == 'it' else name + ' '}lacks {', '.join(missing)}")
    prefix = "" if name == "it" else f"{name}."
    return kind(**{key: _typed(hint, values[key], prefix + key) for key, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_EXPECTED: dict[Any, str] = {
    **{str: "a text", int: "a whole number", float: "a number below 1e15", bool: "true or false"},
    **{dict: "an object", tuple: "a list", list: "a list"},
}
