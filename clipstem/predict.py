"""`python -m clipstem.predict run=… data=… split=…`: the probability of every option.

`bundle=…` instead of `run=…` needs no torch.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from clipstem import console, shards
from clipstem.atomic import require_new
from clipstem.batches import has_answers, usable
from clipstem.command import verb
from clipstem.config import PredictConfig
from clipstem.engine import ALL, Engine
from clipstem.perturb import Change, Perturbed
from clipstem.prediction import Predictions
from clipstem.shards import Dataset


def predict(config: PredictConfig) -> dict[str, Predictions]:
    """Score the splits and write their predictions files; returns them by split.

    Raises:
        ClipstemError: if the data, the run or the model are not as expected, or a file exists.
    """
    dataset, files = planned(config)
    asked = perturbed(dataset, config)
    scorer = open_scorer(config, dataset)
    trained = scorer.provenance.get("train_perturb")
    if trained and config.perturb is None:
        console.console.print(
            f"{config.run or config.bundle} was trained with perturb={trained}, and is asked "
            "unchanged here"
        )
    made = {}
    for split, file in files.items():
        chosen = part_of(config, dataset, split)
        total = len(range(dataset.size(split))[chosen])
        with console.progress_bar(split, total) as progress:
            found = scorer.predict(asked, split, config.batch_size, progress, chosen=chosen)
        if config.parts is not None:
            found.provenance.update(part=config.part, parts=config.parts)
        found.write(file)
        report(found, split, file)
        made[split] = found
    return made


def planned(config: PredictConfig) -> tuple[Dataset, dict[str, Path]]:
    """The data, and the file to write for each split.

    Raises:
        ClipstemError: if a split is not there, or a file exists.
    """
    dataset = shards.open_dataset(config.data)
    splits = list(dataset.manifest.questions) if config.split == "all" else [config.split]
    files = {split: predictions_file(config, split) for split in splits}
    for split, file in files.items():
        dataset.shards_of(split)
        require_new(file, "out=<file>")
    if config.preds_txt is not None:
        require_new(Path(config.preds_txt), "preds_txt=<file>")
    return dataset, files


def part_of(config: PredictConfig, dataset: Dataset, split: str) -> slice:
    """The places of the part's questions among those of the split that can be scored."""
    if config.part is None or config.parts is None:
        return ALL
    questions = int(usable(dataset, split, answered=False).sum())
    return slice(
        questions * (config.part - 1) // config.parts, questions * config.part // config.parts
    )


def perturbed(dataset: Dataset, config: PredictConfig) -> Dataset:
    """The questions as they are asked."""
    if config.perturb is None:
        return dataset
    return Perturbed(dataset, Change.of(config.perturb, config.perturb_strength, config.seed))


def predictions_file(config: PredictConfig, split: str) -> Path:
    """Where the predictions for a split go; with `split=all` the split's name is added to `out`."""
    if config.out is None:
        changed = [] if config.perturb is None else [config.perturb.value]
        strength = [] if config.perturb_strength is None else [f"{config.perturb_strength:g}"]
        part = [] if config.part is None else [f"part{config.part}of{config.parts}"]
        name = "-".join([split, *changed, *strength, *part])
        return Path(str(config.run)) / "predictions" / f"{name}.parquet"
    out = Path(config.out)
    return out if config.split != "all" else out.with_name(f"{out.stem}-{split}{out.suffix}")


def open_scorer(config: PredictConfig, dataset: Dataset) -> Engine:
    """The run's scorer, the bundle's, or the model's; that with a temperature fitted on `tune`."""
    scorer: Engine
    if config.bundle is not None:
        from clipstem.onnx_scorer import OnnxScorer

        scorer = OnnxScorer(Path(config.bundle), config.trainer, config.variant)
    else:
        from clipstem.loader import keep_memory
        from clipstem.scorer import of_model, of_run

        keep_memory()
        if config.run is not None:
            scorer = of_run(Path(config.run), config.trainer)
        else:
            assert config.model is not None
            scorer = of_model(config.model, config.trainer, config.seed)
    if config.problem_picture is not None:
        scorer.problem_picture = config.problem_picture
    if config.temperature is not None:
        scorer.temperature = config.temperature
    elif config.model is not None and has_answers(dataset, "tune"):
        with console.progress_bar("tune, for the temperature", dataset.size("tune")) as progress:
            scorer.calibrate(scorer.predict(dataset, "tune", config.batch_size, progress))
    return scorer


def report(found: Predictions, split: str, file: Path) -> None:
    """Print what was found, what could not be scored, and where it is."""
    console.show_predictions(split, found)
    if skipped := found.provenance["without_picture"]:
        console.console.print(f"{skipped:,} questions have no picture: not scored")
    for reason, count in Counter(why for _, why in found.skipped).items():
        console.console.print(f"{count:,} questions skipped: a picture {reason}")
    console.console.print(f"{len(found):,} predictions: {file}")


def write_choices(found: Predictions, path: Path) -> None:
    """Write them for STEM's leaderboard, and say how many rows have none."""
    zeros = found.write_choices(path, found.provenance["source_rows"])
    console.console.print(f"{path}: one choice a source row; {zeros:,} skipped rows are answered 0")


@verb("predict", PredictConfig)
def main(config: PredictConfig) -> None:
    made = predict(config)
    if config.preds_txt is not None:
        (found,) = made.values()
        write_choices(found, Path(config.preds_txt))


if __name__ == "__main__":
    main()
