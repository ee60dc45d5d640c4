"""Fine-tuning as a Lightning module, with the callback that evaluates on `tune`.

Q questions, K most options, V queries, I pictures.
"""

from __future__ import annotations

import csv
import logging
import math
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from clipstem import loader, loss, pairs
from clipstem.atomic import new_file, new_folder
from clipstem.config import OptimizerConfig, TrainConfig
from clipstem.metrics import Summary, summarize
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.scorer import Scorer
from clipstem.shards import Dataset
from clipstem.towers import Towers

MAX_LOG_SCALE = math.log(100)  # CLIP's own clamp of the logit scale, arXiv 2103.00020

log = logging.getLogger(__name__)


class Learner(L.LightningModule):
    """Cross-entropy over a question's options, plus the in-batch contrast by its weight."""

    def __init__(self, towers: Towers, config: TrainConfig, steps: int) -> None:
        super().__init__()
        self.towers = towers
        self.config = config
        self.steps = steps

    def training_step(self, batch: PairBatch, number: int) -> Tensor:
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
            listwise_Q = loss.listwise(logits_QK, batch.answer_Q)
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
        optimizer = adamw(self.towers, self.config.optimizer)
        schedule = LambdaLR(
            optimizer, lambda step: rate_factor(step, self.steps, self.config.optimizer)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def adamw(towers: Towers, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; vectors, scalars and position embeddings are not decayed."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in towers.model.named_parameters():
        if parameter.requires_grad:
            is_spared = parameter.ndim < 2 or name.endswith("positional_embedding")
            (kept if is_spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the highest learning rate is multiplied with: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class EvaluateOnTune(L.Callback):
    """Scores `tune` every so many steps: keeps the best weights, stops early, writes checkpoints.

    Without answered questions in `tune` it only writes checkpoints, and the last weights count as
    the best. A checkpoint names the best weights of its time, and both are whole or not there, so
    a run that is killed at any moment goes on from a pair that belongs together.
    """

    def __init__(self, run: Run, config: TrainConfig, dataset: Dataset, scorer: Scorer) -> None:
        self.run = run
        self.config = config
        self.dataset = dataset
        self.scorer = scorer
        self.has_tune = loader.has_answers(dataset, "tune")
        self.best = ""
        self.best_macro = -1.0
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_macro": self.best_macro, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_patience_is_over(trainer)  # it may have been stopped before its end

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        number: int,
    ) -> None:
        step = trainer.global_step
        is_last = step == trainer.max_steps
        is_whole = (number + 1) % self.config.accumulate == 0
        if not is_whole or not (is_last or step % self.config.eval_every_steps == 0):
            return
        self._evaluate(trainer, step)
        with new_file(self.run.last_checkpoint, replace=True) as partial:
            trainer.save_checkpoint(partial, weights_only=False)
            if not partial.stat().st_size:  # Lightning passes over a folder it may not write to
                raise ClipstemError(f"{self.run.last_checkpoint} could not be written")
        self.run.keep_only(self.best)
        self._stop_if_patience_is_over(trainer)

    def _evaluate(self, trainer: L.Trainer, step: int) -> None:
        is_better = True
        if self.has_tune:
            summary = self._summary()
            is_better = summary.macro > self.best_macro
            self.best_macro = max(self.best_macro, summary.macro)
            self.waited = 0 if is_better else self.waited + 1
            tuned = {"macro": summary.macro, "micro": summary.micro, "nll": summary.nll}
            for logger in trainer.loggers:
                logger.log_metrics({f"tune_{name}": value for name, value in tuned.items()}, step)
            log.info(
                "step %d of %d: tune macro %.1f %%, micro %.1f %% (chance %.1f %%), nll %.3f%s",
                *(step, trainer.max_steps, 100 * summary.macro, 100 * summary.micro),
                *(100 * summary.chance_micro, summary.nll, ", best so far" if is_better else ""),
            )
        if is_better:
            self.best = f"best-{step:08d}"
            folder = self.run.checkpoint(self.best)
            shutil.rmtree(folder, ignore_errors=True)  # of a run killed before its checkpoint
            with new_folder(folder) as partial:
                self.scorer.model.save(partial)

    def _stop_if_patience_is_over(self, trainer: L.Trainer) -> None:
        if self.config.patience is not None and self.waited >= self.config.patience:
            log.info("stopped: no better macro accuracy in %d evaluations", self.waited)
            trainer.should_stop = True

    def _summary(self) -> Summary:
        at_once = self.config.batch_size // self.config.accumulate
        found = self.scorer.predict(self.dataset, "tune", at_once)
        return summarize(
            found.probs_QK, found.answer_Q, found.num_options_Q, found.columns["subject"]
        )


class Bar(RichProgressBar):
    """Lightning's progress bar without the number of a version, which our runs do not have."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class CsvLog(Logger):
    """`metrics.csv`: a row for each logged step, appended.

    A resumed run keeps the rows up to its checkpoint's step.
    """

    COLUMNS = (
        *("step", "listwise", "contrast", "accuracy", "scale", "lr"),
        *("tune_macro", "tune_micro", "tune_nll"),
    )

    def __init__(self, path: Path, steps_done: int) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            header, *rows = path.read_text().splitlines()
            kept = [row for row in rows if int(row.split(",")[0]) <= steps_done]
            with new_file(path, replace=True) as partial:
                partial.write_text("\n".join([header, *kept]) + "\n")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(
                {**{name: metrics[name] for name in metrics if name != "epoch"}, "step": step}
            )

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Nothing: `config.yaml` has them."""
