"""`python -m clipstem.train +experiment=…`: fine-tune, keep the best, calibrate, score `valid`."""

from __future__ import annotations

import logging
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from omegaconf import OmegaConf

from clipstem import console, loader, run, shards, towers
from clipstem.atomic import new_folder
from clipstem.config import ModelConfig, Precision, TrainConfig, verb
from clipstem.learner import Bar, CsvLog, EvaluateOnTune, Learner
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.scorer import Scorer
from clipstem.shards import Dataset

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Run:
    """Fine-tune as the config says; returns the finished run.

    Raises:
        ClipstemError: if the data, the model or the run's folder are not as expected.
    """
    # ---- data and model, before anything is written
    dataset = shards.open_dataset(config.data)
    order_SN = training_order(dataset, config)
    has_tune = loader.has_answers(dataset, "tune")
    provenance = {
        "run": config.out,
        "model": config.model.name,
        "train_questions_of_skill": dataset.manifest.skills["train"],
    }
    scorer = _scorer(towers.create(config.model, config.seed), config, provenance)
    # ---- the run's folder
    made = run.start(
        Path(config.out), OmegaConf.to_yaml(OmegaConf.structured(config)), config.resume
    )
    facts = {"seed": config.seed, "data": config.data, "data_sha256": dataset.manifest.data_sha256}
    if not config.resume:
        made.write_facts(**run.environment(), **facts)
    elif made.facts["data_sha256"] != facts["data_sha256"]:
        raise ClipstemError(
            f"{config.data}: is not the data that {made.folder} began with (data_sha256 differs)"
        )
    # ---- steps
    best = _fit(config, dataset, order_SN, scorer, made)
    # ---- what comes out: the best weights, calibrated on tune, scored on valid
    scorer = _scorer(towers.create(ModelConfig(name=f"local-dir:{best}")), config, provenance)
    if has_tune:
        scorer.calibrate(scorer.predict(dataset, "tune", _at_once(config)))
    shutil.rmtree(made.weights, ignore_errors=True)  # of a run that was stopped just here
    with new_folder(made.weights) as partial:
        scorer.model.save(partial)
    made.write_facts(
        model=config.model.name,
        train_questions_of_skill=provenance["train_questions_of_skill"],
        temperature=scorer.temperature,
        problem_picture=config.model.problem_picture.value,
        weights_sha256=scorer.model.weights_sha256(),
    )
    if "valid" in dataset.manifest.questions:
        score_valid(scorer, dataset, config, made)
    made.finish()
    return made


def _scorer(model: towers.Towers, config: TrainConfig, provenance: dict[str, Any]) -> Scorer:
    mode = config.model.problem_picture
    return Scorer(model, config.trainer, problem_picture=mode, provenance=provenance)


def _at_once(config: TrainConfig) -> int:
    """Questions that fit on the device together."""
    return config.batch_size // config.accumulate


def training_order(dataset: Dataset, config: TrainConfig) -> NDArray[np.int64]:
    """Numbers of the questions of each global batch of the whole run, [steps, batch_size].

    Questions without a picture or an answer are left out and counted.

    Raises:
        ClipstemError: if none is left.
    """
    flags = loader.usable(dataset, "train", answered=True)
    if not flags.any():
        raise ClipstemError(
            f"{config.data}: none of the {len(flags):,} questions of 'train' has a picture and an "
            "answer; there is nothing to train on"
        )
    if skipped := int((~flags).sum()):
        log.info("%d of %d questions have no picture or no answer: skipped", skipped, len(flags))
    per_epoch = -(-int(flags.sum()) // config.batch_size)
    steps = config.steps or max(1, round(config.epochs * per_epoch))
    rows: list[NDArray[np.int64]] = []
    for epoch in range(-(-steps // per_epoch)):
        numbers = shards.order(dataset.manifest, "train", config.seed, epoch)
        rows.append(loader.batched(numbers[flags[numbers]], config.batch_size))
    return np.concatenate(rows)[:steps]


def _fit(
    config: TrainConfig, dataset: Dataset, order_SN: NDArray[np.int64], scorer: Scorer, made: Run
) -> Path:
    """Run the steps that are left; returns the folder of the best weights."""
    on_cuda = scorer.device.type == "cuda"
    # Deterministic kernels are as fast on the CPU; on CUDA some do not exist.
    torch.use_deterministic_algorithms(not on_cuda)
    # Nothing here reads memory that it has not written; filling it cost a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    L.seed_everything(config.seed, verbose=False)
    batches = loader.Batches(
        dataset,
        "train",
        order_SN,
        scorer.model.tokenizer,
        scorer.model.spec,
        config.model.problem_picture,
        parts=config.accumulate,
    )
    checkpoint, done = _checkpoint(made)
    evaluate = EvaluateOnTune(made, config, dataset, scorer)
    trainer = L.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if _uses_bf16(config.trainer.precision, on_cuda) else "32-true",
        max_epochs=1,  # one pass over the run's batches, however many epochs of questions they are
        max_steps=len(order_SN),
        accumulate_grad_batches=config.accumulate,
        logger=[
            TensorBoardLogger(made.folder, name="", version="tensorboard", purge_step=done + 1),
            CsvLog(made.metrics, done),
        ],
        callbacks=[evaluate, Bar()],
        log_every_n_steps=min(10, len(order_SN)),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = loader.load(batches, config.trainer.workers, done * config.accumulate, pin=on_cuda)
    with warnings.catch_warnings():
        # One process reads ahead of the model on purpose, and the loader is resumed by `start`.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of torch
        learner = Learner(scorer.model, config, len(order_SN))
        try:
            trainer.fit(learner, data, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException:  # Lightning would exit with 0
            log.info("terminated; go on with resume=true")
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as stopped:  # Lightning's answer to Ctrl-C
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    return made.checkpoint(evaluate.best)


def _uses_bf16(precision: Precision, on_cuda: bool) -> bool:
    return precision is Precision.bf16 or (precision is Precision.auto and on_cuda)


def _checkpoint(made: Run) -> tuple[Path | None, int]:
    """The checkpoint to go on from, if there is one, and the steps that are done.

    Raises:
        ClipstemError: if it cannot be read.
    """
    path = made.last_checkpoint
    if not path.exists():
        return None, 0
    try:
        return path, int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # a damaged file makes torch raise anything
        raise ClipstemError(
            f"{path}: is damaged ({str(error).splitlines()[0]}); move {made.folder} away and "
            "start again"
        ) from error


def score_valid(scorer: Scorer, dataset: Dataset, config: TrainConfig, made: Run) -> None:
    """Write and print the predictions for `valid`, which nothing in training has looked at."""
    with console.progress_bar("valid", dataset.size("valid")) as progress:
        found = scorer.predict(dataset, "valid", _at_once(config), progress)
    # A run that was stopped just before its end has written them already.
    found.write(made.predictions("valid"), replace=True)
    console.show_predictions(f"{made.folder}: valid", found)


@verb("train", TrainConfig)
def main(config: TrainConfig) -> None:
    console.show_log_lines()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    made = train(config)
    console.console.print(f"finished: {made.folder}")


if __name__ == "__main__":
    main()
