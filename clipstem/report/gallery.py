"""Questions with their texts and pictures, from prepared data: the mistakes and the lengths.

Imported only where `data=` is given: reading shards imports webdataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipstem.images import thumbnail
from clipstem.question import ClipstemError, Kind, Picture, Question
from clipstem.report.answers import Answers, Model
from clipstem.report.page import Gallery, Mistake, Option, percent
from clipstem.shards import Dataset, open_dataset

PROBLEM_PX, OPTION_PX = 360, 160  # longer sides of the pictures shown
LENGTHS_FROM = 2000  # questions whose texts are read for the habit of lengths


@dataclass(frozen=True)
class Texts:
    """Where each question of the report stands in prepared data; −1 where it does not."""

    dataset: Dataset
    split: str
    place_Q: NDArray[np.int64]

    def read(self, numbers: NDArray[np.int64]) -> list[Question]:
        """The questions with these numbers in the report."""
        return self.dataset.read(self.split, self.place_Q[numbers])


def find(location: str, answers: Answers) -> Texts:
    """Look the report's questions up in prepared data.

    Raises:
        ClipstemError: if the data has none of them, or others of the same ids.
    """
    dataset = open_dataset(location)
    named = answers.models[0].provenance.get("split")
    splits = [named] if named in dataset.manifest.questions else list(dataset.manifest.questions)
    for split in splits:
        index = dataset.index(split)
        places = pc.fill_null(pc.index_in(answers.questions.id, index["id"].combine_chunks()), -1)
        place_Q = places.to_numpy(zero_copy_only=False).astype(np.int64)
        there_Q = place_Q >= 0
        if not there_Q.any():
            continue
        _refuse_other_questions(index.take(place_Q[there_Q]), answers, there_Q, location)
        return Texts(dataset, split, place_Q)
    raise ClipstemError(
        f"{location}: has none of the questions of {answers.models[0].path} in "
        f"{', '.join(splits)}; give the data that the predictions are for"
    )


def _refuse_other_questions(
    here: pa.Table, answers: Answers, there_Q: NDArray[np.bool_], location: str
) -> None:
    """The same id must mean the same question in the data as in the predictions."""
    asked = answers.questions
    skill = pc.binary_join_element_wise(here["subject"], here["skill"], "/")
    for name, theirs, ours_Q in (
        ("skill", skill, np.array(asked.skill.names, object)[asked.skill.number_Q]),
        ("num_options", here["num_options"], asked.num_options_Q),
        ("answer", here["answer"], asked.answer_Q),
    ):
        ours = ours_Q[there_Q]
        different = np.flatnonzero(theirs.to_numpy() != ours)
        if len(different):
            place = int(different[0])
            raise ClipstemError(
                f"{location}: question '{here['id'][place]}' has {name} {theirs[place]}, but "
                f"{ours[place]} in {answers.models[0].path} ({len(different):,} such questions); "
                "give the data that the predictions are for"
            )


def with_text_options(answers: Answers, texts: Texts, seed: int) -> NDArray[np.int64]:
    """Numbers of at most `LENGTHS_FROM` questions whose options are texts, drawn at random."""
    kinds = answers.questions.kind
    textual = [
        kinds.names[n] in (Kind.TEXT_OPTIONS, Kind.TEXT_ONLY) for n in range(len(kinds.names))
    ]
    numbers = np.flatnonzero(np.array(textual)[kinds.number_Q] & (texts.place_Q >= 0))
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(numbers)[:LENGTHS_FROM])


def mistakes(answers: Answers, model: Model, texts: Texts, most: int, name: str) -> Gallery:
    """The most confident mistakes, one of each skill."""
    confidence_Q = model.probs_QK.max(axis=1)
    wrong = np.flatnonzero(~model.right_Q & (texts.place_Q >= 0))
    wrong = wrong[np.argsort(-confidence_Q[wrong], kind="stable")]
    _, first = np.unique(answers.questions.skill.number_Q[wrong], return_index=True)
    shown = wrong[np.sort(first)[:most]]
    caption = (
        f"{model.name}: its {len(shown)} most confident mistakes, the most confident one of a "
        "skill. Pictures are made smaller."
    )
    data = texts.dataset.manifest.data_sha256
    if model.provenance.get("data_sha256", data) != data:
        caption += (
            f" {texts.dataset.location} is not the data that was predicted (data_sha256 differs): "
            "shown are its questions of the same ids."
        )
    read = zip(shown.tolist(), texts.read(shown), strict=True)
    return Gallery(
        caption,
        [
            _mistake(model, number, question, f"{name}-{place}")
            for place, (number, question) in enumerate(read)
        ],
    )


def _mistake(model: Model, number: int, question: Question, name: str) -> Mistake:
    return shown_question(
        question,
        name,
        f"{question.subject}, {question.grade}: {question.skill} ({question.id})",
        [percent(p) for p in model.probs_QK[number, : len(question.options)].tolist()],
        int(model.answer_Q[number]),
        int(model.choice_Q[number]),
    )


def shown_question(
    question: Question,
    name: str,
    title: str,
    probabilities: Sequence[str],
    answer: int,
    choice: int,
) -> Mistake:
    """A question with its pictures made smaller, and what was said of each option.

    `answer` and `choice` are places of options; one that is no place marks none.
    """
    picture, trouble = _shown(question.picture, PROBLEM_PX)
    options: Sequence[str | Picture] = question.options
    return Mistake(
        name=name,
        title=title,
        problem=question.problem + (f" (its picture {trouble})" if trouble else ""),
        picture=picture,
        options=[
            _option(option, place, probability, answer, choice)
            for place, (option, probability) in enumerate(zip(options, probabilities, strict=True))
        ],
    )


def _option(
    option: str | Picture, place: int, probability: str, answer: int, choice: int
) -> Option:
    text, picture, trouble = f"picture {place + 1}", None, ""
    if isinstance(option, str):
        text = option
    else:
        picture, trouble = _shown(option, OPTION_PX)
    return Option(
        text=f"{text} ({trouble})" if trouble else text,
        picture=picture,
        probability=probability,
        is_answer=place == answer,
        is_choice=place == choice,
    )


def _shown(picture: Picture | None, max_px: int) -> tuple[bytes | None, str]:
    """The picture made smaller, or what is wrong with it."""
    if picture is None:
        return None, ""
    try:
        return thumbnail(picture.data, max_px), ""
    except ClipstemError as error:
        return None, str(error)
