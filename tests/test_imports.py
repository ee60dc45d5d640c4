"""Imports point one way, and the light half needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clipstem"

ROWS = (
    ("question",),
    ("config.checks",),
    (
        *("config.model", "config.data", "config.cluster"),
        *("config.ask", "config.curation", "config.routing"),
    ),
    ("config.training",),
    ("config.scoring", "config.rerank"),
    ("config.exams",),
    ("config",),
    (
        *("atomic", "facts", "parquet", "splits", "workers", "resize", "bank.skill", "charts"),
        *("stopping", "report", "serve", "ask", "curate", "rerank", "rerank.drawn", "route"),
    ),
    ("command", "prediction", "weights", "run", "bank.canvas", "ranks", "decode"),
    ("bank.science", "bank.technology", "bank.engineering", "bank.math"),
    ("bank",),
    ("bank.stem",),
    ("storage", "images", "metrics", "statistics", "sweep"),
    (
        *("shards", "console", "sources", "tokens", "slurm", "background", "task"),
        *("report.page", "route.gate"),
    ),
    (
        *("jsonl", "packing", "exam", "perturb", "supervision", "blocks"),
        *("clip_tokenizer", "model_checks"),
        *("route.asked", "route.deferral", "route.fitting", "curate.fingerprints"),
        "report.curate",
    ),
    (
        *("spool", "pairs", "report.published", "ask.prompts"),
        *("curate.duplicates", "curate.labels", "curate.cues", "curate.unseen"),
        *("rerank.candidates", "route.decisions"),
    ),
    (
        *("report.answers", "batches", "memory", "bundle", "ask.answers", "curate.findings"),
        *("rerank.choosing", "route.figures"),
    ),
    (
        *("report.analyses", "report.comparisons", "report.gallery", "engine"),
        *("ask.parsing", "ask.endpoint", "rerank.figures", "report.route"),
    ),
    ("report.sittings", "report.rerank", "ask.asking", "curate.sheet"),
    ("towers", "loss", "loader", "csv_log", "merge"),
    ("scorer", "onnx_scorer", "layers", "averages", "serve.requests", "serve.sittings"),
    ("features", "learner", "callbacks", "serve.batching"),
    ("serve.around", "serve.scoring", "serve.exams", "rerank.verifier"),
    (
        *("prepare", "train", "predict", "export", "assemble", "serve.app"),
        *("bank.__main__", "report.__main__"),
    ),
    (
        *("serve.__main__", "submit", "ask.__main__", "curate.__main__"),
        *("rerank.__main__", "route.__main__"),
    ),
)
"""From the bottom up: a module imports from rows below its own, never from its own or above."""

LIGHT = (
    "prepare",
    "bank",
    "bank.__main__",
    "prediction",
    "weights",
    "supervision",
    "metrics",
    "statistics",
    "shards",
    "pairs",
    "packing",
    "exam",
    "charts",
    "curate.__main__",
    "report.curate",
    "report.__main__",
    "report.gallery",
    "report.route",
    "route.__main__",
    "rerank.__main__",
    "engine",
    "predict",
    "submit",
    "task",
    "onnx_scorer",
    "serve.app",
    "ask.__main__",
    "ask.asking",
)

ONLY_IN = {
    "hydra": {"command"},
    "open_clip": {"towers", "layers", "clip_tokenizer", "model_checks"},
    "webdataset": {"shards"},
    "numba": {"resize"},
    "simplejpeg": {"decode"},
    "zlib_ng": {"decode"},
    "matplotlib": {"charts"},
    "jinja2": {"report.page"},
    "onnxruntime": {"onnx_scorer", "export"},
    "onnx": {"export"},
    "ftfy": {"bundle"},
    "fastapi": {"serve.app", "serve.scoring", "serve.exams"},
    "pydantic": {"serve.requests", "serve.exams"},
    "uvicorn": {"serve.__main__"},
    "httpx": {"ask.endpoint"},
    "sklearn": {"route.fitting"},
}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__") if name != "__init__" else ""


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if module_of(path)}


def test_every_module_has_its_row() -> None:
    assert sorted(name for row in ROWS for name in row) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_rows_below(name: str) -> None:
    row_of = {module: place for place, row in enumerate(ROWS) for module in row}
    ours = {
        found.removeprefix("clipstem.")
        for found in imports(MODULES[name])
        if found.startswith("clipstem.")
    }
    wrong = [module for module in ours if module in row_of and row_of[module] >= row_of[name]]
    assert not wrong, f"{name} imports {wrong}, which are not below it"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_one_place(library: str) -> None:
    users = {
        name
        for name, path in MODULES.items()
        if any(found.split(".")[0] == library for found in imports(path))
    }
    assert users == ONLY_IN[library]


def test_the_light_half_imports_neither_torch_nor_numba() -> None:
    lines = [f"import clipstem.{name}" for name in LIGHT]
    code = "\n".join([*lines, "import sys; assert not {'torch', 'numba'} & {*sys.modules}"])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prepare_runs_where_torch_is_not_installed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "from clipstem.prepare import main; from clipstem.shards import open_dataset\n"
        "main(); print(len(open_dataset('data').read('valid', range(4))))"
    )
    arguments = [
        "out=data",
        "skills=[weather]",
        "questions_per_skill={train: 4, valid: 4, test: 4}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "workers=1"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "4"


@pytest.mark.slow
def test_the_wheel_carries_its_configuration(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, PACKAGE.parent], check=True)
    (wheel,) = tmp_path.glob("clipstem-*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    code = "from clipstem.command import conf_folder; print(conf_folder())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(installed / "clipstem" / "conf")
    assert {path.name for path in (installed / "clipstem" / "conf").iterdir()} >= {
        "prepare.yaml",
        "experiment",
        "model",
    }
