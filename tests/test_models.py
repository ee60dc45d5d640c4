"""Every kind of model that users bring, with weights of the same layout that the tests make."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from oracle import Oracle

from clipstem import layers, loader, pairs, scorer, shards, towers
from clipstem.batches import Batches
from clipstem.command import model_config
from clipstem.config import ModelConfig, Precision, TrainerConfig, TuneConfig
from clipstem.question import ClipstemError, ProblemPicture
from clipstem.tokens import Layout, join

ON_CPU = TrainerConfig(device="cpu", workers=0)
VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
WORDS = [
    *("which", "what", "shape", "is", "this", "the", "number", "of", "a", "picture", "it", "many"),
    *("how", "red", "blue", "green", "circle", "square", "triangle", "sun", "rain", "snow", "?"),
]


def words_tokenizer(folder: Path, *, siglip: bool) -> None:
    """A Hugging Face tokenizer of whole words: BERT's marks, or SigLIP's single one at the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "</s>", "<unk>"] if siglip else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: number for number, word in enumerate([*marks, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=marks[-1]))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    single = "$A </s>" if siglip else "[CLS] $A [SEP]"
    special = [(mark, vocabulary[mark]) for mark in marks]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    if siglip:
        names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        names["unk_token"] = "[UNK]"
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)


def architecture(kind: str, folder: Path) -> dict[str, Any]:
    """A small model of a kind, as open_clip describes it."""
    text: dict[str, Any]
    if kind == "clip":
        return {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    if kind == "coca":  # its masks have a row for each head
        text = {**TEXT, "embed_cls": True, "pad_id": 0}
        return {"embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}
    if kind == "timm":
        vision = {"timm_model_name": "test_efficientnet", "timm_pool": "", "timm_proj": "linear"}
        return {"embed_dim": 32, "vision_cfg": {**vision, "image_size": 32}, "text_cfg": TEXT}
    words_tokenizer(folder / "tokenizer", siglip=kind == "siglip")
    text = {"hf_tokenizer_name": str(folder / "tokenizer"), "context_length": 24}
    if kind == "siglip":
        text |= {"vocab_size": 32, "width": 64, "heads": 2, "layers": 2, "no_causal_mask": True}
        text |= {"pool_type": "last", "proj_bias": True}
        text["tokenizer_kwargs"] = {"clean": "canonicalize"}
        return {
            "embed_dim": 32,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": VISION,
            "text_cfg": text,
        }
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=32, intermediate_size=64, max_position_embeddings=64, **sizes)
    bert.save_pretrained(folder / "bert")
    text |= {"hf_model_name": str(folder / "bert"), "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
    return {"embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}


LAYOUTS = {
    "clip": Layout.PACKED,
    "timm": Layout.PACKED,
    "hf": Layout.TRIMMED,
    "siglip": Layout.FULL,
    "coca": Layout.FULL,
}


@pytest.fixture(params=LAYOUTS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param in ("hf", "siglip"):
        pytest.importorskip("transformers", reason="pip install transformers: HF text towers")
    return str(request.param)


@pytest.fixture
def made(kind: str, tmp_path: Path) -> towers.Towers:
    config = ModelConfig(name=f"mine-{kind}", architecture=architecture(kind, tmp_path))
    return towers.create(config).eval()


def test_the_layout_is_the_fastest_exact_one(kind: str, made: towers.Towers) -> None:
    assert made.tokenizer.layout is LAYOUTS[kind]


def test_threads_may_ask_one_tokenizer_at_once(made: towers.Towers) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 9)) for _ in range(500)]
    apart = [made.tokenizer._encode(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(made.tokenizer._encode, texts)] == apart


def test_every_parameter_that_learns_has_a_gradient(made: towers.Towers, drawn_data: Path) -> None:
    """Ranks wait for each of them."""
    layers.set_up(made.model, TuneConfig())
    dataset = shards.open_dataset(str(drawn_data))
    everything = np.arange(dataset.size("valid"))[None]
    rule = ProblemPicture.added
    asked = Batches(dataset, "valid", everything, made.tokenizer, made.spec, rule)
    (batch,) = loader.load(asked, 0, torch.device("cpu"))
    image_ID, text_UD = made.embed(batch)
    cosine_VI = pairs.queries(batch, image_ID, text_UD) @ image_ID.T
    pairs.score(batch, cosine_VI, made.scale)[batch.filled_QK > 0].square().sum().backward()
    learning = [name for name, value in made.model.named_parameters() if value.requires_grad]
    without = [name for name in learning if made.model.get_parameter(name).grad is None]
    assert learning and not without


def test_a_decoder_beside_the_towers_does_not_learn() -> None:
    sizes = {"embed_dim": 32, "vision_cfg": {**VISION, "output_tokens": True}}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    decoder = {"width": 64, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
    model = CoCa(**sizes, text_cfg=text, multimodal_cfg=decoder)
    layers.set_up(model, TuneConfig())
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "text_decoder." in name}


def test_questions_are_answered_as_the_oracle_does(made: towers.Towers, drawn_data: Path) -> None:
    ours = scorer.Scorer(made, ON_CPU)
    theirs = copy.deepcopy(made.model)
    towers.exchange(theirs, {ours: theirs for theirs, ours in towers.OURS.items()})
    oracle = Oracle(theirs, made.tokenizer._tokenizer, made.spec.open_clip())
    dataset = shards.open_dataset(str(drawn_data))
    found = ours.predict(dataset, "valid", 7)
    for place, question in enumerate(dataset.read("valid", range(dataset.size("valid")))):
        expected = oracle.probabilities(question)
        probs = found.probs_QK[place, : len(expected)]
        assert probs.argmax() == expected.argmax()
        np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_a_copy_in_bf16_answers_nearly_the_same(made: towers.Towers, drawn_data: Path) -> None:
    """Also where training has left gradient checkpointing on."""
    if not isinstance(getattr(made.model, "text", None), HFTextEncoder):
        made.model.set_grad_checkpointing(True)
    dataset = shards.open_dataset(str(drawn_data))
    exact, rough = (
        scorer.Scorer(made, replace(ON_CPU, precision=precision)).predict(dataset, "valid", 16)
        for precision in (Precision.fp32, Precision.bf16)
    )
    assert 0 < np.abs(exact.probs_QK - rough.probs_QK).max() < 0.02


def test_a_folder_of_weights_is_whole_wherever_it_goes(
    kind: str, made: towers.Towers, tmp_path: Path
) -> None:
    made.save(tmp_path / "weights")
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "weights", moved)
    for name in ("bert", "tokenizer"):  # what it was made from is gone
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    again = towers.create(ModelConfig(name=f"local-dir:{moved}")).eval()
    assert again.weights_sha256() == made.weights_sha256()
    assert again.tokenizer.layout is LAYOUTS[kind]
    text = join("What shape is this?", ["a red circle"], made.tokenizer)
    assert text == join("What shape is this?", ["a red circle"], again.tokenizer)


def test_a_hub_model_is_opened(
    made: towers.Towers, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.save(tmp_path / "hub")
    asked: list[str] = []

    def download(model_id: str, filename: str | None = None, **_: Any) -> str:
        asked.append(model_id)
        return str(tmp_path / "hub" / (filename or towers.WEIGHTS_FILE))

    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", download)
    if kind in ("hf", "siglip"):  # their tokenizers come from the Hub too, by transformers
        from transformers import AutoTokenizer

        of_folder = AutoTokenizer.from_pretrained
        monkeypatch.setattr(
            AutoTokenizer,
            "from_pretrained",
            lambda name, *_, **__: of_folder(tmp_path / "hub" if name == "someone/model" else name),
        )
    opened = towers.create(ModelConfig(name="hf-hub:someone/model"))
    assert set(asked) == {"someone/model"}
    texts = [join("What shape is this?", ["a red circle"], it.tokenizer) for it in (opened, made)]
    assert texts[0] == texts[1]
    assert opened.weights_sha256() == made.weights_sha256()


# ---------------------------------------------------------------------------- files of weights


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch) -> towers.Towers:
    """A model that open_clip knows by name, small enough for a test."""
    cfg = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "Small", cfg)
    monkeypatch.setitem(known, "Small-quickgelu", {**cfg, "quick_gelu": True})
    return towers.create(ModelConfig(name="Small-quickgelu"), seed=5)


def openai_state(model: towers.Towers) -> dict[str, torch.Tensor]:
    """A state dict as OpenAI's archives hold it: half precision, with three numbers among it."""
    state = {name: value.half() for name, value in model.model.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return state | {name: torch.tensor(value) for name, value in numbers.items()}


def test_openais_state_dict_is_opened(small_clip: towers.Towers, tmp_path: Path) -> None:
    torch.save(openai_state(small_clip), tmp_path / "w.pt")
    given = ModelConfig(name="Small-quickgelu", pretrained=str(tmp_path / "w.pt"))
    for name, value in towers.create(given).model.state_dict().items():
        torch.testing.assert_close(
            value, small_clip.model.state_dict()[name].half().float(), atol=0, rtol=0
        )


def test_openais_weights_want_quickgelu(small_clip: towers.Towers, tmp_path: Path) -> None:
    torch.save(openai_state(small_clip), tmp_path / "w.pt")
    with pytest.raises(ClipstemError, match=r"use model\.name=Small-quickgelu"):
        towers.create(ModelConfig(name="Small", pretrained=str(tmp_path / "w.pt")))


def test_a_torchscript_archive_is_refused_with_the_command_that_converts_it(
    small_clip: towers.Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have us export
        torch.jit.save(torch.jit.script(module), "archive.pt")
    with pytest.raises(ClipstemError, match="is a TorchScript archive") as error:
        towers.create(ModelConfig(name="Small", pretrained="archive.pt"))
    _, _, command = str(error.value).partition('python -c "')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(command.removesuffix('"'))
    assert torch.load("archive.weights.pt", weights_only=True).keys() == {"weight", "bias"}


def test_a_file_that_would_run_code_is_refused(small_clip: towers.Towers, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(ClipstemError, match=r"'model\.pretrained'"):
        towers.create(ModelConfig(name="Small", pretrained=str(tmp_path / "w.pt")))
    assert not (tmp_path / "ran").exists()


def test_an_open_clip_checkpoint_file_is_opened(small_clip: towers.Towers, tmp_path: Path) -> None:
    torch.save({"state_dict": small_clip.model.state_dict()}, tmp_path / "epoch.pt")
    given = ModelConfig(name="Small-quickgelu", pretrained=str(tmp_path / "epoch.pt"))
    assert towers.create(given).weights_sha256() == small_clip.weights_sha256()


def test_weights_of_another_shape_are_refused(tmp_path: Path, small_clip: towers.Towers) -> None:
    towers.create(model_config("tiny_vit")).save(tmp_path)
    path = str(tmp_path / towers.WEIGHTS_FILE)
    with pytest.raises(ClipstemError, match=r"'model\.pretrained'.*cannot be had"):
        towers.create(ModelConfig(name="Small", pretrained=path))


def test_the_stored_config_names_no_folder_of_this_machine_that_open_clip_needs(
    made: towers.Towers, tmp_path: Path
) -> None:
    made.save(tmp_path / "weights")
    stored = json.loads((tmp_path / "weights" / towers.CONFIG_FILE).read_text())
    assert stored["model_cfg"] == made.model_cfg
