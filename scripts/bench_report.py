"""What `bench.py` has measured, as JSON, a table and a picture, and their place in the README.

python scripts/bench_report.py    # bring the pictures and the README up to date
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
START, END = "<!-- measured: speed -->\n", "<!-- end -->"
NAMES = {"clipstem": "", "texts_known": ", question texts known", "bf16": ", bf16"}
"""The ways that are compared with the peers, and what is added to a row's name for each."""
STEP, LETTER = 26, 7  # from row to row, and more than a letter's mean width, px


@dataclass(frozen=True)
class Row:
    """One way of doing one thing, against the others; ratios of medians, None where there is none.

    `limit` is what the arithmetic allows against open_clip's way in the same precision: the
    operations that its way needs, over those that nothing can avoid.
    """

    name: str
    model: str
    against_reference: float | None
    against_open_clip: float
    limit: float | None
    of_ceiling: float | None
    questions_per_second: float | None
    pictures_per_second: float | None
    tokens_per_option: float | None


def rows(figures: dict[str, Any]) -> Iterator[Row]:
    for result in figures["results"]:
        seconds = {way: statistics.median(turns) for way, turns in result["seconds"].items()}
        for way, addition in NAMES.items():
            if way in seconds:
                yield _row(result, seconds, way, addition)


def _row(result: dict[str, Any], seconds: dict[str, float], way: str, addition: str) -> Row:
    def against(peer: str) -> float | None:
        return seconds[peer] / seconds[way] if peer in seconds else None

    def per(count: str, by: float) -> float | None:
        return result[count] / by if count in result else None

    against_open_clip = against("open_clip")
    assert against_open_clip is not None
    gflop = result.get("gflop", {})
    # The ceiling was taken in fp32 and without a memory: it belongs to this way alone.
    is_plain = way == "clipstem" and "ceiling" in seconds
    return Row(
        name=f"{result['what']}: {result['set']}{addition}",
        model=result["model"],
        against_reference=against("reference"),
        against_open_clip=against_open_clip,
        limit=gflop["open_clip"] / gflop[way] if way in gflop else None,
        of_ceiling=seconds["ceiling"] / seconds[way] if is_plain else None,
        questions_per_second=per("questions", seconds[way]),
        pictures_per_second=per("pictures", seconds[way]),
        tokens_per_option=per("tokens", result.get("options", 1)),
    )


def table(figures: dict[str, Any]) -> str:
    """Markdown: a row for each thing that was measured."""
    lines = [
        "| what | model | × reference | × open_clip | arithmetic allows | of the ceiling "
        "| questions/s | pictures/s | tokens/option |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(figures):
        cells = [
            *(row.name, row.model, _number(row.against_reference, 1)),
            *(
                f"**{row.against_open_clip:.2f}**",
                _number(row.limit, 2),
                _number(row.of_ceiling, 2),
            ),
            *(_number(row.questions_per_second, 1), _number(row.pictures_per_second, 1)),
            _number(row.tokens_per_option, 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rates = figures["matrix_tflops"]
    sizes = "; ".join(
        f"{name}: at most {size['questions']} questions a set, medians of {size['turns']}"
        for name, size in figures["sizes"].items()
    )
    lines += [
        "",
        f"{figures['machine']['cpu']}, {figures['machine']['cores']} cores; {figures['device']}; "
        f"{figures['threads']} threads, {figures['workers']} worker; {sizes}; products "
        f"of matrices at {rates['fp32']} TFLOP/s ({_own_rate(figures, 'fp32')} clipstem's) in fp32 "
        f"and {rates['bf16']} ({_own_rate(figures, 'bf16')}) in bf16, {used(figures):.0%} of "
        f"clipstem's in fp32 reached by scoring; "
        f"most memory {figures['peak_gib']['process']} GiB; torch "
        f"{figures['versions']['torch']}, commit {str(figures['commit'])[:10]}.",
    ]
    return "\n".join(lines)


def used(figures: dict[str, Any]) -> float:
    """The model's operations a second in scoring, of its matrix product's rate; the best set."""
    rates = [
        result["gflop"]["clipstem"] / statistics.median(result["seconds"]["ceiling"])
        for result in figures["results"]
        if result["what"] == "scoring"
    ]
    return max(rates) / (1000 * _own_rate(figures, "fp32"))


def _own_rate(figures: dict[str, Any], precision: str) -> float:
    """Of clipstem's products, 10^12 operations a second; where none is told, torch's."""
    rates: dict[str, float] = figures["matrix_tflops"]
    return rates.get(f"{precision}_clipstem", rates[precision])


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def picture(figures: dict[str, Any]) -> str:
    """SVG: how many times open_clip's speed, with a mark where the arithmetic ends."""
    shown = list(rows(figures))
    widest = max(max(row.against_open_clip, row.limit or 0) for row in shown)
    left = 24 + LETTER * max(len(row.name) for row in shown)
    unit, top = 380 / widest, 36
    parts = []
    for model, of_model in itertools.groupby(shown, key=lambda row: row.model):
        if len(figures["sizes"]) > 1:
            heading = f'<text x="{left - 8}" y="{top + 13}" text-anchor="end" font-weight="bold">'
            parts.append(f"{heading}{escape(model)}</text>")
            top += STEP
        for row in of_model:
            width = unit * row.against_open_clip
            value = f"{row.against_open_clip:.2f}"
            parts += [
                f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(row.name)}</text>',
                f'<rect x="{left}" y="{top}" width="{width:.1f}" height="18" fill="#2159cd"/>',
                f'<text x="{left + width + 6:.1f}" y="{top + 13}">{value}</text>',
            ]
            if row.limit:
                x = left + unit * row.limit
                parts.append(f'<path d="M{x:.1f} {top - 2}v22" stroke="#d62828" stroke-width="2"/>')
            top += STEP
    x = left + unit
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 450}" height="{top + 24}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            '<text x="10" y="20" font-size="14">Speed against open_clip\'s usual way = 1 '
            f"({escape(_device(figures))}); a line: what the arithmetic allows in fp32</text>",
            *parts,
            f'<path d="M{x:.1f} 30V{top + 8}" stroke="#555" stroke-dasharray="3 3"/>',
            "</svg>",
            "",
        ]
    )


def _device(figures: dict[str, Any]) -> str:
    """The GPU's name, or the processor's."""
    name: str = figures["machine"]["cpu"] if figures["device"] == "cpu" else figures["device"]
    return name


def write(figures: dict[str, Any], checkout: Path) -> None:
    """The JSON and the picture into `benchmarks`, and the README brought up to date."""
    folder = checkout / "benchmarks"
    folder.mkdir(exist_ok=True)
    stem = "bench-" + "-".join(re.findall(r"[a-z0-9]+", _device(figures).lower()))
    (folder / f"{stem}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / f"{stem}.svg").write_text(picture(figures))
    readme = checkout / "README.md"
    readme.write_text(with_tables(readme.read_text(), folder))


def with_tables(text: str, folder: Path) -> str:
    """The README with a table and a picture for each device that was measured."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    blocks = []
    for path in sorted(folder.glob("bench-*.json")):
        shown = f"![Speed, {path.stem}](benchmarks/{path.stem}.svg)"
        blocks.append(f"{shown}\n\n{table(json.loads(path.read_text()))}\n")
    return before + START + "\n".join(blocks) + END + after


if __name__ == "__main__":
    for measured in (ROOT / "benchmarks").glob("bench-*.json"):
        measured.with_suffix(".svg").write_text(picture(json.loads(measured.read_text())))
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(), ROOT / "benchmarks"))
