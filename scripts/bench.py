"""How fast clipstem scores and trains, beside the ways people have without it, in one run.

    python scripts/bench.py             # minutes; on a GPU where there is one
    python scripts/bench.py --quick     # under three minutes on two cores
    python scripts/bench.py --full      # ViT-L/14@336 too where there is no GPU

Same questions, same weights (drawn from a seed: speed does not depend on them), turn by turn,
medians over the turns:

    reference  the public evaluation of STEM: one question at a time, padded, nothing reused
    open_clip  batches, each question's pictures once, texts in rows of 77 tokens
    clipstem   from shards on disk to probabilities
    bf16       the same in bf16, where the device has instructions for it
    ceiling    clipstem's model alone, with its inputs on the device already

The first three must agree, else there is no result. What comes out is `benchmarks/bench-*.json`;
the README's table and picture are made from it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_report
import numpy as np
import torch
import torch.nn.functional as F
from bench_peers import OpenClip, Prepare, Reference, as_open_clip_has_it
from bench_sets import BLANK, real_or_drawn, stem_shaped, stored
from measure import machine
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipstem import blocks, loader, loss, metrics, packing, pairs, run, scorer
from clipstem.batches import AHEAD, Batches, batched
from clipstem.command import model_config
from clipstem.config import Precision, TrainerConfig
from clipstem.images import to_pixels, warm_up
from clipstem.memory import Memory
from clipstem.pairs import PairBatch
from clipstem.question import ProblemPicture, Question
from clipstem.scorer import Scorer
from clipstem.shards import Dataset
from clipstem.tokens import JoinedText
from clipstem.towers import Towers, create

MODELS = ("ViT-B-32-quickgelu", "ViT-L-14-336-quickgelu")
TOLERANCE = 1e-4  # of probabilities and losses, fp32 against fp32, at CLIP's highest logit scale
START, END = 49406, 49407  # CLIP's marks
WARM_UP = 3
"""Training steps before the clock starts, once in a training of thousands of steps: the first one
starts the workers, and the memory for gradients and moments comes from the system page by page."""

Work = Callable[[], Any]
Ways = dict[str, Callable[[], Work]]
"""What is timed, by the way's name; calling it makes ready and gives the work."""
Layer = Callable[[Tensor], Tensor]
LayerOf = Callable[[Tensor], Layer]
"""Makes a layer of its weight."""


@dataclass(frozen=True)
class Size:
    """How much is measured: questions of a set and of a training step, steps, and turns.

    The first `WARM_UP` steps of each turn are not timed.
    """

    questions: int
    step_questions: int
    steps: int
    turns: int


QUICK = Size(questions=18, step_questions=3, steps=6, turns=1)
WHOLE = Size(questions=128, step_questions=24, steps=5, turns=3)
ON_CUDA = Size(questions=2048, step_questions=64, steps=10, turns=5)
LARGE_ON_CUDA = Size(questions=1024, step_questions=16, steps=10, turns=3)  # fp32, 60 GB
LARGE_ON_CPU = Size(questions=12, step_questions=0, steps=0, turns=1)  # training would need 30 GB


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few questions, one turn")
    parser.add_argument("--full", action="store_true", help=f"{MODELS[1]} on a CPU too")
    parser.add_argument("--model", help=f"a model of open_clip or conf/model; not {MODELS[0]}")
    parser.add_argument("--workers", type=int, default=1, help="as trainer.workers")
    parser.add_argument("--out", type=Path, default=bench_report.ROOT, help="a checkout's folder")
    given = parser.parse_args(arguments)
    if not (given.out / "README.md").is_file():
        parser.error(f"--out {given.out}: expected a checkout, which has a README.md")
    device = scorer.device_of("auto")
    is_large = given.full or device.type == "cuda"
    names = [given.model] if given.model else MODELS if is_large else MODELS[:1]
    size = QUICK if given.quick else ON_CUDA if device.type == "cuda" else WHOLE
    sizes = dict.fromkeys(names, size)
    if MODELS[1] in sizes:
        sizes[MODELS[1]] = LARGE_ON_CPU if device.type == "cpu" else LARGE_ON_CUDA
    loader.keep_memory()  # as `train` and `predict` do; here every way gains by it
    torch.backends.cudnn.allow_tf32 = False  # for every way alike: they are compared to 1e-4
    figures = {
        **run.environment(),
        "command": " ".join(["python scripts/bench.py", *(arguments or sys.argv[1:])]),
        "device": scorer.device_name(device),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "workers": given.workers,
        "sizes": {name: dataclasses.asdict(size) for name, size in sizes.items()},
        "matrix_tflops": {
            name: matrix_rate(device, dtype, layer_of)
            for name, (dtype, layer_of) in products(device).items()
        },
        "results": [
            it for name in names for it in measure(name, sizes[name], given.workers, device)
        ],
        "peak_gib": peak_gib(device),
    }
    bench_report.write(figures, given.out)
    print(bench_report.table(figures))


def measure(name: str, size: Size, workers: int, device: torch.device) -> list[dict[str, Any]]:
    """Every result of one model."""
    config = dataclasses.replace(model_config(name), pretrained=None)
    towers = create(config).to(device)
    with torch.no_grad():
        towers.model.logit_scale.fill_(math.log(100))  # as at the end of CLIP's training
    bench = Bench(towers, name, size, workers, device)
    sets = real_or_drawn(size.questions)
    sets["STEM-shaped set"] = stem_shaped(size.questions)
    results = [bench.text_tower()]
    with tempfile.TemporaryDirectory() as folder:
        first = next(iter(sets.values()))[:2]
        bench.scoring("warm-up", first, stored(first, Path(folder) / "warm-up"))
        for number, (title, questions) in enumerate(sets.items()):
            print(f"{name}: {title}, {len(questions)} questions", file=sys.stderr)
            dataset = stored(questions, Path(folder) / str(number))
            results += [bench.pictures(title, questions), bench.scoring(title, questions, dataset)]
            if not size.steps or title.startswith("picture options"):
                continue
            if len(questions) <= WARM_UP:
                print(f"no training: {WARM_UP} steps warm up, and none is left", file=sys.stderr)
                continue
            results.append(bench.training(title, questions, dataset))
    return results


def peak_gib(device: torch.device) -> dict[str, float]:
    """The most memory that the process, and the device, have held."""
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated()
    return {name: round(bytes_ / 2**30, 2) for name, bytes_ in found.items()}


class Bench:
    """One model, and the ways to use it."""

    def __init__(
        self, towers: Towers, name: str, size: Size, workers: int, device: torch.device
    ) -> None:
        self.towers, self.name, self.size = towers, name, size
        self.theirs = as_open_clip_has_it(towers)
        self.workers, self.device = workers, device
        # A worker is a process there, and on a CPU open_clip's way is faster without one.
        self.peer_workers = workers if device.type == "cuda" else 0
        self.batch_size = 32 if device.type == "cpu" else 256
        self.flops_picture, self.flops_token = flops(towers, device)
        # Hashed where weights are opened, as they are loaded there: neither is scoring.
        self.weights_sha256 = towers.weights_sha256()

    def scorer(self, precision: Precision = Precision.fp32) -> Scorer:
        trainer = TrainerConfig(self.device.type, precision, self.workers)
        return Scorer(self.towers, trainer, weights_sha256=self.weights_sha256)

    # ------------------------------------------------------------------------ scoring

    def scoring(self, title: str, questions: list[Question], dataset: Dataset) -> dict[str, Any]:
        """A set scored in every way."""
        self.towers.eval()
        self.theirs.eval()
        ours = self.scorer()
        numbers_SN = batched(np.arange(len(questions)), self.batch_size)
        batches = [batch.map(self._there) for batch in self._read(dataset, "valid", numbers_SN)]
        reference = Reference(self.theirs, questions, self.device)
        open_clip = OpenClip(
            self.theirs, questions, self.device, self.batch_size, self.peer_workers
        )

        def clipstem(by: Scorer, known: Sequence[Question] = ()) -> Work:
            memory = Memory()
            if known:
                list(ours.scored([self._collated(known)], memory))
            return lambda: by.predict(dataset, "valid", self.batch_size, memory=memory).probs_QK

        def ceiling() -> Work:
            return lambda: [logits.cpu() for _, logits in ours.scored(batches, Memory())]

        ways: Ways = {
            "reference": lambda: reference.logits_QK,
            "open_clip": lambda: open_clip.logits_QK,
            "clipstem": lambda: clipstem(ours),
            "ceiling": ceiling,
        }
        if asked := [with_blank_options(it) for it in questions if it.picture is None]:
            ways["texts_known"] = lambda: clipstem(ours, asked)
        if has_bf16(self.device):
            in_bf16 = self.scorer(Precision.bf16)  # which lays out its weights in the first turn
            ways["bf16"] = lambda: clipstem(in_bf16)
        seconds, found = in_turns(ways, self.size.turns, self.device)
        counts = np.array([len(question.options) for question in questions])
        for peer in ("reference", "open_clip"):
            found[peer] = metrics.probabilities(found[peer].numpy(), counts, 1.0)
        for way in ("open_clip", "clipstem", "texts_known"):
            if way in found:
                check_agreement(f"{title}, {way}", found[way], found["reference"])
        return self._described("scoring", title, questions, batches) | {"seconds": seconds}

    # ------------------------------------------------------------------------ training

    def training(self, title: str, questions: list[Question], dataset: Dataset) -> dict[str, Any]:
        """A few steps of AdamW on the cross-entropy over the options, from the same weights."""
        count = min(self.size.step_questions, len(questions) // (WARM_UP + 1))
        steps = min(self.size.steps, len(questions) // count)
        questions = questions[: count * steps]
        # More are read than stepped on: while a step is timed, the worker makes a batch behind it.
        order = np.resize(np.arange(len(questions)), len(questions) + AHEAD * count)
        numbers_SN = batched(order, count)
        read = itertools.islice(self._read(dataset, "train", numbers_SN), steps)
        batches = [batch.map(self._there) for batch in read]

        def losses(towers: Towers, made: Iterable[PairBatch], half: bool) -> Iterator[Tensor]:
            for batch in made:
                there = batch.map(self._there)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    image_ID, text_UD = towers.embed(there)
                cosine_VI = pairs.cosines(there, image_ID, text_UD)
                logits_QK = pairs.score(there, cosine_VI, towers.scale)
                yield (loss.listwise(logits_QK, there.answer_Q) * there.weight_Q).sum()

        def open_clip() -> Work:
            towers = copy.deepcopy(self.theirs).train()
            shown = [questions[number] for number in order]
            peer = OpenClip(towers, shown, self.device, count, self.peer_workers)
            return steps_of(towers, peer.losses([it.answer for it in shown]), steps)

        def clipstem(on_device: bool, half: bool = False) -> Work:
            towers = copy.deepcopy(self.towers).train()
            made = batches if on_device else self._read(dataset, "train", numbers_SN)
            return steps_of(towers, losses(towers, made, half), steps)

        ways: Ways = {
            "open_clip": open_clip,
            "clipstem": lambda: clipstem(on_device=False),
            "ceiling": lambda: clipstem(on_device=True),
        }
        if self.device.type == "cuda":
            ways["bf16"] = lambda: clipstem(on_device=False, half=True)
        seconds, found = in_turns(ways, self.size.turns, self.device)
        check_agreement(f"{title}, loss", np.array(found["clipstem"]), np.array(found["open_clip"]))
        timed = self._described("training", title, questions[WARM_UP * count :], batches[WARM_UP:])
        return timed | {"seconds": seconds}

    # ------------------------------------------------------------------------ parts

    def pictures(self, title: str, questions: list[Question]) -> dict[str, Any]:
        """Decoding and resizing of a set's pictures on one core, beside open_clip's transform."""
        warm_up()
        found = {it.sha256: it.data for question in questions for it in question.pictures}
        spec, transform = self.towers.spec, Prepare(self.towers).to_picture

        def theirs() -> list[np.ndarray]:
            return [np.asarray(transform(data)) for data in found.values()]

        def ours() -> list[np.ndarray]:
            return [to_pixels(data, spec) for data in found.values()]

        ways: Ways = {"open_clip": lambda: theirs, "clipstem": lambda: ours}
        seconds, made = in_turns(ways, 2 * self.size.turns + 1, self.device)
        worst = max(
            int(np.abs(a.astype(int) - b).max())
            for a, b in zip(made["open_clip"], made["clipstem"], strict=True)
        )
        described = {"what": "pictures", "model": self.name, "set": title, "pictures": len(found)}
        return {**described, "seconds": seconds, "largest_difference": worst}

    def text_tower(self) -> dict[str, Any]:
        """8 questions with 4 options, each text of 27 tokens with the marks, 24 of them shared."""
        rng = np.random.default_rng(0)
        texts = [
            JoinedText(shared, (*rng.integers(1, 40_000, 2), END), 0)
            for shared in [(START, *rng.integers(1, 40_000, 23)) for _ in range(8)]
            for _ in range(4)
        ]
        full = packing.one_a_row(texts, 77, 0).map(torch.from_numpy).tokens_RT.to(self.device)
        packed = packing.pack(texts).map(torch.from_numpy).map(self._there)
        self.towers.eval()
        self.theirs.eval()

        def theirs() -> Tensor:
            with torch.inference_mode():
                return self.theirs.model.encode_text(full, normalize=True)

        def ours() -> Tensor:
            with torch.inference_mode():
                return self.towers.encode_texts(packed)

        ways: Ways = {"open_clip": lambda: theirs, "clipstem": lambda: ours}
        seconds, made = in_turns(ways, 2 * self.size.turns + 1, self.device)
        check_agreement(
            "text tower", made["clipstem"].cpu().numpy(), made["open_clip"].cpu().numpy()
        )
        title = "8 questions, 4 options, 27 tokens"
        needed = int((packed.group_RT >= 0).sum())
        done = {"open_clip": full.numel(), "clipstem": needed}
        described = {"what": "text tower", "model": self.name, "set": title, "options": 32}
        return {
            **described,
            "seconds": seconds,
            "gflop": {way: tokens * self.flops_token / 1e9 for way, tokens in done.items()},
        }

    # ------------------------------------------------------------------------ helpers

    def _described(
        self, what: str, title: str, questions: list[Question], batches: list[PairBatch]
    ) -> dict[str, Any]:
        """What a set asks for, and the least arithmetic that each way needs for it, GFLOP."""
        with_texts = [question for question in questions if question.picture is not None]
        most = max(len(question.options) for question in questions)
        shown = sum(len(question.pictures) for question in questions)
        rows = sum(len(q.options) if q.picture is not None else 1 for q in questions)
        distinct = len({it.sha256 for question in questions for it in question.pictures})
        context = self.towers.tokenizer.context_length
        needs = {  # pictures, tokens
            "reference": (most * len(questions), most * len(questions) * context),
            "open_clip": (shown, rows * context),
            "clipstem": (distinct, self._tokens(questions)),
            "texts_known": (distinct, self._tokens(with_texts)),
        }
        return {
            "what": what,
            "model": self.name,
            "set": title,
            "questions": len(questions),
            "options": sum(len(question.options) for question in questions),
            "pictures": distinct,
            "tokens": sum(batch.texts.tokens_RT.numel() for batch in batches),
            "gflop": {
                way: (pictures * self.flops_picture + tokens * self.flops_token) / 1e9
                for way, (pictures, tokens) in needs.items()
            },
        }

    def _tokens(self, questions: list[Question]) -> int:
        """Tokens of the distinct texts, shared beginnings once, without padding."""
        return int((self._collated(questions).texts.group_RT >= 0).sum()) if questions else 0

    def _collated(self, questions: Sequence[Question]) -> PairBatch:
        """The questions' texts, with black squares for pictures."""
        side = self.towers.spec.size
        black = np.zeros((side, side, 3), np.uint8)
        tokenizer = self.towers.tokenizer
        return pairs.collate(questions, tokenizer, lambda _: black).map(torch.from_numpy)

    def _read(self, dataset: Dataset, split: str, numbers_SN: Any) -> Iterable[PairBatch]:
        tokenizer, spec = self.towers.tokenizer, self.towers.spec
        batches = Batches(dataset, split, numbers_SN, tokenizer, spec, ProblemPicture.added)
        return loader.load(batches, self.workers, self.device)

    def _there(self, array: Tensor) -> Tensor:
        return array.to(self.device, non_blocking=True)


def with_blank_options(question: Question) -> Question:
    """The same text with one small picture for every option."""
    return dataclasses.replace(question, options=(BLANK, BLANK), answer=0)


def steps_of(towers: Towers, losses: Iterator[Tensor], steps: int) -> Work:
    """AdamW steps on so many of the losses; gives their values. The warm-up is not in the work."""
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-5, fused=True)

    def step(value: Tensor) -> float:
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        return float(value.detach())

    untimed = [step(value) for value in itertools.islice(losses, WARM_UP)]
    return lambda: [*untimed, *map(step, itertools.islice(losses, steps - WARM_UP))]


def in_turns(
    ways: Ways, turns: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each way, turn by turn, and what each gave in the last turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(turns):
        for way, prepare in ways.items():
            work = prepare()
            _wait_for(device)
            started = time.perf_counter()
            found[way] = work()
            _wait_for(device)
            seconds[way].append(time.perf_counter() - started)
    return seconds, found


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def check_agreement(name: str, found: Any, expected: Any) -> None:
    if (difference := float(np.abs(found - expected).max())) > TOLERANCE:
        sys.exit(f"{name}: differs by {difference:.1e}, more than {TOLERANCE}; no result")


def flops(towers: Towers, device: torch.device) -> tuple[float, float]:
    """Operations of one picture, and of one token of a full row; a product with a sum is two."""
    context, side = towers.tokenizer.context_length, towers.spec.size
    with FlopCounterMode(display=False) as of_picture:
        towers.model.encode_image(torch.zeros(1, 3, side, side, device=device))
    with FlopCounterMode(display=False) as of_text:
        row = torch.ones(1, context, dtype=torch.long, device=device)
        towers.model.encode_text(row)
    return of_picture.get_total_flops(), of_text.get_total_flops() / context


def products(device: torch.device) -> dict[str, tuple[torch.dtype, LayerOf]]:
    """torch's products with a matrix, and clipstem's where it has others."""

    def plain(weight: Tensor) -> Layer:
        return lambda x: F.linear(x, weight)

    def ours(weight: Tensor) -> Layer:
        return lambda x: blocks.linear(x, weight, None)

    def prepacked(weight: Tensor) -> Layer:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return blocks.PrepackedLinear(layer)

    found: dict[str, tuple[torch.dtype, LayerOf]] = {
        "fp32": (torch.float32, plain),
        "bf16": (torch.bfloat16, plain),
    }
    if device.type == "cpu" and blocks.MKL_IS_SLOW:
        found["fp32_clipstem"] = (torch.float32, ours)
    if device.type == "cpu" and blocks.onednn_has_bf16():
        found["bf16_clipstem"] = (torch.bfloat16, prepacked)
    return found


def matrix_rate(device: torch.device, dtype: torch.dtype, layer_of: LayerOf) -> float:
    """Floating-point operations a second of a large product, in units of 10^12."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    layer = layer_of(a)
    with torch.no_grad():
        seconds, _ = in_turns({"product": lambda: lambda: layer(a)}, 5, device)
    return round(2 * side**3 / min(seconds["product"]) / 1e12, 3)


def has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    info = blocks.CPU_INFO
    return info.exists() and bool({"amx_bf16", "avx512_bf16"} & {*info.read_text().split()})


if __name__ == "__main__":
    main()
