"""The benchmark runs end to end on a small model, and says what it measured."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle

from clipstem import export as exporting
from clipstem import shards
from clipstem.bank import SKILLS, draw
from clipstem.command import model_config
from clipstem.config import ExportConfig, TrainerConfig, Variant
from clipstem.onnx_scorer import OnnxScorer
from clipstem.prediction import Predictions
from clipstem.question import Kind, Question
from clipstem.tokens import join
from clipstem.towers import Towers, create
from clipstem.train import main as train

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import bench  # noqa: E402
import bench_growth  # noqa: E402
import bench_peers  # noqa: E402
import bench_report  # noqa: E402
import bench_serve  # noqa: E402
import bench_sets  # noqa: E402
import measure_bf16  # noqa: E402
import measure_export  # noqa: E402
import tables  # noqa: E402


@pytest.fixture(scope="module")
def towers() -> Towers:
    return create(model_config("tiny_vit"))


@pytest.fixture(scope="module")
def stem_shaped() -> list[Question]:
    return bench_sets.stem_shaped(100)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(f"before\n{bench_report.START}old\n<!-- end -->\nafter\n")
    return tmp_path


def test_the_benchmark_runs_and_the_readme_shows_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "QUICK", bench.Size(6, 1, 5, 1))
    monkeypatch.delenv("CLIPSTEM_REALSET", raising=False)
    bench.main(["--quick", "--model", "tiny_vit", "--workers", "0", "--out", str(checkout)])
    (path,) = checkout.glob("benchmarks/bench-*.json")
    figures = json.loads(path.read_text())
    assert figures["command"].endswith("--workers 0 --out " + str(checkout))
    assert {"cpu", "cores"} <= figures["machine"].keys() and "torch" in figures["versions"]
    results = figures["results"]
    assert [result["what"] for result in results] == [
        "text tower",
        *("pictures", "scoring", "training"),  # text options
        *("pictures", "scoring"),  # picture options
        *("pictures", "scoring", "training"),  # STEM's shape
    ]
    assert all(it["largest_difference"] == 0 for it in results if it["what"] == "pictures")
    assert all(len(turns) >= 1 for it in results for turns in it["seconds"].values())
    for result in results:
        if result["what"] in ("scoring", "training"):
            assert result["gflop"]["reference"] > result["gflop"]["open_clip"]
            assert result["gflop"]["open_clip"] > result["gflop"]["clipstem"]
            assert result["gflop"]["clipstem"] >= result["gflop"]["texts_known"]
    assert "drawn (CLIPSTEM_REALSET is not set)" in results[1]["set"]
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("<!-- end -->\nafter\n")
    assert bench_report.table(figures) in readme and f"{path.stem}.svg" in readme
    assert path.with_suffix(".svg").read_text().count("<rect") == 1 + len(
        list(bench_report.rows(figures))
    )
    assert "STEM-shaped set" in capsys.readouterr().out
    assert ">tiny_vit<" not in bench_report.picture(figures)
    second = [{**it, "model": "another"} for it in results]
    both = {**figures, "results": results + second, "sizes": {"tiny_vit": 0, "another": 0}}
    drawn = bench_report.picture(both)
    assert drawn.count("<rect") == 1 + len(list(bench_report.rows(both)))
    assert drawn.count(">tiny_vit<") == drawn.count(">another<") == 1


def test_ways_that_disagree_give_no_result() -> None:
    with pytest.raises(SystemExit, match=r"^a set, clipstem: differs by 1.0e-02, more than 0.0001"):
        bench.check_agreement("a set, clipstem", np.array([0.5]), np.array([0.51]))


def test_both_peers_answer_as_the_oracle_does(towers: Towers, stem_shaped: list[Question]) -> None:
    questions = stem_shaped[:6]
    oracle = Oracle(towers.model, towers.tokenizer._tokenizer, towers.spec.open_clip())
    device = torch.device("cpu")
    reference = bench_peers.Reference(towers, questions, device).logits_QK()
    usual = bench_peers.OpenClip(towers, questions, device, 4, 0).logits_QK()
    for logits_QK in (reference, usual):
        for question, row in zip(questions, logits_QK, strict=True):
            probs_K = row.double().softmax(dim=0)[: len(question.options)].numpy()
            np.testing.assert_allclose(probs_K, oracle.probabilities(question), atol=1e-5)


def test_the_stem_shaped_set_has_stems_proportions(stem_shaped: list[Question]) -> None:
    kinds = [question.kind for question in stem_shaped]
    assert kinds.count(Kind.TEXT_OPTIONS) == 57 and kinds.count(Kind.PICTURE_OPTIONS) == 43
    assert np.mean([len(question.options) for question in stem_shaped]) == 2.8
    assert {len(question.problem.split()) for question in stem_shaped} == {17}
    pictures = [picture.sha256 for question in stem_shaped for picture in question.pictures]
    assert len(set(pictures)) == len(pictures)
    assert bench_sets.stem_shaped(5) == stem_shaped[:5]


def test_question_texts_come_from_20_a_skill() -> None:
    drawn = {
        (skill, text): bench_sets.problem(skill, text) for skill in range(9) for text in range(20)
    }
    assert len(set(drawn.values())) == 9 * 20


def test_a_stored_set_reads_back_as_it_was(tmp_path: Path, stem_shaped: list[Question]) -> None:
    dataset = bench_sets.stored(stem_shaped[:7], tmp_path / "set")
    for split in ("train", "valid"):
        assert dataset.read(split, range(7)) == stem_shaped[:7]
    assert shards.open_dataset(str(tmp_path / "set")).size("valid") == 7


def test_arithmetic_counts_each_token_once(towers: Towers, stem_shaped: list[Question]) -> None:
    size = bench.Size(1, 1, 1, 1)
    made = bench.Bench(towers, "tiny_vit", size, 0, torch.device("cpu"))
    question = next(it for it in stem_shaped if it.kind is Kind.TEXT_OPTIONS)
    options = [option for option in question.options if isinstance(option, str)]
    own = join(question.problem, options, towers.tokenizer)
    expected = len(own[0].shared) + sum(len(text.own) for text in own)
    assert made._tokens([question, question]) == expected


def test_the_readmes_speed_is_the_measured_one() -> None:
    text = (ROOT / "README.md").read_text()
    assert bench_report.with_tables(text, ROOT / "benchmarks") == text


def test_the_cost_of_a_question_is_measured_at_every_size() -> None:
    figures = bench_growth.measure([1, 70])
    assert [it["questions"] for it in figures["sizes"]] == [69, 138]  # one of each skill, two
    for size in figures["sizes"]:
        assert list(size["milliseconds"]) == [
            "draw",
            "prepare",
            "read",
            "predict",
            "predictions file",
        ]
        assert all(it > 0 for it in size["milliseconds"].values())
        assert size["peak_gib_of_a_process"] > 0
    assert set(figures["prepare_questions_per_second_one_core"]) == {"decode", "header"}
    assert "questions</text>" in bench_growth.picture(figures)
    table = tables.at_every_size(figures)
    assert "| 69 |" in table and "| 138 |" in table and "`verify=header`" in table


@pytest.mark.slow
def test_a_bundle_is_measured_beside_torch(
    drawn_data: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = tiny_bundle / "fp32"
    monkeypatch.setattr(exporting, "write_graphs", lambda _, to: shutil.copytree(graphs, to))
    monkeypatch.setattr(measure_export, "FIRST_SCORES", 1)
    monkeypatch.setattr(measure_export, "TURNS", 1)
    given: dict[str, Any] = {"model": model_config("tiny_vit"), "data": str(drawn_data)}
    found = measure_export.figures_of(
        ExportConfig(str(tmp_path / "bundle"), max_accuracy_drop=100.0, **given), 10
    )
    assert min(found["least_cosines"].values()) > 0.9
    assert {len(seconds) for seconds in found["seconds"].values()} == {1}
    table = tables.exported({"machine": {"cores": 2}, "bundles": {"`tiny_vit`": found}})
    assert "| `tiny_vit`, fp32 | 40 |" in table and "| `tiny_vit`, int8 | 40 |" in table


@pytest.mark.slow
def test_the_server_is_measured_among_hostile_requests(tiny_bundle: Path) -> None:
    engine = OnnxScorer(tiny_bundle, TrainerConfig("cpu"), Variant.fp32)
    asked = [draw(SKILLS["weather"], 0, index) for index in range(3)]
    bodies = [bench_serve.body_of(question, engine) for question in asked]
    found = bench_serve.measured(tiny_bundle, bodies, 4, 1.0, True)
    assert found["answered"] > 10 and found["refused"] >= 4
    assert found["wrong"] == 0 and found["ready_afterwards"] is True
    turns = {name: [found] for name in ("together", "alone", "hostile")}
    table = tables.served([{"model": "tiny_vit", "clients": 4, "batching": 1.5, "turns": turns}])
    assert "| `tiny_vit` |" in table and "| 1.50 |" in table


def test_choices_in_bf16_are_counted_apart_where_a_skill_is_learnt() -> None:
    """`learnt` is always right, `guessed` once in four, which is its chance, and hangs on nothing;
    that bf16 moves all logits of a question does not matter."""
    lowest = np.finfo(np.float32).min
    sure, tie = [4.0, 0.0, lowest, lowest], [1.0, 1.001, 0.5, 0.0]
    exact_QK: Any = np.array([sure, sure, tie, tie, tie, tie], np.float32)
    rough_QK = np.add(exact_QK, 0.5, dtype=np.float32)
    rough_QK[0, :2] = 4.5, 0.52
    rough_QK[2, :2] = 1.52, 1.50
    rough_QK[:2, 2:] = lowest
    columns: dict[str, Any] = {
        "skill": ["learnt"] * 2 + ["guessed"] * 4,
        "answer": [0, 0, 1, 0, 2, 3],
        "num_options": [2, 2, 4, 4, 4, 4],
    }
    exact, rough = (Predictions(columns, it.astype(float), it) for it in (exact_QK, rough_QK))
    found = measure_bf16.agreement(exact, rough)
    assert (found["questions"], found["same"], found["gap_below_error"]) == (6, 5, 4)
    assert found["right"] == {"fp32": 3, "bf16": 2}
    assert found["learnt"] == {"questions": 2, "same": 2}
    # 0.01 twice, 0.01525, 0.00575, and 0.00475 twice, of 20 logits
    assert found["logit_error_rms"] == pytest.approx(0.0051, abs=1e-4)
    table = tables.in_bf16({"runs/vit": {"trained": "model=tiny_vit", **found}})
    assert "| `model=tiny_vit` | 6 | 83.3 | 2 of 2 | 33.3 (50.0) | 0.005 | 4 |" in table


def test_a_run_is_scored_in_both_precisions_and_other_rows_stay(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    settings = ["model=tiny_vit", "steps=2", "eval_every_steps=2", "batch_size=8"]
    settings += ["trainer.device=cpu", "trainer.workers=0"]
    monkeypatch.setattr("sys.argv", ["train", *settings, f"data={drawn_data}", f"out={run}"])
    train()
    published: dict[str, Any] = {}
    monkeypatch.setattr(measure_bf16, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(measure_bf16, "publish", published.__setitem__)
    monkeypatch.setattr(measure_bf16, "facts", lambda: {"commit": "abc"})
    monkeypatch.setattr(measure_bf16, "onednn_has_bf16", lambda: True)  # or all is cast
    (tmp_path / "bf16.json").write_text(json.dumps({"runs/other": {"same": 7}}))
    monkeypatch.setattr("sys.argv", ["measure_bf16.py", str(drawn_data), run])
    measure_bf16.main()
    rows = published["bf16"]
    assert rows["runs/other"] == {"same": 7}
    assert (rows[run]["commit"], rows[run]["data"]) == ("abc", str(drawn_data))
    assert rows[run]["trained"].startswith("model=tiny_vit steps=2 ")
    assert run not in rows[run]["trained"]
    assert rows[run]["questions"] == 40 and 30 <= rows[run]["same"] <= 40
    assert 0 < rows[run]["logit_error_rms"] < 0.05  # two precisions did run
    assert f"| `{rows[run]['trained']}` | 40 |" in tables.in_bf16({run: rows[run]})


def test_choices_in_bf16_are_measured_only_where_a_processor_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_bf16, "onednn_has_bf16", lambda: False)
    with pytest.raises(SystemExit, match=r"^this processor, or this torch, has no"):
        measure_bf16.main()
