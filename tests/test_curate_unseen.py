"""Folds, and predictions for what a run has not seen; what it may have seen is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from curating import data, ids_of, predicted, with_folds
from hypothesis import given
from hypothesis import strategies as st
from preparing import row

from clipstem import weights
from clipstem.config import CurateConfig
from clipstem.curate import unseen
from clipstem.curate.__main__ import curate
from clipstem.question import ClipstemError
from clipstem.run import ASSEMBLED
from clipstem.shards import Dataset
from clipstem.storage import file_sha256


@given(st.lists(st.integers(0, 15), min_size=1, max_size=60), st.integers(2, 5), st.integers(0, 99))
def test_folds_keep_groups_together_and_are_even(group: list[int], folds: int, seed: int) -> None:
    group_N = np.array(group)
    skill_N = np.asarray([f"s{it % 3}" for it in group], dtype=object)
    fold_N = unseen.deal(group_N, skill_N, folds, seed)
    assert (fold_N == unseen.deal(group_N, skill_N, folds, seed)).all()
    fold_of = dict(zip(group, fold_N.tolist(), strict=True))
    assert [fold_of[it] for it in group] == fold_N.tolist()
    sizes = np.bincount(list(fold_of.values()), minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def a_run(dataset: Dataset, folder: Path, fold: Path | None, **changes: Any) -> Path:
    """A run's folder, as far as curation looks at it, with its predictions; their path."""
    folder.mkdir(parents=True)
    facts: dict[str, Any] = {
        "weights_sha256": folder.name,
        "data_sha256": dataset.manifest.data_sha256,
        "start": [],
    }
    if fold is not None:
        facts["supervision"] = {"weights": {"file": str(fold), "sha256": file_sha256(fold)}}
    (folder / "run.json").write_text(json.dumps(facts | changes))
    path = folder / "train.parquet"
    predicted(dataset, path, run=str(folder), weights_sha256=folder.name)
    return path


def test_of_each_run_only_what_it_has_not_seen_is_taken(lots: Dataset, tmp_path: Path) -> None:
    folds = with_folds(lots, tmp_path)
    assert [path.name for path in folds] == ["fold-1.parquet", "fold-2.parquet", "fold-3.parquet"]
    left_out = [{id for id, it in weights.read(path).items() if it == 0} for path in folds]
    assert set().union(*left_out) == set(ids_of(lots)) and sum(map(len, left_out)) == 60
    paths = [str(a_run(lots, tmp_path / f"run-{n}", fold)) for n, fold in enumerate(folds)]
    found = unseen.gather(paths, lots, unseen=False)
    assert (found.answered_N == 1).all() and (found.right_N == 1).all()
    assert [taken for _, _, taken in found.files] == [20, 20, 20]
    found = unseen.gather(paths[:2], lots, unseen=False)
    assert (found.answered_N == 1).sum() == 40
    known = {id for id, count in zip(ids_of(lots), found.answered_N, strict=True) if count}
    assert known == left_out[0] | left_out[1]


def test_probabilities_of_several_runs_are_averaged(lots: Dataset, tmp_path: Path) -> None:
    for number, (sure, wrong) in enumerate([(0.9, 0), (0.6, 5)]):
        predicted(lots, tmp_path / f"{number}.parquet", sure, wrong)
    paths = [str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")]
    answer_N = lots.index("train")["answer"].to_numpy()
    found = unseen.gather(paths, lots, unseen=True)
    own_N = found.mean_NK[np.arange(60), answer_N]
    np.testing.assert_allclose(own_N, [0.55] * 5 + [0.75] * 55)
    np.testing.assert_allclose(found.spread_N, [0.35] * 5 + [0.15] * 55)
    assert found.right_N.tolist() == [0.5] * 5 + [1.0] * 55


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no run": ({"provenance": {"run": None}}, "does not say of which run it is"),
    "run that is gone": ({"provenance": {"run": "gone"}}, "gone/run.json: there is no such file"),
    "facts in a named pipe": ({"pipe": True}, "run.json: there is no such file"),
    "other weights": ({"provenance": {"weights_sha256": "x"}}, "not of the weights that"),
    "other data of the run": ({"facts": {"data_sha256": "x"}}, "was trained on other data"),
    "no weights file": ({"facts": {"supervision": None}}, "has seen every question of 'train'"),
    "supervision without weights": ({"facts": {"supervision": {}}}, "has seen every question"),
    "teachers": (
        {"facts": {"supervision": {"teachers": [{"file": "t.parquet"}]}}},
        "has teachers, which may have seen the questions",
    ),
    "changed weights file": (
        {"facts": {"supervision": {"weights": {"file": "FOLD", "sha256": "x"}}}},
        "which are not there any more or are others now",
    ),
    "weights file that is gone": (
        {"facts": {"supervision": {"weights": {"file": "gone", "sha256": "x"}}}},
        "which are not there any more",
    ),
    "facts of other types": ({"facts": {"start": 3}}, "start is 3; expected a list"),
    "a weights file of other types": (
        {"facts": {"supervision": {"weights": {"file": "FOLD"}}}},
        "supervision.weights lacks sha256",
    ),
    "no word of its start": (
        {"facts": {"start": None}},
        "does not say with which weights it began",
    ),
    "facts that are no JSON": ({"text": "{"}, "is not JSON"),
    "facts that nest deep": ({"text": "[" * 10**5}, "is not JSON"),
    "facts that are a list": ({"text": "[]"}, "is not a JSON object"),
    "other split": ({"provenance": {"split": "valid"}}, "has predictions for 'valid'"),
    "other data": ({"provenance": {"data_sha256": "x"}}, "has predictions for other data"),
    "perturbed": (
        {"provenance": {"perturbation": {"name": "blur", "strength": 1.0, "seed": 0}}},
        "has answers to changed questions (perturb=blur)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_predictions_of_what_was_seen_are_refused(kind: str, lots: Dataset, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    fold = with_folds(lots, tmp_path)[0]
    facts = json.loads(json.dumps(change.get("facts", {})).replace("FOLD", str(fold)))
    path = a_run(lots, tmp_path / "run", fold, **facts)
    if "text" in change:
        (tmp_path / "run/run.json").write_text(change["text"])
    if "pipe" in change:
        (tmp_path / "run/run.json").unlink()
        os.mkfifo(tmp_path / "run/run.json")
    if "provenance" in change:
        path.unlink()
        said = {"run": str(tmp_path / "run"), "weights_sha256": "run", **change["provenance"]}
        predicted(lots, path, **said)
    config = CurateConfig(
        data=lots.location, out=str(tmp_path / "out"), predictions=[str(path)], workers=1
    )
    with pytest.raises(ClipstemError, match=re.escape(message)):
        curate(config)
    assert not (tmp_path / "out").exists()


def assembled(folder: Path) -> Path:
    """A folder of weights as `assemble` leaves it."""
    folder.mkdir()
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(folder.name.encode())
    said = {"file": file.name, "sha256": file_sha256(file)}
    (folder / ASSEMBLED).write_text(json.dumps(said))
    return folder


def began_with(start: Path, dataset: Dataset, folder: Path) -> unseen.Unseen:
    """What is taken of a run of a fold that began with these weights."""
    path = a_run(dataset, folder, with_folds(dataset, folder.parent)[0], start=[str(start)])
    return unseen.gather([str(path)], dataset, unseen=False)


@pytest.mark.parametrize("inside", [".", "open_clip_model.safetensors"])
def test_weights_that_assemble_wrote_have_seen_nothing(
    inside: str, lots: Dataset, tmp_path: Path
) -> None:
    made = assembled(tmp_path / "mini").rename(tmp_path / "moved")
    taken = began_with(made / inside, lots, tmp_path / "run")
    assert (taken.answered_N > 0).sum() == 20


TRAINED: dict[str, str] = {
    "a run's folder": "first/weights",
    "a run's file": "first/weights/open_clip_model.safetensors",
    "a copy of the folder": "copy",
    "a copy of the file": "open_clip_model.safetensors",
    "a copy of the file beside assembled weights": "mini/tuned.safetensors",
    "a copy of the file in the place of assembled weights": "overwritten",
}


@pytest.mark.parametrize("kind", TRAINED)
def test_weights_that_may_have_been_trained_are_refused_wherever_they_lie(
    kind: str, lots: Dataset, tmp_path: Path
) -> None:
    a_run(lots, tmp_path / "first", None)
    file = tmp_path / "first/weights/open_clip_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"trained")
    shutil.copytree(file.parent, tmp_path / "copy")
    shutil.copy(file, tmp_path)
    shutil.copy(file, assembled(tmp_path / "mini") / "tuned.safetensors")
    shutil.copy(file, assembled(tmp_path / "overwritten"))
    with pytest.raises(ClipstemError, match=rf"{TRAINED[kind]}, which may have seen the questions"):
        began_with(tmp_path / TRAINED[kind], lots, tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"file": "gone", "sha256": "x"}'])
def test_what_does_not_say_that_assemble_wrote_the_weights_is_refused(
    content: str, lots: Dataset, tmp_path: Path
) -> None:
    made = assembled(tmp_path / "mini")
    (made / ASSEMBLED).write_text(content)
    with pytest.raises(ClipstemError, match="which may have seen the questions; runs may begin"):
        began_with(made, lots, tmp_path / "run")


def test_weights_that_are_gone_are_refused(lots: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match="gone, which is not there any more"):
        began_with(tmp_path / "gone", lots, tmp_path / "run")


def test_a_run_that_has_seen_all_that_it_answers_is_refused(lots: Dataset, tmp_path: Path) -> None:
    nothing = tmp_path / "all.parquet"
    weights.write(nothing, pa.table({"id": ids_of(lots), "weight": np.ones(60)}))
    path = a_run(lots, tmp_path / "run", nothing)
    with pytest.raises(ClipstemError, match="has seen every question of it"):
        unseen.gather([str(path)], lots, unseen=False)


def test_predictions_for_other_questions_of_the_same_ids_are_refused(
    lots: Dataset, tmp_path: Path
) -> None:
    made = predicted(lots, tmp_path / "p.parquet")
    path = tmp_path / "q.parquet"
    replace(made, columns={**made.columns, "answer": [2] * 60}).write(path)
    with pytest.raises(ClipstemError, match=r"has answer 2, but [01] in .*different questions"):
        unseen.gather([str(path)], lots, unseen=True)
    unknown = tmp_path / "unknown.parquet"
    replace(made, columns={**made.columns, "answer": [-1] * 60}).write(unknown)
    assert (unseen.gather([str(unknown)], lots, unseen=True).answered_N == 1).all()
    strange = [*[f"x{n}" for n in range(3)], *ids_of(lots)[3:]]
    replace(made, columns={**made.columns, "id": strange}).write(tmp_path / "r.parquet")
    with pytest.raises(ClipstemError, match=r"has 3 of 60 ids that are not in 'train' of .*'x0'"):
        unseen.gather([str(tmp_path / "r.parquet")], lots, unseen=True)


def test_more_folds_than_questions_are_refused(tmp_path: Path) -> None:
    dataset = data(tmp_path, [row(n) for n in range(3)])
    with pytest.raises(ClipstemError, match=r"4 folds of the 3 questions .* give 3 or fewer"):
        with_folds(dataset, tmp_path, folds=4)
    assert not (tmp_path / "folds").exists()
