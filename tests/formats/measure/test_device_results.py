"""Results from phones: the tools' logs become measurements, foreign and damaged files are refused."""

import json

import pytest

from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.contract import Program
from mobileclip.formats.measure import device_results
from mobileclip.formats.measure.device_results import Device

DIGEST = "ab" * 32
DEVICE = Device(name="Pixel 9", system="Android 16", chip="Tensor G4", state="charger, 31 C")
# Lines as the tools print them: microseconds at LiteRT's, milliseconds at ExecuTorch's.
LITERT = """INFO: Initialized session in 12.75ms.
INFO: count=37 first=14744 curr=15520 min=13164 max=18295 avg=13764.3 std=967 p5=13200 median=13700 p95=15100
INFO: count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470 p5=13150 median=13400 p95=14900
INFO: Inference timings in us: Init: 12750, First inference: 14744, Warmup (avg): 13764.3, Inference (avg): 13520.2
INFO: Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""
OLD_LITERT = LITERT.replace(" p5=13150 median=13400 p95=14900", "").replace("Memory footprint", "Nothing")
EXECUTORCH = "I 00:00:00.1 executor_runner.cpp:500] Model loaded in 21.500000 ms.\n" + "".join(
    f"I 00:00:00.2 executor_runner.cpp:600] Iteration {i} of 20: {90.0 if i == 1 else 10.0 + i / 10:f} ms\n"
    for i in range(1, 21)
) + "I 00:00:00.3 executor_runner.cpp:610] Model executed successfully 20 time(s) in 310.9 ms.\n"  # fmt: skip


@pytest.fixture(scope="module")
def program():
    given = {"name": "image", "dtype": "float32", "shape": [1, 3, 64, 64], "minimum": 0, "maximum": 1}
    features = {"name": "image_features", "dtype": "float32", "shape": [1, 128], "minimum": -1, "maximum": 1}
    return Program(
        path="image.float16.tflite", bytes=1, sha256=DIGEST, tower="image", format="litert", precision="float16",
        input=given, output=features, budget=0.03, executed=True, figures={},
    )  # fmt: skip


def test_litert(program):
    got = device_results.measure(LITERT, program, tool="litert", backend="xnnpack", threads=4)
    assert (got.runs, got.p50_ms, got.p95_ms, got.mean_ms) == (74, 13.4, 14.9, 13.5202)
    assert (got.first_ms, got.load_ms, got.memory_mb, got.threads) == (14.744, 12.75, 18.7227, 4)
    assert not got.median_is_mean
    old = device_results.measure(OLD_LITERT, program, tool="litert", backend="xnnpack")
    assert (old.p50_ms, old.p95_ms, old.memory_mb, old.median_is_mean) == (13.5202, 0, 0, True)


def test_programs_of_many_rows_count_by_the_row(program):
    given, result = (
        spec.model_copy(update={"shape": [4, *spec.shape[1:]]}) for spec in (program.input, program.output)
    )
    four = program.model_copy(update={"input": given, "output": result})
    measured = device_results.measure(LITERT, four, tool="litert", backend="gpu")
    assert (measured.batch, measured.p50_ms) == (4, 13.4)
    assert device_results.merge(DEVICE, "cd" * 32, [measured]).points("image")[0]["ms"] == 13.4 / 4
    given, result = (
        spec.model_copy(update={"shape": ["batch", *spec.shape[1:]]}) for spec in (program.input, program.output)
    )
    any_rows = program.model_copy(update={"input": given, "output": result})
    assert device_results.measure(LITERT, any_rows, tool="litert", backend="gpu").batch == 1


def test_executorch(program):
    got = device_results.measure(EXECUTORCH, program, tool="executorch", backend="xnnpack")
    assert got.runs == 17  # the first tenth and one more are its warm-up
    assert got.p50_ms == pytest.approx(11.2)
    assert (got.first_ms, got.load_ms) == (90, 21.5)
    total = "Model executed successfully 4 time(s) in 40.000000 ms."
    old = device_results.measure(total, program, tool="executorch", backend="xnnpack")
    assert (old.p50_ms, old.runs, old.median_is_mean) == (10, 4, True)


@pytest.mark.parametrize("tool", ["litert", "executorch"])
@pytest.mark.parametrize("log", ["", "ERROR: Failed to load model", LITERT[:100]])
def test_failed_runs(program, tool, log):
    with pytest.raises(DataError, match=r"log of 'image\.float16\.tflite' holds no times"):
        device_results.measure(log, program, tool=tool, backend="cpu")


@pytest.fixture
def results(program, tmp_path):
    measured = [
        device_results.measure(LITERT, program, tool="litert", backend=name, threads=n)
        for name, n in [("xnnpack", 1), ("xnnpack", 4), ("gpu", 1)]
    ]
    found = device_results.merge(DEVICE, "cd" * 32, measured)
    (tmp_path / "pixel.device.json").write_bytes(found.to_bytes())
    return found, tmp_path


def test_round_trip_and_points(results):
    found, folder = results
    assert device_results.read(folder) == device_results.read(folder / "pixel.device.json") == [found]
    points = found.points("image")
    assert [(p["label"], p["threads"], p["ms"]) for p in points][2] == ("Pixel 9, gpu", 1, 13.4)
    assert found.points("text") == []


def test_results_of_another_student_or_program(results, clip, program):
    from mobileclip.formats import contract_writer as terms  # the kit's test takes this module's logs without torch

    found, folder = results
    agreed = terms.agree(clip, [program], [], dataset_sha256="d" * 64)
    own = agreed.model_copy(update={"lineage": agreed.lineage.model_copy(update={"student_sha256": "cd" * 32})})
    assert device_results.read(folder, contract=own) == [found]
    with pytest.raises(DataError, match="is of student cdcdcdcdcdcd"):
        device_results.read(folder, contract=agreed)
    other = own.model_copy(update={"programs": [program.model_copy(update={"sha256": "ef" * 32})]})
    with pytest.raises(IntegrityError, match="that is another file"):
        device_results.read(folder, contract=other)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"schema_version": 9}, "schema_version"),
        ({"measurements": []}, "measurements"),
        ({"student_sha256": "x"}, "student_sha256"),
        ({"notes": "extra"}, "notes"),
    ],
)
def test_damaged_files(results, edit, sentence):
    _, folder = results
    path = folder / "pixel.device.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(IntegrityError, match=rf"'pixel\.device\.json': {sentence}"):
        device_results.read(folder)


def test_measured_twice(results):
    found, folder = results
    with pytest.raises(DataError, match=r"image\.float16\.tflite on xnnpack is measured twice"):
        device_results.merge(DEVICE, DIGEST, [found.measurements[0], found.measurements[0]])
    with pytest.raises(DataError, match="nothing at"):
        device_results.read(folder / "nowhere")


def test_schema_is_the_committed_one():
    """The harnesses in other languages write against this file."""
    from pathlib import Path

    committed = Path(__file__).parents[3] / "examples" / "on-device" / "device-results.schema.json"
    assert committed.read_bytes() == device_results.schema()
