"""A tiny real chain, made once per session: drawn pictures, prepared shards, captions, teachers, reinforced dataset.

Heavy imports stand within the fixtures: tests that need no torch start without it.
"""

import json
import os
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mobileclip.config import Reinforce

# One core is enough for pictures of 64 pixels, and forks of a test process only cost time.
os.environ.setdefault("MOBILECLIP_PROCESSES", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers of pytest-xdist are given a terminal's width; what is piped is as wide as it needs.
os.environ.pop("COLUMNS", None)

SIZES = (24, 40)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Path:
    """A folder of 40 pictures of colored shapes with a caption table that has every field a user may give."""
    from tests.stages import shapes

    folder = tmp_path_factory.mktemp("source")
    rows = []
    for index, (color, shape, size) in enumerate(product(shapes.COLORS, shapes.SHAPES, SIZES)):
        name = f"{color}-{shape}-{size}.png"
        (folder / name).write_bytes(shapes.draw(shapes.COLORS[color], shape, size))
        rows.append(
            {
                "image": name, "captions": [f"a {color} {shape}", f"{shape}, {color}"],
                "descriptions": [f"a drawing of a {color} {shape} on white"] * (index % 3 > 0),
                "group": color, "subgroup": shape, "seen": shape != "cross", "license": "CC0-1.0",
                "split": ("validation", "test")[size == SIZES[1]] if color == "black" else "train",
            }
        )  # fmt: skip
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_source, tmp_path_factory) -> str:
    """What prepare makes of it: two training shards of 16 samples, 4 for validation, 4 to test."""
    from mobileclip.config import Prepare
    from mobileclip.stages import prepare
    from mobileclip.tracking.protocol import LogTracker

    out = str(tmp_path_factory.mktemp("prepare"))
    prepare.run(Prepare(shard_samples=16), out=out, tracker=LogTracker(), source=str(tiny_source))
    return out


@pytest.fixture(scope="session")
def tiny_captioned(tiny_data, tmp_path_factory) -> str:
    """The same with a caption column `coca` of two captions per picture, made from the table."""
    from mobileclip import manifest
    from mobileclip.data.columns import ColumnPlan, build_columns, collect, pack_texts
    from mobileclip.data.shards import ShardReader

    out = str(tmp_path_factory.mktemp("caption"))
    content = manifest.read(tiny_data)
    plan = ColumnPlan("coca", "caption", {"captions": 2}, license="MIT")

    def compute(shard, _missing):
        reader = ShardReader(tiny_data, shard)
        fields = [reader.sample(row).metadata for row in range(len(reader))]
        return {"coca": pack_texts([[f"one {f['subgroup']}", f"{f['group']} thing, no. 2"] for f in fields])}

    shards = content.split("train")
    build_columns(out, [plan], shards, compute)
    manifest.write(out, collect(out, [plan], shards, content.moved(tiny_data, out)))
    return out


@pytest.fixture(scope="session")
def tiny_teachers(tmp_path_factory) -> str:
    """Two teachers of random weights, `first` (tiny-mci) and `second` (tiny-resnet)."""
    from mobileclip.models import zoo
    from tests.models.perturbed import perturbed_clip

    folder = tmp_path_factory.mktemp("teachers")
    for seed, (name, model) in enumerate({"first": "tiny-mci", "second": "tiny-resnet"}.items()):
        zoo.save(str(folder / name), perturbed_clip(model, seed), license=f"LIC-{name}", card={"model": model})
    return str(folder)


@pytest.fixture(scope="session")
def reinforce_config() -> "Reinforce":
    """Three views and the teacher `first`."""
    from mobileclip.config import Reinforce, TeacherRef, Views

    teacher = TeacherRef(name="first", model="trained:first")
    return Reinforce(views=Views(num_views=3), teachers=[teacher], batch_size=16, seed=7)


@pytest.fixture(scope="session")
def tiny_reinforced(tiny_captioned, tiny_teachers, reinforce_config, tmp_path_factory) -> str:
    """The reinforced dataset of one run."""
    from mobileclip.stages import reinforce
    from mobileclip.tracking.protocol import LogTracker

    out = str(tmp_path_factory.mktemp("reinforce"))
    reinforce.run(reinforce_config, out=out, tracker=LogTracker(), data=tiny_captioned, teachers=tiny_teachers)
    return out


# Files that share inputs which take half a minute to make, so that one process makes them once for all.
_TOGETHER = {
    "tests/formats/": "formats",
    "tests/evaluation/": "evaluation",
    "tests/stages/test_evaluate.py": "evaluation",
    "tests/evaluation/test_compare.py": "evaluation",
    "tests/promotion/": "promotion",
    "tests/stages/test_promote.py": "promotion",
    "tests/lineage/": "promotion",
    "tests/tracking/test_runs.py": "promotion",
}


def _together(nodeid: str) -> str:
    file = nodeid.split("::", maxsplit=1)[0]
    return next((name for start, name in _TOGETHER.items() if file.startswith(start)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What stays in one process: a file, or several that share inputs; xdist's own groups miss pytest 9's node ids."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: with two workers they must not start last."""
    shared = set(_TOGETHER.values())
    items.sort(key=lambda i: (i.get_closest_marker("slow") is None, _together(i.nodeid) not in shared))
