"""Scoring with ONNX Runtime: a bundle instead of torch. The only module that imports onnxruntime.

I distinct pictures, U distinct texts, D the embeddings' width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from clipstem import pairs
from clipstem.batches import Batches, read_ahead
from clipstem.bundle import PICTURE_GRAPH, TEXT_GRAPH, BundleTokenizer, read
from clipstem.config import Precision, TrainerConfig, Variant
from clipstem.engine import Engine
from clipstem.images import PictureSpec
from clipstem.memory import Memory
from clipstem.packing import PackedTexts, lay_out
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError, ProblemPicture
from clipstem.tokens import Tokenizer
from clipstem.workers import usable_cores

Embeddings = NDArray[np.float32]


class OnnxScorer(Engine):
    """A variant of a bundle, on the CPU or a CUDA device.

    Raises:
        ClipstemError: if the bundle cannot be used.
    """

    def __init__(self, folder: Path, trainer: TrainerConfig, variant: Variant) -> None:
        if trainer.precision is Precision.bf16:
            raise ClipstemError(
                "conf key 'trainer.precision': bf16 is for scoring with torch; a bundle computes "
                "as its variant says, variant=fp32 or int8"
            )
        self.bundle = read(folder, variant)
        super().__init__(
            self.bundle.temperature,
            ProblemPicture(self.bundle.problem_picture),
            {**self.bundle.provenance, "bundle": str(folder), "variant": variant.value},
            trainer.max_skipped_fraction,
        )
        self.workers = trainer.workers
        self._tokenizer = BundleTokenizer(folder, self.bundle.text)
        self._spec = PictureSpec.from_open_clip(self.bundle.preprocess)
        open_graph = partial(_session, provider=_provider(trainer.device), threads=trainer.threads)
        self._picture = open_graph(folder / variant.value / PICTURE_GRAPH)
        self._text = open_graph(folder / variant.value / TEXT_GRAPH)
        self._text_inputs = _inputs(self._text)
        known = {it.name for it in fields(PackedTexts)}
        if not {*self._text_inputs} <= known or _inputs(self._picture) != ["pixels_IHWC"]:
            raise ClipstemError(
                f"{folder}: its graphs take {_inputs(self._picture)} and {self._text_inputs}; "
                "expected those that clipstem.export writes"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def spec(self) -> PictureSpec:
        return self._spec

    def load(self, batches: Batches) -> Iterable[PairBatch]:
        return read_ahead(batches, range(len(batches)), self.workers)

    def facts(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.bundle.weights_sha256,
            "parameters": self.bundle.parameters,
            "device": self._picture.get_providers()[0].removesuffix("ExecutionProvider").lower(),
        }

    def scored(
        self, batches: Iterable[PairBatch], memory: Memory
    ) -> Iterator[tuple[PairBatch, NDArray[np.float32]]]:
        for batch in batches:
            image_ID = memory.recall(batch.pictures, partial(self.pictures, batch))
            texts = [text.tokens for text in batch.joined]
            text_UD = memory.recall(texts, partial(self.texts, batch))
            cosine_VI = pairs.cosines(batch, image_ID, text_UD)
            yield batch, pairs.score(batch, cosine_VI, np.float32(self.bundle.scale))

    def pictures(self, batch: PairBatch, places: list[int] | None) -> Embeddings:
        """image_ID of the batch's pictures, or of those at `places`."""
        pixels_IHWC = batch.pixels_IHWC if places is None else batch.pixels_IHWC[places]
        return self._run(self._picture, {"pixels_IHWC": pixels_IHWC}, len(pixels_IHWC))

    def texts(self, batch: PairBatch, places: list[int] | None) -> Embeddings:
        """text_UD, the same for its texts."""
        some = batch.joined if places is None else [batch.joined[place] for place in places]
        texts = batch.texts if places is None else lay_out(some, self._tokenizer)
        given = vars(texts)
        inputs = {name: given[name] for name in self._text_inputs}
        return self._run(self._text, inputs, len(given["end_U"]))

    def _run(
        self, graph: onnxruntime.InferenceSession, inputs: dict[str, Any], rows: int
    ) -> Embeddings:
        try:
            (made_ND,) = graph.run(None, inputs)
        except Exception as error:  # a graph that does not fit makes onnxruntime raise many kinds
            reason = f"fails ({str(error).splitlines()[0]})"
        else:
            if made_ND.dtype == np.float32 and made_ND.ndim == 2 and len(made_ND) == rows:
                return made_ND
            reason = f"gives {made_ND.dtype} {list(made_ND.shape)} for {rows}"
        raise ClipstemError(
            f"{self.provenance['bundle']}: a graph {reason}; export the bundle again"
        ) from None


def _inputs(graph: onnxruntime.InferenceSession) -> list[str]:
    return [it.name for it in graph.get_inputs()]


def _provider(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise ClipstemError(
            f"conf key 'trainer.device': '{device}' is no device; expected auto, cpu or cuda"
        )
    there = onnxruntime.get_available_providers()
    if device in ("auto", "cuda") and "CUDAExecutionProvider" in there:
        return "CUDAExecutionProvider"
    if device == "cuda":
        raise ClipstemError(
            "conf key 'trainer.device': this onnxruntime has no CUDA; pip install onnxruntime-gpu, "
            "or give trainer.device=cpu"
        )
    return "CPUExecutionProvider"


def _session(path: Path, provider: str, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # As torch does where nothing else is asked for.
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", usable_cores()))
    # Else the threads of the one graph spin while the other's work: a seventh of `tiny_vit`'s time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; below it tells of its own optimisations
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises many kinds for a file that is no graph
        raise ClipstemError(
            f"{path}: onnxruntime cannot open it ({str(error).splitlines()[0]})"
        ) from None
