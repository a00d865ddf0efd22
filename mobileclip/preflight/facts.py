"""What a prepared dataset holds, from its manifest and the first samples of each split: enough to check params."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mobileclip import manifest
from mobileclip.data.shards import ShardReader
from mobileclip.manifest import Manifest

_LOOKED_AT = 512
"""Samples per split whose fields are read: a field that none of them has is as good as absent."""


@dataclass(frozen=True)
class Facts:
    """A dataset in numbers.

    Attributes:
        samples: Samples by split.
        captions: By split, how many of the samples looked at have a text in each caption field (a list of texts).
        fields: The same of each plain field.
        classes: By split and plain field, how many values it has among the samples looked at.
        columns: Names of columns.
        teachers: Teachers with stored embeddings.
        bytes: Of all shards.
    """

    samples: Mapping[str, int]
    captions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    bytes: int = 0

    def held_out(self, wanted: str, among: tuple[str, ...]) -> str:
        """As `Manifest.held_out`."""
        return next((s for s in among if self.samples.get(s)), among[0]) if wanted == "auto" else wanted


def read_facts(data: str) -> Facts:
    """Look at a dataset.

    Args:
        data: Folder or URI with a manifest.

    Raises:
        DataError: There is no manifest, or a shard cannot be read.
    """
    content = manifest.read(data)
    samples: Counter[str] = Counter()
    for shard in content.shards:
        samples[shard.split] += shard.samples
    captions: dict[str, Counter[str]] = {}
    fields: dict[str, Counter[str]] = {}
    values: dict[str, dict[str, set[str]]] = {}
    for split in samples:
        captions[split], fields[split], values[split] = Counter(), Counter(), {}
        for metadata in islice(_metadata(data, content, split), _LOOKED_AT):
            for name, value in metadata.items():
                if isinstance(value, list):
                    captions[split][name] += any(isinstance(text, str) and text.strip() for text in value)
                elif value not in (None, ""):
                    fields[split][name] += 1
                    values[split].setdefault(name, set()).add(str(value))
    return Facts(
        dict(samples), captions, fields, {s: {n: len(v) for n, v in found.items()} for s, found in values.items()},
        tuple(column.name for column in content.columns), tuple(content.teachers()),
        sum(shard.bytes for shard in content.shards),
    )  # fmt: skip


def _metadata(data: str, content: Manifest, split: str) -> Iterator[Mapping[str, Any]]:
    for shard in content.split(split):
        reader = ShardReader(data, shard)
        for index in range(len(reader)):
            yield reader.sample(index).metadata
