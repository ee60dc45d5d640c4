"""A run's folder: what was asked, what came out, and everything needed to make it again."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipstem.atomic import new_file, new_folder, require_new
from clipstem.facts import Facts, load, of_type
from clipstem.question import ClipstemError

log = logging.getLogger(__name__)

MAY_CHANGE = {"resume", "out", "data", "trainer", "logger"}
"""Settings of a run that may be others when it is resumed: where things are, machine and logs."""

MAX_BYTES = 2**24  # of a run.json; a count for each of a million skills has about as many

ASSEMBLED = "assembled.json"
"""What `assemble` writes beside weights, which no run has made: their `file` and its `sha256`."""

PACKAGES = (
    "clipstem", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers",
    "lightning", "onnx", "onnxruntime", "numpy", "numba", "scipy", "scikit-learn",
    "pyarrow", "matplotlib", "pillow",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Names of what a run's folder holds; `DONE` is written last.

    Attributes:
        is_writer: False for a process that only reads, because another one writes the same.
    """

    folder: Path
    is_writer: bool = True

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.folder / "config.yaml"

    @property
    def weights(self) -> Path:
        """open_clip's own layout: `local-dir:<weights>` opens it."""
        return self.folder / "weights"

    def kept(self, step: int) -> Path:
        """The weights of one of the best evaluations, in the same layout."""
        return self.folder / "checkpoints" / f"best-{step:08d}"

    def keep_only(self, steps: Collection[int]) -> None:
        """Remove the weights of evaluations that were among the best before."""
        if not self.is_writer:
            return
        kept = [self.kept(step) for step in steps]
        for folder in (self.folder / "checkpoints").glob("best-*"):
            if folder not in kept:
                shutil.rmtree(folder)

    def keep_last_checkpoints(self) -> None:
        """Remove all but the last two."""
        if not self.is_writer:
            return
        for path in self.checkpoints[2:]:
            path.unlink()

    def checkpoint(self, step: int) -> Path:
        """Everything that an unfinished run needs to go on after that step."""
        return self.folder / "checkpoints" / f"step-{step:08d}.ckpt"

    @property
    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.ckpt"), reverse=True)

    def last_whole_checkpoint(
        self, damage: Callable[[Path], str | None]
    ) -> tuple[Path | None, int]:
        """The checkpoint to go on from and its step; (None, 0) if nothing was written yet.

        A damaged one is named, set aside as `*.damaged`, and the one before it is used; `damage`
        says what is wrong with one, if anything.

        Raises:
            ClipstemError: if there are checkpoints, but all of them are damaged.
        """
        found = self.checkpoints
        for path in found:
            if (wrong := damage(path)) is None:
                return path, int(path.stem.removeprefix("step-"))
            log.warning(
                "%s: is damaged (%s); it is set aside, the one before it is used", path, wrong
            )
            path.rename(path.with_suffix(".damaged"))
        if found:
            raise ClipstemError(
                f"{found[0].parent}: every checkpoint is damaged; move {self.folder} away and "
                "start again"
            )
        return None, 0

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"

    def predictions(self, split: str) -> Path:
        return self.folder / "predictions" / f"{split}.parquet"

    @property
    def facts(self) -> dict[str, Any]:
        """`run.json`, as an object of whatever fields.

        Raises:
            ClipstemError: if it is missing, too large, or no JSON object.
        """
        try:
            found = load(self.folder / "run.json", MAX_BYTES)
            if not isinstance(found, dict):
                raise ClipstemError("is not a JSON object")
        except ClipstemError as error:
            raise self.broken(str(error)) from None
        return found

    def facts_as(self, kind: type[Facts], **absent: Any) -> Facts:
        """The fields of `run.json` that the dataclass `kind` names; `absent` stands for those that
        may be missing.

        Raises:
            ClipstemError: see `facts`; and if a field is missing or of another type.
        """
        found = {**absent, **self.facts}
        try:
            return of_type(kind, found)
        except ClipstemError as error:
            raise self.broken(str(error)) from None

    def broken(self, reason: str) -> ClipstemError:
        """An error that says what is wrong with `run.json`."""
        return ClipstemError(f"{self.folder / 'run.json'}: {reason}; copy the run again")

    def write_facts(self, **facts: Any) -> None:
        """Add to `run.json`."""
        if not self.is_writer:
            return
        known = self.facts if (self.folder / "run.json").exists() else {}
        with new_file(self.folder / "run.json", replace=True) as partial:
            partial.write_text(json.dumps({**known, **facts}, indent=2) + "\n")

    @property
    def is_done(self) -> bool:
        return (self.folder / "DONE").exists()

    def finish(self) -> None:
        if not self.is_writer:
            return
        with new_file(self.folder / "DONE") as partial:
            partial.write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))


def start(folder: Path, config_yaml: str, resume: bool, facts: Mapping[str, Any]) -> Run:
    """Make a run's folder with `config.yaml` and `run.json`, or take up an unfinished one.

    Raises:
        ClipstemError: if the folder exists and is not to be resumed, or is finished already.
    """
    run = Run(folder)
    if run.is_done:
        raise ClipstemError(f"{folder}: this run is finished; choose another out=<folder>")
    if resume:
        _refuse_other_settings(run, config_yaml)
        return run
    require_new(folder, "out=<folder>, or resume=true for an unfinished run")
    with new_folder(folder) as partial:
        made = Run(partial)
        made.config.write_text(config_yaml)
        made.write_facts(**environment(), **facts)
    return run


def _refuse_other_settings(run: Run, config_yaml: str) -> None:
    if not (run.config.is_file() and (run.folder / "run.json").is_file()):
        raise ClipstemError(f"{run.folder}: there is no run to resume; leave resume out")
    began, now = (yaml.safe_load(text) for text in (run.config.read_text(), config_yaml))
    for key in now.keys() - MAY_CHANGE:
        if began.get(key) != now[key]:
            raise ClipstemError(
                f"conf key '{key}': is {now[key]}, but {run.folder} began with {began.get(key)}; "
                "resume with the same, or choose another out=<folder>"
            )


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums that torch's zip format holds; or None."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            bad = file.testzip()
    except Exception as error:  # a damaged file makes zipfile raise anything
        return str(error)
    return None if bad is None else f"the checksum of {bad} is wrong"


def finished(folder: Path) -> Run:
    """A run that can be used for predictions.

    Raises:
        ClipstemError: if it is missing or was not finished.
    """
    run = Run(folder)
    if not (folder / "run.json").is_file():
        raise ClipstemError(
            f"{folder}: there is no run here (no run.json); expected a folder made by "
            "python -m clipstem.train out=<folder>"
        )
    if not run.is_done:
        raise ClipstemError(f"{folder}: this run is not finished; go on with resume=true")
    return run


def environment() -> dict[str, Any]:
    """What the results may depend on besides the config: code, versions and machine."""
    return {
        "command": f"python -m clipstem.{_verb()} {shlex.join(sys.argv[1:])}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _verb() -> str:
    """The module that was run; of a package it is its `__main__`."""
    program = Path(sys.argv[0])
    return program.parent.name if program.stem == "__main__" else program.stem


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a mark if files differ from it or if there is code that it does
    not hold; None outside a checkout.

    A wheel installed below some other repository, as in a .venv, is outside.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40")
        untracked = _git(here.parent, "ls-files", "--others", "--exclude-standard", ".", "../conf")
        return f"{commit.removesuffix('-dirty')}-dirty" if untracked else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
