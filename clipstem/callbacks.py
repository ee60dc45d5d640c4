"""Between the steps: the moving average, the evaluations on `tune`, the checkpoints."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar

from clipstem import ranks
from clipstem.atomic import new_file, new_folder
from clipstem.averages import MovingAverage
from clipstem.batches import has_answers
from clipstem.config import TrainConfig
from clipstem.metrics import Summary, summarize
from clipstem.question import ClipstemError
from clipstem.run import Run, damage_of
from clipstem.scorer import Scorer
from clipstem.shards import Dataset
from clipstem.stopping import STOPPED, StopRequest

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
    run that is killed at any moment goes on from files that belong together. The last two
    checkpoints stay, with the weights that they name.

    Attributes:
        kept: (macro accuracy, -nll, step) of the evaluations whose weights are kept, best first:
            as many as the soup is made of, at least one.
        saved: the steps of `kept` in the checkpoint before.
    """

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        dataset: Dataset,
        scorer: Scorer,
        average: AverageWeights | None,
        stop: StopRequest,
    ) -> None:
        self.run = run
        self.config = config
        self.dataset = dataset
        self.scorer = scorer
        self.average = average
        self.stop = stop
        self.has_tune = has_answers(dataset, "tune")
        self.kept: list[tuple[float, float, int]] = []
        self.best_macro = -1.0
        self.waited = 0
        self.saved: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "best_macro": self.best_macro, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
        self.saved = [step for _, _, step in self.kept]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.listen()  # Lightning would act on a signal in the middle of a step
        self.stop.is_awaited = True
        self._stop_if_patience_is_over(trainer)  # it may have been stopped before its end

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        number: int,
    ) -> None:
        if (number + 1) % self.config.accumulate:
            return
        step = trainer.global_step
        is_evaluated = step == trainer.max_steps or step % self.config.eval_every_steps == 0
        if is_evaluated:
            with self.average.in_place() if self.average else nullcontext():
                self._evaluate(trainer, step)
        every = self.config.checkpoint_every_steps
        is_asked_to_stop = ranks.any_of(self.stop.signal is not None)
        if is_evaluated or is_asked_to_stop or (every is not None and step % every == 0):
            self._save(trainer, step)
        if is_asked_to_stop:
            log.info("%s: stopped after step %d; go on with resume=true", self.stop.signal, step)
            raise SystemExit(STOPPED)
        self._stop_if_patience_is_over(trainer)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        path = self.run.checkpoint(step)
        if ranks.is_first():
            with new_file(path, replace=True) as partial:
                trainer.save_checkpoint(partial, weights_only=False)
                # Read back: Lightning passes over a folder that it may not write to.
                if (damage := damage_of(partial)) is not None:
                    raise ClipstemError(f"{path} could not be written whole ({damage})")
        else:
            trainer.save_checkpoint(path, weights_only=False)  # which only the first writes
        kept = [step for _, _, step in self.kept]
        self.run.keep_last_checkpoints()
        self.run.keep_only({*kept, *self.saved})
        self.saved = kept

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
        if rank in self.kept and ranks.is_first():
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
