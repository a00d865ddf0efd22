"""The commands search, classify and embed, as typed."""

import csv
import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from mobileclip.__main__ import main
from tests.evaluation import chromium
from tests.exports import exported
from tests.search.photos import fill


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return folder, fill(folder)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_search(capsys, photos, tmp_path):
    folder, names = photos
    arguments = ("search", exported().bundle, folder, "собака на траве", "--index", tmp_path, "--top", 5)
    code, out, err = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["query"] == "собака на траве"
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
    assert {hit["image"] for hit in found["hits"]} <= set(names)
    assert list(found["broken"]) == ["broken.jpg", "empty.png"]
    assert found["update"]["embedded"] == 9
    assert "2 files could not be read:\n  broken.jpg: image: cannot be decoded:" in err
    code, out, err = run(capsys, *arguments)
    assert "index: 0 embedded, 12 known, 0 removed" in err
    assert [hit["image"] for hit in found["hits"]] == re.findall(r"\d\s+-?0\.\d+\s+(.+?)\s*\n", out)
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 5
    assert "<h1>собака на траве</h1>" in page
    assert [html.unescape(name) for name in re.findall('alt="(.+?)"', page)] == [h["image"] for h in found["hits"]]


def test_search_by_example(capsys, photos, tmp_path):
    folder, _ = photos
    code, out, _ = run(
        capsys, "search", exported().bundle, folder, "--like", folder / "01.png", "--index", tmp_path, "--json"
    )
    assert code == 0
    assert json.loads(out)["hits"][0]["image"] == "01.png"


def test_a_bundle_is_searched_without_torch(photos, tmp_path):
    code = (
        "import sys; from mobileclip.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "heavy = {'torch', 'open_clip', 'timm', 'matplotlib', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, "search", exported().bundle, photos[0], "a dog", "--index", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_classify(capsys, photos, tmp_path):
    folder, names = photos
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffred, dark\r\nblau\r\n\r\n緑\r\n".encode())
    written = {}
    for out in ("a.csv", "a.json", "a.jsonl"):
        code, text, _ = run(
            capsys, "classify", exported().bundle, folder, "--labels", labels, "--out", tmp_path / out,
            "--index", tmp_path, "--json",
        )  # fmt: skip
        assert code == 0
        written[out] = (tmp_path / out).read_text(encoding="utf-8")
    rows = json.loads(text)["images"]
    assert [row["image"] for row in rows] == names
    assert all(list(row["probabilities"]) == ["red, dark", "blau", "緑"] for row in rows)
    assert all(row["probability"] == max(row["probabilities"].values()) for row in rows)
    assert json.loads(written["a.json"]) == rows == [json.loads(line) for line in written["a.jsonl"].splitlines()]
    table = list(csv.DictReader(written["a.csv"].splitlines()))
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    assert set(table[0]) == {"image", "label", "probability", "red, dark", "blau", "緑"}
    page = (tmp_path / "classify.html").read_text(encoding="utf-8")
    assert page.count("<img ") == len(names)
    code, text, _ = run(capsys, "classify", exported().bundle, folder, "--labels", "red,blue", "--index", tmp_path)
    assert re.search(r"red\s+\d+", text)
    assert re.search(r"blue\s+\d+", text)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embed(capsys, photos, tmp_path, ending):
    folder, names = photos
    out = tmp_path / f"x.{ending}"
    code, _, _ = run(capsys, "embed", exported().bundle, folder, "--out", out, "--index", tmp_path)
    assert code == 0
    if ending == "npz":
        found = np.load(out, allow_pickle=False)
        got, rows, digests = found["paths"].tolist(), found["embeddings"], found["sha256"].tolist()
    else:
        from pyarrow import parquet

        table = parquet.read_table(out)
        got, digests = table["path"].to_pylist(), table["sha256"].to_pylist()
        rows = np.array(table["embedding"].to_pylist(), np.float32)
        assert table.schema.metadata[b"model"] == b"tiny-mci (onnx, float32)"
    assert got == names
    assert rows.shape == (10, 128)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert digests[names.index("00.png")] == digests[names.index("copy of 00.png")]


def test_bad_input_before_work(capsys, photos, tmp_path):
    folder, bundle = photos[0], exported().bundle
    for arguments, sentence in [
        (("search", bundle, folder), "query: got none, want a text."),
        (("search", bundle, folder, "x", "--like", "y.png"), "query: got both a text and --like, want one."),
        (("search", bundle, folder / "00.png", "x"), f"folder: got '{folder}/00.png', want a local folder of images."),
        (("search", bundle, "s3://bucket/x", "x"), "folder: got 's3://bucket/x', want a local folder of images."),
        (
            ("classify", bundle, folder, "--labels", "a,b,a"),
            "labels: got 'a' twice, want each of at least one label once.",
        ),
        (("classify", bundle, folder, "--labels", ","), "labels: got none, want each of at least one label once."),
        (
            ("classify", bundle, folder, "--labels", "a,b", "--out", "x.txt"),
            "out: got 'x.txt', want a file that ends in .csv, .json, .jsonl.",
        ),
        (
            ("classify", bundle, folder, "--labels", "a,b", "--template", "x"),
            "prompt bank: template: got 'x', want a text with {} for the label.",
        ),
        (("embed", bundle, folder, "--out", "x.pkl"), "out: got 'x.pkl', want a file that ends in .parquet or .npz."),
        (("search", bundle, folder, "x", "--top", 0), "top: got 0, want 1 or more."),
        (("search", bundle, folder, "--like", "y.png"), "image: no file 'y.png'."),
    ]:
        code, _, err = run(capsys, *arguments, "--index", tmp_path)
        assert not list(tmp_path.iterdir())
        assert (code, err.splitlines()[-1]) == (2, f"error: {sentence}")


class TestSheet:
    def test_in_a_browser(self, capsys, photos, tmp_path):
        page = tmp_path / "sheet.html"
        run(capsys, "search", exported().bundle, photos[0], "<b>a & b", "--index", tmp_path, "--sheet", page)
        for width in (1280, 390):
            layout = chromium.measure(page, tmp_path, width=width)
            assert layout["scroll"] <= layout["client"], "it scrolls sideways"
            assert (layout["images"], layout["decoded"], layout["scripts"]) == (10, 10, 0)
        pixels, console = chromium.screenshot(page, tmp_path, width=1280, height=900)
        assert console == []
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
        assert chromium.requests(page, tmp_path) == []

    def test_it_names_no_place_of_this_machine(self, capsys, photos, tmp_path):
        run(capsys, "search", exported().bundle, photos[0], "x", "--index", tmp_path)
        text = (tmp_path / "search.html").read_text(encoding="utf-8")
        assert str(photos[0]) not in text
        assert "&lt;i&gt;" in text
        assert "<i>." not in text
