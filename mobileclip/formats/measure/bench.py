"""Latency of students in every format and precision, measured turn by turn in one run.

One run, because ratios between measurements of different hours say more about the machine than about the programs.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.config import Export, check_section
from mobileclip.errors import ConfigError
from mobileclip.evaluation.retrieval import build_gallery
from mobileclip.formats import programs, registry
from mobileclip.formats.bundle import golden_values as golden
from mobileclip.formats.digests import digest
from mobileclip.formats.measure import latency
from mobileclip.formats.programs import Plan
from mobileclip.formats.proof import Reference
from mobileclip.formats.runtime import load_program
from mobileclip.formats.towers import split
from mobileclip.models import zoo
from mobileclip.models.zoo import Clip

SECONDS = 300  # per tower and number of threads
BASE = ("onnx", "float32")
Times = dict[tuple[str, Plan | None], NDArray[np.float64]]


@dataclass(frozen=True)
class Subject:
    """One student to measure.

    Attributes:
        name: In the table.
        eager: What PyTorch runs, by tower: the image tower folded.
        rows: One input, by tower.
        paths: Programs that this machine can execute.
    """

    name: str
    eager: Mapping[str, torch.nn.Module]
    rows: Mapping[str, NDArray[np.generic]]
    paths: Mapping[Plan, Path]


def compare(
    students: Sequence[str], *, formats: Sequence[str], precisions: Sequence[str], threads: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Write every program of every student, and time all of them interleaved.

    Args:
        students: Output folders of distill, or architectures, which get random weights.
        formats: Of `registry.FORMATS`; emulated ones are left out.
        precisions: Where the format has them.
        threads: Numbers of threads, each measured in a run of its own.
        rounds: Measured turns of each program.

    Returns:
        Rows of the table: student, tower, format, precision, threads, bytes, p50_ms, p95_ms, ratio to PyTorch,
        ratio_onnx to ONNX float32 (where that was measured), load_ms, peak_mb.

    Raises:
        ConfigError: No program can be executed, a number is below 1, or a student is neither a folder nor an
            architecture.
    """
    for name, values in (("threads", threads), ("rounds", [rounds])):
        if min(values) < 1:
            raise ConfigError(f"bench-latency: --{name}: got {min(values)}, want at least 1.")
    asked = {"formats": list(formats), "precisions": list(precisions), "max_kept": 0}
    section = cast("Export", check_section("export", {**Export().model_dump(mode="json"), **asked}))
    with tempfile.TemporaryDirectory(prefix="mobileclip-bench-") as name:
        subjects = [prepare(student, section, Path(name) / str(index)) for index, student in enumerate(students)]
        return measure(subjects, threads=threads, rounds=rounds)


def prepare(student: str, section: Export, folder: Path) -> Subject:
    """Load a student and write its programs into `folder`.

    Raises:
        ConfigError: No program can be executed here.
    """
    clip = _load(student)
    towers, samples = split(clip), _calibration(clip)
    plans = [item for item in programs.plan(section, whole=False) if registry.FORMATS[item.format].executed]
    if not plans:
        raise ConfigError(
            f"bench-latency: none of the formats {section.formats} can be executed on this machine in the precisions "
            f"{section.precisions}."
        )
    folder.mkdir(parents=True)
    for item in plans:
        programs.write(item, section, towers, reference=samples, folder=folder, calibrate=lambda: samples)
    rows: dict[str, NDArray[np.generic]] = {tower: samples.inputs(tower)[:1] for tower in programs.TOWERS}
    eager: dict[str, torch.nn.Module] = {"image": towers.image, "text": latency.EagerText(clip.model)}
    return Subject(student.rstrip("/"), eager, rows, {item: folder / item.file_name for item in plans})


def measure(subjects: Sequence[Subject], *, threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time the programs and PyTorch of all subjects; see `compare`."""
    spent = {path: latency.resources(path) for subject in subjects for path in subject.paths.values()}
    table: list[dict[str, Any]] = []
    for tower in programs.TOWERS:
        if not any(item.tower == tower for subject in subjects for item in subject.paths):
            continue
        for count in threads:
            times = _times(subjects, tower, count, rounds)
            table += [row for subject in subjects for row in _rows(subject, tower, count, times, spent)]
    return table


def _times(subjects: Sequence[Subject], tower: str, threads: int, rounds: int) -> Times:
    turns: dict[tuple[str, Plan | None], Callable[[], object]] = {}
    for subject in subjects:
        turns[subject.name, None] = functools.partial(latency.eager, subject.eager[tower], subject.rows[tower])
        for item, path in subject.paths.items():
            if item.tower == tower:
                turns[subject.name, item] = latency.turn(load_program(path, threads=threads), subject.rows[tower])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls = {str(index): call for index, call in enumerate(turns.values())}
        found = latency.interleave(calls, rounds, seconds=SECONDS)
    finally:
        torch.set_num_threads(before)
    return dict(zip(turns, found.values(), strict=True))


def _rows(
    subject: Subject, tower: str, threads: int, times: Times, spent: Mapping[Path, dict[str, float]]
) -> list[dict[str, Any]]:
    own = times[subject.name, None]
    eager = float(np.median(own))
    common = {"student": subject.name, "tower": tower, "threads": threads}
    blank = dict.fromkeys(("bytes", "p50_ms", "p95_ms", "ratio", "ratio_onnx", "load_ms", "peak_mb"), "")
    timed = latency.summarize(own, eager, None)
    rows: list[dict[str, Any]] = [{**common, "format": "pytorch", "precision": "float32", **blank, **timed}]
    for item, path in subject.paths.items():
        if item.tower != tower:
            continue
        found = {**latency.summarize(times[subject.name, item], eager, None), **spent[path]}
        base = times.get((subject.name, Plan(item.tower, *BASE)))
        if base is not None:
            found["ratio_onnx"] = round(found["p50_ms"] / float(np.median(base)), 3)
        size = digest(path)["bytes"]
        rows.append({**common, "format": item.format, "precision": item.precision, "bytes": size, **found})
    return rows


def _load(student: str) -> Clip:
    """A checkpoint, or an architecture with random weights: its arithmetic is as fast as a trained one's."""
    if Path(student).is_dir():
        return zoo.load("trained:student", trained=student)
    torch.manual_seed(0)
    return zoo.create(student)


def _calibration(clip: Clip) -> Reference:
    """Shifted pictures by formula: enough where int8 is to be timed and not judged."""
    size = clip.preprocess.size
    picture = golden.picture(size)[0].astype(np.float32) / 255
    pixels = np.stack([np.roll(picture, index * size // 8, axis=2) for index in range(len(golden.TEXTS))])
    tokens = clip.tokenizer(golden.TEXTS).to(torch.int32).numpy()
    nothing = np.zeros((len(pixels), clip.embed_dim), np.float32)
    gallery = build_gallery([[text] for text in golden.TEXTS])
    return Reference([str(index) for index in range(len(pixels))], pixels, tokens, gallery, nothing, nothing)
