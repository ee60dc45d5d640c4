"""Texts and pictures of strangers in the report: shown, small, and never alive."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reporting import (
    HOSTILE,
    MADE,
    Cells,
    answered,
    config,
    markdown_cells,
    outside,
    saved,
)
from samples import picture, question

from clipstem import metrics, shards
from clipstem.config import PrepareConfig, Source
from clipstem.pairs import LOWEST_LOGIT
from clipstem.prediction import COLUMNS, Predictions
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.report import comparisons, gallery, page
from clipstem.report.__main__ import build
from clipstem.report.answers import gather


def predictions_for(folder: Path, split: str, **columns: Sequence[Any]) -> Predictions:
    """Random answers to a prepared split."""
    index = shards.open_dataset(str(folder)).index(split)
    num_options_Q = index["num_options"].to_numpy()
    rng = np.random.default_rng(0)
    logits_QK = rng.normal(size=(len(index), num_options_Q.max())).astype(np.float32)
    logits_QK[np.arange(logits_QK.shape[1]) >= num_options_Q[:, None]] = LOWEST_LOGIT
    given = {name: index[name].to_pylist() for name in COLUMNS if name in index.column_names}
    given["truncated_tokens"] = [0] * len(index)
    probs_QK = metrics.probabilities(logits_QK, num_options_Q)
    return Predictions({**given, **columns}, probs_QK, logits_QK)


@pytest.fixture(scope="session")
def hostile_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose every text tries to be something else."""
    folder = tmp_path_factory.mktemp("hostile")
    Image.new("RGB", (900, 30), "red").save(folder / "wide.png")
    lines = [
        {
            "id": f"{HOSTILE}{number}",
            **dict.fromkeys(("subject", "grade", "skill", "problem"), HOSTILE),
            "image": "wide.png",
            "options": [HOSTILE, "b"],
            "answer": number % 2,
        }
        for number in range(8)
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    out = folder / "data"
    prepare(
        PrepareConfig(
            out=str(out),
            source=Source.jsonl,
            path=str(folder / "questions.jsonl"),
            split="valid",
            workers=1,
        )
    )
    return out


def test_hostile_texts_stay_texts(hostile_data: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", predictions_for(hostile_data, "valid"), note=HOSTILE)
    report = build(config([path], names=[HOSTILE], data=str(hostile_data)), MADE)
    html, markdown = page.html(report), page.markdown(report)
    tags = re.findall(r"<(\w+)", html)
    assert tags.count("script") == 1 and "alert(1)</script>" not in html
    assert outside(html) == []
    assert HOSTILE in [cell for row in Cells(html).rows for cell in row]
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(http", markdown)
    rows = markdown_cells(markdown)
    assert HOSTILE in [cell for row in rows for cell in row]
    assert all(b"<script" not in data for data in page.files(report).values())


def test_mistakes_are_the_most_confident_ones_one_a_skill(drawn_data: Path, tmp_path: Path) -> None:
    predictions = predictions_for(drawn_data, "valid")
    answers = gather([saved(tmp_path / "a.parquet", predictions)])
    shown = gallery.mistakes(
        answers, answers.models[0], gallery.find(str(drawn_data), answers), 3, "m"
    ).mistakes
    wrong = np.flatnonzero(predictions.choice_Q != predictions.answer_Q)
    by_confidence = wrong[np.argsort(-predictions.probs_QK.max(axis=1)[wrong], kind="stable")]
    expected: dict[str, str] = {}
    for place in by_confidence:
        expected.setdefault(predictions.columns["skill"][place], predictions.columns["id"][place])
    assert [re.findall(r"\((.*)\)$", one.title)[0] for one in shown] == list(expected.values())[:3]
    for one in shown:
        held = [float(option.probability) for option in one.options]
        assert sum(held) == pytest.approx(100, abs=0.3)
        (chosen,) = (option for option in one.options if option.is_choice)
        assert float(chosen.probability) == max(held) and not chosen.is_answer


def test_pictures_are_inside_the_page_and_small(drawn_data: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", predictions_for(drawn_data, "valid"))
    report = build(config([path], data=str(drawn_data)), MADE)
    html = page.html(report)
    found = [base64.b64decode(data) for data in re.findall(r"webp;base64,([^\"]+)", html)]
    files = page.files(report)
    assert sorted(found) == sorted(data for name, data in files.items() if name[:8] == "pictures")
    sizes = [Image.open(io.BytesIO(data)).size for data in found]
    assert len(found) > 4 and max(max(size) for size in sizes) <= gallery.PROBLEM_PX
    assert [row for row in markdown_cells(page.markdown(report)) if row[0] == "picture 1"]


def test_data_of_another_hash_is_said_to_be_so(drawn_data: Path, tmp_path: Path) -> None:
    predictions = predictions_for(drawn_data, "valid")
    own = shards.open_dataset(str(drawn_data)).manifest.data_sha256
    for sha256, times in ((own, 0), ("ab" * 32, 1)):
        path = saved(tmp_path / f"{times}.parquet", predictions, data_sha256=sha256)
        report = build(config([path], data=str(drawn_data)), MADE)
        assert page.html(report).count("is not the data that was predicted") == times


def test_lengths_count_the_option_that_is_alone(two_models: list[Path]) -> None:
    answers = gather(two_models[:1])
    asked = [question(["aaa", "b", "bb"], picture(1)), question(["aa", "bb", "c"], picture(1))]
    rows = comparisons.lengths(answers, np.array([0, 2]), asked).rows
    chose = answers.models[0].choice_Q
    assert rows[0] == ("longest", "1", "100.0", f"{100 * (chose[0] == 0):.1f}")
    right = [answers.questions.answer_Q[0] == 1, answers.questions.answer_Q[2] == 2]
    assert rows[1][:3] == ("shortest", "2", f"{100 * np.mean(right):.1f}")


def test_data_that_the_predictions_are_not_for_is_named(drawn_data: Path, tmp_path: Path) -> None:
    strange = gather([saved(tmp_path / "a.parquet", answered([True, False]))])
    with pytest.raises(ClipstemError, match=r"has none of the questions of .*a\.parquet in valid"):
        gallery.find(str(drawn_data), strange)
    predictions = predictions_for(drawn_data, "valid")
    for name, other in (
        ("answer", [(answer + 1) % 2 for answer in predictions.columns["answer"]]),
        ("subject", ["history"] * len(predictions)),
        ("num_options", [count + 1 for count in predictions.columns["num_options"]]),
    ):
        columns = {**predictions.columns, name: other}
        probs_QK = np.zeros((len(predictions), predictions.probs_QK.shape[1] + 1))
        for row, count in enumerate(columns["num_options"]):
            probs_QK[row, :count] = 1 / count
        changed = replace(
            predictions,
            columns=columns,
            probs_QK=probs_QK,
            logits_QK=np.log(probs_QK, where=probs_QK > 0, out=np.full_like(probs_QK, -1e4)),
        )
        answers = gather([saved(tmp_path / f"{name}.parquet", changed)])
        found = "skill" if name == "subject" else name
        with pytest.raises(ClipstemError, match=rf"question '.*' has {found} .*, but .* in "):
            gallery.find(str(drawn_data), answers)
