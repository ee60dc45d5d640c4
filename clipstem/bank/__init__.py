"""Exam questions drawn by code: the embedded default data, with no download and no licence."""

from clipstem.bank.engineering import SKILLS as ENGINEERING
from clipstem.bank.math import SKILLS as MATH
from clipstem.bank.science import SKILLS as SCIENCE
from clipstem.bank.skill import Skill, draw
from clipstem.bank.technology import SKILLS as TECHNOLOGY

SKILLS: dict[str, Skill] = {
    skill.name: skill for skill in (*SCIENCE, *TECHNOLOGY, *ENGINEERING, *MATH)
}

__all__ = ["SKILLS", "Skill", "draw"]
