"""The exam page's calls, `/v1/exam`: a person and the model sit the same exam."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Field

from clipstem import images
from clipstem.images import PictureSpec, check_picture
from clipstem.question import Picture
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import ApiError, Strict, decoded
from clipstem.serve.sittings import Sitting, Sittings, Step

MIME = {"jpg": "image/jpeg"}  # others are image/<suffix>


class UnitIn(Strict):
    """The skill of an exam, in its grade."""

    subject: Annotated[str, Field(max_length=200)]
    grade: Annotated[str, Field(max_length=200)]
    skill: Annotated[str, Field(max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class ChoiceIn(Strict):
    """The place of the chosen option, from 0, and the number of the question, from 0."""

    choice: Annotated[int, Field(ge=0, lt=1000)]
    number: Annotated[int, Field(ge=0, lt=100_000)]


def exam_routes(batcher: Batcher, spec: PictureSpec, sittings: Sittings) -> APIRouter:
    """Beginning an exam, its questions, and their answers."""
    router = APIRouter()

    def sitting_of(id: str) -> Sitting:
        try:
            return sittings[id]
        except KeyError:
            raise ApiError(404, "there is no such exam; it may have been forgotten") from None

    @router.get("/v1/exam")
    async def units() -> dict[str, Any]:
        """Every skill in which an exam can be taken, and the rule of the exams."""
        return {
            "rule": sittings.rule.value,
            "length": sittings.length,
            "units": [vars(unit) for unit in sittings.questions.units],
        }

    @router.post("/v1/exam", status_code=201)
    async def begin(given: Annotated[UnitIn, Body()]) -> dict[str, Any]:
        """Begin an exam."""
        unit = sittings.by_unit.get((given.subject, given.grade, given.skill))
        if unit is None:
            raise ApiError(404, "there is no such skill; GET /v1/exam lists them")
        return as_json(sittings.begin(unit, given.seed))

    @router.get("/v1/exam/{id}")
    async def run(id: str) -> dict[str, Any]:
        """An exam so far: every answer, the person's and the model's, and both scores."""
        return as_json(sitting_of(id))

    @router.get("/v1/exam/{id}/question")
    async def question(id: str) -> dict[str, Any]:
        """The question to be answered next, without its answer."""
        sitting = sitting_of(id)
        if sitting.is_done:
            raise ApiError(409, "the exam is over")
        number = len(sitting.steps)
        shown = await asyncio.to_thread(sittings.question, sitting, number)
        return {
            "number": number,
            "question": shown.problem,
            "picture": None if shown.picture is None else data_url(shown.picture),
            "options": [
                {"text": it} if isinstance(it, str) else {"picture": data_url(it)}
                for it in shown.options
            ],
        }

    @router.post("/v1/exam/{id}/answer")
    async def answer(id: str, given: Annotated[ChoiceIn, Body()]) -> dict[str, Any]:
        """Answer the question; only now it is told what is right and what the model says."""
        sitting = sitting_of(id)

        def refuse_a_second_answer() -> None:
            if sitting.is_done or given.number != len(sitting.steps):
                raise ApiError(409, "this question is not the next one, or the exam is over")

        refuse_a_second_answer()
        shown = await asyncio.to_thread(sittings.question, sitting, given.number)
        if given.choice >= len(shown.options):
            raise ApiError(
                422, f"choice: is {given.choice}; there are {len(shown.options)} options"
            )
        (found,) = await batcher.score([await asyncio.to_thread(decoded, shown, spec)])
        refuse_a_second_answer()  # that came meanwhile; from here on nothing waits
        step = sitting.take(shown, given.choice, found.tolist())
        return {**as_step(step, sitting), "done": sitting.is_done}

    return router


def data_url(picture: Picture) -> str:
    """The picture in an address; TIFF, which browsers do not show, as PNG."""
    data, suffix = picture.data, check_picture(picture.data, decode=False)
    if suffix == "tiff":
        buffer = io.BytesIO()
        images.decoded(data).save(buffer, "PNG")
        data, suffix = buffer.getvalue(), "png"
    mime = MIME.get(suffix, f"image/{suffix}")
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def as_json(sitting: Sitting) -> dict[str, Any]:
    return {
        "id": sitting.id,
        **vars(sitting.unit),
        "rule": sitting.rule.value,
        "length": sitting.length,
        "seed": sitting.seed if sitting.is_done else None,  # drawn questions follow from it
        "score": sitting.score,
        "model_score": sitting.model_score,
        "done": sitting.is_done,
        "steps": [as_step(step, sitting) for step in sitting.steps],
    }


def as_step(step: Step, sitting: Sitting) -> dict[str, Any]:
    """An answered question; like the seed, ids of drawn questions would tell of those to come."""
    said = {**vars(step), "model_choice": step.model_choice}
    return said if sitting.is_done else {**said, "id": None}
