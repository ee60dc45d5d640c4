"""clipstem: fine-tune CLIP on image-question-option exams and score them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipstem.scorer import Scorer

__version__ = "0.1.0"


def load(source: str | Path, device: str = "auto") -> Scorer:
    """A scorer from a finished run's folder, a folder of open_clip weights, or a model's name.

    `load(…).score(picture, question, options)` gives the probability of each option. `device` is
    `cpu`, `cuda`, or `auto`.

    Raises:
        ClipstemError: if there is nothing of the kind.
    """
    from clipstem.scorer import load as load_scorer  # torch, only now

    return load_scorer(source, device)


__all__ = ["__version__", "load"]
