"""`python -m clipstem.train +experiment=…`: fine-tune, keep the best, calibrate, score `valid`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from clipstem import averages, charts, console, layers, loader, ranks, run, shards, towers
from clipstem.atomic import new_file, new_folder
from clipstem.batches import NOBODY, Batches, batched, has_answers, usable
from clipstem.callbacks import AverageWeights, Bar, EvaluateOnTune, summary_on_tune
from clipstem.command import verb
from clipstem.config import ModelConfig, Precision, TrainConfig, TrainerConfig, TuneMode
from clipstem.csv_log import CsvLog
from clipstem.features import RememberingTowers
from clipstem.learner import Learner
from clipstem.metrics import Summary
from clipstem.model_checks import LOCAL_DIR
from clipstem.perturb import Change, Perturbed
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.scorer import Scorer, device_of
from clipstem.shards import Dataset
from clipstem.stopping import STOPPED, StopRequest
from clipstem.supervision import Supervision, supervision
from clipstem.towers import Towers

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Run:
    """Fine-tune as the config says, on as many ranks; returns the finished run.

    Raises:
        ClipstemError: if the data, the model or the run's folder are not as expected.
        SystemExit: with the status `STOPPED`, when a signal asks for it; a checkpoint is written.
    """
    if (count := ranks.to_start(config.trainer)) > 0:
        ranks.start(count, _train_and_tell, config)
        return Run(Path(config.out))
    with StopRequest() as stop, ranks.joined(config.trainer), contextlib.ExitStack() as to_release:
        console.console.quiet |= not ranks.is_first()
        return _train(config, stop, to_release)


def _train(config: TrainConfig, stop: StopRequest, to_release: contextlib.ExitStack) -> Run:
    # ---- data and model, before anything is written
    dataset = _questions(config)
    _refuse_what_would_fail(config, dataset)
    learns = config.tune.mode is not TuneMode.zero_shot
    supervised = order_SN = None
    if learns:
        supervised = supervision(config, dataset, usable(dataset, "train", answered=False))
        order_SN = training_order(dataset, config, supervised)
    model = towers.create(config.model, config.seed)
    layers.set_up(model.model, config.tune)
    provenance = {
        "run": config.out,
        "model": config.model.name,
        "train_questions_of_skill": _questions_of_skill(dataset, supervised),
        "train_perturb": None if config.perturb is None else config.perturb.value,
    }
    scorer = _scorer(model, config, provenance)
    # ---- the run's folder
    made, checkpoint, done = ranks.from_first(
        lambda: _begin(config, dataset, supervised, to_release)
    )
    made = replace(made, is_writer=ranks.is_first())
    # ---- steps, and what is made of the weights that they led to
    kept: list[int] = []
    if order_SN is not None:
        learning, broken = scorer, dict[str, str]()
        if config.tune.mode is TuneMode.head and config.tune.reuse_features:
            learning, broken = _remembering(config, dataset, order_SN, scorer)
        kept = _fit(
            config,
            dataset,
            order_SN,
            supervised,
            learning,
            broken,
            made,
            checkpoint,
            done,
            stop,
        )
        _choose_weights(config, dataset, kept, learning, made)
    # ---- what comes out, calibrated on tune, scored on valid
    if has_answers(dataset, "tune"):
        scorer.calibrate(scorer.predict(dataset, "tune", config.at_once))
    if made.is_writer:
        shutil.rmtree(made.weights, ignore_errors=True)  # of a run that was stopped just here
        with new_folder(made.weights) as partial:
            scorer.model.save(partial)
    made.write_facts(
        model=config.model.name,
        perturb=scorer.provenance["train_perturb"],
        train_questions_of_skill=scorer.provenance["train_questions_of_skill"],
        temperature=scorer.temperature,
        problem_picture=config.model.problem_picture.value,
        weights_sha256=scorer.model.weights_sha256(),
    )
    if "valid" in dataset.manifest.questions:
        score_valid(scorer, dataset, config, made)
    made.keep_only(kept)
    made.finish()
    return made


@dataclass(frozen=True)
class _Begun:
    """What going on needs of `run.json`."""

    data_sha256: str
    started: str
    resumed: list[Any]


def _begin(
    config: TrainConfig,
    dataset: Dataset,
    supervised: Supervision | None,
    to_release: contextlib.ExitStack,
) -> tuple[Run, Path | None, int]:
    """The run's folder, which no other process may write to until `to_release` is closed.

    Returns the run, the checkpoint to go on from, and the steps that are done.
    """
    data_sha256 = dataset.manifest.data_sha256
    facts: dict[str, Any] = {
        "seed": config.seed,
        "data": config.data,
        "data_sha256": data_sha256,
        "start": _local_start(config.model),
        "in_bf16": _uses_bf16(config.trainer),
    }
    if supervised is not None:
        facts["supervision"] = supervised.facts
    config_yaml = OmegaConf.to_yaml(OmegaConf.structured(config))
    made = run.start(Path(config.out), config_yaml, config.resume, facts)
    try:  # a killed process's right to write ends with it
        to_release.enter_context(FileLock(made.folder / ".lock", blocking=False))
    except Timeout:
        raise ClipstemError(
            f"{made.folder}: another process is writing this run; wait for its end, or choose "
            "another out=<folder>"
        ) from None
    begun = made.facts_as(_Begun, resumed=[])
    if begun.data_sha256 != data_sha256:
        raise ClipstemError(
            f"{config.data}: is not the data that {made.folder} began with (data_sha256 differs)"
        )
    if made.facts.get("in_bf16", facts["in_bf16"]) != facts["in_bf16"]:
        began, now = ("fp32", "bf16") if facts["in_bf16"] else ("bf16", "fp32")
        raise ClipstemError(
            f"conf key 'trainer.precision': {made.folder} began in {began} and would go on in "
            f"{now}; resume with trainer.precision={began}, or choose another out=<folder>"
        )
    if made.facts.get("supervision") != facts.get("supervision"):
        raise ClipstemError(
            f"{made.folder}: began with other contents of its files of weights or teachers (their "
            "sha256 are in run.json); put those back, or choose another out=<folder>"
        )
    if config.resume:
        made.write_facts(resumed=[*begun.resumed, run.environment()])
    return made, *made.last_whole_checkpoint(_damage)


def _local_start(model: ModelConfig) -> list[str]:
    """Where the starting weights lie, if that is on this machine."""
    if model.name.startswith(LOCAL_DIR):
        return [str(Path(model.name.removeprefix(LOCAL_DIR)).absolute())]
    if model.pretrained is not None and Path(model.pretrained).is_file():  # not a tag
        return [str(Path(model.pretrained).absolute())]
    return []


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if (damage := run.damage_of(checkpoint)) is not None:
        return damage
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return (
            None
            if {"state_dict", "nonfinite", "skipped"} <= state.keys()
            else "it is of no training"
        )
    except Exception as error:  # what is no checkpoint of ours makes torch raise anything
        return str(error).splitlines()[0]


def _questions(config: TrainConfig) -> Dataset:
    dataset = shards.open_dataset(config.data)
    if config.perturb is None:
        return dataset
    return Perturbed(dataset, Change.of(config.perturb, None, config.seed))


def _refuse_what_would_fail(config: TrainConfig, dataset: Dataset) -> None:
    """At once, instead of after hours of training."""
    for name in ("soup", "wise_ft"):
        if getattr(config.tune, name) and not has_answers(dataset, "tune"):
            raise ClipstemError(
                f"conf key 'tune.{name}': chooses weights on 'tune', which {config.data} does not "
                "have; prepare it with tune_fraction above 0"
            )
    project = config.logger.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ClipstemError(
            f"conf key 'logger.wandb_project': {project} needs wandb, which is not installed; "
            "pip install wandb, or leave the key out"
        )


def _scorer(model: Towers, config: TrainConfig, provenance: dict[str, Any]) -> Scorer:
    mode = config.model.problem_picture
    return Scorer(model, config.trainer, problem_picture=mode, provenance=provenance)


def _questions_of_skill(dataset: Dataset, supervised: Supervision | None) -> dict[str, int]:
    """How many questions of each skill there are to learn from."""
    if supervised is None:
        return dataset.manifest.skills.get("train", {})
    skill_N = np.asarray(dataset.index("train")["skill"].to_pylist(), dtype=object)
    return dict(sorted(Counter(skill_N[supervised.learns_N].tolist()).items()))


def training_order(
    dataset: Dataset, config: TrainConfig, supervised: Supervision | None = None
) -> NDArray[np.int64]:
    """Numbers of the questions of each global batch of the whole run, [steps, batch_size].

    Questions without a picture, or without anything to learn from, are left out and counted.

    Raises:
        ClipstemError: if none is left.
    """
    flags = usable(dataset, "train", answered=True) if supervised is None else supervised.learns_N
    if not flags.any():
        needed = (
            "a picture and an answer"
            if supervised is None
            else "a picture, a weight above 0, and a label that may be used or a teacher's answer"
        )
        raise ClipstemError(
            f"{config.data}: none of the {len(flags):,} questions of 'train' has {needed}; there "
            "is nothing to train on"
        )
    if supervised is None and (skipped := int((~flags).sum())):
        log.info("%d of %d questions have no picture or no answer: skipped", skipped, len(flags))
    per_epoch = -(-int(flags.sum()) // config.batch_size)
    steps = config.steps or max(1, round(config.epochs * per_epoch))
    rows: list[NDArray[np.int64]] = []
    for epoch in range(-(-steps // per_epoch)):
        numbers = shards.order(dataset.manifest, "train", config.seed, epoch)
        rows.append(batched(numbers[flags[numbers]], config.batch_size))
    return np.concatenate(rows)[:steps]


def _fit(
    config: TrainConfig,
    dataset: Dataset,
    order_SN: NDArray[np.int64],
    supervised: Supervision | None,
    scorer: Scorer,
    broken: dict[str, str],
    made: Run,
    checkpoint: Path | None,
    done: int,
    stop: StopRequest,
) -> list[int]:
    """Run the steps that are left; returns the steps of the best evaluations, best first."""
    on_cuda = scorer.device.type == "cuda"
    # Deterministic kernels are as fast on the CPU; on CUDA some do not exist.
    torch.use_deterministic_algorithms(not on_cuda)
    # Nothing here reads memory that it has not written; filling it cost a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    L.seed_everything(config.seed, verbose=False)
    tune = config.tune
    model = scorer.model
    batches = Batches(
        dataset,
        "train",
        order_SN,
        model.tokenizer,
        model.spec,
        config.model.problem_picture,
        parts=config.accumulate * ranks.world(),
        change_seed=None if tune.augment is None else config.seed,
        decodes=not (isinstance(model, RememberingTowers) and model.knows_pictures),
        broken=broken,
        supervision=supervised,
    )
    if ranks.world() > 1 and any(isinstance(it, _BatchNorm) for it in model.modules()):
        log.warning(
            "BatchNorm: each of the %d ranks normalises with the statistics of its own questions, "
            "so losses are not those of one rank",
            ranks.world(),
        )
    average = None
    if tune.ema_decay is not None:
        average = AverageWeights(model.model, tune.ema_decay, config.accumulate)
    evaluations = EvaluateOnTune(made, config, dataset, scorer, average, stop)
    loggers = _loggers(config, made, done) if made.is_writer else []
    trainer = L.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=ranks.on_node(),
        num_nodes=ranks.world() // ranks.on_node(),
        strategy="ddp" if ranks.world() > 1 else "auto",
        use_distributed_sampler=False,  # the loader has this rank's batches alone
        plugins=LightningEnvironment(),  # else it would act on its own where it sees a SLURM
        precision="bf16-mixed" if _uses_bf16(config.trainer) else "32-true",
        max_epochs=1,  # one pass over the run's batches, however many epochs of questions they are
        max_steps=len(order_SN),
        accumulate_grad_batches=config.accumulate,
        logger=loggers,
        callbacks=[*([average] if average else []), evaluations, Bar()],
        log_every_n_steps=1,  # the learner logs by itself; more than the steps make a warning
        enable_checkpointing=False,
        default_root_dir=made.folder,  # where it looks for checkpoints of its own on SLURM
        enable_model_summary=False,
    )
    parts = np.arange(len(batches)).reshape(-1, ranks.world(), config.accumulate)
    data = loader.load(
        batches,
        config.trainer.workers,
        scorer.device,
        numbers=parts[done:, ranks.rank()].ravel().tolist(),
        passed=done * config.accumulate,
    )
    model.train()  # Lightning leaves the mode as it finds it
    with warnings.catch_warnings():
        # The loader reads ahead by its own means, and is given what is left to do.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of torch
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # nor must it be used
        warnings.filterwarnings("ignore", ".*in eval mode at the start.*")  # frozen layers are
        learner = Learner(model, config, len(order_SN), made.folder / "nonfinite.jsonl")
        try:
            trainer.fit(learner, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stopped:  # Lightning's answer to Ctrl-C
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        finally:
            stop.is_awaited = False
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # the next run of this process begins one of its own
    if ranks.any_of(stop.signal is not None):  # since the last step
        raise SystemExit(STOPPED)
    made.write_facts(nonfinite_steps=len(learner.nonfinite), skipped=len(learner.skipped))
    if learner.skipped and made.is_writer:
        log.info("%d questions have broken pictures: skipped", len(learner.skipped))
        with new_file(made.folder / "skipped.jsonl", replace=True) as partial:
            lines = [json.dumps({"id": id, "reason": it}) for id, it in learner.skipped.items()]
            partial.write_text("\n".join(lines) + "\n")
    return [step for _, _, step in evaluations.kept]


def _remembering(
    config: TrainConfig, dataset: Dataset, order_SN: NDArray[np.int64], scorer: Scorer
) -> tuple[Scorer, dict[str, str]]:
    """A scorer of the same model that has encoded every training question's pictures and texts.

    With it, the questions whose pictures do not decode, by id, and why.

    Raises:
        ClipstemError: if these are too many.
    """
    changes = config.tune.augment is not None
    model = RememberingTowers(scorer.model, pictures=not changes)
    remembering = _scorer(model, config, scorer.provenance)
    if not model.knows_pictures:
        why = "tune.augment changes them" if changes else "their tower has no head of its own"
        log.info("features of pictures are not kept: %s", why)
    numbers = np.unique(order_SN[order_SN != NOBODY])
    batches = Batches(
        dataset,
        "train",
        batched(numbers, config.at_once),
        model.tokenizer,
        model.spec,
        config.model.problem_picture,
        decodes=model.knows_pictures,
    )
    model.eval()
    broken: dict[str, str] = {}
    with console.progress_bar("features", len(batches)) as progress:
        for batch in loader.load(batches, config.trainer.workers, scorer.device):
            model.remember(batch)
            broken |= batch.skipped
            scorer.refuse_too_many([*broken.items()], len(numbers), "train")
            progress(1)
    log.info("features kept in memory: %.1f MB", model.remembered_bytes / 1e6)
    return remembering, broken


def _loggers(config: TrainConfig, made: Run, steps_done: int) -> list[Logger]:
    loggers: list[Logger] = [
        TensorBoardLogger(made.folder, name="", version="tensorboard", purge_step=steps_done + 1),
        CsvLog(made.metrics, steps_done, others=["distill"] if config.distill.teachers else []),
    ]
    if config.logger.wandb_project is not None:
        # A resumed run goes on in the same run of W&B, another run of that folder does not.
        identity = f"{made.folder} {made.facts['started']}"
        loggers.append(
            WandbLogger(
                project=config.logger.wandb_project,
                name=made.folder.name,
                id=hashlib.sha256(identity.encode()).hexdigest()[:16],
                save_dir=made.folder,
            )
        )
    return loggers


def _choose_weights(
    config: TrainConfig, dataset: Dataset, kept: Sequence[int], scorer: Scorer, made: Run
) -> None:
    """Leave the model with the best weights, their soup, or what lies between them and the start.

    Everything is chosen by the accuracy on `tune`.
    """
    model, tune = scorer.model.model, config.tune

    def score(weights: averages.Weights) -> Summary:
        model.load_state_dict(weights)
        return summary_on_tune(scorer, dataset, config.at_once)

    tuned = load_file(made.kept(kept[0]) / towers.WEIGHTS_FILE)
    if tune.soup:
        others = (load_file(made.kept(step) / towers.WEIGHTS_FILE) for step in kept[1:])
        tuned, taken = averages.greedy_soup(tuned, others, score)
        made.write_facts(soup=[kept[place] for place in taken])
    if tune.wise_ft:
        start = towers.create(config.model, config.seed).model.state_dict()
        alpha, curve = averages.wise_ft(start, tuned, score, tune.wise_ft_keeps)
        tuned = averages.between(start, tuned, alpha)
        made.write_facts(alpha=alpha)
        if made.is_writer:
            _write_curve(made, curve, alpha)
    model.load_state_dict(tuned)


def _write_curve(made: Run, curve: Sequence[averages.Point], alpha: float) -> None:
    """`wise_ft.csv` and `wise_ft.svg` in the run's folder."""
    with new_file(made.folder / "wise_ft.csv", replace=True) as partial:
        lines = [",".join(vars(curve[0]))]
        lines += [",".join(map(str, vars(point).values())) for point in curve]
        partial.write_text("\n".join(lines) + "\n")
    chosen = [100 * it.macro if it.alpha == alpha else math.nan for it in curve]
    drawn = charts.line(
        [point.alpha for point in curve],
        {
            "macro": [100 * point.macro for point in curve],
            "micro": [100 * point.micro for point in curve],
            f"chosen: α = {alpha:g}": chosen,
        },
        "α (0: starting weights, 1: tuned weights)",
        "accuracy on tune, %",
        f"Accuracy on tune between the starting and the tuned weights; α = {alpha:g} is chosen.",
    )
    with new_file(made.folder / "wise_ft.svg", replace=True) as partial:
        partial.write_text(drawn)


def _uses_bf16(trainer: TrainerConfig) -> bool:
    if trainer.precision is not Precision.auto:
        return trainer.precision is Precision.bf16
    return device_of(trainer.device).type == "cuda"


def score_valid(scorer: Scorer, dataset: Dataset, config: TrainConfig, made: Run) -> None:
    """Write and print the predictions for `valid`, which nothing in training has looked at."""
    with console.progress_bar("valid", dataset.size("valid")) as progress:
        found = scorer.predict(dataset, "valid", config.at_once, progress)
    if made.is_writer:
        # A run that was stopped just before its end has written them already.
        found.write(made.predictions("valid"), replace=True)
        console.show_predictions(f"{made.folder}: valid", found)


@verb("train", TrainConfig)
def main(config: TrainConfig) -> None:
    console.show_log_lines()
    made = _train_and_tell(config)
    console.console.print(f"finished: {made.folder}")


def _train_and_tell(config: TrainConfig) -> Run:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    console.show_log_lines()
    loader.keep_memory()
    return train(config)


if __name__ == "__main__":
    main()
