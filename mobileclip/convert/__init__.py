"""The public DataCompDR/DFNDR layout, read into and written from a dataset of shards and columns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobileclip import manifest, storage
from mobileclip.errors import ConfigError


def convert(data: str, *, out: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Write the dataset at `data` as tars, or read the tars at `data` into a dataset.

    Args:
        data: Folder or URI; one with a manifest is written, one without is read.
        out: Output folder or URI, another one.
        options: Fields of `mobileclip.convert.write.Writing` or `mobileclip.convert.reading.Reading`.

    Returns:
        Counts of what was written, or the coverage report of what was read.

    Raises:
        ConfigError: An option is out of its range.
        DataError: Nothing usable is there.
    """
    from mobileclip.convert.read import read_datacompdr
    from mobileclip.convert.reading import Reading
    from mobileclip.convert.write import Writing, write_datacompdr

    if storage.join(data) == storage.join(out):
        raise ConfigError(f"convert.out: got '{out}', want another folder than the input.")
    for key in ("validation_share", "min_coverage"):
        if not 0 <= options.get(key, 0.0) <= 1:
            raise ConfigError(f"convert.{key}: got {options[key]}, want a share from 0 to 1.")
    if options.get("shard_samples", 1) < 1:
        raise ConfigError(f"convert.shard_samples: got {options['shard_samples']}, want at least 1.")
    given = {**options, "with_images": not options.get("without_images", False)}
    if storage.exists(storage.join(data, manifest.FILE_NAME)):
        given["splits"] = tuple(given.get("splits", ("train",)))
        return write_datacompdr(data, out=out, writing=Writing(**_fields(Writing, given)))
    return read_datacompdr(data, out=out, reading=Reading(**_fields(Reading, given)))


def _fields(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}
