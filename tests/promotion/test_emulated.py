"""Where a program was emulated, what tells of its proof says so: its own runtime has never run it."""

from types import SimpleNamespace

from mobileclip.promotion import model_card
from mobileclip.reports import release as release_report


def _contract():
    common = {"tower": "image", "precision": "float16", "bytes": 2**20, "budget": 0.03, "figures": {"error": 0.01}}
    paths = {"image.float16.onnx": True, "image.float16.coreml.pte": False}
    return {"programs": [{**common, "path": path, "executed": executed} for path, executed in paths.items()]}


def test_model_card():
    rows = [line for line in model_card._programs(_contract()).splitlines() if "float16" in line]
    assert [row.split("|")[-2].strip() for row in rows] == ["executed", "emulated"]


def test_release_report():
    release = SimpleNamespace(evidence=SimpleNamespace(contract=_contract()), timings={})
    _, executed, emulated = str(release_report._programs(release)).split('<th scope="row">')
    assert "(emulated)" not in executed
    assert "(emulated)" in emulated
