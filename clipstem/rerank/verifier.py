"""A scorer that learns which generated answers are right, from a model's text tower.

A question with one of its candidates is one text. Its score is linear in the text's embedding:

    log-odds of being right = scale · (picture + direction) · text + bias

where `direction` is learnt, `picture` is the embedding of the question's picture, and scale the
model's own. A question without a picture has the direction alone. D the embeddings' width, C
candidates, Q questions, K folds.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from clipstem import layers, towers
from clipstem.config import Precision, RerankConfig, TuneConfig, TuneMode
from clipstem.images import to_pixels
from clipstem.learner import adamw, rate_factor
from clipstem.packing import PackedTexts, lay_out, pack
from clipstem.question import MAX_WORD, ClipstemError
from clipstem.rerank.candidates import Asked, Candidate
from clipstem.scorer import device_name, device_of
from clipstem.tokens import JoinedText, Layout, Tokenizer
from clipstem.towers import Towers

ROW_TOKENS = 1024  # so that a question with all its candidates usually fits into one row
AT_ONCE = 128  # candidates that are scored together
MOST_TRAINED = 32  # candidates of a question in a training step; of more, others each epoch
CHARACTERS_A_TOKEN = 12  # of a text's end more are not looked at
MAX_NONFINITE = 10  # training steps whose gradient is not finite

Progress = Callable[[int], None]
"""Called with the number of candidates that a model has read."""


class Verifier(nn.Module):
    """A model with a direction and a bias: the log-odds that candidates are right."""

    def __init__(self, model: Towers, right: float) -> None:
        super().__init__()
        self.towers = model
        width = int(model.model_cfg["embed_dim"])
        self.direction_D = nn.Parameter(torch.zeros(width))
        # A scorer that knows nothing says how often candidates are right.
        self.bias = nn.Parameter(torch.tensor(math.log(right / (1 - right))))

    def log_odds(self, text_CD: Tensor, picture_CD: Tensor) -> Tensor:
        """[C], fp32; a row of zeros stands for no picture."""
        compared_CD = picture_CD + self.direction_D
        return self.towers.scale.float() * (compared_CD * text_CD).sum(dim=1) + self.bias


# ---------------------------------------------------------------------------- texts

_LONG_WORD = re.compile(rf"(\w{{{MAX_WORD}}})")


def joined(asked: Asked, candidates: Sequence[Candidate], tokenizer: Tokenizer) -> list[JoinedText]:
    """A question's candidates as texts of tokens, which share the question.

    Each is BEFORE + question + candidate + its final answer + AFTER. What does not fit is cut: of
    the question and of each candidate the end stays, because there stands what is asked and what
    comes out. The question keeps a third of the context at least, and the final answer is never
    cut unless it alone takes half of what is left.
    """
    room = tokenizer.context_length - len(tokenizer.before) - len(tokenizer.after)
    question = tokenizer.encode(asked.problem)
    texts = [tokenizer.encode(_end(it.text, tokenizer)) for it in candidates]
    finals = [tokenizer.encode(f"= {_end(it.final or '', tokenizer)}") for it in candidates]
    longest = max(len(text) + len(final) for text, final in zip(texts, finals, strict=True))
    shared = question[-max(room // 3, room - longest) :]
    left = room - len(shared)
    made = []
    for text, final in zip(texts, finals, strict=True):
        kept_final = final[: max(left // 2, left - len(text))]
        kept_text = text[max(0, len(text) - (left - len(kept_final))) :]
        own = (*kept_text, *kept_final)
        lost = len(question) - len(shared) + len(text) + len(final) - len(own)
        made.append(JoinedText((*tokenizer.before, *shared), (*own, *tokenizer.after), lost))
    return made


def _end(text: str, tokenizer: Tokenizer) -> str:
    """The end of a text, of which no tokenizer is busy for long."""
    return _LONG_WORD.sub(r"\1 ", text[-CHARACTERS_A_TOKEN * tokenizer.context_length :])


def laid_out(texts: Sequence[JoinedText], tokenizer: Tokenizer) -> PackedTexts:
    """Texts in rows; what a question's candidates share is read once a row."""
    if tokenizer.layout is Layout.PACKED:
        return pack(texts, ROW_TOKENS)
    return lay_out(texts, tokenizer)


# ---------------------------------------------------------------------------- embeddings

Group = tuple[int, Sequence[int]]
"""A question and the places of some of its candidates, both as numbers."""


class Embeddings:
    """Texts and pictures of candidates as the model sees them now."""

    def __init__(
        self,
        asked: Sequence[Asked],
        texts: Sequence[Sequence[JoinedText]],
        model: Towers,
        bf16: bool,
    ) -> None:
        self.asked, self.texts, self.towers, self.bf16 = asked, texts, model, bf16
        self.device = model.mean_C.device
        self._pixels = cache(self._decoded)

    def __call__(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """text_CD and picture_CD of the groups' candidates, one group after the other."""
        texts = [self.texts[number][place] for number, places in groups for place in places]
        rows = laid_out(texts, self.towers.tokenizer).map(torch.from_numpy)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text_CD = self.towers.encode_texts(rows.map(self.towers.here))
            return text_CD, self._pictures(groups, text_CD)

    def _pictures(self, groups: Sequence[Group], text_CD: Tensor) -> Tensor:
        shown = {
            picture.sha256: number
            for number, _ in groups
            if (picture := self.asked[number].picture) is not None
        }
        if not shown:
            return torch.zeros_like(text_CD)
        pixels_IHWC = np.stack([self._pixels(number) for number in shown.values()])
        image_ID = self.towers.encode_pictures(self.towers.here(torch.from_numpy(pixels_IHWC)))
        rows_ID = torch.cat([torch.zeros_like(image_ID[:1]), image_ID])
        row_of = {sha256: row for row, sha256 in enumerate(shown, start=1)}
        row_C = [
            0 if (picture := self.asked[number].picture) is None else row_of[picture.sha256]
            for number, places in groups
            for _ in places
        ]
        return rows_ID.index_select(0, torch.tensor(row_C, device=rows_ID.device))

    def _decoded(self, number: int) -> NDArray[np.uint8]:
        picture = self.asked[number].picture
        assert picture is not None
        return to_pixels(picture.data, self.towers.spec)


class Remembered:
    """The same of a model that does not learn: every candidate is read once."""

    def __init__(self, embed: Embeddings, progress: Progress) -> None:
        self.of: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        with torch.no_grad():  # not inference_mode, whose tensors nothing can learn from
            for groups in _at_once(embed.asked, range(len(embed.asked))):
                cells = [(number, place) for number, places in groups for place in places]
                self.of |= zip(cells, zip(*embed(groups), strict=True), strict=True)
                progress(len(cells))

    def __call__(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        found = [self.of[number, place] for number, places in groups for place in places]
        text, picture = zip(*found, strict=True)
        return torch.stack(text), torch.stack(picture)


Embed = Callable[[Sequence[Group]], tuple[Tensor, Tensor]]


def _at_once(asked: Sequence[Asked], numbers: Sequence[int]) -> Iterator[list[Group]]:
    """All candidates of these questions, so many at a time."""
    waiting: list[Group] = []
    for number in numbers:
        places = range(len(asked[number].candidates))
        for start in range(0, len(places), AT_ONCE):
            waiting.append((number, places[start : start + AT_ONCE]))
            if sum(len(some) for _, some in waiting) >= AT_ONCE:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


# ---------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Scored:
    """Scores of candidates by scorers that have not seen their labels.

    Attributes:
        score_KC: log-odds; in row k of fold k's candidates the mean over all scorers that have not
            seen them; of fold j's the scorer's that has seen neither j nor k. The last row, for
            questions in no fold, has the former of all.
        facts: what the scorers were.
    """

    score_KC: NDArray[np.float64]
    facts: dict[str, Any]


def cross_fitted(
    asked: Sequence[Asked], fold_Q: NDArray[np.int64], config: RerankConfig, progress: Progress
) -> Scored:
    """Train a scorer for every two folds on all the others, and score these two with it.

    So whatever is fitted to judge a fold can be fitted to scores that know nothing of that fold.
    `fold_Q` is -1 for questions that are in no fold; every scorer scores them.

    Raises:
        ClipstemError: if the model cannot be had, candidates to learn from are all right or all
            wrong, or training diverges.
    """
    folds = int(fold_Q.max()) + 1
    pairs = list(combinations(range(folds), 2))
    own = [np.flatnonzero((fold_Q >= 0) & (fold_Q != j) & (fold_Q != k)) for j, k in pairs]
    for own_Q in own:  # what would fail, fails before minutes of training
        _share_right(asked, own_Q)
    device = device_of(config.trainer.device)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    start = towers.create(config.model, config.seed).to(device)
    layers.set_up(start.model, TuneConfig(mode=config.learns))
    bf16 = _is_bf16(config.trainer.precision, device)
    texts = [joined(one, one.candidates, start.tokenizer) for one in asked]
    fixed: Embed | None = None
    if config.learns is TuneMode.zero_shot:
        fixed = Remembered(Embeddings(asked, texts, start.eval(), bf16), progress)
    fold_C = np.repeat(fold_Q, [len(one.candidates) for one in asked])
    score_KC = np.zeros((folds + 1, len(fold_C)))
    for turn, (j, k) in enumerate(pairs):
        model = copy.deepcopy(start)
        embed = fixed or Embeddings(asked, texts, model, bf16)
        verifier = _trained(model, embed, asked, own[turn], config, turn, progress)
        judged_Q = np.flatnonzero((fold_Q == j) | (fold_Q == k) | (fold_Q < 0))
        judged_C = (fold_C == j) | (fold_C == k) | (fold_C < 0)
        score_C = np.zeros(len(fold_C))
        score_C[judged_C] = _scores(verifier, embed, asked, judged_Q, progress)
        for judge, other in ((j, k), (k, j)):
            own_C = fold_C == judge
            score_KC[judge, fold_C == other] = score_C[fold_C == other]
            score_KC[judge, own_C] += score_C[own_C] / (folds - 1)
            score_KC[folds, own_C] += score_C[own_C] / (folds - 1)
        score_KC[folds, fold_C < 0] += score_C[fold_C < 0] / len(pairs)
    return Scored(
        score_KC,
        {
            "model": config.model.name,
            "pretrained": config.model.pretrained,
            "parameters": sum(weight.numel() for weight in start.parameters()),
            "context_tokens": start.tokenizer.context_length,
            "candidates_cut": sum(text.truncated > 0 for own in texts for text in own),
            "scorers": len(pairs),
            "device": device_name(device),
        },
    )


def work(asked: Sequence[Asked], fold_Q: NDArray[np.int64], config: RerankConfig) -> int:
    """How often `cross_fitted` tells its progress that a candidate was read."""
    count_Q = np.array([len(one.candidates) for one in asked])
    folds = int(fold_Q.max()) + 1
    pairs = folds * (folds - 1) // 2
    known, trained = int(count_Q[fold_Q >= 0].sum()), np.minimum(count_Q, MOST_TRAINED)
    learnt = int(trained[fold_Q >= 0].sum()) * config.epochs * (folds - 1) * (folds - 2) // 2
    scored = known * (folds - 1) + int(count_Q.sum() - known) * pairs
    read_once = int(count_Q.sum()) if config.learns is TuneMode.zero_shot else 0
    return read_once + learnt + scored


def _is_bf16(precision: Precision, device: torch.device) -> bool:
    is_cuda = device.type == "cuda"
    return precision is Precision.bf16 or (precision is Precision.auto and is_cuda)


def _share_right(asked: Sequence[Asked], own_Q: NDArray[np.int64]) -> float:
    """The share of right candidates of these questions.

    Raises:
        ClipstemError: if there are no right ones, or no wrong ones, to learn from.
    """
    right = [bool(it.correct) for q in own_Q for it in asked[q].candidates]
    share = float(np.mean(right or [False]))
    if not 0 < share < 1:
        raise ClipstemError(
            f"of the {len(own_Q):,} questions that a scorer is to learn from, no candidate is "
            f"{'wrong' if share else 'right'}; expected both: give more questions, or fewer folds"
        )
    return share


def _trained(
    model: Towers,
    embed: Embed,
    asked: Sequence[Asked],
    own_Q: NDArray[np.int64],
    config: RerankConfig,
    turn: int,
    progress: Progress,
) -> Verifier:
    """A scorer that has learnt from these questions, each of which counts the same.

    The loss is the cross-entropy of right and wrong of each candidate, whatever the others are
    (Cobbe et al. 2021, "Training verifiers to solve math word problems").
    """
    right = {int(q): [float(bool(it.correct)) for it in asked[q].candidates] for q in own_Q}
    verifier = Verifier(model, _share_right(asked, own_Q)).to(model.mean_C.device)
    steps = config.epochs * -(-len(own_Q) // config.batch_size)
    optimizer = _optimizer(verifier, config)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, config.optimizer))
    torch.manual_seed(config.seed)  # of what a model may drop
    rng = np.random.default_rng([config.seed, turn])
    nonfinite = 0
    verifier.train()
    for _ in range(config.epochs):
        order_Q = rng.permutation(own_Q)
        for start in range(0, len(order_Q), config.batch_size):
            groups = [_some(int(q), right, rng) for q in order_Q[start : start + config.batch_size]]
            loss = _loss(verifier, embed, groups, right)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(verifier.parameters(), config.optimizer.clip_norm)
            if not norm.isfinite():
                optimizer.zero_grad()  # and so the step changes nothing
                if (nonfinite := nonfinite + 1) > MAX_NONFINITE:
                    raise ClipstemError(
                        f"the gradients of {nonfinite} steps are not finite; try a lower "
                        f"optimizer.lr than {config.optimizer.lr:g}"
                    )
            optimizer.step()
            schedule.step()
            progress(sum(len(places) for _, places in groups))
    return verifier.eval()


def _some(number: int, right: dict[int, list[float]], rng: np.random.Generator) -> Group:
    """A question with its candidates, or with as many as a step can take."""
    count = len(right[number])
    if count <= MOST_TRAINED:
        return number, range(count)
    return number, sorted(rng.choice(count, MOST_TRAINED, replace=False).tolist())


def _loss(
    verifier: Verifier, embed: Embed, groups: Sequence[Group], right: dict[int, list[float]]
) -> Tensor:
    text_CD, picture_CD = embed(groups)
    with torch.autocast(text_CD.device.type, enabled=False):
        log_odds_C = verifier.log_odds(text_CD.float(), picture_CD.float())
        right_C = [right[number][place] for number, places in groups for place in places]
        weight_C = [1 / len(places) / len(groups) for _, places in groups for _ in places]
        device = log_odds_C.device
        return F.binary_cross_entropy_with_logits(
            log_odds_C,
            torch.tensor(right_C, device=device),
            torch.tensor(weight_C, device=device),
            reduction="sum",
        )


def _optimizer(verifier: Verifier, config: RerankConfig) -> torch.optim.AdamW:
    """The model's own parameters as `train` has them; the direction is decayed, the bias not."""
    settings = config.optimizer
    own = [
        {
            "params": [verifier.direction_D],
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
        },
        {"params": [verifier.bias], "lr": settings.lr, "weight_decay": 0.0},
    ]
    if not any(parameter.requires_grad for parameter in verifier.towers.parameters()):
        return torch.optim.AdamW(own, betas=settings.betas)
    optimizer = adamw(verifier.towers, settings)
    for group in own:
        optimizer.add_param_group(group)
    return optimizer


def _scores(
    verifier: Verifier,
    embed: Embed,
    asked: Sequence[Asked],
    judged_Q: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.float64]:
    found = []
    with torch.inference_mode():
        for groups in _at_once(asked, judged_Q.tolist()):
            text_CD, picture_CD = embed(groups)
            found.append(verifier.log_odds(text_CD.float(), picture_CD.float()).cpu().numpy())
            progress(len(text_CD))
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)
