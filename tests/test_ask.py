"""A language model as rival: prompts, whole runs against a server, and what stops and goes on."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from preparing import encoded, lines, prepared, row, write_jsonl

from clipstem import exam, prediction
from clipstem.ask import asking, endpoint
from clipstem.ask.__main__ import main
from clipstem.ask.prompts import LETTERS, NotAsked, read_captions, render
from clipstem.config import AskConfig, ExamConfig, Pictures, Verify
from clipstem.question import ClipstemError, Picture, Question
from clipstem.shards import Dataset, open_dataset

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import measure_ask  # noqa: E402
from chat_server import Answer, Call, ChatServer, completion, error, failing, letter_for  # noqa: E402

KEY = "sk-very-secret-0123456789"
IMAGES = {f"{number}.png": encoded(number) for number in range(4)}
CAPTIONS = {"0.png": "a red ball", "1.png": "a blue box", "2.png": "a green tree"}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Questions of all kinds; the pictures of q3 and q4 have no captions."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in IMAGES.items():
        (folder / name).write_bytes(content)
    options = [{"image": "0.png"}, {"image": "1.png"}]
    rows = [
        row(0, image="0.png", options=["circle", "square", "star"]),
        row(1, options=options),
        row(2, image="2.png", options=options),
        row(3, image="3.png"),
        row(4, options=[*options, {"image": "3.png"}]),
        row(5),
    ]
    captions = [{"picture": name, "caption": text} for name, text in CAPTIONS.items()]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    path = write_jsonl(folder, [{**it, "split": "valid"} for it in rows])
    return prepared(tmp_path, path)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def questions(data: Dataset) -> dict[str, Question]:
    return {it.id: it for it in data.read("valid", range(data.size("valid")))}


def config_of(**values: Any) -> AskConfig:
    given: dict[str, Any] = {"data": "d", "split": "valid", "out": "o.parquet"}
    given |= {"base_url": "http://h/v1", "model_name": "m"}
    return AskConfig(**{**given, **values})


def arguments(data: Dataset | Path, server: ChatServer, **values: Any) -> list[str]:
    location = data.location if isinstance(data, Dataset) else str(data)
    given = {"data": location, "split": "valid", "out": "o.parquet", "base_url": server.url}
    given |= {"model_name": "m", **values}
    return [f"{name}={value}" for name, value in given.items()]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ChatServer
) -> Callable[..., prediction.Predictions]:
    """The verb, as it is typed in an empty folder; gives what it wrote."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(data: Dataset | Path, **values: Any) -> prediction.Predictions:
        monkeypatch.setattr("sys.argv", ["ask", *arguments(data, server, **values)])
        main()
        return prediction.read(Path(values.get("out", "o.parquet")))

    return run


def refused(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], *args: Any, **values: Any
) -> str:
    """The one line that a run ends with that exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*args, **values)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("clipstem ask: ") and said.count("\n") == 1
    return said.removeprefix("clipstem ask: ").strip()


# ---------------------------------------------------------------------------- prompts


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


def image(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "teal").save(buffer, name)
    return buffer.getvalue()


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


# ---------------------------------------------------------------------------- whole runs


def test_a_run_asks_everything_once_and_writes_what_was_said(
    run: Callable[..., prediction.Predictions],
    data: Dataset,
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda call: Answer(completion({"0": "C", "3": "that"}.get(
        re.findall(r"is it, (\d)", call.prompt)[0], "The answer is B.")))  # fmt: skip
    found = run(data, captions=tmp_path / "source/captions.jsonl", input_price=2, output_price=4)
    order = [it.id for it in data.read("valid", range(6)) if it.id != "q4"]
    assert found.columns["id"] == order
    said = {"q0": [1 / 6, 1 / 6, 2 / 3], "q1": [0.25, 0.75]}
    for place, id in enumerate(order):
        expected = said.get(id, said["q1"])
        np.testing.assert_allclose(found.probs_QK[place, : len(expected)], expected)
    assert found.columns["kind"][order.index("q5")] == "text_only"
    made = found.provenance
    assert (made["model"], made["base_url"], made["split"]) == ("m", server.url, "valid")
    assert made["understood"] == {"letter": 4, "text": 1, "near": 0, "unparsed": 0}
    assert (made["without_caption"], made["skipped"], made["guessed"]) == (1, 1, 0)
    captions = (tmp_path / "source/captions.jsonl").read_bytes()
    assert made["captions_sha256"] == hashlib.sha256(captions).hexdigest()
    assert (made["requests"], made["answers"], made["faults"]) == (5, 5, {})
    assert (made["prompt_tokens"], made["completion_tokens"]) == (250, 5)
    assert made["cost"] == pytest.approx((250 * 2 + 5 * 4) / 1e6)
    assert made["data_sha256"] == data.manifest.data_sha256
    (left_out,) = lines(Path("o.skipped.jsonl"))
    assert left_out["id"] == "q4" and "have no caption" in left_out["reason"]
    assert sorted(path.name for path in Path().iterdir()) == [
        "o.answers.jsonl", "o.parquet", "o.skipped.jsonl"]  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "5 answers: 4 letter, 1 text",
        "5 requests were made now",
        "cost 0.0005",
        "1 questions were asked without their picture",
        "5 predictions: o.parquet",
    ):
        assert part in printed
    assert len(server.answered) == 5 == len(set(server.answered))
    body = server.calls[0].body
    assert {name: body[name] for name in ("model", "temperature", "max_tokens")} == {
        "model": "m", "temperature": 0.0, "max_tokens": 1024}  # fmt: skip
    sat = exam.sit(found, ExamConfig(predictions="o.parquet", repeats=5, questions_per_skill=5))
    assert sat.units


def test_the_data_sets_own_captions_are_enough(
    run: Callable[..., prediction.Predictions], server: ChatServer, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in IMAGES.items():
        (folder / name).write_bytes(content)
    shown = [{"image": name, "caption": text} for name, text in CAPTIONS.items()]
    rows = [
        row(0, split="valid", **shown[0]),
        row(1, split="valid", options=shown[:2]),
        row(2, split="valid", **shown[2], options=shown[:2]),
    ]
    found = run(prepared(tmp_path, write_jsonl(folder, rows)))
    assert sorted(found.columns["id"]) == ["q0", "q1", "q2"] and len(server.calls) == 3
    made = found.provenance
    assert (made["captions"], made["without_caption"], made["skipped"]) == (None, 0, 0)
    prompts = {re.findall(r"is it, (\d)", it.prompt)[0]: it.prompt for it in server.calls}
    assert "Picture: a red ball\n\nA. this\nB. that\n" in prompts["0"]
    assert "is it, 1?\n\nA. a red ball\nB. a blue box\n" in prompts["1"]
    assert "Picture: a green tree\n\nA. a red ball\nB. a blue box\n" in prompts["2"]


def test_what_was_answered_is_not_asked_again_and_what_is_changed_is(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    first = run(data, out="a.parquet", cache="answers.jsonl")
    asked = len(server.calls)
    again = run(data, out="b.parquet", cache="answers.jsonl")
    assert len(server.calls) == asked == 3  # without captions two texts on pictures, and q5
    assert again.provenance["requests"] == 0 and again.provenance["answers"] == 3
    np.testing.assert_array_equal(first.probs_QK, again.probs_QK)
    changes: list[dict[str, Any]] = [
        {"temperature": 0.5}, {"model_name": "n"}, {"instruction": "Choose."}, {"logprobs": "true"},
        {"max_tokens": 7}, {"+extra_body.top_p": 0.5}, {"temperature": "null"},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        run(data, out=f"{number}.parquet", cache="answers.jsonl", **change)
        assert len(server.calls) == asked + 3 * (number + 1), change
    assert server.calls[-1].body.keys() == {"model", "messages", "max_tokens"}
    assert any(call.body.get("top_p") == 0.5 for call in server.calls)


def test_questions_that_read_the_same_are_one_request(
    run: Callable[..., prediction.Predictions], server: ChatServer, tmp_path: Path
) -> None:
    rows = [row(number, problem="Which?", split="valid") for number in range(30)]
    found = run(prepared(tmp_path, write_jsonl(tmp_path / "source", rows)))
    assert len(found) == 30 and len(server.calls) == 1
    assert found.provenance["answers"] == sum(found.provenance["understood"].values()) == 1


def test_only_the_first_questions_are_asked_where_that_is_said(
    run: Callable[..., prediction.Predictions], drawn_data: Path, server: ChatServer
) -> None:
    found = run(drawn_data, questions=7)
    dataset = open_dataset(str(drawn_data))
    texts = [it.id for it in dataset.read("valid", range(7)) if isinstance(it.options[0], str)]
    assert found.columns["id"] == texts and len(server.calls) <= len(texts)


def test_pictures_are_sent_to_a_model_that_sees(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    found = run(data, pictures="send")
    assert len(found) == 6 and found.provenance["without_caption"] == 0
    assert found.provenance["pictures"] == "send"
    sent = "".join(call.prompt for call in server.calls)
    for content in IMAGES.values():
        assert base64.b64encode(content).decode() in sent


def test_a_broken_picture_is_left_out_and_listed(
    run: Callable[..., prediction.Predictions], server: ChatServer, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "good.png").write_bytes(image("png"))
    (folder / "bad.tiff").write_bytes(image("tiff")[:150])
    rows = [row(0, image="good.png", split="valid"), row(1, image="bad.tiff", split="valid")]
    found = run(
        prepared(tmp_path, write_jsonl(folder, rows), verify=Verify.header), pictures="send"
    )
    left_out = [it["id"] for it in lines(Path("o.skipped.jsonl"))]
    assert (found.columns["id"], left_out) == (["q0"], ["q1"])


def test_samples_become_shares(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    said = iter("AAB" * 3)
    server.script = lambda _: Answer(completion(next(said)))
    found = run(data, samples=3, temperature=1, concurrency=1)
    assert len(server.calls) == 9 and found.provenance["samples"] == 3
    for probs_K, options in zip(found.probs_QK, found.num_options_Q, strict=True):
        expected = (np.array([2, 1, 0]) + 1 / options) / 4
        np.testing.assert_allclose(probs_K[:options], expected[:options])


def test_logprobs_become_probabilities_where_there_are_any(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    top = [{"token": letter, "logprob": float(np.log(share))}
           for letter, share in (("B", 0.7), (" A", 0.2), ("C", 0.1))]  # fmt: skip
    logprobs = {"content": [{"token": "B", "logprob": top[0]["logprob"], "top_logprobs": top}]}

    def script(call: Call) -> Answer:
        values = json.loads(completion("B"))
        if "0?" not in call.prompt:
            values["choices"][0]["logprobs"] = logprobs
        return Answer(json.dumps(values).encode())

    server.script = script
    found = run(data, logprobs="true")
    assert {call.body["top_logprobs"] for call in server.calls} == {20}
    by_id = dict(zip(found.columns["id"], found.probs_QK, strict=True))
    np.testing.assert_allclose(by_id["q0"], [1 / 6, 2 / 3, 1 / 6])
    np.testing.assert_allclose(by_id["q5"][:2], [2 / 9, 7 / 9])
    assert found.provenance["from_logprobs"] == 2


def test_answers_that_name_no_option_are_guesses(
    run: Callable[..., prediction.Predictions], drawn_data: Path, server: ChatServer
) -> None:
    server.script = lambda call: Answer(completion(random.Random(call.prompt).choice(
        ["I'm sorry, I can't help with that.", "", "42 is the answer", "\ud800"])))  # fmt: skip
    found = run(drawn_data)
    assert found.provenance["guessed"] == len(found) > 10
    assert "equal probabilities" in found.provenance["guesses"]
    for probs_K, options in zip(found.probs_QK, found.num_options_Q, strict=True):
        np.testing.assert_allclose(probs_K[:options], 1 / options, atol=1e-5)
    assert len(set(found.choice_Q.tolist())) > 1


def test_it_needs_no_torch(data: Dataset, server: ChatServer, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numba'] = None\n"
        "from clipstem.ask.__main__ import main; main()"
    )
    subprocess.run([sys.executable, "-c", code, *arguments(data, server)], cwd=tmp_path, check=True)
    assert len(prediction.read(tmp_path / "o.parquet")) == 3


def test_without_httpx_the_extra_is_named(
    data: Dataset, server: ChatServer, tmp_path: Path
) -> None:
    code = "import sys; sys.modules['httpx'] = None\nfrom clipstem.ask.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, *arguments(data, server)], cwd=tmp_path,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == (
        "clipstem ask: asking needs httpx, which is missing: pip install 'clipstem[ask]'\n"
    )


# ---------------------------------------------------------------------------- failures


def test_one_request_in_five_may_fail(
    run: Callable[..., prediction.Predictions], drawn_data: Path, server: ChatServer
) -> None:
    server.script = failing(0.2)
    found = run(drawn_data, timeout_seconds=3, concurrency=16)
    assert len(server.answered) == len(set(server.answered)) == found.provenance["answers"]
    assert len(server.calls) > len(server.answered)
    letters = {}
    for call in server.calls:
        letters[call.prompt] = json.loads(letter_for(call).body)["choices"][0]["message"]["content"]
    dataset = open_dataset(str(drawn_data))
    asked = {it.id: it for it in dataset.read("valid", range(dataset.size("valid")))}
    for id, choice in zip(found.columns["id"], found.choice_Q, strict=True):
        prompt = render(asked[id], config_of(), {}).content
        assert LETTERS[choice] == letters[str(prompt)]


def test_few_questions_without_an_answer_are_left_out(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    server.script = lambda call: (
        error(400, "filtered") if "is it, 3?" in call.prompt else letter_for(call)
    )
    found = run(data, max_failed_fraction=0.2)
    assert sorted(found.columns["id"]) == ["q0", "q5"]
    reasons = {it["id"]: it["reason"] for it in lines(Path("o.skipped.jsonl"))}
    assert reasons["q3"] == "no answer: 400 Bad Request: filtered"


def test_many_stop_the_run_and_the_next_one_goes_on(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda call: letter_for(call) if "legs" in call.prompt else error(422, "no")
    said = refused(run, capsys, drawn_data, concurrency=1)
    assert re.fullmatch(
        rf"{server.url}/chat/completions: 1 requests have no answer, more than "
        r"max_failed_fraction=0\.01 of all; the last, for question '\S+': 422 .*: no", said
    )  # fmt: skip
    assert not Path("o.parquet").exists()
    before = set(server.answered)
    server.script = letter_for
    found = run(drawn_data)
    assert len(server.answered) == len(set(server.answered)) == found.provenance["answers"]
    assert before < set(server.answered)


def test_an_endpoint_that_only_fails_is_not_asked_for_ever(
    run: Callable[..., prediction.Predictions],
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row(number, split="valid") for number in range(300)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "source", rows))
    server.script = lambda _: error(400, "unknown field logprobs")
    said = refused(run, capsys, dataset, max_failed_fraction=0.9)
    assert "20 requests have no answer, one after the other; the last, for question" in said
    assert "400 Bad Request: unknown field logprobs" in said
    assert len(server.calls) < 40


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, f"Incorrect API key: {KEY}"), "401 Unauthorized (Incorrect API key: <key>)"),
        (error(404, "no such model"), "404 Not Found (no such model); are base_url and model_name"),
        (Answer(b"<html>"), "answers with a page, not with JSON"),
        (Answer(b"", 302, {"Location": "http://elsewhere/"}), "redirects to http://elsewhere/"),
    ],
)
def test_what_all_would_get_stops_the_run_at_once(
    answer: Answer,
    message: str,
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    server.script = lambda _: answer
    said = refused(run, capsys, drawn_data, api_key_env="THE_KEY", concurrency=4)
    assert message in said and KEY not in said
    assert 1 <= len(server.calls) <= 4
    assert not Path("o.parquet").exists()


def test_what_stops_the_run_does_not_lose_requests_on_their_way(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    all_are_on_their_way = threading.Barrier(3)
    said: list[str] = []
    is_said = threading.Event()

    def warning(text: str, *values: Any) -> None:
        said.append(text % values)
        is_said.set()

    def script(call: Call) -> Answer:
        if all_are_on_their_way.wait(timeout=60) == 0:
            return error(401, "revoked")
        assert is_said.wait(timeout=60)
        return letter_for(call)

    monkeypatch.setattr(asking.log, "warning", warning)
    server.script = script
    refusal = refused(run, capsys, drawn_data, concurrency=3)
    assert "401 Unauthorized (revoked); " in refusal
    assert said == [
        f"stopping: {refusal}; 2 requests on their way have 20 s to be answered, and Ctrl-C gives "
        "them up"
    ]
    assert len(server.calls) == 3
    assert len(lines(Path("o.answers.jsonl"))) == 1 + len(server.answered) == 3


def test_the_key_is_in_nothing_that_is_written_or_printed(
    run: Callable[..., prediction.Predictions],
    data: Dataset,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    server.script = lambda call: (
        error(500, f"no luck, {KEY}") if call.attempt == 0
        else error(400, f"filtered, {KEY}") if "is it, 3?" in call.prompt
        else Answer(completion(f"B, says {KEY}", model=KEY))
    )  # fmt: skip
    found = run(data, api_key_env="THE_KEY", max_failed_fraction=0.9)
    assert {call.headers["Authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert found.provenance["answered_by"] == {"<key>": 2}
    written = b"".join(path.read_bytes() for path in Path().iterdir())
    written += b"".join(map(str.encode, capfd.readouterr()))
    written += json.dumps(found.provenance).encode()
    assert b"filtered, <key>" in written and KEY.encode() not in written


def test_nothing_is_asked_where_nothing_could_be_written(
    run: Callable[..., prediction.Predictions],
    data: Dataset,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("o.parquet").touch()
    assert "o.parquet exists and is never overwritten" in refused(run, capsys, data)
    assert "'nowhere.jsonl' cannot be read (there is no such file); expected a file of lines" in (
        refused(run, capsys, data, out="p.parquet", captions="nowhere.jsonl")
    )
    assert "there is no split 'test'" in refused(run, capsys, data, out="p.parquet", split="test")
    assert "there is no folder 'gone'" in refused(run, capsys, Path("gone"), out="p.parquet")
    assert server.calls == []


def test_a_split_of_which_nothing_is_asked_is_said(
    run: Callable[..., prediction.Predictions],
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(1))
    rows = [row(0, options=[{"image": "a.png"}], split="valid")]
    said = refused(run, capsys, prepared(tmp_path, write_jsonl(folder, rows)))
    assert said == (
        "valid: none of 1 questions is asked; the first, 'q0': 1 of its 1 pictures to choose from "
        "have no caption; give captions=<file>, `caption` in the data, or pictures=send"
    )


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_url": "ftp://h"}, "conf key 'base_url': is no address; expected one such as http"),
        ({"base_url": "h/v1"}, "'base_url': is no address"),
        ({"base_url": "http://"}, "'base_url': is no address"),
        ({"base_url": "http://h:x/v1"}, "'base_url': is no address"),
        ({"base_url": "http://h/v1\r\nX: y"}, "'base_url': is no address"),
        ({"base_url": f"https://me:{KEY}@h/v1"}, "'base_url': holds more than an address"),
        ({"base_url": f"https://h/v1?key={KEY}"}, "'base_url': holds more than an address"),
        ({"api_key_env": KEY}, "conf key 'api_key_env': is no name of an environment variable"),
        ({"samples": 3}, "conf key 'samples': 3 answers at temperature=0 are the same answer"),
        ({"samples": 2, "temperature": 1.0, "logprobs": True}, "'samples', 'logprobs': give one"),
        ({"samples": 0}, "conf key 'samples': 0 is below 1"),
        ({"concurrency": 0}, "conf key 'concurrency': 0 is below 1"),
        ({"timeout_seconds": 0.0}, "conf key 'timeout_seconds': 0.0 is not above 0"),
        ({"requests_per_minute": 0.0}, "conf key 'requests_per_minute': 0.0 is not above 0"),
        ({"max_failed_fraction": 1.0}, "'max_failed_fraction': 1.0 is not from 0 to below 1"),
        ({"split": "vaild"}, "conf key 'split': there is no split 'vaild'; expected one of train"),
        ({"input_price": 1.0}, "conf keys 'input_price', 'output_price': one needs the other"),
        ({"pictures": Pictures.send, "captions": "c"}, "conf key 'captions': has no effect with"),
        ({"cache": "o.parquet"}, "conf keys 'cache', 'out': are the same file"),
        ({"extra_body": {"stream": True}}, "'extra_body.stream': is decided elsewhere; leave it"),
        ({"extra_body": {"model": "x"}}, "'extra_body.model': is decided elsewhere; give model_na"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)) as refused:
        config_of(**values)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "naïve", "a\nb"])
def test_a_key_that_is_none_is_refused_and_not_shown(
    value: str | None,
    run: Callable[..., prediction.Predictions],
    data: Dataset,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if value is not None:
        monkeypatch.setenv("gsk_0123456789", value)
    said = refused(run, capsys, data, api_key_env="gsk_0123456789")
    assert said.startswith("conf key 'api_key_env': ") and "gsk" not in said
    assert "naïve" not in said and server.calls == []


# ---------------------------------------------------------------------------- stopping


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from clipstem.ask.__main__ import main; "
"""Starts in a second: where torch is installed, webdataset imports it."""


class Gate:
    """A script that answers some requests, and holds the others until it is opened: those get
    what comes then."""

    def __init__(self, answered: int, waiting: int, then: Callable[[Call], Answer]) -> None:
        self.left = answered
        self.then = then
        self.waiting = threading.Semaphore(0)
        self.expected = waiting
        self.opened = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, call: Call) -> Answer:
        with self.lock:
            self.left -= 1
            is_held = self.left < 0
        if is_held and not self.opened.is_set():
            self.waiting.release()
            self.opened.wait()
            return self.then(call)
        return letter_for(call)

    def wait(self) -> None:
        """Until all that were to be answered are, and every worker waits for another answer."""
        for _ in range(self.expected):
            assert self.waiting.acquire(timeout=60)


@pytest.mark.parametrize(
    ("number", "status", "kept"),
    [
        (signal.SIGKILL, -9, 9),
        (signal.SIGINT, 130, 9),  # twice, so that nobody waits for those on their way
        (signal.SIGTERM, 75, 12),  # once, and those on their way are waited for
    ],
)
def test_a_run_that_is_stopped_goes_on_without_a_repeated_call(
    number: signal.Signals,
    status: int,
    kept: int,
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
) -> None:
    """A real process; all that was answered was kept, as each worker waits for another answer."""
    lost = Answer(b"", 500, is_good=False)
    then = letter_for if number == signal.SIGTERM else lambda _: lost
    gate = server.script = Gate(answered=9, waiting=3, then=then)
    program = [sys.executable, "-c", f"{WITHOUT_TORCH}main()"]
    words = arguments(drawn_data, server, concurrency=3)
    with subprocess.Popen(
        [*program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        gate.wait()
        process.send_signal(number)
        if number != signal.SIGKILL:
            assert process.stdout is not None
            stopping = f"stopping: {number.name}; 3 requests on their way have 20 s"
            assert any(stopping in line for line in process.stdout)
        if number == signal.SIGTERM:
            gate.opened.set()
        if number == signal.SIGINT:
            process.send_signal(number)
        printed, _ = process.communicate()
    assert process.returncode == status
    if number is not signal.SIGKILL:
        assert f"{kept} answers are kept in o.answers.jsonl: the same command goes on" in printed
        assert "Traceback" not in printed
    assert not Path("o.parquet").exists()
    gate.opened.set()
    found = run(drawn_data, concurrency=3)
    assert Counter(server.answered).most_common(1)[0][1] == 1
    assert len(server.answered) == found.provenance["answers"]
    assert found.provenance["requests"] == found.provenance["answers"] - kept


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were on their way when the time that they have was over."""
    found: list[int] = []
    give_up = asking.Asking._give_up

    def noted(self: asking.Asking) -> None:
        found.append(self.endpoint.on_their_way)
        give_up(self)

    monkeypatch.setattr(asking.Asking, "_give_up", noted)
    return found


def test_a_wrong_key_ends_the_run_though_others_wait_for_their_turn(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    given_up: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda _: error(401, "bad key")
    said = refused(run, capsys, drawn_data, concurrency=32, requests_per_minute=0.1)
    assert "401 Unauthorized (bad key)" in said
    assert len(server.calls) == 1 and given_up == []


def test_ctrl_c_waits_for_nothing_where_nothing_is_on_its_way(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    given_up: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting: list[float] = []

    async def wait_for(stopped: Coroutine[Any, Any, bool], seconds: float) -> bool:
        waiting.append(seconds)
        if len(waiting) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return await asyncio.wait_for(stopped, seconds)

    monkeypatch.setattr(endpoint, "wait_for", wait_for)
    server.script = lambda _: error(429, "slow down", **{"Retry-After": "100"})
    with pytest.raises(SystemExit) as ended:
        run(drawn_data, concurrency=3)
    assert ended.value.code == 130
    assert len(server.calls) == 3 and given_up == []
    assert "stopping" not in capsys.readouterr().out


@pytest.mark.slow
def test_2000_questions_one_call_in_five_failing_and_a_kill(tmp_path: Path) -> None:
    figures = measure_ask.measure(tmp_path, questions=2000)
    assert figures["questions"] == 2000
    assert figures["predicted"] + figures["left_out"] == 2000 and figures["left_out"] <= 20
    assert figures["with_faults"]["requests"] > 2300
    assert figures["with_faults"]["answered"] == figures["without_faults"]["answered"] == 2000
    # Those whose answer was on its way when the process was killed; nobody can know of them.
    assert figures["killed"]["answered_twice"] <= figures["concurrency"]
    assert figures["killed"]["asked_again_though_kept"] == 0
    assert figures["same_as_asked_without_faults"]
