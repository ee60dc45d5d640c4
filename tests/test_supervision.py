"""Labels, teachers and weights of training questions, and whole trainings that learn from them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from supervising import Case, found_for, teacher, write_weights
from torch import Tensor
from training import an_epoch

from clipstem import prediction
from clipstem.batches import NOBODY, usable
from clipstem.command import model_config
from clipstem.config import DistillConfig, TrainConfig, TuneConfig, TuneMode
from clipstem.learner import Learner
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.shards import Dataset
from clipstem.supervision import labelled, softened, supervision
from clipstem.train import main, train, training_order

# ---------------------------------------------------------------------------- whose labels are used


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_a_share_of_each_skills_labels_is_drawn(
    questions: list[tuple[str, bool]], fraction: float, seed: int
) -> None:
    skills = [skill for skill, _ in questions]
    answered_N = np.array([is_answered for _, is_answered in questions])
    found = labelled(skills, answered_N, fraction, seed)
    assert not (found & ~answered_N).any()
    of_skill = Counter(skill for skill, is_answered in questions if is_answered)
    kept = Counter(skill for skill, it in zip(skills, found, strict=True) if it)
    assert kept == {skill: max(1, int(fraction * n + 0.5)) for skill, n in of_skill.items()}
    assert (found == labelled(skills, answered_N, fraction, seed)).all()
    larger = labelled(skills, answered_N, (1 + fraction) / 2, seed)
    assert not (found & ~larger).any()


def test_another_seed_draws_other_labels_and_all_is_all() -> None:
    answered_N = np.ones(400, bool)
    drawn = [labelled(["a", "b"] * 200, answered_N, 0.1, seed) for seed in (0, 1)]
    assert [int(it.sum()) for it in drawn] == [40, 40]
    assert 0 < (drawn[0] & drawn[1]).sum() < 20
    assert labelled(["a"] * 400, answered_N, 1.0, 0) is answered_N


def test_nothing_asked_is_nothing_done(drawn_data: Path, dataset: Dataset, tmp_path: Path) -> None:
    usable_N = usable(dataset, "train", answered=False)
    assert supervision(an_epoch(drawn_data, tmp_path), dataset, usable_N) is None


def test_questions_are_counted_by_what_they_are_learnt_from(case: Case, dataset: Dataset) -> None:
    found = found_for(case.config, dataset)
    kinds: Counter[str] = Counter()
    for number, id in enumerate(dataset.index("train")["id"].to_pylist()):
        is_taught = any(id in it.logits_of for it in case.teachers)
        is_labelled = bool(found.labelled_N[number])
        if case.weight_of.get(id) == 0 or not (is_taught or is_labelled):
            kinds["neither"] += 1
        elif is_labelled:
            kinds["label_and_teachers" if is_taught else "label_alone"] += 1
        else:
            kinds["teachers_alone"] += 1
    assert len(kinds) == 4 and kinds.items() <= found.facts.items()
    assert found.facts["answered"] == dataset.size("train")
    assert found.facts["labelled"] == int(found.labelled_N.sum()) < 0.6 * dataset.size("train")
    assert [it["questions"] for it in found.facts["teachers"]] == [
        len(it.logits_of) for it in case.teachers
    ]
    order_SN = training_order(dataset, replace(case.config, epochs=2), found)
    first, second = np.split(order_SN, 2)
    for epoch in (first, second):
        assert sorted(epoch[epoch != NOBODY]) == np.flatnonzero(found.learns_N).tolist()


def test_hidden_labels_alone_are_left_out(
    drawn_data: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = an_epoch(drawn_data, tmp_path, labelled_fraction=0.25)
    found = found_for(config, dataset)
    order_SN = training_order(dataset, config, found)
    assert set(order_SN[order_SN != NOBODY]) == set(np.flatnonzero(found.labelled_N))
    assert found.facts["neither"] == dataset.size("train") - found.facts["labelled"]


# ---------------------------------------------------------------------------- teachers


def test_at_temperature_1_a_teacher_says_what_its_file_says(case: Case) -> None:
    for path in case.config.distill.teachers:
        found = prediction.read(Path(path))
        np.testing.assert_allclose(softened(found, 1.0), found.probs_QK, atol=1e-6)


def test_teachers_are_averaged_over_those_that_have_a_question(
    case: Case, dataset: Dataset
) -> None:
    found = found_for(case.config, dataset)
    assert found.teacher_NK is not None
    for number, id in enumerate(dataset.index("train")["id"].to_pylist()):
        said = [it.probabilities(id, 2.5) for it in case.teachers if id in it.logits_of]
        expected = np.mean(said, axis=0) if said else np.zeros(1)
        row = found.teacher_NK[number]
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-6)
        assert not row[len(expected) :].any() and found.taught_N[number] == bool(said)


def test_probabilities_of_0_and_odd_temperatures_of_strangers_stay_finite(
    dataset: Dataset, tmp_path: Path
) -> None:
    made = teacher(tmp_path / "t.parquet", dataset, range(9), 0)
    found = prediction.read(made.path)
    sure_QK = np.eye(found.probs_QK.shape[1])[np.zeros(9, int)]
    for own in (math.nan, math.inf, 0.0, 1e-300, -1.0, None):
        changed = replace(found, probs_QK=sure_QK, provenance={"temperature": own})
        probs_QK = softened(changed, 3.0)
        assert np.isfinite(probs_QK).all() and (probs_QK[:, 0] > 0.99).all()


def refused(config: TrainConfig, match: str) -> None:
    """Before anything is written."""
    with pytest.raises(ClipstemError, match=match):
        train(config)
    assert not Path(config.out).exists()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other data": (
        {"data_sha256": "a" * 64},
        r"t\.parquet has predictions for other data than .*drawn \(data_sha256 aaaaaaaaaaaa…, "
        r"expected \w{12}…\); make it with python -m clipstem\.predict run=<run> data=",
    ),
    "another split": (
        {"split": "valid"},
        r"t\.parquet has predictions for 'valid'; expected 'train': make it with python",
    ),
    "changed questions": (
        {"perturbation": {"name": "blur", "strength": 0.1, "seed": 0}},
        r"t\.parquet has answers to changed questions \(perturb=blur\); expected unchanged ones: ",
    ),
}


@pytest.mark.parametrize(("said", "match"), OTHERS.values(), ids=OTHERS)
def test_predictions_of_something_else_are_no_teacher(
    said: dict[str, Any], match: str, drawn_data: Path, dataset: Dataset, tmp_path: Path
) -> None:
    path = teacher(tmp_path / "t.parquet", dataset, range(5), 0, **said).path
    distill = DistillConfig([str(path)])
    refused(an_epoch(drawn_data, tmp_path / "run", distill=distill), match)


def changed_rows(path: Path, **columns: Sequence[Any]) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def test_other_ids_options_and_answers_are_refused(
    drawn_data: Path, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    config = an_epoch(drawn_data, tmp_path / "run", distill=DistillConfig([str(path)]))
    index = dataset.index("train").slice(0, 3)
    ids, counts = index["id"].to_pylist(), index["num_options"].to_pylist()

    def given(**changes: Sequence[Any]) -> None:
        path.unlink(missing_ok=True)
        teacher(path, dataset, range(3), 0, is_ours=False)
        changed_rows(path, **changes)

    given(id=[ids[0], "x", "y"])
    refused(
        config,
        rf"'distill\.teachers': .*t\.parquet has 2 of 3 ids that are not in 'train' of .*drawn, "
        rf"the first is 'x'; expected ids such as '{ids[0]}'",
    )
    wide = [1.0, *[0.0] * counts[1]]
    given(
        probs=[*pq.read_table(path)["probs"].to_pylist()[:1], wide, [1.0, *[0.0] * (counts[2] - 1)]]
    )
    refused(
        config,
        rf"question '{ids[1]}' has num_options {counts[1] + 1}, but {counts[1]} in 'train' of .*; "
        "these are answers to different questions",
    )
    answers = index["answer"].to_pylist()
    other = (answers[2] + 1) % counts[2]
    given(answer=[-1, answers[1], other])
    refused(config, rf"question '{ids[2]}' has answer {other}, but {answers[2]} in 'train' of")
    path.unlink()
    empty = teacher(tmp_path / "all.parquet", dataset, range(3), 0).path
    pq.write_table(pq.read_table(empty).slice(0, 0), path)
    refused(config, r"t\.parquet has no rows; expected some, or leave it out")
    refused(
        replace(config, distill=DistillConfig([str(tmp_path / "none.parquet")])),
        r"none\.parquet: there is no such predictions file",
    )


# ---------------------------------------------------------------------------- weights


def test_weights_of_other_questions_or_of_none_are_refused(
    drawn_data: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = an_epoch(drawn_data, tmp_path / "run")
    ids = dataset.index("train")["id"].to_pylist()
    other = write_weights(tmp_path / "other.parquet", {ids[0]: 1.0, "x": 0.5, "y": 0.0})
    refused(
        replace(config, weights=other),
        r"'weights': .*other\.parquet has 2 of 3 ids that are not in 'train' of .*the first is 'x'",
    )
    zero = write_weights(tmp_path / "zero.parquet", dict.fromkeys(ids, 0.0))
    refused(
        replace(config, weights=zero),
        r"zero\.parquet gives each of the \d+ questions of 'train' the weight 0; expected some abo",
    )
    some = write_weights(tmp_path / "some.parquet", dict.fromkeys(ids[1:], 0.0))
    found = found_for(replace(config, weights=some), dataset)
    assert np.flatnonzero(found.learns_N).tolist() == [0]


# ---------------------------------------------------------------------------- whole trainings


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "weights" / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def finished(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through the command line."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", *overrides(case), f"out={folder}"])
        main()
    return folder


def overrides(case: Case) -> list[str]:
    return [
        *(f"data={case.config.data}", f"weights={case.config.weights}", "labelled_fraction=0.5"),
        f"distill.teachers=[{','.join(case.config.distill.teachers)}]",
        *("distill.temperature=2.5", "distill.weight=0.3", "model=tiny_vit", "batch_size=12"),
        *("eval_every_steps=2", "optimizer.lr=1e-3", "trainer.workers=0"),
    ]


def test_a_run_says_what_it_has_learnt_from(finished: Path, case: Case, dataset: Dataset) -> None:
    facts = json.loads((finished / "run.json").read_text())
    found = found_for(case.config, dataset)
    assert facts["supervision"] == found.facts
    assert [it["model"] for it in found.facts["teachers"]] == ["teacher", None]
    assert all(len(it["sha256"]) == 64 for it in [*found.facts["teachers"], found.facts["weights"]])
    counts = facts["train_questions_of_skill"]
    assert sum(counts.values()) == int(found.learns_N.sum()) < dataset.size("train")
    assert (
        prediction.read(finished / "predictions/valid.parquet").provenance[
            "train_questions_of_skill"
        ]
        == counts
    )
    with (finished / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["listwise"]]
    assert rows and all(float(row["distill"]) > 0 for row in rows)


def test_a_resumed_run_is_bit_identical_to_one_that_was_not_stopped(
    finished: Path, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = Learner.training_step

    def stop_at_step_3(self: Learner, batch: PairBatch, number: int) -> Tensor:
        if self.global_step == 3:
            raise ConnectionError("the power fails")
        return step_of(self, batch, number)

    copies = [Path(shutil.copy(it, tmp_path)) for it in case.config.distill.teachers]
    distill = replace(case.config.distill, teachers=[str(it) for it in copies])
    as_finished: Any = {"model": model_config("tiny_vit"), "distill": distill}
    config = replace(case.config, out=str(tmp_path / "run"), **as_finished)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "training_step", stop_at_step_3)
        with pytest.raises(ConnectionError):
            train(config)
    table = pq.read_table(copies[1])
    pq.write_table(table.slice(1), copies[1])
    with pytest.raises(ClipstemError, match=r"run: began with other contents of its files of weig"):
        train(replace(config, resume=True))
    shutil.copy(case.config.distill.teachers[1], tmp_path)
    train(replace(config, resume=True))
    for name, value in weights_of(finished).items():
        assert torch.equal(value, weights_of(tmp_path / "run")[name]), name
    assert (tmp_path / "run/metrics.csv").read_text() == (finished / "metrics.csv").read_text()


# ---------------------------------------------------------------------------- settings


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature 0": (
        {"teachers": ["a"], "temperature": 0.0},
        r"'temperature': 0.0 is not above 0",
    ),
    "weight above 1": (
        {"teachers": ["a"], "weight": 1.1},
        r"'distill.weight': 1.1 is not from 0 t",
    ),
    "a teacher twice": ({"teachers": ["a", "a"]}, r"'distill.teachers': a file stands twice in"),
    "no teacher": ({"temperature": 3.0}, r"'distill.temperature': has no effect without distill.t"),
}


@pytest.mark.parametrize(("settings", "match"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ClipstemError, match=match):
        DistillConfig(**settings)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_share_of_labels_is_above_0_and_at_most_1(fraction: float) -> None:
    with pytest.raises(ClipstemError, match=rf"'labelled_fraction': {fraction} is not above 0 and"):
        TrainConfig(labelled_fraction=fraction)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("distill.teachers", {"distill": DistillConfig(["a"])}),
        ("labelled_fraction", {"labelled_fraction": 0.5}),
        ("weights", {"weights": "w"}),
    ],
)
def test_where_nothing_learns_they_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ClipstemError, match=rf"'{name}': has no effect with tune.mode=zero_shot"):
        TrainConfig(tune=TuneConfig(mode=TuneMode.zero_shot), **settings)
