"""What a run no longer needs: named with its size, deleted only on request, and never what a manifest still lists."""

import json
import shutil
from pathlib import Path

import pytest

from mobileclip import manifest, storage
from mobileclip.__main__ import main
from mobileclip.lineage.leftovers import leftovers, sizes


@pytest.fixture
def root(tmp_path, tiny_reinforced) -> Path:
    """A root whose stage `reinforce` is a finished dataset, and `distill` an unfinished one."""
    place = tmp_path / "run"
    shutil.copytree(tiny_reinforced, place / "reinforce")
    content = manifest.read(tiny_reinforced)
    shards = {shard.path: storage.join(tiny_reinforced, shard.path) for shard in content.shards}
    (place / "prepare").mkdir()
    moved = []
    for shard in content.shards:
        shutil.copy(shards[shard.path], place / "prepare" / f"{shard.name}.tar")
        moved.append(shard.model_copy(update={"path": f"../prepare/{shard.name}.tar"}))
    columns = []
    for column in content.columns:
        parts = {}
        for name, part in column.parts.items():
            target = place / "reinforce" / column.name / Path(part.path).name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(storage.join(tiny_reinforced, part.path), target) if not target.exists() else None
            parts[name] = part.model_copy(update={"path": f"{column.name}/{target.name}"})
        columns.append(column.model_copy(update={"parts": parts}))
    manifest.write(str(place / "reinforce"), content.model_copy(update={"shards": moved, "columns": columns}))
    for stage in ("prepare", "reinforce"):
        (place / stage / "record.json").write_text("{}")
    (place / "distill" / "student" / "checkpoint").mkdir(parents=True)
    (place / "distill" / "student" / "checkpoint" / "model.safetensors").write_bytes(b"x" * 10)
    return place


def _leave(root: Path) -> set[str]:
    """Leftovers of every kind; their paths below the root."""
    column = next((root / "reinforce").glob("*/*.safetensors"))
    digest = column.stem.rpartition("-")[2]
    old = column.with_name(column.name.replace(digest, "0" * 16))
    old.write_bytes(b"y" * 100)
    commit = old.with_name("train-00000." + "1" * 16 + ".json")
    commit.write_text(
        json.dumps({"path": f"{column.parent.name}/{old.name}", "bytes": 100, "sha256": "", "samples": 1})
    )
    (root / "prepare" / "train-00099.tar").write_bytes(b"z")
    (root / "reinforce" / "timings-00003.json").write_text("{}")
    (root / "reinforce" / "half.tmp").write_bytes(b"h")
    (root / "reinforce" / "own" / "checkpoint").mkdir(parents=True)
    (root / "reinforce" / "own" / "checkpoint" / "state.json").write_text("{}")
    names = {old, commit, root / "prepare" / "train-00099.tar"}
    names |= {root / "reinforce" / name for name in ("timings-00003.json", "half.tmp", "own/checkpoint/state.json")}
    return {name.relative_to(root).as_posix() for name in names}


def test_a_run_that_is_whole_has_none(root):
    assert leftovers(str(root)) == []


def test_every_kind_is_named_and_what_is_unfinished_stays(root):
    wanted = _leave(root)
    found = {item.path: item for item in leftovers(str(root))}
    assert set(found) == wanted
    assert all(item.bytes == (root / path).stat().st_size for path, item in found.items())
    assert len({item.why for item in found.values()}) == 6


def test_nothing_is_deleted_unless_asked_and_the_dataset_stays_whole(root, capsys):
    wanted = _leave(root)
    before = sizes(str(root))
    assert main(["gc", str(root)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in wanted)
    assert sizes(str(root)) == before
    assert main(["gc", str(root), "--delete", "--json"]) == 0
    assert {row["path"] for row in json.loads(capsys.readouterr().out)} == wanted
    assert not any((root / name).exists() for name in wanted)
    assert leftovers(str(root)) == []
    content = manifest.read(str(root / "reinforce"))
    for part in [*content.shards, *(part for column in content.columns for part in column.parts.values())]:
        storage.read_bytes(root / "reinforce" / part.path, sha256=part.sha256)  # refuses what is gone or damaged
    assert (root / "distill" / "student" / "checkpoint" / "model.safetensors").exists()
    assert sizes(str(root))["distill"] == 10
