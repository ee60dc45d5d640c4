"""The slow and obvious way to score a question: the rule of the public evaluation, written out.

One question at a time, one option at a time, open_clip's own transform and its own full-length
`encode_text`, fp32. Everything fast is compared with this. Source: STEM (arXiv 2402.17205).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from clipstem.question import Picture, ProblemPicture, Question


class Oracle:
    """Scores questions with an open_clip model in the reference's way."""

    def __init__(self, model: Any, tokenizer: Any, preprocess_cfg: dict[str, Any]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.transform = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)

    @torch.inference_mode()
    def probabilities(
        self, question: Question, problem_picture: ProblemPicture = ProblemPicture.added
    ) -> NDArray[np.float64]:
        """The probability of each option."""
        scale = float(self.model.logit_scale.exp())
        logits = [
            scale * float(self.text_side(question, option, problem_picture) @ picture)
            for option in question.options
            for picture in [self.picture_side(question, option)]
        ]
        is_third_kind = question.picture is not None and isinstance(question.options[0], Picture)
        if is_third_kind and problem_picture is ProblemPicture.reference:
            logits = logits[:1]  # it keeps one candidate: whatever its score, the first wins
        exponentials = np.exp(np.array(logits) - max(logits))
        probabilities = exponentials / exponentials.sum()
        missing = len(question.options) - len(logits)
        return np.concatenate([probabilities, np.zeros(missing)])

    def picture_side(self, question: Question, option: str | Picture) -> Tensor:
        """The embedding of the option's picture, or of the problem's."""
        picture = option if isinstance(option, Picture) else question.picture
        assert picture is not None
        return self.encode_picture(picture)

    def text_side(
        self, question: Question, option: str | Picture, problem_picture: ProblemPicture
    ) -> Tensor:
        """The embedding of the question with the option's text, plus the problem's picture."""
        text = self.encode_text(question.problem, option if isinstance(option, str) else "")
        is_third_kind = isinstance(option, Picture) and question.picture is not None
        if is_third_kind and problem_picture is ProblemPicture.added:
            assert question.picture is not None
            return F.normalize(text + self.encode_picture(question.picture), dim=-1)
        return text

    def encode_picture(self, picture: Picture) -> Tensor:
        pixels = self.transform(Image.open(io.BytesIO(picture.data)))
        return self.model.encode_image(pixels[None], normalize=True)[0]

    def encode_text(self, question: str, option: str) -> Tensor:
        """Mark + question[:m] + option + mark in a row of full length."""
        context = self.tokenizer.context_length
        before, after, padding = self.marks()
        room = context - len(before) - len(after)
        question_ids = self.ids(question)
        option_ids = self.ids(option)[:room]
        kept = max(0, min(room - len(option_ids), len(question_ids)))
        ids = [*before, *question_ids[:kept], *option_ids, *after]
        row = torch.full((1, context), padding, dtype=torch.long)
        row[0, : len(ids)] = torch.tensor(ids)
        return self.model.encode_text(row, normalize=True)[0]

    def ids(self, text: str) -> list[int]:
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return self.tokenizer.encode(text)
        clean = self.tokenizer.clean_fn(text)
        return self.tokenizer.tokenizer(clean, add_special_tokens=False).input_ids

    def marks(self) -> tuple[list[int], list[int], int]:
        """What stands before and behind every text, and what fills a row."""
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return [self.tokenizer.sot_token_id], [self.tokenizer.eot_token_id], 0
        theirs = self.tokenizer.tokenizer
        if theirs.cls_token_id is None:  # SigLIP's
            return [], [theirs.eos_token_id], theirs.pad_token_id
        return [theirs.cls_token_id], [theirs.sep_token_id], theirs.pad_token_id


def oracle_of_folder(weights: str) -> Oracle:
    """The oracle for weights in open_clip's layout, opened by open_clip alone."""
    name = f"local-dir:{weights}"
    model = open_clip.create_model(name)
    return Oracle(model, open_clip.get_tokenizer(name), open_clip.get_model_preprocess_cfg(model))
