"""`python -m clipstem.export run=… out=bundle`: a model as ONNX graphs that need no torch.

Each variant is measured against torch on real questions before it is written, and one whose
accuracy may be lower than allowed is not.
"""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim

from clipstem import __version__, bundle, console, packing, run, scorer, shards
from clipstem.atomic import new_folder, require_new
from clipstem.bundle import PICTURE_GRAPH, TEXT_GRAPH, Bundle, TextSettings
from clipstem.command import verb
from clipstem.config import ExportConfig, Variant
from clipstem.onnx_scorer import OnnxScorer
from clipstem.packing import PackedTexts
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.scorer import Scorer
from clipstem.shards import Dataset
from clipstem.statistics import paired_loss_at_most
from clipstem.tokens import Layout, join
from clipstem.towers import Towers, attention_for_graphs

MOST_DIFFERENT = 1e-3  # of a probability, fp32 against torch: more is an error, not rounding
QUANTISED = ("MatMul", "Gemm")
LARGE_BYTES = 1_500_000_000  # weights beyond this stand beside their graph: a file may hold 2 GB

log = logging.getLogger(__name__)


class PictureGraph(nn.Module):
    """uint8 pixels -> unit embeddings; normalised inside."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixels_IHWC: Tensor) -> Tensor:
        return self.towers.encode_pictures(pixels_IHWC)


class PackedTextGraph(nn.Module):
    """Packed rows of tokens -> unit embeddings."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(
        self,
        tokens_RT: Tensor,
        position_RT: Tensor,
        group_RT: Tensor,
        part_RT: Tensor,
        end_U: Tensor,
    ) -> Tensor:
        return self.towers.encode_texts(
            PackedTexts(tokens_RT, position_RT, group_RT, part_RT, end_U)
        )


class RowTextGraph(nn.Module):
    """A row of tokens for each text -> unit embeddings."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, tokens_RT: Tensor) -> Tensor:
        return self.towers.encode_texts(PackedTexts(tokens_RT, *[tokens_RT] * 4))


@dataclass(frozen=True)
class Parity:
    """A variant beside torch on the same questions; accuracies and losses in points of 100.

    Attributes:
        accuracy_drop_at_most: the upper end of the drop's 95 % interval.
        speed: questions a second, of torch's.
    """

    questions: int
    largest_difference: float
    choices_that_differ: int
    accuracy: float
    torch_accuracy: float
    accuracy_drop_at_most: float
    megabytes: float
    questions_per_second: float
    speed: float
    kept_in_fp32: tuple[str, ...] = ()


def export(config: ExportConfig) -> dict[str, Parity]:
    """Write the bundle; returns what was measured, by variant.

    Raises:
        ClipstemError: if the model or the questions are not as expected, or fp32 does not give
            torch's answers.
    """
    require_new(Path(config.out), "out=<folder>")
    ours, data = _model(config)
    dataset = shards.open_dataset(data)
    dataset.shards_of(config.split)
    expected, seconds = _timed(ours, dataset, config)
    if not (expected.answer_Q >= 0).any():
        raise ClipstemError(
            f"{data}: no question of '{config.split}' has an answer and a picture; give another "
            "split or data to check the bundle on"
        )
    measured: dict[str, Parity] = {}
    with new_folder(Path(config.out)) as folder:
        tokenizer = ours.model.tokenizer
        tokenizer.export(folder / bundle.TOKENIZER_FILE)
        write_graphs(ours.model, folder / Variant.fp32.value)
        facts = _facts(ours, config, dataset, folder)
        for variant in [Variant.fp32, *([Variant.int8] if config.int8 else [])]:
            kept: tuple[str, ...] = ()
            if variant is Variant.int8:
                kept = _quantise(folder)
            _write(facts, folder, [*measured, variant.value], measured)
            theirs = OnnxScorer(folder, config.trainer, variant)
            found, their_seconds = _timed(theirs, dataset, config)
            parity = _compared(found, expected, seconds / their_seconds, their_seconds)
            size = sum(path.stat().st_size for path in (folder / variant.value).iterdir()) / 1e6
            parity = replace(parity, megabytes=round(size, 1), kept_in_fp32=kept)
            if _is_good(variant, parity, config):
                measured[variant.value] = parity
            else:
                shutil.rmtree(folder / variant.value)
        _write(facts, folder, list(measured), measured)
    return measured


@dataclass(frozen=True)
class _OfRun:
    """What exporting needs of `run.json` where the config does not say it."""

    data: str


def _model(config: ExportConfig) -> tuple[Scorer, str]:
    """The scorer, and the folder of the questions to check on."""
    if config.run is not None:
        ours = scorer.of_run(Path(config.run), config.trainer)
        data = config.data or run.finished(Path(config.run)).facts_as(_OfRun).data
    else:
        assert config.model is not None and config.data is not None
        ours, data = scorer.of_model(config.model, config.trainer, config.seed), config.data
    if config.temperature is not None:
        ours.temperature = config.temperature
    return ours, data


def _timed(engine: Any, dataset: Dataset, config: ExportConfig) -> tuple[Predictions, float]:
    count = min(config.questions, dataset.size(config.split))
    with console.progress_bar(type(engine).__name__, count) as progress:
        started = time.perf_counter()
        found = engine.predict(
            dataset, config.split, config.batch_size, progress, chosen=slice(config.questions)
        )
    return found, time.perf_counter() - started


def _facts(ours: Scorer, config: ExportConfig, dataset: Dataset, folder: Path) -> Bundle:
    tokenizer = ours.model.tokenizer
    return Bundle(
        format_version=bundle.FORMAT_VERSION,
        clipstem_version=__version__,
        scale=float(ours.model.scale.detach()),
        temperature=ours.temperature,
        problem_picture=ours.problem_picture.value,
        preprocess=ours.spec.open_clip(),
        text=TextSettings(
            before=tokenizer.before,
            after=tokenizer.after,
            padding=tokenizer.padding,
            context_length=tokenizer.context_length,
            layout=tokenizer.layout.value,
            clean=tokenizer.clean,
        ),
        variants={},
        sha256={},
        weights_sha256=ours.model.weights_sha256(),
        parameters=sum(weight.numel() for weight in ours.model.parameters()),
        provenance=ours.provenance,
        checked_on={
            "data": dataset.location,
            "data_sha256": dataset.manifest.data_sha256,
            "split": config.split,
        },
        environment=run.environment(),
    )


def _write(facts: Bundle, folder: Path, variants: list[str], measured: dict[str, Parity]) -> None:
    (folder / bundle.BUNDLE_FILE).unlink(missing_ok=True)
    named = {name: vars(measured[name]) if name in measured else {} for name in variants}
    replace(facts, variants=named, sha256=bundle.hashes(folder)).write(folder)


# ------------------------------------------------------------------------------ graphs


def write_graphs(towers: Towers, folder: Path) -> None:
    """Both towers as ONNX, in fp32."""
    folder.mkdir()
    towers = towers.cpu().eval()
    side, rows = Dim.DYNAMIC, Dim.DYNAMIC
    pixels_IHWC = torch.zeros(2, towers.spec.size, towers.spec.size, 3, dtype=torch.uint8)
    _write_graph(
        PictureGraph(towers),
        {"pixels_IHWC": (pixels_IHWC, {0: side})},
        "image_ID",
        folder / PICTURE_GRAPH,
    )
    texts = _example(towers)
    if towers.tokenizer.layout is Layout.PACKED:
        given = {
            name: (value, {0: rows} if name == "end_U" else {0: rows, 1: Dim.DYNAMIC})
            for name, value in vars(texts).items()
        }
        _write_graph(PackedTextGraph(towers), given, "text_UD", folder / TEXT_GRAPH)
        return
    # Towers that see their padding read rows of full length alone.
    lengths = {} if towers.tokenizer.layout is Layout.FULL else {1: Dim.DYNAMIC}
    given = {"tokens_RT": (texts.tokens_RT, {0: rows, **lengths})}
    _write_graph(RowTextGraph(towers), given, "text_UD", folder / TEXT_GRAPH)


def _example(towers: Towers) -> PackedTexts:
    """Texts in more than one row; what an exporter sees once it takes for a constant."""
    tokenizer = towers.tokenizer
    questions = ("which picture shows this number?", "what is the shape of the red one?")
    options = ["a circle", "a blue square of it", "what it is"]
    texts = [text for question in questions for text in join(question, options, tokenizer)]
    if tokenizer.layout is Layout.PACKED:
        longest = max(len(text.tokens) for text in texts)
        return packing.pack(texts, row_tokens=longest).map(torch.from_numpy)
    return packing.lay_out(texts, tokenizer).map(torch.from_numpy)


def _write_graph(
    module: PictureGraph | PackedTextGraph | RowTextGraph,
    given: dict[str, tuple[Tensor, dict[int, Any]]],
    output: str,
    path: Path,
) -> None:
    names = list(given)
    with warnings.catch_warnings(), torch.inference_mode(), attention_for_graphs(module.towers):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            module,
            tuple(value for value, _ in given.values()),
            input_names=names,
            output_names=[output],
            dynamic_shapes=tuple(shapes for _, shapes in given.values()),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    program.save(path, external_data=size > LARGE_BYTES)


def _quantise(folder: Path) -> tuple[str, ...]:
    """The int8 graphs from the fp32 ones; names the towers that are mostly convolutions.

    Those stay as they are: convolutions do not get faster in int8.
    """
    target = folder / Variant.int8.value
    target.mkdir()
    kept = []
    for name in (PICTURE_GRAPH, TEXT_GRAPH):
        source = folder / Variant.fp32.value / name
        if _mostly_convolutions(source):
            kept.append(name)
            for path in source.parent.glob(f"{name}*"):
                shutil.copy2(path, target / path.name)
            continue
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it recommends another preparation, which changes nothing
        try:
            quantize_dynamic(
                source,
                target / name,
                op_types_to_quantize=list(QUANTISED),
                weight_type=QuantType.QInt8,
                use_external_data_format=_bytes(source) > LARGE_BYTES,
            )
        finally:
            quiet.setLevel(level)
    return tuple(kept)


def _bytes(graph: Path) -> int:
    """Of a graph's file, and of the weights that stand beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))


def _mostly_convolutions(path: Path) -> bool:
    """Whether a graph has more convolutions than products with weights."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {it.name for it in graph.initializer}
    count = Counter(node.op_type for node in graph.node if weights & {*node.input})
    return count["Conv"] > sum(count[name] for name in QUANTISED)


# ------------------------------------------------------------------------------ parity


def _compared(found: Predictions, expected: Predictions, speed: float, seconds: float) -> Parity:
    known = expected.answer_Q >= 0
    right, right_torch = (it.choice_Q[known] == it.answer_Q[known] for it in (found, expected))
    differ = int((found.choice_Q != expected.choice_Q).sum())
    return Parity(
        questions=len(found),
        largest_difference=float(np.abs(found.probs_QK - expected.probs_QK).max()),
        choices_that_differ=differ,
        accuracy=round(100 * float(right.mean()), 3),
        torch_accuracy=round(100 * float(right_torch.mean()), 3),
        accuracy_drop_at_most=round(100 * paired_loss_at_most(right_torch, right), 3),
        megabytes=0.0,
        questions_per_second=round(len(found) / seconds, 2),
        speed=round(speed, 3),
    )


def _is_good(variant: Variant, parity: Parity, config: ExportConfig) -> bool:
    if variant is Variant.fp32:
        if parity.largest_difference > MOST_DIFFERENT:
            raise ClipstemError(
                f"the ONNX graphs give other answers than torch: a probability differs by "
                f"{parity.largest_difference:.2g}, at most {MOST_DIFFERENT} is rounding; nothing "
                "was written"
            )
        return True
    if parity.accuracy_drop_at_most <= config.max_accuracy_drop:
        return True
    log.warning(
        "%s is not written: on %d questions its accuracy may be %.2f points below torch's, "
        "max_accuracy_drop=%g are allowed; %s",
        variant.value,
        parity.questions,
        parity.accuracy_drop_at_most,
        config.max_accuracy_drop,
        "more questions narrow this down (questions=…, data=…)"
        if parity.choices_that_differ == 0
        else f"{parity.choices_that_differ} choices differ",
    )
    return False


def show(config: ExportConfig, measured: dict[str, Parity]) -> None:
    """Print the parity table."""
    columns: dict[str, Callable[[Parity], str]] = {
        "largest Δp": lambda it: f"{it.largest_difference:.1e}",
        "other choices": lambda it: f"{it.choices_that_differ} of {it.questions:,}",
        "accuracy %": lambda it: f"{it.accuracy:.2f}",
        "torch %": lambda it: f"{it.torch_accuracy:.2f}",
        "drop ≤": lambda it: f"{it.accuracy_drop_at_most:.2f}",
        "MB": lambda it: f"{it.megabytes:.1f}",
        "× torch's speed": lambda it: f"{it.speed:.2f}",
    }
    table = Table("variant", title="variants beside torch")
    for name in columns:
        table.add_column(name, justify="right")
    for name, it in measured.items():
        table.add_row(name, *(shown(it) for shown in columns.values()))
    console.console.print(table)
    for name, it in measured.items():
        for graph in it.kept_in_fp32:
            console.console.print(f"{name}: {graph} stays in fp32, it is mostly convolutions")
    console.console.print(f"bundle: {config.out}")


@verb("export", ExportConfig)
def main(config: ExportConfig) -> None:
    console.show_log_lines()
    for name in ("torch.onnx", "onnxscript"):  # about their own optimisations
        logging.getLogger(name).setLevel(logging.ERROR)
    show(config, export(config))


if __name__ == "__main__":
    main()
