"""Fine-tuning as a Lightning module.

Q questions, K most options, V queries, I pictures.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from clipstem import layers, loss, pairs, ranks
from clipstem.atomic import new_file
from clipstem.config import OptimizerConfig, TrainConfig
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.towers import Towers

log = logging.getLogger(__name__)

POSITIONS = (
    *("positional_embedding", "pos_embed", "position_embeddings.weight"),
    *("class_embedding", "cls_token", "reg_token"),
)
"""Endings of what stands for a place in open_clip's, timm's and Hugging Face's towers."""

LOG_EVERY_STEPS = 10
MAX_LOG_SCALE = math.log(100)  # CLIP's own clamp of the logit scale, arXiv 2103.00020


class Learner(L.LightningModule):
    """Cross-entropy over a question's options, mixed with distillation where there are teachers,
    plus the in-batch contrast by its weight.

    Attributes:
        nonfinite: the steps that were skipped because their gradient was not finite, with the
            questions of each; written to `nonfinite_file` too.
        skipped: questions of all ranks that are left out because a picture does not decode, and
            why, as of the last checkpoint.
    """

    def __init__(
        self, towers: Towers, config: TrainConfig, steps: int, nonfinite_file: Path
    ) -> None:
        super().__init__()
        self.towers = towers
        self.config = config
        self.steps = steps
        self.nonfinite_file = nonfinite_file
        self.nonfinite: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self._own_skipped: dict[str, str] = {}
        self._asked = 0
        self._ids: list[str] = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for skipped in ranks.gathered(self._own_skipped):
            self.skipped |= skipped
        checkpoint |= {"nonfinite": self.nonfinite, "skipped": self.skipped}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.nonfinite = checkpoint["nonfinite"]
        self.skipped = checkpoint["skipped"]

    def training_step(self, batch: PairBatch, number: int) -> Tensor:
        # What is dropped in a step depends on the step alone, so that a resumed run repeats it.
        accumulate = self.config.accumulate
        part = self.global_step * ranks.world() + ranks.rank()
        torch.manual_seed(self.config.seed * 2**32 + part * accumulate + number % accumulate)
        self._ids += filter(None, batch.ids)
        self._skip(batch)
        terms = self.terms(batch)
        total = terms["listwise"] + self.config.contrast_weight * terms["contrast"]
        if "distill" in terms:
            total = total + terms["distill"]
        said = ranks.mean({name: value.detach() for name, value in terms.items()})
        if (number + 1) % accumulate == 0:
            self._tell(said)
        return total

    def _tell(self, said: dict[str, Tensor]) -> None:
        """Write what a step's last part says, every so many steps, to all logs.

        At once: Lightning's own way writes behind the step's checkpoint, and a run that was killed
        between the two would not have the row, nor take the step again.
        """
        step = self.global_step + 1  # of the optimiser's, counted from 1
        if step % min(LOG_EVERY_STEPS, self.steps):
            return
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        row = {name: value.item() for name, value in said.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**row, "lr": rate}, step)
            logger.save()

    def _skip(self, batch: PairBatch) -> None:
        """Count what the batch has left out; of the first hundred one may be."""
        self._own_skipped |= batch.skipped
        self._asked += len(batch.ids)
        most = self.config.trainer.max_skipped_fraction
        if len(self._own_skipped) > most * max(self._asked, 100):
            id, reason = list(self._own_skipped.items())[-1]
            raise ClipstemError(
                f"{len(self._own_skipped):,} of {self._asked:,} questions have broken pictures, "
                f"more than trainer.max_skipped_fraction={most:g}; question '{id}': a picture "
                f"{reason}; prepare the data again with verify=decode"
            )

    def terms(self, batch: PairBatch) -> dict[str, Tensor]:
        """The part's share of each loss, of the accuracy, and the logit scale.

        Where there are teachers, `listwise` and `distill` are the two as they are mixed. A question
        without a label then has the teachers' choice as its answer in the contrast, which counts as
        much as they are sure of it, and in the accuracy.
        """
        image_ID, text_UD = self.towers.embed(batch)
        # Only the towers run in bf16: cosines, softmax and losses need fp32.
        with torch.autocast(self.device.type, enabled=False):
            query_VD = pairs.queries(batch, image_ID, text_UD)
            cosine_VI = query_VD @ image_ID.T
            scale = self.towers.scale.float()
            logits_QK = pairs.score(batch, cosine_VI, scale)
            smoothing = self.config.tune.label_smoothing
            listwise_Q = loss.listwise(logits_QK, batch.answer_Q, smoothing)
            sure_Q = None
            means = {"listwise": listwise_Q}
            if batch.teacher_QK is not None:
                distill = self.config.distill
                share_Q = loss.share_of_teachers(batch, distill.weight)
                distill_Q = loss.distillation(logits_QK, batch.teacher_QK, distill.temperature)
                means = {"listwise": (1 - share_Q) * listwise_Q, "distill": share_Q * distill_Q}
                batch, sure_Q = loss.with_teachers_choices(batch)
            own = every = loss.right_pairs(batch)
            if ranks.world() > 1 and self.config.contrast_weight:
                cosine_VI, own, every = loss.over_ranks(batch, image_ID, query_VD, own)
            contrast_Q = loss.in_batch_contrast(scale * cosine_VI, own, every)
            if sure_Q is not None:
                contrast_Q = sure_Q * contrast_Q
        right_Q = (logits_QK.argmax(dim=1) == batch.answer_Q).float()
        means |= {"contrast": contrast_Q, "accuracy": right_Q}
        return {name: self._mean(value_Q, batch) for name, value_Q in means.items()} | {
            "scale": scale
        }

    def _mean(self, value_Q: Tensor, batch: PairBatch) -> Tensor:
        """The part's share of the mean over the global batch.

        Weights add up to 1 over the global batch; Lightning divides by the number of parts
        that are accumulated, and torch by the number of ranks, so that is taken back here.
        """
        return (value_Q * batch.weight_Q).sum() * self.config.accumulate * ranks.world()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():  # before anything is evaluated or saved
            self.towers.model.logit_scale.clamp_(max=MAX_LOG_SCALE)
            ranks.take_from_first(_batch_statistics(self.towers))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimiser under mixed precision, for the sake of
        # fp16's loss scaling; bf16 has none.
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters(), self.config.optimizer.clip_norm
        ).item()  # of the whole batch, so that all ranks see the same
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)  # and so the step changes nothing
            self._note_nonfinite(norm)
        self._ids.clear()

    def _note_nonfinite(self, norm: float) -> None:
        questions = [id for ids in ranks.gathered(self._ids) for id in ids]
        step = self.global_step + 1
        self.nonfinite.append({"step": step, "gradient_norm": str(norm), "questions": questions})
        if ranks.is_first():
            with new_file(self.nonfinite_file, replace=True) as partial:
                partial.write_text("".join(f"{json.dumps(it)}\n" for it in self.nonfinite))
        most = self.config.max_nonfinite_steps
        if len(self.nonfinite) > most or not all(
            values.isfinite().all() for values in _batch_statistics(self.towers)
        ):
            raise ClipstemError(
                f"the gradient of step {step} is not finite, as of {len(self.nonfinite)} steps in "
                f"all (max_nonfinite_steps={most}); try a lower optimizer.lr, and look at the "
                f"questions in {self.nonfinite_file}"
            )
        log.warning("step %d: the gradient is %s; the step is skipped", step, norm)

    def transfer_batch_to_device(
        self, batch: PairBatch, device: torch.device, dataloader_idx: int
    ) -> PairBatch:
        return batch.map(lambda array: array.to(device, non_blocking=True))

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.towers, self.config.optimizer, self.config.tune.layer_decay)
        schedule = LambdaLR(
            optimizer, lambda step: rate_factor(step, self.steps, self.config.optimizer)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _batch_statistics(model: torch.nn.Module) -> list[Tensor]:
    """What BatchNorm remembers, which no gradient changes."""
    norms = (it for it in model.modules() if isinstance(it, _BatchNorm))
    return [values for norm in norms for values in norm.buffers() if values.is_floating_point()]


def adamw(towers: Towers, config: OptimizerConfig, layer_decay: float = 1.0) -> torch.optim.AdamW:
    """AdamW over what learns, the groups of the highest rate first.

    Vectors, scalars and position embeddings are not decayed; the rate falls by `layer_decay` with
    each layer from a tower's end.
    """
    # Only a decay needs to know the layers, and not every open_clip model's are known.
    far = layers.distances(towers.model) if layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in towers.model.named_parameters():
        if parameter.requires_grad:
            rate = config.lr * layer_decay ** far.get(name, 0)
            is_spared = parameter.ndim < 2 or name.endswith(POSITIONS)
            decay = 0.0 if is_spared else config.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    highest_first = sorted(groups.items(), key=lambda group: group[0], reverse=True)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in highest_first
        ],
        betas=config.betas,
        fused=True,
    )


def rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the highest learning rate is multiplied with: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
