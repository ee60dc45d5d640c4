"""Measure bundles: against torch on real and on drawn questions, int8 against fp32, a first score.

    python scripts/measure_export.py runs/forty

Takes a run of experiment/forty; needs CLIPSTEM_REALSET. `tiny` and ViT-B/32 have random weights:
speed does not depend on them. Every variant is written, whatever its accuracy. What comes out is
`benchmarks/export.json`, and the README is brought up to date.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import facts, publish

from clipstem import export as exporting
from clipstem import scorer, shards
from clipstem.batches import Batches, batched
from clipstem.command import conf_folder, model_config
from clipstem.config import ExportConfig, PrepareConfig, Source, TrainerConfig, Variant
from clipstem.engine import Engine
from clipstem.onnx_scorer import OnnxScorer
from clipstem.pairs import PairBatch
from clipstem.prepare import prepare
from clipstem.question import ProblemPicture

DRAWN_A_SKILL = 250  # 10,000 of forty skills
FIRST_SCORES = 5
TURNS = 5
FIRST_SCORE = """
import time; started = time.perf_counter()
import sys, clipstem
from PIL import Image
picture = Image.new("RGB", (128, 128), "red")
clipstem.load({bundle!r}).score(picture, "Which colour?", ["red", "blue"])
assert "torch" not in sys.modules
print(time.perf_counter() - started)
"""


def skills_of_forty() -> list[str]:
    import yaml

    return list(yaml.safe_load((conf_folder() / "drawn" / "forty.yaml").read_text())["skills"])


def least_cosines(bundle: Path, data: Path, questions: int) -> dict[str, float]:
    """Between the embeddings of the two variants: the least of all pictures, and of all texts."""
    scorers = [OnnxScorer(bundle, TrainerConfig("cpu"), variant) for variant in Variant]
    tokenizer, spec = scorers[0].tokenizer, scorers[0].spec
    order_SN = batched(np.arange(questions), 32)
    dataset = shards.open_dataset(str(data))
    batches = Batches(dataset, "valid", order_SN, tokenizer, spec, ProblemPicture.added)
    least = {"pictures": 1.0, "texts": 1.0}

    def embeddings(scorer: OnnxScorer, batch: PairBatch) -> dict[str, Any]:
        return {"pictures": scorer.pictures(batch, None), "texts": scorer.texts(batch, None)}

    for number in range(len(batches)):
        exact, rough = (embeddings(scorer, batches[number]) for scorer in scorers)
        for name in least:
            least[name] = min(least[name], float((exact[name] * rough[name]).sum(-1).min()))
    return {name: round(cosine, 5) for name, cosine in least.items()}


def first_score_seconds(bundle: Path) -> float:
    """Of a fresh process, imports included; the median of several."""
    code = FIRST_SCORE.format(bundle=str(bundle))
    found = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(FIRST_SCORES)
    ]
    return round(float(np.median(found)), 2)


def seconds_in_turns(config: ExportConfig, questions: int) -> dict[str, list[float]]:
    """Of torch and both variants for the same questions, from shards; turn by turn."""
    dataset = shards.open_dataset(str(config.data))
    engines: dict[str, Engine] = {
        variant.value: OnnxScorer(Path(config.out), config.trainer, variant) for variant in Variant
    }
    if config.run is not None:
        engines["torch"] = scorer.of_run(Path(config.run), config.trainer)
    elif config.model is not None:
        engines["torch"] = scorer.of_model(config.model, config.trainer, config.seed)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(TURNS + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.predict(dataset, "valid", config.batch_size, chosen=slice(questions))
            if turn:  # the first takes memory and loads what is loaded late
                seconds[name].append(round(time.perf_counter() - started, 3))
    return seconds


def figures_of(config: ExportConfig, turn_questions: int) -> dict[str, Any]:
    """Both variants' parity with torch, and how fast the three are."""
    measured = exporting.export(config)
    out, questions = Path(config.out), measured["fp32"].questions
    return {
        "variants": {variant: vars(parity) for variant, parity in measured.items()},
        "turn_questions": turn_questions,
        "seconds": seconds_in_turns(config, turn_questions),
        "least_cosines": least_cosines(out, Path(str(config.data)), min(200, questions)),
        "first_score_seconds": first_score_seconds(out),
    }


def main() -> None:
    made_by = facts()
    with tempfile.TemporaryDirectory() as name:
        real, drawn = Path(name) / "real", Path(name) / "drawn"
        real_path = os.environ["CLIPSTEM_REALSET"]
        prepare(PrepareConfig(str(real), Source.stem, real_path, tune_fraction=0))
        counts = {"valid": DRAWN_A_SKILL}
        prepare(
            PrepareConfig(str(drawn), skills=skills_of_forty(), questions_per_skill=counts, seed=7)
        )
        b32 = replace(model_config("vit_b32"), pretrained=None)
        asked: dict[str, dict[str, Any]] = {
            "`tiny`, drawn": {"model": model_config("tiny"), "data": str(drawn), "questions": 1000},
            "`vit_b32`, real": {"model": b32, "data": str(real)},
            "`forty`, drawn": {"run": sys.argv[1], "data": str(drawn)},
            "`forty`, real": {"run": sys.argv[1], "data": str(real)},
        }
        turn_questions = {"`vit_b32`, real": 64}
        found = {}
        for number, (title, given) in enumerate(asked.items()):
            out = str(Path(name) / f"bundle{number}")
            every = {"out": out, "questions": 10_000, "max_accuracy_drop": 100.0}
            config = ExportConfig(**{**every, **given})
            found[title] = figures_of(config, turn_questions.get(title, 500))
            print(title, json.dumps(found[title], indent=1), file=sys.stderr)
    command = " ".join(["python scripts/measure_export.py", *sys.argv[1:]])
    publish("export", {"command": command, **made_by, "bundles": found})


if __name__ == "__main__":
    main()
