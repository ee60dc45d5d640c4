"""The door that settings come in by: Hydra outside, the dataclasses of `config` inside."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from clipstem import config as settings
from clipstem.config import ModelConfig
from clipstem.question import ClipstemError

Config = TypeVar("Config")

MAX_BYTES, MAX_DEPTH, MAX_ALIASES = 100_000, 50, 20  # of a file of settings


def conf_folder() -> Path:
    """Where the YAML files are: inside the installed package, else beside it in a checkout.

    Raises:
        ClipstemError: if they are in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ClipstemError(f"the configuration files are neither in {package} nor beside it")


def verb(
    name: str, schema: type[Config], first_word: str | None = None
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Make a function of a config dataclass a command: Hydra outside, plain dataclasses inside.

    `first_word` names the setting that a bare first word on the command line is the value of. A
    user's mistake prints one line and exits with 2; Hydra's own composition errors exit with 1.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)

    def decorate(function: Callable[[Config], None]) -> Callable[[], None]:
        def checked(raw: DictConfig) -> None:
            with _one_line_errors(name):
                function(to_dataclass(schema, raw))

        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):  # Hydra's own takes twice as long to say less
                print(help_text(name, schema))
                return
            if first_word and sys.argv[1:] and re.fullmatch(r"\w+", sys.argv[1]):
                sys.argv[1] = f"{first_word}={sys.argv[1]}"
            with _one_line_errors(name):
                check_keys(schema, sys.argv[1:])
                _refuse_code(sys.argv[1:])
            sys.argv[1:] = map(_quoted, sys.argv[1:])
            hydra.main(config_path=str(conf_folder()), config_name=name, version_base="1.3")(
                checked
            )()

        return main

    return decorate


def help_text(name: str, schema: type) -> str:
    """What a verb does and each of its settings: `config`'s docstrings, with the defaults."""
    files = Path(settings.__file__).parent.glob("*.py")
    described = {
        (node.name, before.target.id): after.value.value
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        for before, after in pairwise(node.body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    lines = [str(schema.__doc__), ""]
    for key, owner, default in _settings(schema):
        said = "" if default is None else f"={default}"
        lines += [f"  {key}{said}", f"      {described[owner.__name__, key.split('.')[-1]]!s}"]
    groups = sorted(path.name for path in conf_folder().iterdir() if path.is_dir())
    lines += [
        "",
        f"conf/{name}.yaml and the files of conf/ that it names come before these defaults;",
        f"groups of files: {', '.join(groups)}. --hydra-help says more.",
    ]
    return "\n".join(lines)


def _settings(schema: Any, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Each plain setting: its key, the dataclass that has it, and its default as it is typed."""
    children = _children(schema)
    for it in fields(schema):
        if (child := children[it.name]) is not None:
            yield from _settings(child, f"{prefix}{it.name}.")
            continue
        default = it.default if it.default_factory is NO_DEFAULT else it.default_factory()
        typed = default.value if isinstance(default, Enum) else default
        typed = str(typed).lower() if isinstance(typed, bool) else typed
        owner = next(base for base in schema.__mro__ if it.name in vars(base)["__annotations__"])
        yield f"{prefix}{it.name}", owner, "<needed>" if typed == MISSING else typed


class _one_line_errors:
    """Print a `ClipstemError` as one line without a traceback, and exit with 2."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ClipstemError):
            print(f"clipstem {self.name}: {error}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, KeyboardInterrupt):
            print(f"clipstem {self.name}: interrupted", file=sys.stderr)
            sys.exit(130)


def _quoted(word: str) -> str:
    """The override with quotes around a plain value that Hydra's grammar, which knows ASCII alone,
    would not take without."""
    key, _, value = word.partition("=")
    if value.isascii() or word.startswith("-") or re.search(r"[,:()\[\]{}'\"$\\]", value):
        return word
    return f"{key}='{value}'"


def composed(name: str, schema: type[Config], overrides: Sequence[str]) -> Config:
    """The config that a verb's command line would have with these overrides.

    Raises:
        ClipstemError: for whatever the verb's own door would refuse.
    """
    check_keys(schema, overrides)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            raw = hydra.compose(name, [*map(_quoted, overrides)])
    except (HydraException, OmegaConfBaseException) as error:
        # Below the first lines Hydra names types and its own pages; the reason may be the cause.
        said = str(error) if error.__cause__ is None else f"{error}\n{error.__cause__}"
        lines = [line for line in said.splitlines() if not line.startswith((" ", "See "))]
        raise ClipstemError(": ".join(filter(None, lines))) from error
    return to_dataclass(schema, raw)


def to_dataclass(schema: type[Config], raw: DictConfig) -> Config:
    """Check a composed config against its dataclass and make a plain instance of it.

    Composing alone lets unknown keys through that come with `+`: merging a plain container into
    the dataclass is what refuses them.

    Raises:
        ClipstemError: for an unknown key, a missing value, or one of the wrong type.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(raw)):
            raise ClipstemError(f"conf key '{missing[0]}' is missing; give {missing[0]}=<value>")
        checked = OmegaConf.merge(
            OmegaConf.structured(schema), OmegaConf.to_container(raw, resolve=True)
        )
        config = OmegaConf.to_object(checked)
    except ConfigKeyError as error:
        raise ClipstemError(_unknown(schema, str(error.full_key))) from error
    except OmegaConfBaseException as error:
        raise ClipstemError(f"conf key '{error.full_key}': {str(error).splitlines()[0]}") from error
    assert isinstance(config, schema)
    return config


def check_keys(schema: type, overrides: Sequence[str]) -> None:
    """Refuse command-line keys that the schema does not have, naming the nearest one it has.

    Raises:
        ClipstemError: at the first unknown key.
    """
    added = _hydras_own(overrides).config_dir
    folders = [conf_folder(), *([Path(added)] if added and Path(added).is_dir() else [])]
    found = [path for folder in folders for path in folder.iterdir() if path.is_dir()]
    groups = {group.name: [it for it in found if it.name == group.name] for group in found}
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        is_setting = "=" in override and not override.startswith("-")
        if is_setting and key in groups:
            _check_choice(groups[key], override.split("=", 1)[1])
        if not is_setting or key.split(".")[0] == "hydra" or "/" in key or key in groups:
            continue
        if not _is_known(schema, key.split(".")):
            raise ClipstemError(_unknown(schema, key))
        value = override.split("=", 1)[1]
        if _is_list(schema, key.split(".")) and not _MAY_BE_LIST.match(value):
            raise ClipstemError(f"conf key '{key}': is {value}; expected a list, {key}=[{value}]")


_MAY_BE_LIST = re.compile(r"\s*(?:[\['\"$]|\w+\(|null\s*$)", re.I)
"""A list, a quoted or interpolated value, or one of Hydra's functions of a sweep."""


def _check_choice(group: Sequence[Path], choice: str) -> None:
    """Refuse a file that a group does not have in any of its folders; several (`a,b`) are a
    sweep's."""
    files = sorted(path.stem for folder in group for path in folder.glob("*.yaml"))
    for name in choice.split(","):
        if name not in (*files, "null"):
            near = difflib.get_close_matches(name, files, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(files)}"
            raise ClipstemError(f"conf key '{group[0].name}': there is no '{name}'; {hint}")


def _hydras_own(arguments: Sequence[str]) -> Namespace:
    """What the command line says to Hydra itself."""
    return get_args_parser().parse_known_args(list(arguments))[0]


def _refuse_code(arguments: Sequence[str]) -> None:
    """Refuse files of settings that could run something: ours hold plain settings.

    In Hydra's own section a file may name any function (`_target_`), which is called before a
    setting is looked at, and resolvers read the environment. So what a user has added to the groups
    of `conf`, or has in a folder of the same shape (`--config-dir`), is looked at.

    Raises:
        ClipstemError: naming the file.
    """
    given = _hydras_own(arguments)
    if given.config_path or given.config_name:
        raise ClipstemError(
            "--config-path and --config-name are not let in, since the verb's own settings come "
            "first; put plain settings into <folder>/experiment and give --config-dir=<folder>"
        )
    looked_at = [*conf_folder().glob("*/**/*.y*ml")]
    if given.config_dir:
        looked_at += Path(given.config_dir).glob("**/*.y*ml")
    for path in sorted(looked_at):
        reason = None
        if "hydra" in path.parent.parts[-2:]:
            reason = "is a setting of Hydra's own"
        elif len(text := path.read_bytes()) > MAX_BYTES or _depth(text) > MAX_DEPTH:
            reason = f"has more than {MAX_BYTES:,} bytes, or nests deeper than {MAX_DEPTH}"
        elif _SUSPICIOUS.search(text):
            reason = _why_not_plain(text)
        if reason is not None:
            raise ClipstemError(f"{path}: {reason}; expected plain settings")


_SUSPICIOUS = re.compile(rb"(?i)hydra|_target_|[\\!*&]|\$\{[^}]*:")
"""What files of plain settings seldom have; those that do are read closely."""


def _depth(text: bytes) -> int:
    """How deep brackets nest: YAML's readers take the square of that."""
    steps = ((byte in b"[{") - (byte in b"]}") for byte in text)
    return max(accumulate(steps), default=0)


def _why_not_plain(data: bytes) -> str | None:
    """What a file of settings has besides plain settings, or None."""
    try:
        text = data.decode()
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        if aliases > MAX_ALIASES:
            return f"has {aliases} aliases, which may grow without end"
        values = list(yaml.safe_load_all(text))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return f"is no plain YAML ({' '.join(str(error).split())[:200]})"
    if re.search(r"@package\s+hydra", text):
        return "is a setting of Hydra's own"
    for word in _words(values):
        if re.fullmatch(r"(.*[\s/])?hydra([./@].*)?", word):
            return "sets Hydra's own settings"
        if "_target_" in word:
            return "has a _target_"
        if re.search(r"\$\{\s*[\w.]+\s*:", word):
            return f"has the resolver '{word[:40]}'"
    return None


def _words(value: Any) -> Iterator[str]:
    """Every key and every text in nested mappings and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str):
        yield value


def _children(schema: Any) -> dict[str, Any]:
    """A dataclass's fields with the dataclass each holds, if any."""
    hints = get_type_hints(schema)
    types = {f.name: (hints[f.name], *get_args(hints[f.name])) for f in fields(schema)}
    return {name: next(filter(is_dataclass, kinds), None) for name, kinds in types.items()}


def _is_known(schema: Any, path: Sequence[str]) -> bool:
    children = _children(schema)
    if path[0] not in children:
        return False
    child = children[path[0]]
    # Below a plain field such as a mapping any key may stand.
    return len(path) == 1 or child is None or _is_known(child, path[1:])


def _is_list(schema: Any, path: Sequence[str]) -> bool:
    child = _children(schema).get(path[0])
    if child is not None:
        return len(path) > 1 and _is_list(child, path[1:])
    hint = get_type_hints(schema)[path[0]]
    return len(path) == 1 and list in {get_origin(it) for it in (hint, *get_args(hint))}


def _unknown(schema: Any, key: str) -> str:
    near = difflib.get_close_matches(key, _all_keys(schema), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(_children(schema))}"
    return f"conf key '{key}' is unknown; {hint}"


def _all_keys(schema: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, child in _children(schema).items():
        keys.append(prefix + name)
        keys += _all_keys(child, f"{prefix}{name}.") if child else []
    return keys


def model_config(name: str) -> ModelConfig:
    """A file of `conf/model`, such as `vit_b32`; any other name is taken for open_clip's.

    Raises:
        ClipstemError: if the file holds something that is no model config.
    """
    path = conf_folder() / "model" / f"{name}.yaml"
    if not path.is_file():
        return ModelConfig(name=name)
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return to_dataclass(ModelConfig, loaded)
