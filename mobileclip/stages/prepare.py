"""prepare: a user's pictures and captions become checked webdataset shards with a manifest."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mobileclip import manifest, storage
from mobileclip.config import Prepare
from mobileclip.data import lookalikes, sources
from mobileclip.data.catalog import Catalog, Listed
from mobileclip.data.check import SPLITS, Check, broken, cause
from mobileclip.data.license_ledger import Ledger
from mobileclip.data.progress import progress_bar
from mobileclip.data.scratch import remove_partial, scratch
from mobileclip.data.shards import Sample, write_shard
from mobileclip.data.zips import unzipped
from mobileclip.errors import DataError
from mobileclip.tracking.protocol import Tracker

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
_DUPLICATE = "same bytes as"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d+\.(tar|index)")


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
    with scratch(out) as folder:
        options = sources.Options(
            scratch=folder, table=config.table, image_folder=config.image_folder, columns=config.columns,
            follow_links=config.follow_links, max_inflation=config.max_inflation, label_prompt=config.label_prompt,
        )  # fmt: skip
        root = unzipped(root, folder, max_inflation=config.max_inflation, follow_links=config.follow_links)
        kind = sources.detect(root, options) if config.source == "auto" else config.source
        if kind != "datacompdr":
            return _shards(config, out, root, source, sources.read(root, kind, options), folder)
    return _convert(config, out, root)


def _shards(
    config: Prepare, out: str, root: Path, source: str, rows: Iterator[sources.Raw], folder: Path
) -> dict[str, float]:
    ledger = Ledger(root)
    catalog = Catalog(folder)
    check = Check(config, folder)
    counts: Counter[str] = Counter()
    try:
        _check_all(rows, catalog, config, check, counts)
        _check_counts(counts, catalog, config, source, out)
    except DataError:
        if catalog.rejected_any():
            _write_quarantine(out, catalog)
        raise
    storage.delete(storage.join(out, manifest.FILE_NAME))  # an older one would vouch for shards replaced below
    shards = [shard for split in SPLITS for shard in _write_split(out, split, catalog, config, ledger)]
    _write_quarantine(out, catalog)
    metrics = {f"samples/{split}": float(catalog.count(split)) for split in SPLITS}
    metrics |= {
        "shards": float(len(shards)),
        "quarantined": float(counts["bad"]),
        "duplicates": float(counts["duplicates"]),
    }
    metrics |= _tell(counts, catalog, check)
    if config.duplicates == "merge":
        metrics["merged_captions"] = float(counts["merged_captions"])
    if config.near_duplicates:
        metrics |= _report_lookalikes(out, catalog, config.near_distance)
    catalog.close()
    _remove_stale(out, shards)
    manifest.write(out, manifest.Manifest(shards=shards, sources=ledger.sources(), quarantined=counts["bad"]))
    return metrics


def _tell(counts: Counter[str], catalog: Catalog, check: Check) -> dict[str, float]:
    """What came in and what was kept, so that nothing is lost without a number."""
    kept, captions, translations = catalog.totals()
    told = {
        "images/seen": counts["read"] + counts["unlisted"],
        "images/kept": kept,
        "images/unlisted": counts["unlisted"],
        "images/outside": counts["outside"],
        "captions/kept": captions,
        "captions/per_image": captions / kept if kept else 0.0,
        "captions/translations": translations,
        "captions/empty": check.empty,
        "fields/left_out": len(check.left_out),
        "rows_joined": counts["joined"],
        **{name: count for name, count in sorted(counts.items()) if name.startswith("quarantined/")},
    }
    logger.info(
        "prepare: %d of %d images kept, %d quarantined, %d duplicates; %d captions (%.2f an image), %d translations.",
        kept, told["images/seen"], counts["bad"], counts["duplicates"], captions, told["captions/per_image"],
        translations,
    )  # fmt: skip
    return {name: float(count) for name, count in told.items()}


def _write_quarantine(out: str, catalog: Catalog) -> None:
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in catalog.rejected())
    storage.write_bytes(storage.join(out, QUARANTINE), lines.encode())


def _convert(config: Prepare, out: str, root: Path) -> dict[str, float]:
    """DataCompDR tars become shards and columns; rows without a picture are counted, damaged ones limited."""
    # Here alone: it brings torchvision's operations, which take seconds to load.
    from mobileclip.convert.read import read_datacompdr
    from mobileclip.convert.reading import Reading

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


def _check_all(
    rows: Iterator[sources.Raw], catalog: Catalog, config: Prepare, check: Check, counts: Counter[str]
) -> None:
    """First pass: every sample is checked and listed, or rejected with its reason."""
    for raw in progress_bar(rows, desc="check", unit="sample"):
        if raw.unlisted:
            counts["unlisted"] += 1
            catalog.reject(raw.name, raw.fault)
            continue
        counts["outside"] += raw.outside
        if _join(raw, catalog, check):
            counts["joined"] += 1
            continue
        counts["read"] += 1
        checked = check(raw)
        if isinstance(checked, str):
            counts["bad"] += 1
            counts[f"quarantined/{cause(checked)}"] += 1
            catalog.reject(raw.name, checked)
            continue
        if raw.span is not None:
            catalog.place(raw.span, checked.uid, str(raw.fields.get("split") or ""))
        earlier = catalog.add(checked)
        if earlier:
            counts["duplicates"] += 1
            catalog.reject(raw.name, f"{_DUPLICATE} {earlier}")
            if config.duplicates == "merge":
                counts["merged_captions"] += catalog.add_captions(checked.uid, checked.metadata["captions"])


def _join(raw: sources.Raw, catalog: Catalog, check: Check) -> bool:
    """Give the captions of a further row of one image to the sample of the first; tables have one row a caption."""
    if raw.span is None or raw.fault:
        return False
    found = catalog.find(raw.span, str(raw.fields.get("split") or ""))
    captions = check.captions(raw) if found else []
    if not captions or any(map(broken, captions)):
        return False
    check.empty += len(raw.fields["captions"]) - len(captions)
    catalog.add_captions(found, captions)
    return True


def _check_counts(counts: Counter[str], catalog: Catalog, config: Prepare, source: str, out: str) -> None:
    read, bad = counts["read"], counts["bad"]
    if read == 0:
        raise DataError(f"prepare.source: '{source}' holds no samples.")
    if bad / read > config.max_bad_share:
        told = (_DUPLICATE, "no table names it")
        first = next(row for row in catalog.rejected() if not row["reason"].startswith(told))
        name = ascii(first["sample"])[1:-1]
        raise DataError(
            f"prepare.max_bad_share: {bad} of {read} samples are bad (want at most {config.max_bad_share:.2%}), "
            f"the first is '{name}': {first['reason'].rstrip('.')}; all are in '{storage.join(out, QUARANTINE)}'."
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
    kept = {path for shard in shards for path in (shard.path, shard.index_path)}
    for name in storage.list_names(out):
        if _SHARD.fullmatch(name) and name not in kept:
            storage.delete(storage.join(out, name))
