"""Drawn candidates are what they say."""

from __future__ import annotations

from collections import Counter

from clipstem.rerank import drawn


def test_drawn_candidates_are_what_they_say() -> None:
    made = list(drawn.lines(400, 0))
    assert made == list(drawn.lines(400, 0)) and len({one["id"] for one in made}) == 400
    rates: Counter[str] = Counter()
    for one in made:
        for it in one["candidates"]:
            assert it["correct"] == (it["final"] == one["answer"])
            assert it["text"].endswith((it["final"], f"{it['final']}."))
            rates[it["system"]] += it["correct"]
    assert rates.most_common()[0][0] == "careful" and rates.most_common()[-1][0] == "short"
    assert 0.4 < rates["short"] / 400 < rates["careful"] / 400 < 0.97
