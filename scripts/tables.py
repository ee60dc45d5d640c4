"""The README's generated blocks: tables and sentences made of `benchmarks/*.json` alone.

What a block says of numbers, names and settings comes from its JSON; here stand only the words
around it.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
from claims import percent, shown, signed

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def blocks() -> dict[str, str]:
    """The README's generated parts, by name."""
    measured = [json.loads(path.read_text()) for path in sorted(BENCHMARKS.glob("*.json"))]
    figures = [it for it in measured if "macro" in it]
    rows = [
        "| experiment | questions | macro, % (chance) | micro, % (chance) | skills ≥ 90 % "
        "| minutes | GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for it in figures:
        minutes = sum(ran["seconds"] for ran in it["commands"]) / 60
        peak = max(ran["peak_gib"] for ran in it["commands"])
        rows.append(
            f"| `{it['experiment']}` | {it['questions']:,} "
            f"| {100 * it['macro']:.1f} ({100 * it['chance_macro']:.1f}) "
            f"| {100 * it['micro']:.1f} ({100 * it['chance_micro']:.1f}) "
            f"| {it['mastered']} of {len(it['skills'])} | {minutes:.1f} | {peak:.1f} |"
        )
    for it in measured:
        if it.get("experiment") in {*claims.CLAIMS, *claims.ROUTED}:
            rows += ["", f"`{it['experiment']}`: {it['result']}."]
    rows += [
        "",
        "On `valid`, which training never looks at; whole commands. Made by",
    ]
    rows += [
        "`python scripts/measure.py <experiment>`, with machine and versions in `benchmarks/`."
    ]
    quickstart = json.loads((BENCHMARKS / "quickstart.json").read_text())
    report = json.loads((BENCHMARKS / "report.json").read_text())
    optional = {
        **{"export": exported, "growth": at_every_size, "ask": asked},
        **{"rerank": reranked, "distill": distilled, "curate": curated, "bf16": in_bf16},
    }
    servers = [it for it in measured if "batching" in it]
    routed = [it for it in measured if "routings" in it]
    return {
        "quickstart": printed(quickstart),
        "results": "\n".join(rows),
        "report": at_stems_size(report),
        **({"serve": served(servers)} if servers else {}),
        **({"route": routings(routed)} if routed else {}),
        **{
            name: table(json.loads(path.read_text()))
            for name, table in optional.items()
            if (path := BENCHMARKS / f"{name}.json").exists()
        },
    }


def in_bf16(figures: dict[str, Any]) -> str:
    """How often bf16 chooses as fp32 does, a row a run."""
    rows = [
        "Choices in bf16 on a CPU beside those in fp32, on `valid`. A skill is learnt where "
        "answers are right 10 points\nabove chance or more; undecided are questions whose two best "
        "logits in fp32 are nearer to each other than\nbf16's error, rms of all logits "
        "(`python scripts/measure_bf16.py <shards> <runs>`).",
        "",
        "| trained by | questions | same choice, % | the same on learnt skills | right, % (fp32) "
        "| error of a logit | undecided |",
        "|---" * 7 + "|",
    ]
    for it in figures.values():
        questions, learnt = it["questions"], it["learnt"]
        right = {name: percent(count / questions) for name, count in it["right"].items()}
        rows.append(
            f"| `{it['trained']}` | {questions:,} | {percent(it['same'] / questions)} "
            f"| {learnt['same']:,} of {learnt['questions']:,} | {right['bf16']} ({right['fp32']}) "
            f"| {it['logit_error_rms']:.3f} | {it['gap_below_error']} |"
        )
    return "\n".join(rows)


def served(measured: Sequence[dict[str, Any]]) -> str:
    """What servers answered, a row for each model and kind of questions."""
    rows = [
        f"{measured[0]['clients']} clients at a time, each asking drawn questions one after the "
        "other: scored together or each alone, by\nitself, and with one request in ten hostile; "
        "wrong are answers that are missing or not the Python API's\n"
        "(`python scripts/bench_serve.py bundles/first`).",
        "",
        "| model | questions/s together | alone | × | p99, ms | lone request, ms "
        "| with hostile ones | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for it in measured:
        turns = it["turns"]
        wrong = sum(turn["wrong"] for found in turns.values() for turn in found)
        together, alone, hostile = (
            median_of(turns[name], "questions_per_second")
            for name in ("together", "alone", "hostile")
        )
        p99_ms, lone_ms = (median_of(turns["together"], name) for name in ("p99_ms", "lone_ms"))
        only = ", one picture each" if it.get("one_picture") else ""
        rows.append(
            f"| `{it['model']}`{only} | {together:,.1f} | {alone:,.1f} | {it['batching']:.2f} "
            f"| {p99_ms:,.0f} | {lone_ms:.1f} | {hostile:,.1f} | {wrong} |"
        )
    return "\n".join(rows)


def median_of(turns: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(turn[name] for turn in turns)


def exported(figures: dict[str, Any]) -> str:
    """What bundles answer beside torch, a row a variant."""
    rows = [
        "Bundles beside torch on the same questions, and int8 beside fp32, on "
        f"{figures['machine']['cores']} CPU cores: `tiny` and `vit_b32`\nwith random weights, "
        "`forty` as the experiment trained it; the drop is the upper end of the paired\n"
        "difference's interval, speeds are of turns one after the other "
        "(`python scripts/measure_export.py runs/forty`).",
        "",
        "| bundle | questions | largest Δp | other choices | accuracy, % (torch) "
        "| drop ≤, points | MB | questions/s | × torch | × fp32 | least cosine | first score, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, found in figures["bundles"].items():
        for variant, it in found["variants"].items():
            only = variant == "int8"
            seconds = {name: statistics.median(it) for name, it in found["seconds"].items()}
            speed = f"{seconds['fp32'] / seconds['int8']:.2f}" if only else ""
            cosine = f"{min(found['least_cosines'].values()):.4f}" if only else ""
            first = "" if only else found["first_score_seconds"]
            rows.append(
                f"| {title}, {variant} | {it['questions']:,} | {it['largest_difference']:.1e} "
                f"| {it['choices_that_differ']} | {it['accuracy']} ({it['torch_accuracy']}) "
                f"| {it['accuracy_drop_at_most']} | {it['megabytes']} "
                f"| {found['turn_questions'] / seconds[variant]:,.0f} "
                f"| {seconds['torch'] / seconds[variant]:.2f} | {speed} | {cosine} | {first} |"
            )
    return "\n".join(rows)


def asked(figures: dict[str, Any]) -> str:
    """What asking takes where requests fail and the run is killed."""
    without, failing, killed = (figures[it] for it in ("without_faults", "with_faults", "killed"))
    same = "the same" if figures["same_as_asked_without_faults"] else "not the same"
    return (
        f"{figures['questions']:,} questions to a server on the same machine, "
        f"{figures['concurrency']} requests at a time, take\n{without['core_seconds']:.0f} seconds "
        "of one core, the start included. With one request in five failing: "
        f"{failing['requests']:,}\nrequests, {failing['answered']:,} answers, {same} choices. "
        f"Killed with `kill -9` when {killed['kept_when_killed']:,} answers were kept,\nand "
        f"started again: {killed['asked_again_though_kept']} of these were asked again, and "
        f"{killed['answered_twice']} others, whose answers were on their way\n"
        "(`python scripts/measure_ask.py`)."
    )


def routings(measured: Sequence[dict[str, Any]]) -> str:
    """What routing came to, a row a routing."""

    def gain(it: Sequence[float]) -> str:
        return f"{signed(it[0])} {shown(it[1:])}"

    def outcome(it: dict[str, float]) -> str:
        return f"{percent(it['accuracy'])} ({percent(it['calls'])})"

    cases = {name: case for it in measured for name, case in it["routings"].items()}
    any_case = next(iter(cases.values()))
    names = " ".join(it["experiment"] for it in measured)
    rows = [
        f"{any_case['questions']:,} questions drawn anew, gates and thresholds from "
        f"{any_case['fitted_on']:,} of `valid`; rule: {any_case['rule']}.\nAccuracies in %, calls "
        "of the tool in % of the questions. The gain, in points, is over as many least confident\n"
        f"questions (`python scripts/measure.py {names}`).",
        "",
        "| routing | fast alone, tool alone | gate (calls) | less the tool's "
        "| confidence's threshold (calls) | gain at the gate's calls |",
        "|---" * 6 + "|",
    ]
    for name, it in cases.items():
        cells = [
            f"{percent(it['fast'])}, {percent(it['tool'])}",
            outcome(it["gate"]),
            gain(it["below_tool"]),
            outcome(it["confidence"]),
            gain(it["accuracy_gain"]),
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def reranked(figures: dict[str, Any]) -> str:
    """What ways to choose are worth, on drawn candidates and on real ones."""
    sets = figures["sets"]
    (best,) = (name.partition(" without ")[2] for name in sets if " without " in name)
    real, without = sets["gsm8k"], sets[f"gsm8k without {best}"]
    (folds,) = {
        found for ran in figures["commands"] for found in re.findall(r"folds=\d+", ran["command"])
    }
    rows = [
        "![Best of N on GSM8K](benchmarks/rerank.svg)",
        "",
        "Right choices, %, with 95 % intervals, and the difference to the best single system in "
        "points: drawn\ncandidates, and "
        f"{real['questions']:,} questions of GSM8K with the published solutions of "
        f"{len(real['systems'])} systems, with and\nwithout the best, measured with `{folds}` "
        "(`python scripts/measure_rerank.py --folder measuring`,\nwhere `CLIPSTEM_CANDIDATES` "
        "names the folder with their `train.jsonl` and `valid.jsonl`).",
        "",
        f"| way to choose | drawn | GSM8K | over best system | without `{best}` "
        "| over best system |",
        "|---|---|---|---|---|---|",
    ]

    def share(it: dict[str, Any]) -> str:
        return f"{percent(it['value'])} {shown(it['interval'])}"

    def difference(it: dict[str, Any]) -> str:
        return f"{signed(it['difference'])} {shown(it['interval'])}"

    for name in real["methods"]:
        cells = [share(sets["drawn"]["methods"][name])]
        for found in (real, without):
            method = found["methods"][name]
            cells += [share(method), difference(method["over_best_system"])]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    bounds = [f"{share(it['any_right'])} |" for it in (sets["drawn"], real, without)]
    rows.append(f"| any right (the bound) | {bounds[0]} {bounds[1]} | {bounds[2]} |")
    lines = []
    for title, found in (("On GSM8K", real), (f"Without `{best}`", without)):
        of = found["scores"]
        mix = found["methods"]["mix"]["over_majority"]
        lines.append(
            f"{title} the mix is {difference(mix)} points over the majority "
            f"({percent(found['majority_by_lot'])} % if its ties were drawn by lot). Scores add "
            f"{difference(of['mix'])} points to the mix. Which of two given systems is right they "
            f"tell in {share(of['given_systems'])} % of the cases where one is; 50 is nothing."
        )
    minutes = [f"{ran['seconds'] / 60:.0f}" for ran in figures["commands"]]
    lines.append(f"Minutes (GSM8K, without the best, drawn): {', '.join(minutes)}.")
    filled = [textwrap.fill(line, 100, break_on_hyphens=False) for line in lines]
    return "\n".join([*rows, "", "\n\n".join(filled)])


def distilled(figures: dict[str, Any]) -> str:
    """What students of a third of the teacher's parameters learnt, a row a kind of student."""
    names = {
        "distill": "a tenth of the labels, and the teacher on every question",
        "tenth": "a tenth of the labels alone",
    }
    parameters = {name: f"{it / 1e6:.1f}" for name, it in figures["parameters"].items()}
    rows = [
        "| learnt from | accuracy on `valid`, % | each seed | gain over chance kept, % |",
        "|---|---|---|---|",
        f"| the teacher, {parameters['teacher']} million parameters: the quickstart's questions "
        f"| {100 * figures['teacher']:.1f} | | 100 |",
    ]
    for name, accuracy in figures["accuracy"].items():
        seeds = ", ".join(f"{100 * it:.1f}" for it in figures["seeds"][name])
        rows.append(
            f"| student, {parameters['student']} million: {names[name]} "
            f"| {100 * accuracy:.1f} | {seeds} "
            f"| {100 * figures['gain_kept'][name]:.1f} |"
        )
    return "\n".join(rows)


def curated(figures: dict[str, Any]) -> str:
    """What curation found of planted faults, and what its weights regained."""
    faults = figures["faults"]
    labels = faults["labels"]
    named = {
        "near-duplicates": faults["duplicates"],
        "leaks into `valid` or `tune`": faults["leaks"],
        f"wrong answers, {len(labels['learnt_skills'])} learnt skills": labels["on_learnt_skills"],
        f"wrong answers, all {faults['skills']} skills": labels["on_all_skills"],
    }
    rows = [
        f"Planted into {faults['questions']:,} drawn questions of {faults['skills']} skills, and "
        "found (`python scripts/measure_curate.py --folder measuring`):",
        "",
        "| fault | questions | found | precision | recall |",
        "|---|---|---|---|---|",
    ]
    for name, it in named.items():
        rows.append(
            f"| {name} | {it['planted']:,} | {it['found']:,} | {it['precision']:.3f} "
            f"| {it['recall']:.3f} |"
        )
    blind = ", ".join(f"`{name}`" for name in labels["blind"]) or "none"
    least = percent(min(labels["accuracy"][skill] for skill in labels["learnt_skills"]))
    rows += [
        "",
        f"Learnt: models that had not seen a question answer it rightly in {least} % or more. Over "
        f"all skills the order by margin has\nan average precision of "
        f"{labels['average_precision']:.2f}; a random order has {labels['share_wrong']:.2f}. Not "
        f"judged, because models know too little: {blind}.",
    ]
    if noise := figures.get("noise"):
        seeds = len(noise["seeds"]["clean"])
        rows += [
            "",
            f"With {100 * noise['wrong']:.0f} % of the answers wrong, accuracy on clean `valid` "
            f"falls from {100 * noise['clean']:.1f} to {100 * noise['noisy']:.1f} %; with the "
            f"weights it is\n{100 * noise['weighted']:.1f} %: {100 * noise['regained']:.0f} % of "
            f"the loss is regained (mean of {seeds} seeds, {noise['skills']} skills).",
        ]
    return "\n".join(rows)


def at_every_size(figures: dict[str, Any]) -> str:
    """What a question costs at each stage, from small sets to large ones."""
    stages = list(figures["sizes"][0]["milliseconds"])
    rows = [
        "![Cost of a question by the size of the set](benchmarks/growth.svg)",
        "",
        f"| questions | {' | '.join(f'{stage}, ms' for stage in stages)} | most of a process, GiB "
        "| while scoring, first and last tenth, MiB |",
        "|---" * (len(stages) + 3) + "|",
    ]
    for size in figures["sizes"]:
        costs = " | ".join(f"{size['milliseconds'][stage]:.3f}" for stage in stages)
        ends = " and ".join(f"{mib:,}" for mib in size["scoring_mib_by_tenth"].values())
        peak = size["peak_gib_of_a_process"]
        rows.append(f"| {size['questions']:,} | {costs} | {peak:.2f} | {ends} |")
    rates = figures["prepare_questions_per_second_one_core"]
    return "\n".join(
        [
            *rows,
            "",
            "One core prepares "
            + " and ".join(
                f"{rate:,} questions/s with `verify={verify}`" for verify, rate in rates.items()
            )
            + ".",
        ]
    )


def at_stems_size(figures: dict[str, Any]) -> str:
    """What exam and report take on predictions of the size of STEM's test split."""
    exam, report = figures["commands"]
    return (
        f"At STEM's size ({figures['questions']:,} predictions, {figures['skills']} skills, on one "
        "core, measured by\n`python scripts/measure_report.py`): exam of one file "
        f"{exam['core_seconds']:.1f} seconds, {exam['peak_gib']:.2f} GiB; report of four\n"
        f"files {report['core_seconds']:.1f} seconds, {report['peak_gib']:.2f} GiB, "
        f"{figures['html_mib']:.1f} MiB of HTML."
    )


def printed(figures: dict[str, Any]) -> str:
    """What a run prints at its end, as plain text."""
    lines = ["```", f"{'subject':<26}{'questions':>9}{'accuracy %':>12}{'chance %':>10}"]
    means = {
        name: [figures[kind], figures[f"chance_{kind}"], figures["questions"]]
        for kind, name in {
            "macro": "macro (mean of subjects)",
            "micro": "micro (all questions)",
        }.items()
    }
    for name, (accuracy, chance, questions) in {**figures["subjects"], **means}.items():
        lines.append(f"{name:<26}{questions:>9,}{100 * accuracy:>12.1f}{100 * chance:>10.1f}")
    lines.append(
        f"{figures['mastered']} of {len(figures['skills'])} skills at 90 % or more; "
        f"negative log-likelihood {figures['nll']:.3f} nats"
    )
    return "\n".join([*lines, "```"])


def with_blocks(text: str) -> str:
    """The README with its generated parts brought up to date."""
    for name, block in blocks().items():
        start, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        _, ended, after = rest.partition(end)
        if not ended:
            sys.exit(f"README.md: expected {start.strip()!r} and {end!r} behind it; put them back")
        text = f"{before}{start}{block}\n{end}{after}"
    return text
