"""Prompts: letters, captions and pictures, as endpoints read them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from asking import config_of, image
from PIL import Image

from clipstem.ask.prompts import NotAsked, read_captions, render
from clipstem.config import Pictures
from clipstem.question import Picture, Question
from clipstem.shards import Dataset


def questions(data: Dataset) -> dict[str, Question]:
    return {it.id: it for it in data.read("valid", range(data.size("valid")))}


def test_prompts_have_lettered_options_and_captions(data: Dataset, tmp_path: Path) -> None:
    captions = read_captions(tmp_path / "source/captions.jsonl")
    config = config_of(instruction="Choose.")
    asked = questions(data)
    prompts = {id: render(asked[id], config, captions) for id in ("q0", "q1", "q2", "q3", "q5")}
    assert prompts["q0"].content == (
        "Choose.\n\nQuestion: Which one is it, 0?\nPicture: a red ball\n\n"
        "A. circle\nB. square\nC. star\n\nAnswer:"
    )
    assert prompts["q1"].content == (
        "Choose.\n\nQuestion: Which one is it, 1?\n\nA. a red ball\nB. a blue box\n\nAnswer:"
    )
    assert "Picture: a green tree\n\nA. a red ball" in str(prompts["q2"].content)
    assert "Picture" not in str(prompts["q3"].content)
    assert [id for id, it in prompts.items() if it.without_caption] == ["q3"]
    assert prompts["q1"].options == ("a red ball", "a blue box")
    message = (
        "1 of its 3 pictures to choose from have no caption; give captions=<file>, `caption` in "
        "the data, or pictures=send"
    )
    with pytest.raises(NotAsked, match=re.escape(message)):
        render(asked["q4"], config, captions)


def test_there_are_as_many_letters_as_there_are() -> None:
    options = tuple(f"number {number}" for number in range(27))
    asked = Question("q", "s", "g", "k", "Which?", None, options[:26])
    assert f"Z. {options[25]}\n" in str(render(asked, config_of(), {}).content)
    with pytest.raises(NotAsked, match="has 27 options; there are 26 letters"):
        render(Question("q", "s", "g", "k", "Which?", None, options), config_of(), {})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("png", "png"), ("jpeg", "jpeg"), ("webp", "webp"), ("gif", "gif"), ("bmp", "png"),
     ("tiff", "png")],
)  # fmt: skip
def test_pictures_are_sent_as_what_endpoints_read(name: str, kind: str) -> None:
    picture = Picture.of(image(name))
    asked = Question("q", "s", "g", "k", "Which?", picture, ("teal", "red"))
    prompt = render(asked, config_of(pictures=Pictures.send), {})
    assert isinstance(prompt.content, list)
    texts = [part["text"] for part in prompt.content if part["type"] == "text"]
    assert texts[1:] == ["A. teal", "B. red", "Answer:"] and texts[0].endswith("Question: Which?")
    (url,) = [part["image_url"]["url"] for part in prompt.content if part["type"] == "image_url"]
    head, data = url.split(",")
    assert head == f"data:image/{kind};base64"
    sent = base64.b64decode(data)
    assert (sent == picture.data) == (name == kind)
    with Image.open(io.BytesIO(sent)) as shown:
        assert shown.size == (9, 9) and shown.format == kind.upper()


def test_options_that_are_pictures_are_sent_behind_their_letters() -> None:
    options = (Picture.of(image("png")), Picture.of(image("jpeg")))
    asked = Question("q", "s", "g", "k", "Which?", Picture.of(image("webp")), options)
    prompt = render(asked, config_of(pictures=Pictures.send), {})
    assert isinstance(prompt.content, list)
    shown = [part.get("text", "picture") for part in prompt.content]
    assert shown[1:] == ["picture", "A.", "picture", "B.", "picture", "Answer:"]
    assert prompt.options == ("", "")
    broken = Question("q", "s", "g", "k", "Which?", Picture.of(b"<html>"), ("a", "b"))
    with pytest.raises(NotAsked, match="a picture is not a picture"):
        render(broken, config_of(pictures=Pictures.send), {})


def test_a_files_captions_come_before_the_data_sets() -> None:
    problem, *options = (Picture.of(image(name), f"a\n {name}") for name in ("png", "gif", "bmp"))
    asked = Question("q", "s", "g", "k", "Which?", problem, tuple(options))
    prompt = render(asked, config_of(), {options[1].sha256: "no bitmap"})
    assert prompt.options == ("a gif", "no bitmap") and not prompt.without_caption
    assert "Question: Which?\nPicture: a png\n\nA. a gif\nB. no bitmap\n" in str(prompt.content)
