"""Measure bundles: against torch on real and on drawn questions, int8 against fp32, a first score.

    python scripts/measure_export.py runs/forty

Takes a run of experiment/forty; needs CLIPSTEM_REALSET. ViT-B/32 has random weights: speed and
rounding do not depend on them. What comes out is `benchmarks/export.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import BENCHMARKS, machine

from clipstem import export as exporting
from clipstem import run, shards
from clipstem.batches import Batches, batched
from clipstem.command import conf_folder, model_config
from clipstem.config import ExportConfig, PrepareConfig, Source, TrainerConfig, Variant
from clipstem.onnx_scorer import OnnxScorer
from clipstem.pairs import PairBatch
from clipstem.prepare import prepare
from clipstem.question import ProblemPicture

DRAWN_A_SKILL = 250  # 10,000 of forty skills
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
    """Of a fresh process, imports included; the median of five."""
    code = FIRST_SCORE.format(bundle=str(bundle))
    found = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(5)
    ]
    return round(float(np.median(found)), 2)


def main() -> None:
    tuned = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real, drawn = folder / "real", folder / "drawn"
        prepare(
            PrepareConfig(str(real), Source.stem, os.environ["CLIPSTEM_REALSET"], tune_fraction=0)
        )
        counts = {"valid": DRAWN_A_SKILL}
        prepare(
            PrepareConfig(str(drawn), skills=skills_of_forty(), questions_per_skill=counts, seed=7)
        )
        found: dict[str, Any] = {}
        b32 = {**vars(model_config("vit_b32")), "pretrained": None}
        asked: dict[str, dict[str, Any]] = {
            "vit_b32, realset validation": {
                "model": type(model_config("vit_b32"))(**b32),
                "data": str(real),
                "max_accuracy_drop": 100.0,
            },
            "forty, 10,000 drawn": {"run": str(tuned), "data": str(drawn)},
            "forty, realset validation": {
                "run": str(tuned),
                "data": str(real),
                "max_accuracy_drop": 100.0,
            },
        }
        for number, (title, changes) in enumerate(asked.items()):
            out = folder / f"bundle{number}"
            measured = exporting.export(ExportConfig(str(out), questions=10_000, **changes))
            found[title] = {variant: vars(parity) for variant, parity in measured.items()}
            if len(measured) == len(Variant):
                rates = [measured[it.value].questions_per_second for it in Variant]
                found[title]["int8_speed"] = round(rates[1] / rates[0], 2)
                data = Path(str(changes["data"]))
                found[title]["least_cosines"] = least_cosines(out, data, 200)
            if "run" in changes:
                found[title]["first_score_seconds"] = first_score_seconds(out)
            print(title, json.dumps(found[title], indent=1), file=sys.stderr)
    figures = {**run.environment(), "machine": machine(), "bundles": found}
    (BENCHMARKS / "export.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
