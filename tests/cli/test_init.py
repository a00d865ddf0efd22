"""`mobileclip init`: what it finds in a folder or table, and a params file that passes the preflight."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.__main__ import main
from mobileclip.config import read_params
from mobileclip.data.survey import survey


def _draw(kind: str, number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20 + number, 30), {"circle": "red", "square": "blue"}[kind]).save(out, "png")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve images in two folders: one without a caption, one that is none, two of the same bytes."""
    source = tmp_path / "images"
    for kind in ("circle", "square"):
        (source / kind).mkdir(parents=True)
        for index in range(6):
            (source / kind / f"{index}.png").write_bytes(_draw(kind, index))
            (source / kind / f"{index}.txt").write_text(f"a red {kind}\nits number is {index}\n")
    (source / "circle" / "5.txt").unlink()
    (source / "circle" / "4.png").write_bytes(b"no image")
    (source / "square" / "1.png").write_bytes((source / "square" / "0.png").read_bytes())
    return source


def test_a_folder_is_counted(folder):
    found = survey(folder, "captions.jsonl")
    assert (found.kind, found.rows, found.bad, found.usable) == ("folder", 12, 2, 10)
    assert found.captions == [2] * 10
    assert found.faults.keys() == {"no caption", "not readable as an image"}
    assert found.faults["not readable as an image"] == ["circle/4.png"]
    assert (found.duplicates, found.folders) == (1, {"circle": 4, "square": 6})


def test_a_table_shows_its_splits_and_fields_with_classes(tmp_path):
    rows = [
        {"image": f"{n}.png", "caption": f"image {n}", "kind": "ab"[n % 2], "uid": n, "split": "train" if n else "test"}
        for n in range(6)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        (tmp_path / row["image"]).write_bytes(_draw("circle", row["uid"]))
    found = survey(tmp_path, "captions.jsonl")
    assert (found.kind, found.usable) == ("table", 6)
    assert found.splits == {"test": 1, "train": 5}
    assert found.classes() == {"kind": 2}


def test_the_file_says_what_was_found_and_is_read_by_a_run(folder, tmp_path, capsys):
    out = tmp_path / "own.yaml"
    assert main(["init", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "10 can be used" in said.err
    assert f"mobileclip run --params {out} --source {folder}" in said.out
    params = read_params(out)
    assert params.prepare.validation_share == 0.2
    assert 2 / 12 <= params.prepare.max_bad_share < 0.2
    assert not params.caption.enabled
    assert params.distill.training.batch_size == 2
    head = [line for line in out.read_text().splitlines() if line.startswith("#")]
    assert any("12 images" in line for line in head)
    assert main(["init", str(folder), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["init", str(folder), "--out", str(out), "--force", "--gpu"]) == 0
    assert read_params(out).distill.model == "MobileCLIP2-S0"


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main(["init", str(tmp_path / "none"), "--out", str(tmp_path / "o.yaml")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "o.yaml").exists()
