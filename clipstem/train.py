"""`python -m clipstem.train +experiment=…`: fine-tune, keep the best, calibrate, score `valid`."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from omegaconf import OmegaConf

from clipstem import console, loader, run, shards, towers
from clipstem.config import ModelConfig, TrainConfig, verb
from clipstem.learner import Bar, CsvLog, EvaluateOnTune, Learner
from clipstem.metrics import summarize
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.scorer import Scorer, uses_bf16
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
    model = towers.create(config.model, config.seed)
    scorer = Scorer(
        model,
        config.trainer,
        problem_picture=config.model.problem_picture,
        provenance={"run": config.out, "model": config.model.name},
    )
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
    _fit(config, dataset, order_SN, scorer, made)
    # ---- what comes out: the best weights, calibrated on tune, scored on valid
    best = towers.create(ModelConfig(name=f"local-dir:{made.best}"))
    scorer.model.model.load_state_dict(best.model.state_dict())
    if "tune" in dataset.manifest.questions:
        scorer.calibrate(scorer.predict(dataset, "tune", config.batch_size))
    shutil.copytree(made.best, made.weights, dirs_exist_ok=True)
    made.write_facts(
        model=config.model.name,
        temperature=scorer.temperature,
        problem_picture=config.model.problem_picture.value,
        weights_sha256=scorer.model.weights_sha256(),
    )
    if "valid" in dataset.manifest.questions:
        score_valid(scorer, dataset, config, made)
    made.finish()
    return made


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
        numbers = shards.order(dataset.manifest, "train", config.seed, epoch, 1)[:, 0]
        rows.append(loader.batched(numbers[flags[numbers]], config.batch_size))
    return np.concatenate(rows)[:steps]


def _fit(
    config: TrainConfig, dataset: Dataset, order_SN: NDArray[np.int64], scorer: Scorer, made: Run
) -> None:
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    on_cuda = scorer.device.type == "cuda"
    # Deterministic kernels cost nothing on the CPU; on CUDA some do not exist.
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
    checkpoint = made.last_checkpoint if made.last_checkpoint.exists() else None
    trainer = L.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if uses_bf16(scorer.device, config.trainer.precision) else "32-true",
        max_epochs=1,  # one pass over the run's batches, however many epochs of questions they are
        max_steps=len(order_SN),
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.optimizer.clip_norm,
        logger=[
            TensorBoardLogger(made.folder, name="", version="tensorboard"),
            CsvLog(made.metrics),
        ],
        callbacks=[
            EvaluateOnTune(made, config, dataset, scorer),
            Bar(),
        ],
        log_every_n_steps=min(10, len(order_SN)),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    done = 0 if checkpoint is None else torch.load(checkpoint, weights_only=True)["global_step"]
    data = loader.load(batches, config.trainer.workers, done * config.accumulate, pin=on_cuda)
    with warnings.catch_warnings():
        # One process reads ahead of the model on purpose, and the loader is resumed by `start`.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of torch
        trainer.fit(
            Learner(scorer.model, config, len(order_SN)),
            data,
            ckpt_path=checkpoint,
            weights_only=True,
        )


def score_valid(scorer: Scorer, dataset: Dataset, config: TrainConfig, made: Run) -> None:
    """Write and print the predictions for `valid`, which nothing in training has looked at."""
    with console.progress_bar("valid", dataset.size("valid")) as progress:
        found = scorer.predict(dataset, "valid", config.batch_size, progress)
    # A run that was stopped just before its end has written them already.
    found.write(made.predictions("valid"), replace=True)
    summary = summarize(
        found.probs_QK, found.answer_Q, found.num_options_Q, found.columns["subject"]
    )
    console.show_summary(f"{made.folder}: valid", summary, found)


@verb("train", TrainConfig)
def main(config: TrainConfig) -> None:
    console.show_log_lines()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    made = train(config)
    console.console.print(f"finished: {made.folder}")


if __name__ == "__main__":
    main()
