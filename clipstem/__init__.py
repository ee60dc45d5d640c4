"""clipstem: fine-tune CLIP on image-question-option exams and score them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipstem.engine import Engine

__version__ = "0.1.0"


def load(source: str | Path, device: str = "auto") -> Engine:
    """A scorer from a finished run's folder, a bundle, a folder of weights, or a model's name.

    `load(…).score(picture, question, options)` gives the probability of each option. `device` is
    `cpu`, `cuda`, or `auto`. A bundle is scored in fp32, without torch; a folder of weights is
    one in open_clip's layout; a name is a file of `conf/model` or anything that open_clip knows.

    Raises:
        ClipstemError: if there is nothing of the kind.
    """
    from clipstem.bundle import is_bundle

    if is_bundle(Path(source)):
        from clipstem.config import TrainerConfig, Variant
        from clipstem.onnx_scorer import OnnxScorer

        return OnnxScorer(Path(source), TrainerConfig(device=device), Variant.fp32)
    from clipstem.scorer import load as load_scorer  # torch, only now

    return load_scorer(source, device)


__all__ = ["__version__", "load"]
