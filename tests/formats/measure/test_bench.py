"""`mobileclip bench-latency`: students, formats and precisions in one table."""

import json

import pytest

from mobileclip import __main__ as cli
from mobileclip.errors import ConfigError
from mobileclip.formats.measure import bench


def test_one_table_for_all(tmp_path, capsys):
    out = tmp_path / "rows.json"
    command = ["bench-latency", "tiny-mci", "--precisions", "float32", "int8", "--threads", "1", "--rounds", "3"]
    assert cli.main([*command, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [(r["tower"], r["format"], r["precision"]) for r in rows] == [
        ("image", "pytorch", "float32"), ("image", "onnx", "float32"),
        ("text", "pytorch", "float32"), ("text", "onnx", "float32"), ("text", "onnx", "int8"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert (row["ratio"] == 1) if row["format"] == "pytorch" else (row["bytes"] > 1000 and row["load_ms"] > 0)
    assert [
        row["ratio_onnx"] for row in rows if (row["format"], row["precision"]) == ("onnx", "float32")
    ] == pytest.approx([1, 1], rel=0.01)
    assert "tiny-mci" in capsys.readouterr().out


def test_precision_of_one_tower(capsys):
    assert cli.main(["bench-latency", "tiny-mci", "--precisions", "int8", "--threads", "1", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "text" in said
    assert "image" not in said


def test_emulated_formats_have_no_latency():
    with pytest.raises(ConfigError, match="can be executed on this machine"):
        bench.compare(["tiny-mci"], formats=["coreml"], precisions=["float16"], threads=[1], rounds=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--formats", "tflow"], "formats.0: got 'tflow'"),
        (["--precisions", "int3"], "precisions.0: got 'int3'"),
        (["--threads", "2", "0"], "--threads: got 0, want at least 1"),
        (["--rounds", "-5"], "--rounds: got -5, want at least 1"),
    ],
)
def test_wrong_options(options, sentence, capsys):
    assert cli.main(["bench-latency", "tiny-mci", *options]) == 2
    assert sentence in capsys.readouterr().err
