"""What a frozen trunk gives is remembered, and training on it is the same training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipstem import layers, scorer, shards, towers
from clipstem.batches import Batches, batched
from clipstem.config import ModelConfig, TrainConfig, TrainerConfig, TuneConfig, TuneMode
from clipstem.features import RememberingTowers
from clipstem.learner import Learner
from clipstem.pairs import PairBatch
from clipstem.question import ProblemPicture
from clipstem.towers import Towers

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "timm": {"timm_model_name": "test_efficientnet", "timm_pool": "", "timm_proj": "mlp"},
}
HEAD = TuneConfig(mode=TuneMode.head)


def frozen(kind: str) -> Towers:
    vision = {"image_size": 32, **VISION[kind]}
    architecture = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    model = towers.create(ModelConfig(name="small", architecture=architecture))
    layers.set_up(model.model, HEAD)
    model.train()
    # Dropout inside a head would differ from one call to the next.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batches(data: Path, model: Towers, decodes: bool = True) -> list[PairBatch]:
    made = Batches(
        shards.open_dataset(str(data)),
        "valid",
        batched(np.arange(12), 5),
        model.tokenizer,
        model.spec,
        ProblemPicture.added,
        decodes=decodes,
    )
    return [made[number].map(torch.from_numpy) for number in range(len(made))]


def losses_and_gradients(model: Towers, given: list[PairBatch]) -> list[torch.Tensor]:
    learner = Learner(model, TrainConfig(tune=HEAD), 1, Path("unused"))
    model.zero_grad()
    losses = [torch.stack(list(learner.terms(batch).values())).sum() for batch in given]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    parameters = model.model.parameters()
    return [*losses, *(it.grad for it in parameters if it.grad is not None)]


@pytest.mark.parametrize("kind", VISION)
def test_training_on_remembered_features_is_the_same_training(kind: str, drawn_data: Path) -> None:
    model = frozen(kind)
    expected = losses_and_gradients(model, batches(drawn_data, model))
    remembering = RememberingTowers(model, pictures=True)
    remembering.train()
    for batch in batches(drawn_data, model):
        remembering.remember(batch)
    assert remembering.remembered_bytes > 0
    found = losses_and_gradients(remembering, batches(drawn_data, model, decodes=False))
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        is_loss = place < 3
        torch.testing.assert_close(ours, theirs, atol=2e-6 if is_loss else 3e-5, rtol=1e-4)


def test_each_picture_and_text_goes_through_its_trunk_once(
    drawn_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RememberingTowers(frozen("vit"), pictures=True)
    given = batches(drawn_data, model)
    calls: list[str] = []

    def counted(name: str) -> Callable[[Any], torch.Tensor]:
        whole = getattr(model, name)

        def features(given: Any) -> torch.Tensor:
            calls.append(name)
            return whole(given)

        return features

    for name in ("picture_features", "text_features"):
        monkeypatch.setattr(model, name, counted(name))
    for _ in range(3):
        for batch in given:
            model.embed(batch)
    assert calls == ["picture_features", "text_features"] * len(given)


def test_what_scoring_remembered_can_be_trained_on(drawn_data: Path) -> None:
    model = RememberingTowers(frozen("vit"), pictures=True)
    (batch, *_) = batches(drawn_data, model)
    scorer.Scorer(model, TrainerConfig(device="cpu")).logits(batch)  # in inference mode
    image_ID, _ = model.embed(batch)
    image_ID.sum().backward()  # type: ignore[no-untyped-call]
    assert model.model.visual.proj.grad is not None


def test_pictures_that_change_are_not_remembered(drawn_data: Path) -> None:
    model = RememberingTowers(frozen("vit"), pictures=False)
    (batch, *_) = batches(drawn_data, model)
    model.remember(batch)
    texts_only = model.remembered_bytes
    assert texts_only == len(batch.joined) * 32 * 4
    model.embed(batch)
    assert model.remembered_bytes == texts_only
