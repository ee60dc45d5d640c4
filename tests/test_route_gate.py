"""Gates: their curves against counting one by one, and files of strangers that are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from routing import NAN, Flags, graded, of_school, one_by_one, run_route

from clipstem.config import Method, RouteConfig
from clipstem.question import ClipstemError
from clipstem.route import gate
from clipstem.route.__main__ import write
from clipstem.route.gate import AGREEMENT, MOST_POINTS, NEVER, NUMBERS, WORDS, Curve, curve
from clipstem.statistics import paired_loss_at_most


@given(graded())
def test_a_curve_is_every_threshold_counted_one_by_one(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags],
) -> None:
    score_Q, rest = made[0], made[1:]
    found = curve(*made)
    assert found.threshold_T == (NEVER, *sorted(set(score_Q.tolist()), reverse=True))
    for t, threshold in enumerate(found.threshold_T):
        deferred = [score >= threshold for score in score_Q]
        calls, accuracy, usage, _ = one_by_one(deferred, *rest)
        assert (found.calls_T[t], found.accuracy_T[t], found.tool_usage_T[t]) == pytest.approx(
            (calls, accuracy, usage)
        )
        routed_Q = np.where(deferred, rest[1], rest[0])
        assert found.loss_T[t] == pytest.approx(paired_loss_at_most(rest[1], routed_Q))


@given(graded(), st.floats(0, 1))
def test_choices_on_a_curve_are_the_best_of_all_points(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], calls: float
) -> None:
    found = curve(*made)
    points = list(zip(found.calls_T, found.accuracy_T, found.tool_usage_T, strict=True))
    within = points[found.within(calls)]
    assert within[0] <= calls + 1e-9
    assert within[1] == max(point[1] for point in points if point[0] <= calls + 1e-9)
    enough = [
        share for share, loss in zip(found.calls_T, found.loss_T, strict=True) if loss <= calls
    ]
    assert points[found.losing_at_most(calls)][0] == min(enough, default=1.0)
    assert points[found.best_usage()][2] == max(point[2] for point in points)


def test_a_long_curve_keeps_points_all_along() -> None:
    rng = np.random.default_rng(0)
    score_Q, right_Q = rng.random(5000), rng.random(5000) < 0.5
    found = curve(score_Q, right_Q, ~right_Q, ~right_Q)
    assert len(found.calls_T) == MOST_POINTS + 1
    assert np.diff(found.calls_T).max() < 2 / MOST_POINTS
    assert (found.calls_T[0], found.calls_T[-1]) == (0, 1)


def test_what_a_leaf_would_look_at_does_not_matter() -> None:
    """A stranger may write any number there; other questions are still on their way then."""
    tree = gate.Tree((0, 99, 1, -7, 99), (0.0,) * 5, (1, -1, 3, -1, -1), (2, -1, 4, -1, -1), VALUES)
    tree.check(2)
    x_QF = np.array([[-1, 0], [1, -1], [1, 1]], np.float32)
    assert tree.values(x_QF).tolist() == [1.0, 3.0, 4.0]


VALUES = (0.0, 1.0, 2.0, 3.0, 4.0)


def test_a_gates_file_decides_the_same_without_scikit_learn(tmp_path: Path) -> None:
    settings = of_school(tmp_path, method=Method.boosting)
    routed, made = run_route(settings)
    write(routed, made, Path(settings.out))
    assert json.loads((tmp_path / "out/gate.json").read_text())["method"] == "boosting"
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None\n"
        "from clipstem.route.__main__ import main; main()"
    )
    arguments = ["gate=out/gate.json", f"fast={settings.fast}", f"tool={settings.tool}"]
    arguments += [f"samples=[{','.join(settings.samples)}]", "out=again", "repeats=100"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    tables = [pq.read_table(tmp_path / f"{it}/decisions.parquet") for it in ("out", "again")]
    assert tables[0].equals(tables[1])
    again = json.loads((tmp_path / "again/route.json").read_text())
    assert again["scored"] == json.loads(json.dumps(asdict(made)["scored"]))


def loop(gate: dict[str, Any]) -> None:
    gate["scorer"]["trees"] = [
        {"feature": [0], "threshold": [0.0], "left": [0], "right": [0], "value": [1.0]}
    ]


GATES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a list", lambda it: [it], "is a list|expected an object"),
    ("no scorer", lambda it: it.pop("scorer"), "lacks scorer"),
    ("a newer format", lambda it: it.update(format_version=9), "has format 9"),
    ("a slope that is NaN", lambda it: it.update(slope=NAN), "slope is nan; expected a number"),
    ("a slope that is a text", lambda it: it.update(slope="1"), "slope is '1'"),
    ("other features", lambda it: it["scorer"].update(features=["x"]), "features are x; expected"),
    ("too few weights", lambda it: it["scorer"].update(weights=[1.0]), "has 1 weights; expected"),
    ("no encodings", lambda it: it["scorer"].update(encodings={}), "encodings are not of kind"),
    ("a tree that never ends", loop, "node 0 has the children 0 and 0"),
    (
        "a tree that looks beyond",
        lambda it: it["scorer"].update(
            trees=[
                {
                    **{"feature": [99, 0, 0], "threshold": [0.0] * 3, "value": [1.0] * 3},
                    **{"left": [1, -1, -1], "right": [2, -1, -1]},
                }
            ]
        ),
        "node 0 looks at feature 99",
    ),
    (
        "a tree without nodes",
        lambda it: it["scorer"].update(
            trees=[{name: [] for name in ("feature", "threshold", "left", "right", "value")}]
        ),
        "lists are empty",
    ),
    ("samples that it does not see", lambda it: it.update(samples=[]), "has 0 samples"),
    ("a curve without points", lambda it: it["curve"].update(calls_T=[]), "curve has lists of"),
]


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in GATES], ids=[it[0] for it in GATES]
)
def test_a_strangers_gate_is_checked(
    change: Callable[[dict[str, Any]], object],
    message: str,
    fitted: tuple[RouteConfig, Path],
    tmp_path: Path,
) -> None:
    values = json.loads((fitted[1] / "gate.json").read_text())
    instead = change(values)
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(instead if isinstance(instead, list) else values))
    with pytest.raises(ClipstemError, match=message) as error:
        gate.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_gates_file_may_be_nothing_of_the_sort(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match=r"there is no such file; expected a gate\.json"):
        gate.read(tmp_path)
    for text in (b"", b"\xff", b"[" * 100_000, b'{"format_version": 1}'):
        (tmp_path / "gate.json").write_bytes(text)
        with pytest.raises(ClipstemError, match=r"is not JSON|lacks .*; expected a gate\.json"):
            gate.read(tmp_path / "gate.json")


def test_features_are_known_before_the_answer() -> None:
    assert not {"answer", "choice", "row", "id"} & {*NUMBERS, *AGREEMENT, *WORDS}
    empty = Curve((NEVER,), (0.0,), (0.5,), (0.5,), (0.5,))
    assert empty.within(0.0) == empty.losing_at_most(0.1) == empty.best_usage() == 0
