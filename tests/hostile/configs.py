"""Files of settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from clipstem.command import conf_folder
from hostile.table import RUN_CODE, Make, Refused, kinds


def clean_config(folder: Path) -> None:
    shutil.copytree(conf_folder(), folder)
    config("questions_per_skill: 7\n")(folder)


def config(text: str, name: str = "experiment/theirs.yaml") -> Make:
    """A maker: a stranger's file in a copy of `conf`, for `+experiment=theirs`."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# @package _global_\n" + text)

    return make


CALLBACK = """
hydra:
  callbacks:
    theirs: {_target_: subprocess.run, args: 'touch "$CLIPSTEM_CANARY"', shell: true}
"""

kinds(
    "config",
    ("_target_ of a function", config("_target_: os.system\n"), Refused("has a _target_")),
    (
        "_target_ in an architecture",
        config("a: {b: [{_target_: os.system}]}\n"),
        Refused("has a _target_"),
    ),
    (
        "_target_ in a key that is written otherwise",
        config('"_tar\\x67et_": os.system\n'),
        Refused("has a _target_"),
    ),
    (
        "callback of Hydra's that runs a command",
        config(CALLBACK),
        Refused("sets Hydra's own settings"),
    ),
    (
        "callback in Hydra's package",
        lambda folder: (folder / "experiment/theirs.yaml").write_text(
            "# @package hydra\ncallbacks: {}\n"
        ),
        Refused("is a setting of Hydra's own"),
    ),
    (
        "file in Hydra's own groups",
        config("a: 1\n", "hydra/job_logging/theirs.yaml"),
        Refused("is a setting of Hydra's own"),
    ),
    (
        "defaults that choose from Hydra's groups",
        config("defaults:\n  - override /hydra/launcher: theirs\n"),
        Refused("sets Hydra's own settings"),
    ),
    (
        "YAML with a Python object",
        config(f"a: !!python/object/apply:os.system ['{RUN_CODE}']\n"),
        Refused("is no plain YAML"),
    ),
    (
        "YAML whose aliases grow to 10^9",
        config(
            "a: &a [1]\n"
            + "".join(
                f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
        ),
        Refused("has .* aliases"),
    ),
    (
        "YAML that nests 100,000 deep",
        config("a: " + "[" * 100_000),
        Refused("nests deeper than 50"),
    ),
    (
        "resolver that reads the environment",
        config("out: ${oc.env:HOME}\n"),
        Refused("has the resolver"),
    ),
    (
        "interpolations in a circle",
        config("questions_per_skill: ${repeats}\nrepeats: ${questions_per_skill}\n"),
        Refused("questions_per_skill|repeats"),
    ),
    ("unknown key", config("questions_per_skil: 7\n"), Refused("questions_per_skil")),
    ("value of another type", config("questions_per_skill: many\n"), Refused("many")),
)
