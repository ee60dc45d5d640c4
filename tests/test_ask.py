"""A language model as rival: whole runs against a server, what they write, and their settings."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import CAPTIONS, IMAGES, KEY, arguments, config_of, image, refused
from preparing import encoded, lines, prepared, row, write_jsonl

from clipstem import exam, prediction
from clipstem.config import ExamConfig, Pictures, Verify
from clipstem.question import ClipstemError
from clipstem.shards import Dataset, open_dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from chat_server import Answer, Call, ChatServer, completion, error

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


# ---------------------------------------------------------------------------- what is refused


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
