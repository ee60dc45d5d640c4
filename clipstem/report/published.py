"""What the paper published, each fact once: STEM's `test` split, not the questions of a report.

Source: "Measuring Vision-Language STEM Skills of Neural Models" (ICLR 2024, arXiv 2402.17205).
What was read off a plot is marked so. Per cent, as printed.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipstem import exam

NOTE = (
    "Published (arXiv 2402.17205, ICLR 2024), on STEM's test split: other questions than this "
    "report's."
)
SUBJECTS = ("science", "technology", "engineering", "math")


@dataclass(frozen=True)
class Published:
    """A model's accuracy by subject in the order of `SUBJECTS`, and their mean.

    `parameters` (millions) are read off a figure.
    """

    name: str
    subjects: tuple[float, float, float, float]
    average: float
    parameters: float | None = None


MODELS = (
    Published("random", (38.6, 25.0, 44.9, 39.1), 36.9),
    Published("UNITER", (50.8, 34.6, 55.1, 43.2), 45.9),
    Published("GPT-3 (captions)", (47.1, 22.1, 73.5, 44.0), 46.7),
    Published("GPT-3.5-Turbo (captions)", (50.1, 26.3, 74.6, 45.0), 49.0),
    Published("CLIP RN50", (47.8, 64.4, 55.8, 43.6), 52.9, 102),
    Published("CLIP RN101", (50.3, 65.3, 46.7, 43.7), 51.5, 120),
    Published("CLIP RN50x4", (48.8, 69.2, 49.4, 44.1), 52.9, 178),
    Published("CLIP RN50x16", (49.8, 66.1, 51.4, 44.3), 52.9, 291),
    Published("CLIP RN50x64", (50.9, 70.0, 55.5, 43.2), 54.9, 624),
    Published("CLIP ViT-B/32", (48.3, 63.7, 59.5, 42.8), 53.6, 151),
    Published("CLIP ViT-B/16", (48.6, 65.9, 47.2, 43.6), 51.3, 150),
    Published("CLIP ViT-L/14", (49.8, 68.6, 54.3, 43.1), 54.0, 428),
    Published("CLIP ViT-L/14@336", (50.3, 68.7, 55.1, 43.6), 54.4),
    Published("CLIP ViT-L/14@336, fine-tuned", (87.0, 71.9, 67.7, 78.4), 76.3),
)

EXAM_SCORES = {
    "random": 29.5,
    "GPT-3 (captions)": 42.3,
    "GPT-3.5-Turbo (captions)": 46.7,
    "CLIP zero-shot": 43.6,
    "CLIP fine-tuned": 60.6,
    "people": exam.PEOPLE,
}
"""Average exam scores, read off a figure, ±0.2; the rule of the exam is not published."""

PEOPLE_ACCURACY = 83.0
PEOPLE_QUESTIONS = 80

RELIABILITY_CENTRES = (25, 35, 45, 55, 65, 75, 85, 95)
RELIABILITY = {
    "zero-shot": (23.8, 27.2, 37.8, 47.2, 47.6, 50.0, 55.7, 75.8),
    "fine-tuned": (26.1, 33.7, 47.7, 54.1, 62.2, 72.0, 80.0, 98.9),
}
"""Accuracy in bins of confidence around the centres; read off a figure, about ±0.5."""

SKILLS = {
    "circles": (37, 98, 100),
    "describe-transformation": (25, 24, 29),
    "magnetic-forces": (33, 37, 100),
    "dependent-variables": (50, 37, 31),
    "icons": (25, 84, 89),
    "engineering-design": (41, 44, 57),
    "match-clocks": (42, 76, 89),
    "safety-equipment": (25, 100, 99),
}
"""Chance, zero-shot and fine-tuned accuracy of the skills that the paper shows; read off a figure,
about ±0.5."""
