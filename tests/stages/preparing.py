"""Folders for prepare, and what it makes of them."""

import json

from mobileclip import manifest
from mobileclip.config import Prepare
from mobileclip.data.shards import read_samples
from mobileclip.stages import prepare
from mobileclip.tracking.protocol import LogTracker
from tests.stages import shapes


def run_prepare(folder, out, **changes):
    """The stage with its defaults, but for `changes`."""
    return prepare.run(Prepare(**changes), out=str(out), tracker=LogTracker(), source=str(folder))


def read_back(out):
    """Every sample of a prepared dataset, by uid."""
    content = manifest.read(str(out))
    return {s.uid: s for s in read_samples(str(out), content, "train", "validation", "test")}


def write_table(folder, rows):
    """A caption table, with a drawn picture for each row that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows):
        name = row.setdefault("image", f"{index}.png")
        if not (folder / name).exists():
            (folder / name).write_bytes(shapes.draw("#%06x" % (index * 4099 % 2**24), "square", 20))
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
