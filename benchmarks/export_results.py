"""Tables of `docs/export-results.md` from the rows that `benchmarks.bench_export` wrote."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobileclip.config import Export
from mobileclip.formats.registry import FORMATS

Row = dict[str, Any]

METRICS = {
    "retrieval/i2t/r1": "R@1 image to text", "retrieval/t2i/r1": "R@1 text to image",
    "zero_shot/group/top1": "zero-shot accuracy",
}  # fmt: skip
POINT = 0.01
STUDENTS = ("MobileCLIP2-S0", "MobileCLIP2-S4", "demo student")
BOUNDS = (
    ("MobileCLIP2-S0", "image", "float32", 0.6),
    ("MobileCLIP2-S0", "text", "int8", 0.3),
)  # fmt: skip
BUDGETS = {kind: Export.model_fields[f"max_error_{kind}"].default for kind in ("float32", "float16", "int8")}
NO_VARIANT = {"kind": "program", "format": "onnx", "variant": ""}
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("error", "error", lambda value: f"{value:.2g}"),
    ("smallest cosine", "cosine_min", lambda value: f"{value:.6f}"),
    ("time / PyTorch", "ratio", lambda value: f"{value:.2f}"),
    ("time / ONNX float32", "ratio_onnx", lambda value: f"{value:.2f}"),
    ("p50 ms", "p50_ms", lambda value: f"{value:.1f}"),
    ("load ms", "load_ms", lambda value: f"{value:.0f}"),
    ("peak MB", "peak_mb", lambda value: f"{value:.0f}"),
    ("delegated", "delegated", lambda value: f"{value:.2f}"),
)
HEAD = """# Exported programs in figures

Made by `python -m benchmarks.export_results` from [export-results.jsonl](export-results.jsonl), which
`python -m benchmarks.bench_export` writes, one line per program; nothing here is written by hand.

- **error**: `‖program − student‖ / ‖student − mean‖` over all samples, the figure that [export](stages/export.md)
  holds against a budget (float32 1e-4, float16 0.03, int8 0.25; **bold** = over it: `export` would refuse the program
  or keep layers in float32). The student is PyTorch float32 as it was trained.
- **time**: median of one row through the program, over that of PyTorch (folded, float32: the fastest that a user of it
  would run) and of ONNX float32. The three take turns in one process, one thread each, on a shared x86 machine. x86
  says nothing about a phone. Lines are from different hours and
  two kinds of processors: compare their ratios, not their milliseconds.
- **load** and **peak** (rise of resident memory in loading and one call) are from a process of their own.
- **delegated**: share of ExecuTorch's and LiteRT's nodes that XNNPACK or Core ML takes over; each counts its
  own.
- *emulated*: the runtime exists on Apple devices alone. The program is evaluated here from its own file, but not in
  that runtime; no time is measured.
- *mixed*: layers that lose most stay in float32 until the error is met. *tuned*: fine-tuned under rounding first.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="docs/export-results.jsonl")
    parser.add_argument("--out", default="docs/export-results.md")
    options = parser.parse_args()
    Path(options.out).write_text(document(read(Path(options.rows))), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """All rows; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def append(path: Path, row: Row) -> None:
    """Add a row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key(row: Row) -> tuple[str, ...]:
    """What a row is about."""
    names = ("student", "kind", "tower", "format", "precision", "image", "text", "variant")
    return tuple(str(row.get(name, "")) for name in names)


def document(rows: Sequence[Row]) -> str:
    """All tables as Markdown."""
    rows = sorted(rows, key=_place)
    made = [row for row in rows if row["kind"] == "program" and not _is_needless(row)]
    parts = [HEAD, _bounds(made)]
    for student in sorted({row["student"] for row in made}, key=_known_student):
        own = [row for row in made if row["student"] == student]
        trained = own[0]["weights"] != "random"
        about = f"Trained, weights `{own[0]['weights']}`" if trained else "Random weights"
        samples = f"{own[0]['samples']} {'test' if trained else 'striped'} pictures"
        parts += [f"## {student}\n", f"{about}; proved on {samples}.\n", _programs(own), _absent(own)]
        if trained:
            pairs = [row for row in rows if row["kind"] == "pair" and row["student"] == student]
            pages = [row for row in rows if row["kind"] == "page" and row["student"] == student]
            parts += [_accuracy(own), _pairs(pairs), _verdict(pairs), _page(pages)]
    parts += [_unmeasured(made), _versions(made)]
    return "\n".join(part for part in parts if part)


def _known_student(name: str) -> tuple[int, str]:
    return (STUDENTS.index(name) if name in STUDENTS else len(STUDENTS), name)


def _place(row: Row) -> tuple[str, int, int, str]:
    """Where a row belongs in a table, whenever it was measured; pairs stay in the order they were measured in."""
    if row["kind"] != "program":
        return ("", list(FORMATS).index(row["format"]) if "format" in row else 0, 0, "")
    precisions = FORMATS[row["format"]].precisions[row["tower"]]
    return (row["tower"], list(FORMATS).index(row["format"]), list(precisions).index(row["precision"]), row["variant"])


def _bounds(rows: Sequence[Row]) -> str:
    """The latencies that were asked for."""
    lines = ["| bound | measured | |", "|---|---|---|"]
    for student, tower, precision, bound in BOUNDS:
        wanted = key({**NO_VARIANT, "student": student, "tower": tower, "precision": precision})
        for row in (row for row in rows if key(row) == wanted and "ratio" in row):
            what = f"{student}, {tower} tower, ONNX {precision}: at most {bound:.1f} of PyTorch's time"
            times = f"{row['ratio']:.2f} ({row['p50_ms']:.1f} of {row['pytorch_ms']:.1f} ms)"
            lines.append(f"| {what} | {times} | {'met' if row['ratio'] <= bound else '**missed**'} |")
            others = _turns_of_base(rows, student, tower) if precision == "float32" else []
            if len(others) > 1:
                met = sum(value <= bound for value in others)
                spread = f"median {np.median(others):.2f}, {min(others):.2f} to {max(others):.2f}"
                lines.append(f"| the same in each of the table's {len(others)} runs | {spread} | met in {met} |")
    return "\n".join([*lines, ""]) if len(lines) > 2 else ""


def _turns_of_base(rows: Sequence[Row], student: str, tower: str) -> list[float]:
    """ONNX float32 over PyTorch in every run where both took turns with a program of the tower."""
    own = [row for row in rows if (row["student"], row["tower"]) == (student, tower) and "ratio_onnx" in row]
    return [row["ratio"] / row["ratio_onnx"] for row in own]


def _programs(rows: Sequence[Row]) -> str:
    heads = ["tower", "format", "precision", "MB", *(name for name, _, _ in COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in (row for row in rows if "error" in row):
        cells = [
            row["tower"], row["format"] + ("" if row["executed"] else " (emulated)"),
            _precision(row) + (f" ({row['samples']} pictures)" if row["samples"] != rows[0]["samples"] else ""),
            f"{row['bytes'] / 1e6:.1f}",
        ]  # fmt: skip
        cells += [form(row[name]) if name in row else "" for _, name, form in COLUMNS]
        if row["error"] > BUDGETS[_kind(row["precision"])]:
            cells[4] = f"**{cells[4]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _kind(precision: str) -> str:
    return precision if precision in BUDGETS else "int8"


def _is_needless(row: Row) -> bool:
    """A mixed program that met its error with no layer kept is the plain one."""
    return row["variant"] == "mixed" and "error" in row and not row["kept_in_float"]


def _precision(row: Row) -> str:
    text = " ".join(part for part in (row["precision"], row["variant"]) if part)
    kept = len(row.get("kept_in_float", ()))
    return f"{text}, {kept} of {row['layers']:.0f} layers in float32" if kept else text


def _absent(rows: Sequence[Row]) -> str:
    """Programs that are not in the table, each with the reason."""
    lines = []
    for row in rows:
        reason = row.get("left_out") or (f"failed: {row['failed']}" if "failed" in row else "")
        if reason:
            lines.append(f"- {row['tower']}, {row['format']}, {_precision(row)}: {reason}")
    return "\n".join(["Not in the table:\n", *lines, ""]) if lines else ""


def _unmeasured(rows: Sequence[Row]) -> str:
    """What has no row, by student and format."""
    known = {(row["student"], row["format"], row["tower"], row["precision"]) for row in rows}
    lines = []
    for student in STUDENTS:
        for name, form in FORMATS.items():
            programs = [(tower, precision) for tower, some in form.precisions.items() for precision in some]
            missing = [f"{t} {p}" for t, p in programs if (student, name, t, p) not in known]
            if missing:
                what = "all programs" if len(missing) == len(programs) else ", ".join(missing)
                lines.append(f"- {student}, {name}: {what}")
    return "\n".join(["## Not measured yet\n", *lines, ""]) if lines else ""


def _accuracy(rows: Sequence[Row]) -> str:
    """One tower exchanged for its program."""
    lines = [
        "### Accuracy, one tower exchanged\n",
        "R@1 in the direction of the exchanged tower, zero-shot accuracy over the groups with one prompt per class",
        "(the evaluation averages two); differences to PyTorch in points, with their paired 95 % bootstrap interval",
        "over the pictures.\n",
        "| tower | format | precision | same first answer | R@1 | difference | zero-shot | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "error" in row and row["executed"]):
        cells = [row["tower"], row["format"], _precision(row), f"{100 * row['agreement']:.1f} %"]
        for name in ("recall", "zero_shot"):
            change = (row[f"{name}/change{part}"] for part in ("", "_low", "_high"))
            cells += [f"{100 * row[f'{name}/program']:.1f}", _change(*change)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _pairs(rows: Sequence[Row]) -> str:
    """Both towers exchanged."""
    if not rows:
        return ""
    names = [part for name in METRICS.values() for part in (name, "difference")]
    lines = [
        "### Accuracy, both towers exchanged\n",
        "| format | image tower | text tower | " + " | ".join(names) + " |", "|" + "---|" * (3 + len(names)),
        "| PyTorch | float32 | float32 | "
        + " | ".join(f"{100 * rows[0]['scores'][metric]['control']['value']:.1f} | " for metric in METRICS)
        + " |",
    ]  # fmt: skip
    for row in rows:
        cells = [row["format"], " ".join(part for part in (row["image"], row["variant"]) if part), row["text"]]
        for metric in METRICS:
            found, delta = row["scores"][metric]["student"], row["scores"][metric]["delta"]
            cells += [f"{100 * found['value']:.1f}", _change(delta["value"], delta["low"], delta["high"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _verdict(rows: Sequence[Row]) -> str:
    """Which int8 pairs stay within one point of PyTorch, and which do not."""
    quantized = [row for row in rows if "int8" in row["image"] + row["text"]]
    lines = []
    for row in quantized:
        lost = {name: -row["scores"][metric]["delta"]["value"] for metric, name in METRICS.items()}
        bound = max(-row["scores"][metric]["delta"]["low"] for metric in METRICS)
        worst = max(lost, key=lambda name: lost[name])
        label = f"{row['format']} {row['image']} {row['variant']}".rstrip() + f" + {row['text']}"
        verdict = "within one point" if lost[worst] <= POINT else f"**loses {100 * lost[worst]:.1f} points** of {worst}"
        sure = "also" if bound <= POINT else f"up to {100 * bound:.1f} points lost"
        lines.append(f"- {label}: {verdict}; by the intervals' ends: {sure}")
    head = "Pairs in int8, by the largest loss of the three figures, and by the largest that an interval allows:\n"
    return "\n".join([head, *lines, ""]) if lines else ""


def _page(rows: Sequence[Row]) -> str:
    """The page's picture, and how far its numbers are off."""
    if not rows:
        return ""
    row = rows[-1]
    return f"""### The page

The [page](bundle.md#the-page) of its bundle in Chromium at 390 pixels, with {row["pictures"]} test pictures by the
artist that no training saw. Smallest cosine of its embeddings with PyTorch's: {row["image_cosine"]:.7f} of a picture,
{row["text_cosine"]:.7f} of a text.

![page](figures/page.png)
"""


def _versions(rows: Sequence[Row]) -> str:
    found = sorted({f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()})
    return "Versions: " + ", ".join(found) + ".\n"


def _change(value: float, low: float, high: float) -> str:
    return f"{100 * value + 0.0:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    main()
