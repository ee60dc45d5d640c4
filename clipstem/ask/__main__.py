"""`python -m clipstem.ask data=… split=… base_url=… model_name=… out=…`: a language model answers.

What it has answered is kept beside `out`, so that a run that ended early goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from clipstem import console, run, shards
from clipstem.ask import answers, parsing
from clipstem.ask.answers import Answers, Reply
from clipstem.ask.parsing import Way
from clipstem.atomic import require_new
from clipstem.command import verb
from clipstem.config import AskConfig
from clipstem.prediction import COLUMNS, UNKNOWN, Predictions
from clipstem.question import ClipstemError
from clipstem.storage import file_sha256

if TYPE_CHECKING:
    from clipstem.ask.asking import Asking

log = logging.getLogger(__name__)

MOST_KINDS = 10  # of models and of faults that are written down
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def ask(config: AskConfig) -> Predictions:
    """Ask what has no answer yet, write the predictions file, and return what it holds.

    Raises:
        ClipstemError: if the data, the captions or the endpoint are not as expected, or too many
            questions have no answer; those that were answered are kept.
        KeyboardInterrupt, SystemExit: when a signal asks for it, the latter with `STOPPED`.
    """
    # httpx is an extra: without it the verb says so, and still has its --help.
    from clipstem.ask.asking import Asking
    from clipstem.ask.endpoint import Endpoint

    out, started = Path(config.out), time.perf_counter()
    require_new(out, "out=<file>")
    endpoint = Endpoint(config, _key(config))
    asking = Asking.of(config, shards.open_dataset(config.data), endpoint)
    cache = out.with_suffix(".answers.jsonl") if config.cache is None else Path(config.cache)
    with answers.opened(cache) as known:
        if known.passed_over:
            log.warning("%s: %d lines are no answers: passed over", cache, known.passed_over)
        try:
            with console.progress_bar(config.split, asking.total * config.samples) as progress:
                asyncio.run(asking.run(known, progress))
        except BaseException:
            if len(known):
                _say(f"{len(known):,} answers are kept in {cache}: the same command goes on there")
            raise
        found = predictions(asking, known)
    found.provenance.update(
        requests=endpoint.requests,
        faults=dict(endpoint.faults.most_common(MOST_KINDS)),
        seconds=round(time.perf_counter() - started, 3),
    )
    found.write(out)
    return found


def _key(config: AskConfig) -> str | None:
    """The endpoint's key, from the environment.

    Raises:
        ClipstemError: if it is not there, or cannot be sent. The message shows neither the key nor
            the variable's name, because somebody may have given the one as the other.
    """
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ClipstemError(
            "conf key 'api_key_env': there is no environment variable of that name, or it is "
            "empty; expected the name of the one that holds the key"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ClipstemError(
            "conf key 'api_key_env': what that variable holds is no key; expected one word of "
            "plain letters"
        )
    parts = urlsplit(config.base_url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        log.warning("the key goes to %s without encryption: base_url is http", parts.hostname)
    return key


def predictions(asking: Asking, known: Answers) -> Predictions:
    """What was answered, in the split's order.

    Raises:
        ClipstemError: if no question could be asked.
    """
    config, dataset = asking.config, asking.dataset
    skipped = tuple(asking.skipped[place] for place in sorted(asking.skipped))
    if not asking.asked:
        reason = f"; the first, '{skipped[0][0]}': {skipped[0][1]}" if skipped else ""
        raise ClipstemError(f"{config.split}: none of {asking.total:,} questions is asked{reason}")
    places = sorted(asking.asked)
    index = dataset.index(config.split).take(places)
    probs_QK = np.zeros((len(places), max(index["num_options"].to_pylist())))
    way_of: dict[str, Way] = {}  # each answer once, however many questions share it
    guessed = from_logprobs = 0
    for row, asked in enumerate(asking.asked[place] for place in places):
        keys = [key for key in asked.keys if key in known]
        replies = [known[key] for key in keys]
        parsed = [parsing.parse(reply.text, asked.options) for reply in replies]
        probs_K, has_logprobs = parsing.probabilities(
            replies, parsed, len(asked.options), config.logprobs, f"{config.seed}/{asked.id}"
        )
        probs_QK[row, : len(probs_K)] = probs_K
        way_of.update((key, it.way) for key, it in zip(keys, parsed, strict=True))
        guessed += all(it.option is None for it in parsed)
        from_logprobs += has_logprobs
    with np.errstate(divide="ignore"):
        logits_QK = np.maximum(np.log(probs_QK), np.finfo(np.float32).min).astype(np.float32)
    ways = Counter(way_of.values())
    columns = {name: index[name].to_pylist() for name in COLUMNS if name in index.column_names}
    return Predictions(
        columns={**columns, "truncated_tokens": [UNKNOWN] * len(places)},
        probs_QK=probs_QK,
        logits_QK=logits_QK,
        skipped=skipped,
        provenance={
            **_how(config),
            "data": dataset.location,
            "data_sha256": dataset.manifest.data_sha256,
            "source_rows": dataset.manifest.source_rows.get(
                config.split, dataset.size(config.split)
            ),
            "skipped": len(skipped),
            "without_caption": asking.without_caption,
            "understood": {way.value: ways[way] for way in Way},
            "guessed": guessed,
            "from_logprobs": from_logprobs,
            **_cost(config, [known[key] for key in sorted(way_of)]),
        },
    )


def _how(config: AskConfig) -> dict[str, Any]:
    """How the questions were asked, and what became of the answers."""
    shares = "(n + 1/K) / (N + 1) for an option that n of N answers name"
    return {
        **run.environment(),
        "model": config.model_name,
        "base_url": config.base_url,
        "split": config.split,
        "instruction": config.instruction,
        "pictures": config.pictures.value,
        "captions": config.captions,
        "captions_sha256": None if config.captions is None else file_sha256(Path(config.captions)),
        "sampling_temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "samples": config.samples,
        "extra_body": config.extra_body,
        "probabilities": (
            f"of the letters' logprobs, else {shares}" if config.logprobs else shares
        ),
        "guesses": (
            "where no answer names an option: equal probabilities, and a choice drawn by seed "
            f"{config.seed}"
        ),
    }


def _cost(config: AskConfig, replies: Sequence[Reply]) -> dict[str, Any]:
    """What the answers cost, those of before included."""
    counted = [
        (it.prompt_tokens, it.completion_tokens)
        for it in replies
        if it.prompt_tokens is not None and it.completion_tokens is not None
    ]
    inputs, outputs = (sum(it[side] for it in counted) for side in (0, 1))
    cost = None
    if config.input_price is not None and config.output_price is not None:
        cost = round((inputs * config.input_price + outputs * config.output_price) / 1e6, 6)
    models = Counter(it.model for it in replies)
    return {
        "answers": len(replies),
        "answered_by": dict(models.most_common(MOST_KINDS)),
        "cut_off": sum(it.finish_reason == "length" for it in replies),
        "prompt_tokens": inputs,
        "completion_tokens": outputs,
        "answers_without_usage": len(replies) - len(counted),
        "cost": cost,
    }


# ---------------------------------------------------------------------------- what people see


def _say(line: str) -> None:
    console.console.print(line, highlight=False, soft_wrap=True)


def report(found: Predictions, config: AskConfig) -> None:
    """Print what the answers are worth, how they were understood, and what they cost."""
    console.show_predictions(config.split, found)
    made = found.provenance
    understood = ", ".join(f"{count:,} {way}" for way, count in made["understood"].items())
    _say(f"{made['answers']:,} answers: {understood}; {made['cut_off']:,} cut off by max_tokens")
    if made["guessed"]:
        _say(f"{made['guessed']:,} questions whose answer names no option: {made['guesses']}")
    if config.logprobs:
        _say(f"{made['from_logprobs']:,} questions have probabilities from the letters' logprobs")
    if made["without_caption"]:
        _say(f"{made['without_caption']:,} questions were asked without their picture: no caption")
    for reason, count in Counter(why for _, why in found.skipped).most_common(MOST_KINDS):
        _say(f"{count:,} questions left out: {reason}")
    faults = ", ".join(f"{count:,} × {reason}" for reason, count in made["faults"].items())
    _say(f"{made['requests']:,} requests were made now{f'; failed: {faults}' if faults else ''}")
    cost = "" if made["cost"] is None else f", cost {made['cost']:,.4f}"
    _say(
        f"{made['prompt_tokens']:,} tokens of prompts, {made['completion_tokens']:,} of answers"
        f"{cost} ({made['answers_without_usage']:,} answers do not say)"
    )
    _say(f"{len(found):,} predictions: {config.out}")


@verb("ask", AskConfig)
def main(config: AskConfig) -> None:
    console.show_log_lines()
    report(ask(config), config)


if __name__ == "__main__":
    main()
