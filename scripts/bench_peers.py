"""The two ways that people have without clipstem, as `bench.py` measures them. fp32.

`Reference` is the public evaluation of STEM (arXiv 2402.17205), written from its description:
one question at a time, the single side repeated, both sides padded to the data set's most options.
`OpenClip` is what a user of open_clip writes: batches, each question's pictures once, every text
in a row of full length. Both get their questions in memory, where clipstem reads shards.

Q questions, K most options.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from clipstem.batches import AHEAD
from clipstem.pairs import LOWEST_LOGIT
from clipstem.question import Picture, Question
from clipstem.towers import OURS, Towers, exchange


@dataclass(frozen=True)
class Side:
    """A question's pictures and texts, one of them single, as CLIP reads them."""

    pixels_ICHW: Tensor
    rows_UT: Tensor
    options: int


class Prepare:
    """Pictures through open_clip's own transform, texts joined in rows of full length."""

    def __init__(self, towers: Towers) -> None:
        preprocess = PreprocessCfg(**towers.spec.open_clip())
        self.transform: Any = image_transform_v2(preprocess, is_train=False)
        self.tokenizer = open_clip.SimpleTokenizer()
        self.context = towers.tokenizer.context_length

    def __call__(self, question: Question) -> Side:
        pictures = [option for option in question.options if isinstance(option, Picture)]
        texts = [option for option in question.options if isinstance(option, str)]
        if question.picture is not None:
            pictures.append(question.picture)
        pixels = [self.transform(Image.open(io.BytesIO(picture.data))) for picture in pictures]
        rows = [self.row(question.problem, text) for text in texts or [""]]
        return Side(torch.stack(pixels), torch.tensor(rows), len(question.options))

    def to_picture(self, data: bytes) -> Image.Image:
        """The transform without its last two steps: to a tensor, and normalised."""
        shown = Image.open(io.BytesIO(data))
        for step in self.transform.transforms[:-2]:
            shown = step(shown)
        return shown

    def row(self, question: str, option: str) -> list[int]:
        room = self.context - 2
        end = self.tokenizer.encode(option)[:room]
        ids = [*self.tokenizer.encode(question)[: room - len(end)], *end]
        marked = [self.tokenizer.sot_token_id, *ids, self.tokenizer.eot_token_id]
        return [*marked, *[0] * (room - len(ids))]


def as_open_clip_has_it(towers: Towers) -> Towers:
    """A copy whose model computes in open_clip's own modules alone: none of what we make faster."""
    own = copy.deepcopy(towers)
    exchange(own.model, {ours: theirs for theirs, ours in OURS.items()})
    return own


class Reference:
    """One question at a time; every question costs as many pictures and texts as the largest."""

    def __init__(self, towers: Towers, questions: Sequence[Question], device: torch.device) -> None:
        self.model, self.device, self.questions = towers.model, device, questions
        self.prepare = Prepare(towers)
        self.most = max(len(question.options) for question in questions)

    @torch.inference_mode()
    def logits_QK(self) -> Tensor:
        return torch.stack([self._question(self.prepare(it)) for it in self.questions]).cpu()

    def _question(self, side: Side) -> Tensor:
        image_KD = F.normalize(
            self.model.encode_image(self._padded(side.pixels_ICHW, side)), dim=-1
        )
        text_KD = F.normalize(self.model.encode_text(self._padded(side.rows_UT, side)), dim=-1)
        logits_K = self.model.logit_scale.exp() * (image_KD * text_KD).sum(dim=-1)
        return logits_K.masked_fill(
            torch.arange(self.most, device=self.device) >= side.options, LOWEST_LOGIT
        )

    def _padded(self, given: Tensor, side: Side) -> Tensor:
        repeated = given if len(given) == side.options else given.repeat_interleave(side.options, 0)
        padding = repeated.new_zeros(self.most - len(repeated), *repeated.shape[1:])
        return torch.cat([repeated, padding]).to(self.device)


class OpenClip:
    """Batches of questions: every picture of a question once, every text in a full row."""

    def __init__(
        self,
        towers: Towers,
        questions: Sequence[Question],
        device: torch.device,
        batch_size: int,
        workers: int,
    ) -> None:
        self.model, self.device = towers.model, device
        self.most = max(len(question.options) for question in questions)
        self.batches: DataLoader[Any] = DataLoader(
            _Prepared(questions, Prepare(towers)),  # type: ignore[arg-type]
            batch_size=batch_size,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            collate_fn=list,
            pin_memory=device.type == "cuda",
        )

    @torch.inference_mode()
    def logits_QK(self) -> Tensor:
        return torch.cat([self.batch_logits_QK(sides) for sides in self.batches]).cpu()

    def batch_logits_QK(self, sides: list[Side]) -> Tensor:
        pixels = torch.cat([side.pixels_ICHW for side in sides]).to(self.device)
        rows = torch.cat([side.rows_UT for side in sides]).to(self.device)
        image_ID = F.normalize(self.model.encode_image(pixels), dim=-1)
        text_UD = F.normalize(self.model.encode_text(rows), dim=-1)
        pictures = torch.split(image_ID, [len(side.pixels_ICHW) for side in sides])
        texts = torch.split(text_UD, [len(side.rows_UT) for side in sides])
        scale = self.model.logit_scale.exp()
        logits = [scale * (i * t).sum(dim=-1) for i, t in zip(pictures, texts, strict=True)]
        return torch.stack(
            [F.pad(it, (0, self.most - len(it)), value=LOWEST_LOGIT) for it in logits]
        )

    def losses(self, answers: Sequence[int]) -> Iterator[Tensor]:
        """The cross-entropy over the options of each batch, to be stepped on by the caller."""
        done = 0
        for sides in self.batches:
            answer_Q = torch.tensor(answers[done : done + len(sides)], device=self.device)
            done += len(sides)
            yield F.cross_entropy(self.batch_logits_QK(sides), answer_Q)


@dataclass(frozen=True)
class _Prepared:
    questions: Sequence[Question]
    prepare: Prepare

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, number: int) -> Side:
        return self.prepare(self.questions[number])
