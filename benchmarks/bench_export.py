"""Every program of a student: size, parity, latency beside PyTorch and ONNX float32, delegated share.

    python -m benchmarks.bench_export MobileCLIP2-S0 --formats onnx litert executorch coreml
    python -m benchmarks.bench_export runs/demo/distill --data runs/demo/prepare

Architectures get random weights, layer scales and batch statistics (fresh ones are trivial to fold) and striped
pictures; a trained student is measured on the test split of its data. Random weights say nothing about the accuracy
of int8, but every program is executed in its runtime all the same (Core ML packages are emulated). Budgets are not
enforced: the table shows what misses them. Latency is measured turn by turn in one run, one thread.
"""

import argparse
import io
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mobileclip import manifest
from mobileclip.config import Export
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import MobileClipError
from mobileclip.formats import bench, contract, latency, programs, proof, registry
from mobileclip.formats.bench import Subject
from mobileclip.formats.proof import Reference
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import split
from mobileclip.models import zoo
from tests.models.perturbed import patterned_images, perturbed_clip

HEADS = (
    "tower", "format", "precision", "MB", "error", "cosine", "latency / PyTorch", "/ ONNX float32", "p50 ms", "p95 ms",
    "load ms", "peak MB", "delegated",
)  # fmt: skip
PRECISIONS = ["float32", "float16", "int8", "int8_static", "int8_weights"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="output of distill, or an architecture")
    parser.add_argument("--data", default="", help="prepared dataset of a trained student")
    parser.add_argument("--formats", nargs="+", default=["onnx"], help="program formats")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, help="where the format has them")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="file names not to write, such as image.int8_weights.tflite"
    )
    parser.add_argument("--samples", type=int, default=8, help="samples of the proof")
    parser.add_argument("--rounds", type=int, default=10, help="measured turns; 0 = none")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads")
    parser.add_argument("--max-kept", type=float, default=0.0, help="share of layers that int8 may keep in float32")
    parser.add_argument("--out", default="", help="also write the rows there as JSON")
    options = parser.parse_args()
    rows = measure(options)
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for threads in options.threads:
        print(f"\n{options.student}, {threads} thread(s)\n")
        print(table([row for row in rows if row.get("threads", threads) == threads]), flush=True)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Write, prove and time; a program that cannot be written is a row with the reason."""
    clip = zoo.load("trained:student", trained=options.student) if options.data else perturbed_clip(options.student)
    reference, calibration = references(clip, options)
    towers = split(clip)
    budgets = {} if options.max_kept else {"max_error_int8": 1e6, "max_error_float16": 1e6, "max_error_float32": 1e6}
    section = Export(formats=options.formats, precisions=options.precisions, max_kept=options.max_kept, **budgets)
    rows, paths = [], {}
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        for item in programs.plan(section):
            if item.file_name in options.skip:
                continue
            row: dict[str, Any] = {"format": item.format, "tower": item.tower, "precision": item.precision}
            started = time.perf_counter()
            path = Path(name) / item.file_name
            try:
                made = programs.write(
                    item, section, towers, example=torch.from_numpy(reference.inputs(item.tower)[:2]),
                    folder=Path(name), calibrate=lambda: calibration,
                )  # fmt: skip
                seconds = time.perf_counter() - started
                figures = proof.prove(load_program(path, threads=1), item.tower, reference)
            except (MobileClipError, RuntimeError) as error:
                rows.append({**row, "failed": " ".join(str(error).split())[:160]})
                print(rows[-1], flush=True)
                continue
            size = contract.digest(path)["bytes"]
            rows.append({**row, "bytes": size, "seconds": round(seconds, 1), **made.figures, **figures})
            rows[-1]["kept_in_float"] = list(made.keep)
            print(item.file_name, f"{figures['error']:.3g}", f"{size / 1e6:.1f} MB", f"{seconds:.0f} s", flush=True)
            if registry.FORMATS[item.format].executed:
                paths[item] = path
        if not options.rounds:
            return rows
        eager = {"image": towers.image, "text": latency.EagerText(clip.model)}
        inputs = {tower: reference.inputs(tower)[:1] for tower in programs.TOWERS}
        subject = Subject(options.student, eager, inputs, paths)
        timed = bench.measure([subject], threads=options.threads, rounds=options.rounds)
    return joined(rows, timed)


def references(clip: zoo.Clip, options: argparse.Namespace) -> tuple[Reference, Reference]:
    """Samples of the proof, and others for the calibration."""
    if not options.data:
        return tuple(proof.refer(clip, striped(options.samples, seed, clip.preprocess.size)) for seed in (3, 4))  # type: ignore[return-value]
    content = manifest.read(options.data)
    drawn = (
        list(itertools.islice(read_samples(options.data, content, part), count))
        for part, count in (("test", options.samples), ("train", 32))
    )
    return tuple(  # type: ignore[return-value]
        proof.refer(clip, samples, class_field="group", template="a picture of {}") for samples in drawn
    )


def striped(count: int, seed: int, size: int) -> list[Sample]:
    """Striped pictures with captions of some length."""
    samples = []
    for index, pixels in enumerate((patterned_images(count, size, seed=seed) * 255).round().to(torch.uint8)):
        stream = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
        caption = "a pattern " + "of stripes " * index
        samples.append(Sample(f"{seed}-{index}", stream.getvalue(), {"captions": [caption]}))
    return samples


def joined(rows: list[dict[str, Any]], timed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Proof and times of each program, one row per number of threads."""
    found: list[dict[str, Any]] = []
    for row in rows:
        key = (row["format"], row["tower"], row["precision"])
        mine = [t for t in timed if (t["format"], t["tower"], t["precision"]) == key]
        found += [{**row, **t} for t in mine] or [row]
    return found + [t for t in timed if t["format"] == "pytorch"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| " + " | ".join(HEADS) + " |",
        "|" + "---|" * len(HEADS),
    ]
    for row in sorted(rows, key=lambda r: (r["tower"], r["format"] != "pytorch")):
        if "failed" in row:
            lines.append(
                f"| {row['tower']} | {row['format']} | {row['precision']} | failed: {row['failed']} |" + " |" * 9
            )
            continue
        size = f"{row['bytes'] / 1e6:.1f}" if row.get("bytes") else ""
        shown = [row["tower"], row["format"], row["precision"], size]
        for name, form in (
            ("error", ".2g"), ("cosine_min", ".6f"), ("ratio", ".2f"), ("ratio_onnx", ".2f"), ("p50_ms", ".1f"),
            ("p95_ms", ".1f"), ("load_ms", ".0f"), ("peak_mb", ".0f"), ("delegated", ".2f"),
        ):  # fmt: skip
            value = row.get(name, "")
            shown.append(format(value, form) if isinstance(value, (int, float)) else "")
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
