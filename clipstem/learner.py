"""Fine-tuning as a Lightning module.

Q questions, K most options, V queries, I pictures.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from clipstem import layers, loss, pairs
from clipstem.config import OptimizerConfig, TrainConfig
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.towers import Towers

POSITIONS = (
    *("positional_embedding", "pos_embed", "position_embeddings.weight"),
    *("class_embedding", "cls_token", "reg_token"),
)
"""Endings of what stands for a place in open_clip's, timm's and Hugging Face's towers."""

MAX_LOG_SCALE = math.log(100)  # CLIP's own clamp of the logit scale, arXiv 2103.00020


class Learner(L.LightningModule):
    """Cross-entropy over a question's options, plus the in-batch contrast by its weight."""

    def __init__(self, towers: Towers, config: TrainConfig, steps: int) -> None:
        super().__init__()
        self.towers = towers
        self.config = config
        self.steps = steps

    def training_step(self, batch: PairBatch, number: int) -> Tensor:
        # What is dropped in a step depends on the step alone, so that a resumed run repeats it.
        part = self.global_step * self.config.accumulate + number % self.config.accumulate
        torch.manual_seed(self.config.seed * 2**32 + part)
        terms = self.terms(batch)
        total = terms["listwise"] + self.config.contrast_weight * terms["contrast"]
        if not torch.isfinite(total):
            raise ClipstemError(
                f"the loss of step {self.global_step + 1} is {total.item()}; try a lower "
                f"optimizer.lr (questions {', '.join(filter(None, batch.ids))})"
            )
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        # "step" tells Lightning which step the values belong to: optimiser steps, counted from 1.
        step = float(self.global_step + 1)
        self.log_dict({**terms, "lr": rate, "step": step}, batch_size=1)
        return total

    def terms(self, batch: PairBatch) -> dict[str, Tensor]:
        """The part's share of each loss, of the accuracy, and the logit scale."""
        image_ID, text_UD = self.towers.embed(batch)
        # Only the towers run in bf16: cosines, softmax and losses need fp32.
        with torch.autocast(self.device.type, enabled=False):
            cosine_VI = pairs.cosines(batch, image_ID, text_UD)
            scale = self.towers.scale.float()
            logits_QK = pairs.score(batch, cosine_VI, scale)
            smoothing = self.config.tune.label_smoothing
            listwise_Q = loss.listwise(logits_QK, batch.answer_Q, smoothing)
            contrast_Q = loss.in_batch_contrast(scale * cosine_VI, batch)
        right_Q = (logits_QK.argmax(dim=1) == batch.answer_Q).float()
        means = {"listwise": listwise_Q, "contrast": contrast_Q, "accuracy": right_Q}
        return {name: self._mean(value_Q, batch) for name, value_Q in means.items()} | {
            "scale": scale
        }

    def _mean(self, value_Q: Tensor, batch: PairBatch) -> Tensor:
        """The part's share of the mean over the global batch.

        Weights are 1 / (questions of the global batch); Lightning divides by the number of parts
        that are accumulated, so that is taken back here.
        """
        return (value_Q * batch.weight_Q).sum() * self.config.accumulate

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():  # before anything is evaluated or saved
            self.towers.model.logit_scale.clamp_(max=MAX_LOG_SCALE)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimiser under mixed precision, for the sake of
        # fp16's loss scaling; bf16 has none.
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.optimizer.clip_norm)

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
