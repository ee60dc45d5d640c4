"""Between the steps: the moving average, the evaluations on `tune`, the checkpoints."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar

from clipstem.atomic import new_file, new_folder
from clipstem.averages import MovingAverage
from clipstem.batches import has_answers
from clipstem.config import TrainConfig
from clipstem.metrics import Summary, summarize
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.scorer import Scorer
from clipstem.shards import Dataset

log = logging.getLogger(__name__)


def summary_on_tune(scorer: Scorer, dataset: Dataset, batch_size: int) -> Summary:
    """How good the scorer's model is on `tune`, where everything is chosen."""
    found = scorer.predict(dataset, "tune", batch_size)
    return summarize(found.probs_QK, found.answer_Q, found.num_options_Q, found.columns["subject"])


class AverageWeights(L.Callback):
    """Keeps the moving average of the model's weights, in checkpoints too."""

    def __init__(self, model: torch.nn.Module, decay: float, accumulate: int) -> None:
        self.average = MovingAverage(model, decay)
        self.model = model
        self.accumulate = accumulate

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.average.updates, "weights": self.average.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.updates = state_dict["updates"]
        for name, value in self.average.weights.items():
            value.copy_(state_dict["weights"][name])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        number: int,
    ) -> None:
        if (number + 1) % self.accumulate == 0:
            self.average.update(self.model)

    def in_place(self) -> AbstractContextManager[None]:
        """Meanwhile the model has the averaged weights."""
        return self.average.in_place(self.model)


class EvaluateOnTune(L.Callback):
    """Scores `tune` every so many steps: keeps the best weights, stops early, writes checkpoints.

    Without answered questions in `tune` it only writes checkpoints, and the last weights count as
    the best. A checkpoint names the best weights of its time, and all are whole or not there, so a
    run that is killed at any moment goes on from files that belong together.

    Attributes:
        kept: (macro accuracy, -nll, step) of the evaluations whose weights are kept, best first:
            as many as the soup is made of, at least one.
    """

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        dataset: Dataset,
        scorer: Scorer,
        average: AverageWeights | None,
    ) -> None:
        self.run = run
        self.config = config
        self.dataset = dataset
        self.scorer = scorer
        self.average = average
        self.has_tune = has_answers(dataset, "tune")
        self.kept: list[tuple[float, float, int]] = []
        self.best_macro = -1.0
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "best_macro": self.best_macro, "waited": self.waited}

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
        with self.average.in_place() if self.average else nullcontext():
            self._evaluate(trainer, step)
        with new_file(self.run.last_checkpoint, replace=True) as partial:
            trainer.save_checkpoint(partial, weights_only=False)
            if not partial.stat().st_size:  # Lightning passes over a folder it may not write to
                raise ClipstemError(f"{self.run.last_checkpoint} could not be written")
        self.run.keep_only([step for _, _, step in self.kept])
        self._stop_if_patience_is_over(trainer)

    def _evaluate(self, trainer: L.Trainer, step: int) -> None:
        if not self.has_tune:
            self._keep((0.0, 0.0, step))
            return
        summary = summary_on_tune(self.scorer, self.dataset, self.config.at_once)
        self._keep((summary.macro, -summary.nll, step))
        is_better = summary.macro > self.best_macro
        self.best_macro = max(self.best_macro, summary.macro)
        self.waited = 0 if is_better else self.waited + 1
        _log(trainer, step, summary, is_better)

    def _keep(self, rank: tuple[float, float, int]) -> None:
        """Keep the model's weights if they are among the best."""
        self.kept = sorted([*self.kept, rank], reverse=True)[: max(1, self.config.tune.soup)]
        if rank in self.kept:
            folder = self.run.kept(rank[-1])
            shutil.rmtree(folder, ignore_errors=True)  # of a run killed before its checkpoint
            with new_folder(folder) as partial:
                self.scorer.model.save(partial)

    def _stop_if_patience_is_over(self, trainer: L.Trainer) -> None:
        if self.config.patience is not None and self.waited >= self.config.patience:
            log.info("stopped: no better macro accuracy in %d evaluations", self.waited)
            trainer.should_stop = True


def _log(trainer: L.Trainer, step: int, summary: Summary, is_better: bool) -> None:
    tuned = {"macro": summary.macro, "micro": summary.micro, "nll": summary.nll}
    for logger in trainer.loggers:
        logger.log_metrics({f"tune_{name}": value for name, value in tuned.items()}, step)
    log.info(
        "step %d of %d: tune macro %.1f %%, micro %.1f %% (chance %.1f %%), nll %.3f%s",
        *(step, trainer.max_steps, 100 * summary.macro, 100 * summary.micro),
        *(100 * summary.chance_micro, summary.nll, ", best so far" if is_better else ""),
    )


class Bar(RichProgressBar):
    """Lightning's progress bar without the number of a version, which our runs do not have."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}
