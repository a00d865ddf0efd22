"""A DataCompDR/DFNDR set becomes shards and columns, joined with pictures by uid, and says what it could not join."""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from mobileclip import manifest, storage
from mobileclip.convert.coverage import report_coverage
from mobileclip.convert.layout import find_layout
from mobileclip.convert.pictures import PictureSet
from mobileclip.convert.reading import Reading
from mobileclip.convert.rows import Shape, read_shape
from mobileclip.convert.unit import Job, Unit, convert_tar, plan_columns
from mobileclip.data.progress import progress_bar
from mobileclip.data.scratch import scratch
from mobileclip.data.tars import find_tars, scan
from mobileclip.errors import DataError
from mobileclip.manifest import Column, Manifest, Source
from mobileclip.parallel import run_forked

Tars = list[tuple[str, Path, str]]
"""Name, local path and sha256."""


def read_datacompdr(source: str, *, out: str, reading: Reading) -> dict[str, Any]:
    """Convert a set; a killed run goes on at the first tar that is not done.

    Args:
        source: Folder or URI with the tars.
        out: Output folder or URI.
        reading: How.

    Returns:
        The coverage report, as written to `coverage.json`.

    Raises:
        DataError: No or damaged tars, nothing to join, one uid in two tars, or less coverage than wanted.
        ConfigError: Nothing says whose embeddings these are.
    """
    layout = find_layout(reading.layout, source)
    tars = _local_tars(source)
    with scratch(out) as folder:
        pictures = PictureSet.build(reading.images, folder)
        shape = _shape(tars, folder)
        plans = plan_columns(layout, shape, reading.dtype)
        job = Job(layout, shape, plans, reading, pictures, out, folder)
        key = _key(job)
        records = [_record_uri(out, index, f"{sha256}|{key}") for index, (_, _, sha256) in enumerate(tars)]

        def work(part: int, parts: int) -> None:
            for index in progress_bar(range(part, len(tars), parts), desc="convert", unit="tar", position=part):
                if not storage.exists(records[index]):
                    unit = convert_tar(job, index, tars[index][0], tars[index][1])
                    storage.write_bytes(records[index], to_json(unit.model_dump()))

        run_forked(work, len(tars))
        units = [Unit.model_validate_json(storage.read_bytes(record)) for record in records]
        report = report_coverage(out, units, pictures, min_coverage=reading.min_coverage)
    manifest.write(out, _manifest(units, job))
    return report


def to_json(value: Any) -> bytes:
    """Canonical JSON."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _local_tars(source: str) -> Tars:
    found: Tars = []
    for name, uri in find_tars(source):
        sha256 = storage.digest_file(storage.local_copy(uri))
        found.append((name, storage.local_copy(uri, sha256=sha256), sha256))
    if not found:
        raise DataError(f"convert: '{source}' holds no tars.")
    return found


def _shape(tars: Tars, folder: Path) -> Shape:
    """Views and caption keys of the first sample that is whole."""
    reason = ""
    for name, path, _ in tars:
        for entry in scan(path, name=name, where="convert", scratch=folder):
            try:
                return read_shape(entry)
            except DataError as error:
                reason = reason or f"'{entry.key}': {error}"
    raise DataError(f"convert: no sample of the tars has reinforcement, the first is {reason or 'not there.'}")


def _key(job: Job) -> str:
    """All that decides the units' bytes but the tars themselves."""
    how = dataclasses.replace(job.reading, images="", layout="")  # where things lie decides nothing
    specs = [plan.sha256 for plan in job.plans]
    return "|".join([*specs, repr(how), job.layout.model_dump_json(), job.pictures.digest()])


def _record_uri(out: str, index: int, key: str) -> str:
    """Named by all that decides the unit's bytes, so that a changed input or option never meets an old record."""
    return storage.join(out, "units", f"{index:05d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")


def _manifest(units: list[Unit], job: Job) -> Manifest:
    shards = sorted((s for unit in units for s in unit.shards), key=lambda s: (s.split != "train", s.name))
    licenses: Counter[str] = Counter()
    for unit in units:
        licenses.update(unit.licenses)
    sources = list(job.layout.sources) or [
        Source(name="pictures and captions", license=name, samples=count) for name, count in sorted(licenses.items())
    ]
    columns = []
    for plan in job.plans:
        parts = {name: part for unit in units for name, part in unit.parts[plan.name].items()}
        columns.append(
            Column(
                name=plan.name,
                kind=plan.kind,
                spec=plan.spec,
                spec_sha256=plan.sha256,
                computed_on=plan.computed_on,
                license=plan.license,
                parts={shard.name: parts[shard.name] for shard in shards},
            )
        )
    left_out = sum(len(unit.left_out) for unit in units)
    return Manifest(shards=shards, columns=columns, sources=sources, quarantined=left_out)
