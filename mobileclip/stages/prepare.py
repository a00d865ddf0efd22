"""prepare: a user's pictures and captions become checked webdataset shards with a manifest."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip import manifest, storage
from mobileclip.config import Prepare
from mobileclip.convert.read import read_datacompdr
from mobileclip.convert.reading import Reading
from mobileclip.data import images, lookalikes, sources
from mobileclip.data.catalog import Catalog, Listed
from mobileclip.data.license_ledger import Ledger
from mobileclip.data.progress import progress_bar
from mobileclip.data.scratch import remove_partial, scratch
from mobileclip.data.shards import IMAGE_EXTENSIONS, Sample, write_shard
from mobileclip.errors import DataError
from mobileclip.tracking.protocol import Tracker

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_DUPLICATE = "same bytes as"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d+\.tar")


def run(config: Prepare, *, out: str, tracker: Tracker, source: str) -> dict[str, float]:  # noqa: ARG001
    """Write shards per split, `manifest.json` and `quarantine.jsonl`.

    Memory does not grow with the data: a first pass checks every sample and notes where it lies, a second one copies
    pictures into shards in the order of their uids.

    Args:
        config: The `prepare` section.
        out: Output folder or URI.
        tracker: Unused: the metrics are the return value.
        source: Folder with a caption table, COCO captions, pictures with `.txt`, or webdataset tars; below a prefix
            of an object store it is copied to the local disk for the time of the run.

    Returns:
        Counts per split, of quarantined samples, of exact duplicates and, on request, of near-duplicates.

    Raises:
        DataError: Nothing usable is there, or more than `max_bad_share` of the samples is bad.
        StorageError: The disk is full.
    """
    if storage.is_s3(source):
        with storage.fetched(source) as folder:
            return _run(config, out, folder, source)
    return _run(config, out, Path(source), source)


def _run(config: Prepare, out: str, root: Path, source: str) -> dict[str, float]:
    remove_partial(out)
    kind = sources.detect(root, config.table) if config.source == "auto" else config.source
    if kind == "datacompdr":
        return _convert(config, out, root)
    ledger = Ledger(root)
    with scratch(out) as folder:
        catalog = Catalog(folder)
        rows = sources.read(root, kind, config.table, scratch=folder, image_folder=config.image_folder)
        counts = _check_all(rows, catalog, config)
        _check_counts(counts, catalog, config, source)
        storage.delete(storage.join(out, manifest.FILE_NAME))  # an older one would vouch for shards replaced below
        shards = [shard for split in SPLITS for shard in _write_split(out, split, catalog, config, ledger)]
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in catalog.rejected())
        storage.write_bytes(storage.join(out, "quarantine.jsonl"), lines.encode())
        metrics = {f"samples/{split}": float(catalog.count(split)) for split in SPLITS}
        metrics |= {
            "shards": float(len(shards)),
            "quarantined": float(counts["bad"]),
            "duplicates": float(counts["duplicates"]),
        }
        if config.duplicates == "merge":
            metrics["merged_captions"] = float(counts["merged_captions"])
        if config.near_duplicates:
            metrics |= _report_lookalikes(out, catalog, config.near_distance)
        catalog.close()
    _remove_stale(out, shards)
    manifest.write(out, manifest.Manifest(shards=shards, sources=ledger.sources(), quarantined=counts["bad"]))
    return metrics


def _convert(config: Prepare, out: str, root: Path) -> dict[str, float]:
    """DataCompDR tars become shards and columns; rows without a picture are counted, damaged ones limited."""
    tars = root / sources.REINFORCEMENT if (root / sources.REINFORCEMENT).is_dir() else root
    pictures = root / "images"
    reading = Reading(
        layout=config.layout, images=str(pictures) if pictures.is_dir() else "", license=config.license,
        validation_share=config.validation_share, shard_samples=config.shard_samples, max_pixels=config.max_pixels,
        same_bytes=config.check_sha256,
    )  # fmt: skip
    report = read_datacompdr(str(tars), out=out, reading=reading)
    causes = {cause: found["count"] for cause, found in report["left_out"].items()}
    bad = sum(count for cause, count in causes.items() if cause != "missing_picture")
    if bad / report["rows"] > config.max_bad_share:
        storage.delete(storage.join(out, manifest.FILE_NAME))
        cause = next(cause for cause in causes if cause != "missing_picture")
        first = report["left_out"][cause]["first"][0]
        raise DataError(
            f"prepare.max_bad_share: {bad} of {report['rows']} samples are bad (want at most "
            f"{config.max_bad_share:.2%}), the first is '{first['uid']}': {first['reason'].rstrip('.')}."
        )
    shards = manifest.read(out).shards
    metrics = {f"samples/{s}": float(sum(shard.samples for shard in shards if shard.split == s)) for s in SPLITS}
    return metrics | {
        "shards": float(len(shards)),
        "quarantined": float(bad),
        "missing_pictures": float(causes.get("missing_picture", 0)),
        "coverage": report["coverage"],
    }


def _check_all(rows: Iterator[sources.Raw], catalog: Catalog, config: Prepare) -> Counter[str]:
    """First pass: every sample is checked and listed, or rejected with its reason."""
    counts: Counter[str] = Counter()
    for raw in progress_bar(rows, desc="check", unit="sample"):
        counts["read"] += 1
        checked = _check(raw, config)
        if isinstance(checked, str):
            counts["bad"] += 1
            catalog.reject(raw.name, checked)
            continue
        earlier = catalog.add(checked)
        if earlier:
            counts["duplicates"] += 1
            catalog.reject(raw.name, f"{_DUPLICATE} {earlier}")
            if config.duplicates == "merge":
                counts["merged_captions"] += catalog.add_captions(checked.uid, checked.metadata["captions"])
    return counts


def _check(raw: sources.Raw, config: Prepare) -> Listed | str:
    """The sample as it will be stored, or the reason to quarantine it."""
    if raw.fault:
        return raw.fault
    if raw.extension not in IMAGE_EXTENSIONS:
        return f"no picture ({', '.join(IMAGE_EXTENSIONS)})"
    if raw.span is None or not raw.span.size:
        return "picture file is missing or empty"
    captions = [" ".join(str(c).split()) for c in raw.fields["captions"]]
    captions = [c for c in captions if c]
    if not captions:
        return "no caption"
    data = raw.image
    try:
        image = images.decode(data, max_pixels=config.max_pixels)
    except DataError as error:
        return str(error)
    digest = hashlib.sha256(data).hexdigest()
    recorded = raw.fields.get("sha256")
    if config.check_sha256 and isinstance(recorded, str) and recorded.lower() != digest:
        return "its bytes are not those of its sha256 field"
    uid = digest[:24]
    metadata: dict[str, Any] = {**raw.fields, "captions": captions, "width": image.width, "height": image.height}
    metadata["license"] = metadata.get("license") or config.license
    group = metadata.get(config.group_field)
    split = metadata.get("split") or _draw_split(str(uid if group is None else group), config)
    if split not in SPLITS:
        return f"split is '{split}', want one of {', '.join(SPLITS)}"
    metadata["split"] = split
    fault = _unstorable(metadata)
    look = lookalikes.look(image) if config.near_duplicates else b""
    return fault or Listed(uid, raw.name, raw.extension, raw.span, metadata, look)


def _unstorable(metadata: dict[str, Any]) -> str:
    """Why metadata cannot be written as JSON; empty if they can."""
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "a text is no valid Unicode"
    except (TypeError, ValueError) as error:
        return f"a field cannot be stored as JSON: {str(error).rstrip('.')}"
    return ""


def _draw_split(group: str, config: Prepare) -> str:
    """The same group always falls into the same split, whatever else is in the data."""
    share = int.from_bytes(hashlib.sha256(f"split|{group}".encode(errors="replace")).digest()[:8], "big") / 2**64
    return "validation" if share < config.validation_share else "train"


def _check_counts(counts: Counter[str], catalog: Catalog, config: Prepare, source: str) -> None:
    read, bad = counts["read"], counts["bad"]
    if read == 0:
        raise DataError(f"prepare.source: '{source}' holds no samples.")
    if bad / read > config.max_bad_share:
        first = next(row for row in catalog.rejected() if not row["reason"].startswith(_DUPLICATE))
        name = ascii(first["sample"])[1:-1]
        raise DataError(
            f"prepare.max_bad_share: {bad} of {read} samples are bad (want at most {config.max_bad_share:.2%}), "
            f"the first is '{name}': {first['reason']}."
        )


def _write_split(out: str, split: str, catalog: Catalog, config: Prepare, ledger: Ledger) -> Iterator[manifest.Shard]:
    """Second pass: a shard is written once it has its number of samples, or the next picture would be too much."""
    rows: list[tuple[Sample, str]] = []
    size = index = 0
    progress = progress_bar(total=catalog.count(split), desc=f"write {split}", unit="sample")
    for listed in catalog.samples(split):
        if rows and (len(rows) == config.shard_samples or size + listed.span.size > config.shard_bytes):
            yield write_shard(out, f"{split}-{index:05d}", split, rows)
            rows, size, index = [], 0, index + 1
        rows.append((Sample(listed.uid, _read_again(listed), listed.metadata), listed.extension))
        size += listed.span.size
        ledger.count(listed.metadata)
        progress.update()
    if rows:
        yield write_shard(out, f"{split}-{index:05d}", split, rows)
    progress.close()


def _read_again(listed: Listed) -> bytes:
    data = listed.span.read()
    if hashlib.sha256(data).hexdigest()[: len(listed.uid)] != listed.uid:
        raise DataError(f"prepare.source: '{listed.name}' changed while prepare ran, run it again.")
    return data


def _report_lookalikes(out: str, catalog: Catalog, distance: int) -> dict[str, float]:
    """Write `near_duplicates.jsonl`; pairs across splits are the ones that flatter an evaluation."""
    uids, splits, looks = catalog.looks()
    lines, across = [], 0
    for one, other, bits in lookalikes.pairs(looks, distance):
        across += splits[one] != splits[other]
        row = {"uids": [uids[one], uids[other]], "splits": [splits[one], splits[other]], "distance": bits}
        lines.append(json.dumps(row, sort_keys=True) + "\n")
    storage.write_bytes(storage.join(out, "near_duplicates.jsonl"), "".join(sorted(lines)).encode())
    return {"near_duplicates": float(len(lines)), "near_duplicates/across_splits": float(across)}


def _remove_stale(out: str, shards: list[manifest.Shard]) -> None:
    """Shards of an earlier run that had more of them."""
    kept = {shard.path for shard in shards}
    for name in storage.list_names(out):
        if _SHARD.fullmatch(name) and name not in kept:
            storage.delete(storage.join(out, name))
