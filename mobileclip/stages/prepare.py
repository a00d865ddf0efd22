"""prepare: a user's pictures and captions become checked webdataset shards with a manifest."""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mobileclip import manifest, storage
from mobileclip.config import Prepare
from mobileclip.data import images, sources
from mobileclip.data.shards import IMAGE_EXTENSIONS, Sample, write_shard
from mobileclip.errors import DataError
from mobileclip.report import Tracker

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_DUPLICATE = "same bytes as"


def run(config: Prepare, *, out: str, tracker: Tracker, source: str) -> dict[str, float]:  # noqa: ARG001
    """Write shards per split, `manifest.json` and `quarantine.jsonl`.

    Args:
        config: The `prepare` section.
        out: Output folder or URI.
        tracker: Unused: the metrics are the return value.
        source: Folder with a caption table, pictures with `.txt`, or webdataset tars.

    Returns:
        Counts per split, of quarantined samples and of exact duplicates.

    Raises:
        DataError: Nothing usable is there, or more than `max_bad_share` of the samples is bad.
    """
    root = Path(source)
    kind = sources.detect(root, config.table) if config.source == "auto" else config.source
    rejected: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    by_split: dict[str, list[tuple[Sample, str]]] = defaultdict(list)
    licenses: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for raw in tqdm(sources.read(root, kind, config.table), desc="prepare", unit="sample", disable=None):
        counts["read"] += 1
        checked = _check(raw, config)
        if isinstance(checked, str):
            rejected.append({"sample": raw.name, "reason": checked})
            continue
        if checked.uid in seen:
            counts["duplicates"] += 1
            rejected.append({"sample": raw.name, "reason": f"{_DUPLICATE} {seen[checked.uid]}"})
            continue
        seen[checked.uid] = raw.name
        licenses[str(checked.metadata["license"])] += 1
        by_split[checked.metadata["split"]].append((checked, raw.extension))
    bad = len(rejected) - counts["duplicates"]
    _check_counts(counts["read"], bad, rejected, config, source)
    shards = [shard for split in SPLITS for shard in _write_split(out, split, by_split[split], config.shard_samples)]
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rejected)
    storage.write_bytes(storage.join(out, "quarantine.jsonl"), lines.encode())
    origins = [manifest.Source(name="pictures and captions", license=k, samples=n) for k, n in sorted(licenses.items())]
    manifest.write(out, manifest.Manifest(shards=shards, sources=origins, quarantined=bad))
    return {
        **{f"samples/{split}": float(len(by_split[split])) for split in SPLITS},
        "shards": float(len(shards)),
        "quarantined": float(bad),
        "duplicates": float(counts["duplicates"]),
    }


def _check(raw: sources.Raw, config: Prepare) -> Sample | str:
    """The sample as it will be stored, or the reason to quarantine it."""
    if raw.extension not in IMAGE_EXTENSIONS:
        return f"no picture ({', '.join(IMAGE_EXTENSIONS)})"
    if not raw.image:
        return "picture file is missing or empty"
    captions = [" ".join(str(c).split()) for c in raw.fields["captions"]]
    captions = [c for c in captions if c]
    if not captions:
        return "no caption"
    try:
        width, height = images.decode(raw.image, max_pixels=config.max_pixels).size
    except DataError as error:
        return str(error)
    uid = hashlib.sha256(raw.image).hexdigest()[:24]
    metadata: dict[str, Any] = {**raw.fields, "captions": captions, "width": width, "height": height}
    metadata["license"] = metadata.get("license") or config.license
    group = metadata.get(config.group_field)
    split = metadata.get("split") or _draw_split(str(uid if group is None else group), config)
    if split not in SPLITS:
        return f"split is '{split}', want one of {', '.join(SPLITS)}"
    metadata["split"] = split
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "a text is no valid Unicode"
    return Sample(uid, raw.image, metadata)


def _draw_split(group: str, config: Prepare) -> str:
    """The same group always falls into the same split, whatever else is in the data."""
    share = int.from_bytes(hashlib.sha256(f"split|{group}".encode()).digest()[:8], "big") / 2**64
    return "validation" if share < config.validation_share else "train"


def _check_counts(read: int, bad: int, rejected: list[dict[str, str]], config: Prepare, source: str) -> None:
    if read == 0:
        raise DataError(f"prepare.source: '{source}' holds no samples.")
    if bad / read > config.max_bad_share:
        first = next(row for row in rejected if not row["reason"].startswith(_DUPLICATE))
        raise DataError(
            f"prepare.max_bad_share: {bad} of {read} samples are bad (want at most {config.max_bad_share:.2%}), "
            f"the first is '{first['sample']}': {first['reason']}."
        )


def _write_split(out: str, split: str, samples: list[tuple[Sample, str]], size: int) -> Iterator[manifest.Shard]:
    # Sorting by uid (a hash of the picture) shuffles every source evenly and does not depend on the input's order.
    ordered = sorted(samples, key=lambda pair: pair[0].uid)
    for index in range(0, len(ordered), size):
        yield write_shard(out, f"{split}-{index // size:05d}", split, ordered[index : index + size])
