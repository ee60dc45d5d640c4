"""Exported bundles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.table import EVIL, Make, Refused, edit, endless, kinds, replaced, rewrite


def fact(**changes: Any) -> Make:
    return edit("bundle.json", lambda facts: facts.update(changes))


def text_fact(**changes: Any) -> Make:
    return edit("bundle.json", lambda facts: facts["text"].update(changes))


def signed(name: str, make: Callable[[Path], object]) -> Make:
    """A maker that puts something in a file's place, which the bundle then says is its own."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        edit("bundle.json", lambda facts: facts["sha256"].update({name: sha256}))(folder)

    return change


def outside_weights(location: str) -> Callable[[Path], object]:
    """A graph whose weights lie in a file outside of the bundle."""

    def make(path: Path) -> None:
        from onnx import TensorProto, helper

        weight = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("length", "16")):
            weight.external_data.add(key=key, value=value)
        shown = helper.make_tensor_value_info(
            "pixels_IHWC", TensorProto.UINT8, [None, None, None, 3]
        )
        made = helper.make_tensor_value_info("image_ID", 1, [4])
        node = helper.make_node("Identity", ["w"], ["image_ID"])
        graph = helper.make_graph([node], "g", [shown], [made], [weight])
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        path.write_bytes(model.SerializeToString())

    return make


def other_graph(path: Path) -> None:
    """The text graph where the picture graph should be."""
    path.write_bytes((path.parent / "text.onnx").read_bytes())


def texts(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


NO_TOKENIZER = Refused("is no tokenizer")

kinds(
    "bundle",
    ("bundle.json is no JSON", rewrite("bundle.json", lambda _: b"{"), Refused("is not JSON")),
    (
        "bundle.json nests 100,000 deep",
        rewrite("bundle.json", lambda _: b"[" * 100_000),
        Refused("is not JSON"),
    ),
    (
        "bundle.json is no UTF-8",
        rewrite("bundle.json", lambda _: b"\xff"),
        Refused("is not JSON"),
    ),
    (
        "bundle.json that is too long",
        rewrite("bundle.json", lambda data: data + b" " * 2**24),
        Refused("has more than 16,777,216 bytes"),
    ),
    ("bundle of a later format", fact(format_version=99), Refused("has format 99")),
    ("bundle without hashes", fact(sha256={}), Refused("is not the file that was exported")),
    (
        "bundle with a file outside of its folder",
        edit(
            "bundle.json",
            lambda facts: facts["sha256"].update({"fp32/../../outside/secret.png": "0"}),
        ),
        Refused("is no name of a file of a bundle"),
    ),
    (
        "bundle with an absolute path",
        edit("bundle.json", lambda facts: facts["sha256"].update({"/dev/zero": "0"})),
        Refused("is no name of a file of a bundle"),
    ),
    (
        "changed graph",
        rewrite("fp32/text.onnx", lambda data: data + b"0"),
        Refused("is not the file that was exported"),
    ),
    (
        "missing graph",
        lambda folder: (folder / "fp32/text.onnx").unlink(),
        Refused("cannot be read"),
    ),
    (
        "graph that is an endless device",
        replaced("fp32/text.onnx", endless),
        Refused("is no plain file"),
    ),
    (
        "graph that is a named pipe",
        replaced("fp32/text.onnx", os.mkfifo),
        Refused("is no plain file"),
    ),
    (
        "graph that is a pickle",
        signed("fp32/picture.onnx", lambda path: path.write_bytes(EVIL)),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph with weights outside of the folder",
        signed("fp32/picture.onnx", outside_weights("../../outside/secret.png")),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph with weights at an absolute path",
        signed("fp32/picture.onnx", outside_weights("/etc/passwd")),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph that takes other things",
        signed("fp32/picture.onnx", other_graph),
        Refused("its graphs take"),
    ),
    ("tokenizer that is no JSON", signed("tokenizer.json", texts("{")), NO_TOKENIZER),
    (
        "tokenizer of no known kind",
        signed("tokenizer.json", texts('{"model": {"type": "Evil"}}')),
        NO_TOKENIZER,
    ),
    (
        "marks that are no numbers",
        text_fact(before=["x"]),
        Refused(r"text.before\[0\] is 'x'; expected a whole number"),
    ),
    ("marks that no model knows", text_fact(after=[10**9]), Refused("a graph fails")),
    (
        "layout that is none",
        text_fact(layout="evil"),
        Refused("text.layout is 'evil'; expected packed"),
    ),
    ("cleaning that is none", text_fact(clean="__import__('os')"), Refused("text.clean is ")),
    (
        "context of 10^12 tokens",
        text_fact(context_length=10**12),
        Refused("text.context_length is 1000000000000"),
    ),
    (
        "temperature of 0",
        fact(temperature=0),
        Refused("temperature is 0; expected a number above 0"),
    ),
    ("scale that is NaN", fact(scale=float("nan")), Refused("scale is nan; expected a number")),
    (
        "pictures of a million pixels a side",
        fact(preprocess={"size": 10**6}),
        Refused("expected a size from 1 to 2048 px"),
    ),
    (
        "pictures of another size than the graph's",
        fact(preprocess={"size": 32}),
        Refused("a graph fails"),
    ),
    (
        "problem_picture that is none",
        fact(problem_picture="evil"),
        Refused("problem_picture is 'evil'"),
    ),
)
