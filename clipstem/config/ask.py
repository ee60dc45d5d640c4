"""The language model as rival: which one, how it is asked, and how patiently."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from clipstem.config.checks import (
    require_at_least,
    require_fraction,
    require_positive,
    require_seed,
    require_split,
)
from clipstem.question import SPLITS, ClipstemError

INSTRUCTION = (
    "Answer the following multiple-choice question. "
    "Reply with the letter of the right option and nothing else."
)
"""Ours: how the paper's language models were prompted is not published."""


class Pictures(Enum):
    """What a language model gets of the pictures."""

    captions = "captions"  # a sentence for each, from the data set or a file
    send = "send"  # the pictures themselves, for a model that sees


@dataclass
class AskConfig:
    """`python -m clipstem.ask`: a language model's answers, as a predictions file."""

    data: str = MISSING
    """A prepared folder, or its URL."""
    split: str = MISSING
    """`train`, `tune`, `valid` or `test`."""
    out: str = MISSING
    """The predictions file, which must not exist yet."""
    base_url: str = MISSING
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; no key in it."""
    model_name: str = MISSING
    """The model's name at that endpoint."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key; null sends none."""
    pictures: Pictures = Pictures.captions
    """What is told of the pictures: `captions`, or `send` for a model that sees."""
    captions: str | None = None
    """A file of lines {"picture": <sha256, or a path beside the file>, "caption": <text>}, which
    come before the data set's own captions."""
    questions: int | None = None
    """The most questions to ask, from the split's first (their order is random); null: all."""
    instruction: str = INSTRUCTION
    """What stands above each question."""
    temperature: float | None = 0.0
    """Of the sampling; null leaves it to the endpoint."""
    max_tokens: int | None = 1024
    """The most tokens of an answer; null leaves it to the endpoint."""
    samples: int = 1
    """Answers to each question; the options get the shares of them."""
    logprobs: bool = False
    """Take the probabilities that the endpoint gives the letters, where it gives any."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request, such as +extra_body.reasoning_effort=low."""
    cache: str | None = None
    """A file of answers that are not asked for again, JSON lines; null: beside `out`, and called
    a.answers.jsonl where that is a.parquet."""
    concurrency: int = 8
    """Requests on their way at the same time."""
    requests_per_minute: float | None = None
    """The most requests a minute, those made again included; null is no limit of ours."""
    timeout_seconds: float = 120.0
    """How long one request may take."""
    max_retries: int = 6
    """How often a request is made again after a failure that may pass."""
    max_wait_seconds: float = 120.0
    """The longest wait before a retry; an endpoint that asks for a longer one ends the run."""
    max_failed_fraction: float = 0.01
    """Share of the questions that may stay without an answer; more stop the run."""
    input_price: float | None = None
    """Of a million tokens of the prompts, in any currency; null counts no cost."""
    output_price: float | None = None
    """Of a million tokens of the answers, in the same currency."""
    seed: int = 0
    """Seed of the options that are guessed where an answer names none."""

    def __post_init__(self) -> None:
        require_positive(self, "timeout_seconds", "max_wait_seconds", "requests_per_minute")
        require_at_least(self, 1, "questions", "max_tokens", "samples", "concurrency")
        require_at_least(self, 0, "max_retries", "temperature", "input_price", "output_price")
        require_fraction(self, "max_failed_fraction")
        require_seed(self.seed)
        require_split("split", self.split, SPLITS)
        if self.cache is not None and self.cache == self.out:
            raise ClipstemError("conf keys 'cache', 'out': are the same file; give two")
        if (self.input_price is None) != (self.output_price is None):
            raise ClipstemError(
                "conf keys 'input_price', 'output_price': one needs the other beside it"
            )
        if self.pictures is Pictures.send and self.captions is not None:
            raise ClipstemError(
                "conf key 'captions': has no effect with pictures=send; leave it out"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ClipstemError(
                f"conf key 'samples': {self.samples} answers at temperature=0 are the same answer; "
                "give temperature=1, or leave samples out"
            )
        if self.samples > 1 and self.logprobs:
            raise ClipstemError(
                "conf keys 'samples', 'logprobs': give one of them, not both: each is a way to "
                "probabilities"
            )
        # Neither message repeats the value: it may be the key itself, in the wrong place.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise ClipstemError(
                "conf key 'api_key_env': is no name of an environment variable; expected one such "
                "as OPENAI_API_KEY, which holds the key"
            )
        if self.base_url != MISSING:
            _check_url(self.base_url)
        if own := sorted(INSTEAD_OF.keys() & self.extra_body.keys()):
            raise ClipstemError(
                f"conf key 'extra_body.{own[0]}': is decided elsewhere; {INSTEAD_OF[own[0]]}"
            )


INSTEAD_OF = {
    **{"model": "give model_name=", "messages": "give instruction=", "n": "give samples="},
    **{"temperature": "give temperature=", "max_tokens": "give max_tokens="},
    **{"logprobs": "give logprobs=true", "top_logprobs": "give logprobs=true"},
    "stream": "leave it out: answers come whole",
}
"""What to do instead with those fields of a request that extra_body cannot have."""


def _check_url(url: str) -> None:
    """Refuse what is no address, and one that holds more than an address."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address or re.search(r"[\s\x00-\x1f]", url):
        raise ClipstemError(
            "conf key 'base_url': is no address; expected one such as https://api.openai.com/v1 or "
            "http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ClipstemError(
            "conf key 'base_url': holds more than an address (a user, a password, or something "
            "behind ? or #); give the key in an environment variable, api_key_env=<its name>"
        )
