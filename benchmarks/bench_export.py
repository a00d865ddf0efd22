"""Every program of a student: size, parity, latency beside PyTorch and ONNX float32, delegated share, accuracy.

    python -m benchmarks.bench_export MobileCLIP2-S0 --formats onnx litert executorch executorch_coreml coreml coreai
    python -m benchmarks.bench_export runs/demo/distill --name "demo student" --data runs/demo/prepare --samples 2000

Architectures get random weights, layer scales and batch statistics (fresh ones are trivial to fold) and striped
pictures; a trained student is measured on the test split of its data. Random weights say nothing about the accuracy
of int8, but every program is executed in its runtime all the same (Core ML's are emulated). Budgets are not
enforced: the table shows what misses them. Each program is timed turn by turn with PyTorch and ONNX float32.

A program's row is appended as soon as it is measured; a run that was cut goes on where it was. The tables are made by
`python -m benchmarks.export_results`.
"""

import argparse
import functools
import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import export_pairs, export_results
from benchmarks.export_pairs import MIXED, PLAIN, TUNED, Student
from benchmarks.export_results import Row
from mobileclip import manifest
from mobileclip.config import Export
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import MobileClipError
from mobileclip.formats import programs, proof, registry
from mobileclip.formats.digests import digest
from mobileclip.formats.export_job import Written
from mobileclip.formats.measure import latency
from mobileclip.formats.programs import Plan
from mobileclip.formats.qat import fine_tune as qat
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import Towers, split
from mobileclip.models import zoo
from tests.models.perturbed import patterned_images, perturbed_clip

PRECISIONS = ["float32", "float16", "int8", "int8_static", "int8_weights", "int4_weights"]
# Any quantized program can keep layers; these lose most without.
MIXABLE = {("onnx", "int8"), ("onnx", "int8_static"), ("executorch", "int8_static"), ("litert", "int8_static")}
NO_BUDGET = {"max_error_int8": 1e6, "max_error_float16": 1e6, "max_error_float32": 1e6}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="output of distill, or an architecture")
    parser.add_argument("--name", default="", help="in the tables; empty = as `student`")
    parser.add_argument("--data", default="", help="prepared dataset of a trained student")
    parser.add_argument("--formats", nargs="+", default=["onnx"], help="program formats")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, help="where the format has them")
    parser.add_argument(
        "--leave-out", nargs=2, action="append", default=[], metavar=("FILE", "REASON"),
        help="a program not to write, such as image.int8_weights.tflite, and why: the tables will say it",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=8, help="samples of the proof")
    parser.add_argument("--rounds", type=int, default=10, help="measured turns; 0 = none")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime")
    parser.add_argument("--mixed", type=float, default=0.0, help="also mixed int8 programs within this error; 0 = none")
    parser.add_argument("--tuned", type=int, default=0, help="also static int8 after this many steps of fine-tuning")
    parser.add_argument("--out", default="docs/export-results.jsonl", help="rows are appended there")
    parser.add_argument("--work", default="", help="folder of intermediate files; empty = runs/bench-export/STUDENT")
    measure(parser.parse_args(arguments))


def measure(options: argparse.Namespace) -> None:
    """Append a row for each program that has none, and one for each pair of programs.

    Raises:
        SystemExit: The rows that are there come from other weights.
    """
    torch.set_num_threads(options.threads)
    student, out = load(options), Path(options.out)
    known = [row for row in export_results.read(out) if row["student"] == student.name]
    if any(row["weights"] != student.weights for row in known):
        raise SystemExit(f"{out}: has rows of other weights of '{student.name}': remove them, or give another --name.")
    done = {export_results.key(row) for row in known}
    work = Path(options.work or f"runs/bench-export/{student.name.replace('/', '-')}")
    work.mkdir(parents=True, exist_ok=True)
    reasons = dict(options.leave_out)
    for item, variant in wanted(options):
        row: Row = {
            "student": student.name, "weights": student.weights, "samples": student.samples, "kind": "program",
            "tower": item.tower, "format": item.format, "precision": item.precision, "variant": variant,
            "executed": registry.FORMATS[item.format].executed,
        }  # fmt: skip
        if export_results.key(row) in done:
            continue
        try:
            found = (
                {"left_out": reasons[item.file_name]}
                if item.file_name in reasons
                else one_program(student, item, variant, options, work)
            )
        except (MobileClipError, RuntimeError) as error:
            found = {"failed": " ".join(str(error).split())[:300]}
        export_results.append(out, {**row, **found})
        print(item.file_name, variant, found.get("failed") or found.get("error"), found.get("ratio"), flush=True)
    if student.data:
        for row in export_pairs.rows(student, options.formats, work):
            if export_results.key(row) not in done:
                export_results.append(out, row)


def load(options: argparse.Namespace) -> Student:
    """The student with its samples."""
    name = options.name or options.student
    if not options.data:
        clip = perturbed_clip(options.student)
        drawn = [striped(options.samples, seed, clip.preprocess.size) for seed in (3, 4)]
        return Student(name, "random", clip, split(clip), proof.refer(clip, drawn[0]), proof.refer(clip, drawn[1]), "")
    clip = zoo.load("trained:student", trained=options.student)
    content = manifest.read(options.data)
    references = [
        proof.refer(
            clip, list(itertools.islice(read_samples(options.data, content, part), count)),
            class_field="group", template="a picture of {}",
        )
        for part, count in (("test", options.samples), ("train", Export().calibration_samples))
    ]  # fmt: skip
    return Student(name, clip.sha256[:12], clip, split(clip), references[0], references[1], options.data)


def wanted(options: argparse.Namespace) -> Iterator[tuple[Plan, str]]:
    """Programs with their variants, ONNX first: the others are timed beside it."""
    order = sorted(options.formats, key=lambda name: name != "onnx")
    for item in programs.plan(Export(formats=order, precisions=options.precisions)):
        yield item, PLAIN
        if options.mixed and (item.format, item.precision) in MIXABLE:
            yield item, MIXED
        if options.tuned and item.precision == programs.STATIC:
            yield item, TUNED


def one_program(student: Student, item: Plan, variant: str, options: argparse.Namespace, work: Path) -> Row:
    """Write, prove and time one program."""
    section = Export(formats=[item.format], precisions=[item.precision], max_kept=0.0, **NO_BUDGET)
    towers = student.towers
    if variant == MIXED:
        section = section.model_copy(update={"max_kept": 0.5, "max_error_int8": options.mixed})
    if variant == TUNED:
        section = section.model_copy(update={"qat_steps": options.tuned})
        content = manifest.read(student.data)
        tuned: nn.Module = qat.tune(section, student.clip, towers, student.data, content, student.calibration)
        towers = replace(towers, image=tuned)
    # A tuned tower is another tower: what is written must not start from the float32 program beside it.
    folder = work / TUNED if variant == TUNED else work
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    made = written(student, towers, item, section, folder)
    seconds = time.perf_counter() - started
    path = folder / item.file_name
    encode = load_program(path, threads=options.threads)
    figures = proof.prove(encode, item.tower, student.reference)
    if student.data:
        kept = export_pairs.features_file(work, item, variant)
        np.savez(kept, **export_pairs.embed(encode, item.tower, student.reference))  # type: ignore[arg-type]
    row = {
        "bytes": digest(path)["bytes"], "seconds": round(seconds, 1), "kept_in_float": list(made.keep),
        "versions": registry.writer(item.format).versions(), **made.figures, **figures,
    }  # fmt: skip
    if options.rounds and registry.FORMATS[item.format].executed:
        row |= timed(student, item, path, options, work) | latency.resources(path)
    discard(path, base=work / base_of(item).file_name)
    return row


def written(student: Student, towers: Towers, item: Plan, section: Export, folder: Path) -> Written:
    """Write one program."""
    return programs.write(
        item, section, towers, reference=student.reference, folder=folder, calibrate=lambda: student.calibration
    )  # fmt: skip


def base_of(item: Plan) -> Plan:
    """The ONNX float32 program of the same tower."""
    return Plan(item.tower, "onnx", "float32")


def timed(student: Student, item: Plan, path: Path, options: argparse.Namespace, work: Path) -> Row:
    """Latency of one row: PyTorch, ONNX float32 and the program take turns."""
    base, row = work / base_of(item).file_name, student.reference.inputs(item.tower)[:1]
    if not base.is_file():
        written(student, student.towers, base_of(item), Export(), work)
    eager = student.towers.image if item.tower == "image" else latency.EagerText(student.clip.model)
    turns: dict[str, Callable[[], object]] = {
        "pytorch": functools.partial(latency.eager, eager, row),
        "onnx": latency.turn(load_program(base, threads=options.threads), row),
    }
    if path != base:
        turns["program"] = latency.turn(load_program(path, threads=options.threads), row)
    times = latency.interleave(turns, options.rounds)
    own, onnx, pytorch = (times[name] for name in ("program" if path != base else "onnx", "onnx", "pytorch"))
    found = latency.summarize(own, float(np.median(pytorch)), None)
    return {
        **found, "ratio_onnx": round(float(np.median(own) / np.median(onnx)), 3), "rounds": len(own),
        "pytorch_ms": round(float(np.median(pytorch)), 3), "threads": options.threads,
    }  # fmt: skip


def discard(path: Path, *, base: Path) -> None:
    """Remove a measured program; the one that others are timed beside stays."""
    if path == base:
        return
    for file in sorted((path, *path.rglob("*")), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def striped(count: int, seed: int, size: int) -> list[Sample]:
    """Striped pictures with captions of some length."""
    samples = []
    for index, pixels in enumerate((patterned_images(count, size, seed=seed) * 255).round().to(torch.uint8)):
        stream = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
        caption = "a pattern " + "of stripes " * index
        samples.append(Sample(f"{seed}-{index}", stream.getvalue(), {"captions": [caption]}))
    return samples


if __name__ == "__main__":
    main()
