"""Two pretrained towers become one model: their weights, what is refused, and that it trains."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from curating import with_folds
from safetensors.torch import save_file
from test_models import words_tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

from clipstem import scorer, towers
from clipstem.assemble import assemble, main
from clipstem.config import (
    AssembleConfig,
    ModelConfig,
    OptimizerConfig,
    TowerConfig,
    TrainConfig,
    TrainerConfig,
    TuneConfig,
    TuneMode,
)
from clipstem.curate import unseen
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.shards import open_dataset
from clipstem.train import train

PICTURE = "test_efficientnet"
PACKAGE = "words_encoder"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Hugging Face text model with its tokenizer, inside a Python package."""
    folder = tmp_path_factory.mktemp("site") / PACKAGE / "model"
    words_tokenizer(folder, siglip=False)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=32, intermediate_size=64, max_position_embeddings=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder.parent / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def picture_weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    weights: dict[str, Tensor] = timm.create_model(PICTURE).state_dict()
    return weights


def config(encoder: Path, weights: Path | None = None, **settings: Any) -> AssembleConfig:
    picture = TowerConfig(PICTURE, None if weights is None else str(weights))
    given = {"embed_dim": 16, "image_size": 32, "context_length": 24, "out": "mini"}
    return AssembleConfig(picture=picture, text=TowerConfig(str(encoder)), **{**given, **settings})


@pytest.mark.parametrize("naming", ["timm's", "another library's"])
def test_the_towers_bring_their_own_weights(
    naming: str, encoder: Path, picture_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = picture_weights
    if naming != "timm's":
        stored = {f"{place}": value for place, value in enumerate(picture_weights.values())}
    torch.save(stored, tmp_path / "weights.pth")
    model = assemble(config(encoder, tmp_path / "weights.pth")).model
    trunk = model.visual.trunk.state_dict()
    assert trunk and all(torch.equal(value, picture_weights[name]) for name, value in trunk.items())
    theirs = BertModel.from_pretrained(encoder, add_pooling_layer=False).state_dict()
    for name, value in model.text.transformer.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_safetensors_are_read_too(
    encoder: Path, picture_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(picture_weights, tmp_path / "weights.safetensors")
    model = assemble(config(encoder, tmp_path / "weights.safetensors")).model
    name = next(iter(model.visual.trunk.state_dict()))
    assert torch.equal(model.visual.trunk.state_dict()[name], picture_weights[name])


def test_what_is_drawn_is_drawn_from_the_seed(encoder: Path) -> None:
    first, again, other = (assemble(config(encoder, seed=seed)).model for seed in (1, 1, 2))
    name = "visual.head.mlp.fc1.weight"
    weights = [dict(model.named_parameters())[name] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_folder_says_how_pictures_are_shown_and_names_no_path_of_the_machine(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(encoder.parent.parent)
    given = config(encoder, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), fill=255)
    given.text = TowerConfig(f"package:{PACKAGE}/model")
    assemble(given).save(tmp_path / "made")
    assert str(encoder.parent) not in (tmp_path / "made/open_clip_config.json").read_text()
    moved = shutil.copytree(tmp_path / "made", tmp_path / "moved")
    spec = towers.create(ModelConfig(name=f"local-dir:{moved}")).spec
    assert (spec.size, spec.mean, spec.std, spec.fill) == (
        *(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        255,
    )


def test_the_head_of_an_assembled_model_learns(
    encoder: Path, drawn_data: Path, tmp_path: Path
) -> None:
    assemble(config(encoder)).save(tmp_path / "mini")
    made = train(
        TrainConfig(
            data=str(drawn_data),
            out=str(tmp_path / "run"),
            model=ModelConfig(name=f"local-dir:{tmp_path / 'mini'}"),
            trainer=TrainerConfig(device="cpu", workers=0),
            optimizer=OptimizerConfig(lr=1e-2),
            tune=TuneConfig(mode=TuneMode.head),
            steps=4,
            batch_size=12,
        )
    )
    before, after = (
        towers.create(ModelConfig(name=f"local-dir:{folder}")).model.state_dict()
        for folder in (tmp_path / "mini", made.weights)
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(
        name.startswith(("visual.head", "text.proj", "logit_scale")) for name in changed
    )


def test_folds_may_begin_with_what_assemble_wrote_but_not_with_what_a_run_made_of_it(
    encoder: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"out={tmp_path / 'mini'}", f"picture.name={PICTURE}", f"text.name={encoder}"]
    given += ["embed_dim=16", "image_size=32", "context_length=24"]
    monkeypatch.setattr("sys.argv", ["assemble", *given])
    main()
    dataset = open_dataset(str(drawn_data))
    fold, *_ = with_folds(dataset, tmp_path, folds=2)
    for name, start in (("first", "mini"), ("second", "copy")):
        made = train(
            TrainConfig(
                data=str(drawn_data),
                out=str(tmp_path / name),
                model=ModelConfig(name=f"local-dir:{tmp_path / start}"),
                trainer=TrainerConfig(device="cpu", workers=0),
                tune=TuneConfig(mode=TuneMode.head),
                weights=str(fold),
                steps=1,
                batch_size=12,
            )
        )
        shutil.copytree(made.weights, tmp_path / "copy", dirs_exist_ok=True)
        found = scorer.of_run(made.folder, TrainerConfig(device="cpu", workers=0))
        found.predict(dataset, "train", 24).write(made.predictions("train"))
    first, second = (str(Run(tmp_path / it).predictions("train")) for it in ("first", "second"))
    assert 0 < (unseen.gather([first], dataset, unseen=False).answered_N > 0).mean() < 1
    with pytest.raises(ClipstemError, match="copy, which may have seen the questions"):
        unseen.gather([second], dataset, unseen=False)


# ---------------------------------------------------------------------------- refusals


def test_weights_of_another_tower_are_refused(encoder: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ClipstemError, match=r"other\.pth: are not the weights of test_efficient"):
        assemble(config(encoder, tmp_path / "other.pth"))


def test_what_is_no_file_of_weights_is_refused(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.pth").write_text("hello")
    with pytest.raises(ClipstemError, match=r"words\.pth: is no file of weights"):
        assemble(config(encoder, tmp_path / "words.pth"))
    with pytest.raises(ClipstemError, match=r"none\.pth: there is no such file of weights"):
        assemble(config(encoder, tmp_path / "none.pth"))


def test_a_changed_file_is_refused(
    encoder: Path, picture_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(picture_weights, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    given = config(encoder, tmp_path / "weights.pth")
    given.picture.sha256 = digest
    assemble(given)
    given.picture.sha256 = "0" * 64
    with pytest.raises(ClipstemError, match=f"'picture.sha256': .* sha256 {digest[:12]}…, expec"):
        assemble(given)
    given.picture.sha256 = None
    given.text.sha256 = "1" * 64
    with pytest.raises(ClipstemError, match=r"'text\.sha256': .*model\.safetensors has sha256"):
        assemble(given)


def test_a_package_that_is_not_there_is_named(encoder: Path) -> None:
    given = config(encoder)
    given.text = TowerConfig("package:no_such_towers/model")
    with pytest.raises(ClipstemError, match=r"'text\.name': .* needs the Python package no-such-t"):
        assemble(given)


def test_an_unknown_timm_tower_is_refused(encoder: Path) -> None:
    given = config(encoder)
    given.picture = TowerConfig("efficientnet_of_tomorrow")
    with pytest.raises(ClipstemError, match=r"is no open_clip model: .*efficientnet_of_tomorrow"):
        assemble(given)
