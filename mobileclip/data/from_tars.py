"""webdataset tars and what img2dataset writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.data import texts
from mobileclip.data.from_folders import read_json
from mobileclip.data.raw import Options, Raw
from mobileclip.data.render import IMAGES
from mobileclip.data.tars import Entry, UnusableTarError, find_tars, scan
from mobileclip.errors import DataError
from mobileclip.storage.walk import check_link


def read_tars(source: Path, options: Options) -> Iterator[Raw]:
    """Samples of all tars in the order of their names; a tar that is a bomb or a link out is one fault.

    Raises:
        DataError: A tar is cut or damaged, or a shard that img2dataset wrote is missing.
    """
    tars = find_tars(str(source))
    _check_complete(source, {name for name, _ in tars})
    for name, path in tars:
        fault = check_link(source, Path(path), follow_links=options.follow_links) if source.is_dir() else ""
        if fault:
            yield Raw(name, "tar", None, {"captions": []}, f"the tar {fault}")
            continue
        entries = scan(
            Path(path), name=name, where="prepare.source", scratch=options.scratch, images=IMAGES,
            max_inflation=options.max_inflation,
        )  # fmt: skip
        try:
            for entry in entries:
                yield from from_entry(f"{name}:{entry.key}", entry)
        except UnusableTarError as error:
            yield Raw(name, "tar", None, {"captions": []}, str(error))


def _check_complete(source: Path, tars: set[str]) -> None:
    """img2dataset leaves a .parquet and a _stats.json for each shard: one without its tar was lost on the way."""
    if not source.is_dir():
        return
    for path in sorted([*source.rglob("*.parquet"), *source.rglob("*_stats.json")]):
        tar = path.with_name(path.name.removesuffix("_stats.json").removesuffix(".parquet") + ".tar")
        if tars and tar.stem.isdigit() and tar.relative_to(source).as_posix() not in tars:
            raise DataError(f"prepare.source: '{tar.name}' is missing, but its '{path.name}' is there.")


def from_entry(name: str, entry: Entry) -> Iterator[Raw]:
    """Samples of a tar's key: one for each of its images, as in a folder.

    Members that belong to no image and no caption (a note, say) are none.
    """
    images = [e for e in entry.members if e in IMAGES]
    if not images and not entry.members.keys() & {"txt", "json"} and not entry.fault:
        return
    fields: dict[str, Any] = {"captions": []}
    fault = ""
    if "json" in entry.members:
        fields, fault = read_json(entry.members["json"].read())
    if not any(caption.strip() for caption in fields["captions"]) and "txt" in entry.members:
        plain, translated = texts.captions(texts.decode(entry.members["txt"].read()))
        fields["captions"] = plain
        if translated:
            fields["translations"] = translated
    # img2dataset records what became of each link; some writers keep failed ones in the tar.
    if fields.get("status", "success") not in {"success", None}:
        reason = " ".join(str(fields.get("error_message") or fields["status"]).split())
        fault = fault or f"its download failed: {reason}"
    fields["key"] = entry.key.rpartition("/")[2]
    for extension in images or ["none"]:
        shown = f"{name}.{extension}" if len(images) > 1 else name
        yield Raw(shown, extension, entry.members.get(extension), dict(fields), entry.fault or fault)
