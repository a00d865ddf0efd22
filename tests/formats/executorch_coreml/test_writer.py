"""ExecuTorch programs for Core ML: the package inside of each is taken out and evaluated operation by operation."""

import datetime
import json
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from executorch.backends.apple.coreml import executorchcoreml
from executorch.backends.apple.coreml.partition import CoreMLPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.runtime import Runtime
from torch import nn

from mobileclip.config import Export
from mobileclip.errors import DataError, ExportError
from mobileclip.formats import programs
from mobileclip.formats.digests import digest
from mobileclip.formats.executorch_coreml import payload as payloads
from mobileclip.formats.executorch_coreml import writer as executorch_coreml
from mobileclip.formats.executorch_coreml.payload import METADATA, PACKAGE
from mobileclip.formats.export_job import Job, trace
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program
from tests.formats import fixed_batch, mixed
from tests.formats.conftest import ports

pytestmark = pytest.mark.slow

BUDGETS = programs.budgets(Export())
LEAST = {"float32": 0, "float16": 1e-4, "int8_weights": 1e-2}  # rounding leaves a trace
WEIGHTS = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"
DTYPES = {3: "int32", 6: "float32"}  # ExecuTorch's numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("executorch_coreml")


@pytest.fixture(scope="module")
def written(towers, reference, folder):
    section = Export(formats=["executorch_coreml"], precisions=["float32", "float16", "int8_weights"])
    return {program.path: program for program in programs.build(section, towers, reference, folder)}


def _contents(path):
    """The files of a program's payload."""
    program = deserialize_pte_binary(path.read_bytes()).program
    return payloads.unpack(program.backend_delegate_data[0].data)


def test_programs_compute_the_student(written, folder, clip, reference):
    assert set(written) == {f"{t}.{p}.coreml.pte" for t in ("image", "text") for p in LEAST}
    for program in written.values():
        got = load_program(folder / program.path)(reference.inputs(program.tower))
        assert got.shape == (len(reference.uids), clip.embed_dim)
        error = relative_error(got, reference.features(program.tower))
        assert LEAST[program.precision] < error < BUDGETS[program.precision]
        assert program.figures["error"] == pytest.approx(error)
        assert not program.executed


def test_whole_tower_is_one_call_of_the_delegate(written, folder):
    for program in written.values():
        assert (program.figures["delegated"], program.figures["subgraphs"]) == (1, 1)
        (plan,) = deserialize_pte_binary((folder / program.path).read_bytes()).program.execution_plan
        assert [delegate.id for delegate in plan.delegates] == ["CoreMLBackend"]
        assert plan.operators == []
        assert sum(len(chain.instructions) for chain in plan.chains) == 1


def test_interface_is_the_contracts_in_the_real_runtime(written, folder, clip):
    """The runtime says without Core ML what a program takes and gives."""
    inputs = {"image": ((1, 3, 64, 64), "float32"), "text": ((1, clip.tokenizer([""]).shape[1]), "int32")}
    for program in written.values():
        method = Runtime.get().load_program(folder / program.path).metadata("forward")
        assert (method.num_inputs(), method.num_outputs()) == (1, 1)
        given, result = method.input_tensor_meta(0), method.output_tensor_meta(0)
        assert (tuple(given.sizes()), DTYPES[given.dtype()]) == inputs[program.tower]
        assert (tuple(result.sizes()), DTYPES[result.dtype()]) == ((1, clip.embed_dim), "float32")
        encode = load_program(folder / program.path)
        assert (encode.tower, encode.batch, (1, *encode.shape)) == (program.tower, 1, inputs[program.tower][0])


def test_sizes_follow_the_precision(written):
    for tower in ("image", "text"):
        full, half, eighth = (written[f"{tower}.{precision}.coreml.pte"].bytes for precision in LEAST)
        assert half < 0.55 * full
        assert eighth < 0.6 * half  # the token table, too


def test_layers_kept_in_float16_meet_a_budget_that_all_in_int8_miss(
    written, towers, reference, calibration, folder, tmp_path
):  # fmt: skip
    budget = 0.04
    made, layers = mixed.build(
        "executorch_coreml", ["int8_weights"], towers, reference, calibration, tmp_path,
        max_kept=0.9, max_error_int8=budget,
    )  # fmt: skip
    for path, program in made.items():
        assert written[path].kept_in_float == []
        assert written[path].figures["error"] > budget
        base = folder / f"{program.tower}.float16.coreml.pte"
        mixed.check(program, layers[path], tmp_path, towers, base, dtype=np.float16)
        assert all(layer.startswith(("encoder.", "blocks.", "projection/", "token_")) for layer in layers[path])
    assert "token_embedding/gather" in layers["text.int8_weights.coreml.pte"]


def test_same_bytes_again_on_another_day(written, towers, reference, folder, tmp_path, monkeypatch):
    from coremltools.converters import _converters_entry

    monkeypatch.setattr(_converters_entry, "date", SimpleNamespace(today=lambda: datetime.date(2001, 2, 3)))
    for tower in ("image", "text"):
        item = programs.Plan(tower, "executorch_coreml", "int8_weights")
        programs.write(item, Export(), towers, reference=reference, folder=tmp_path, calibrate=lambda: reference)
        assert digest(tmp_path / item.file_name) == digest(folder / item.file_name)


def test_identifier_is_the_packages_own(written, folder):
    """The delegate keeps compiled models by it: the same for two packages, and a phone would run the wrong one."""
    found = [json.loads(_contents(folder / path)[METADATA])["identifier"] for path in written]
    assert len(set(found)) == len(written)
    for identifier in found:
        assert uuid.UUID(identifier.removeprefix("executorch_")).version == 5


def test_payload_is_what_the_delegate_wants_and_no_more(written, folder, tmp_path):
    for index, path in enumerate(written):
        program = deserialize_pte_binary((folder / path).read_bytes()).program
        target = tmp_path / str(index)
        target.mkdir()
        assert executorchcoreml.unflatten_directory_contents(program.backend_delegate_data[0].data, str(target))
        files = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        assert files == _contents(folder / path)
        inside = {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"}
        assert set(files) == {METADATA, *(f"{PACKAGE}/{name}" for name in inside)}
        assert not any(b"site-packages" in content or b"conversion_date" in content for content in files.values())


def _changed(source, target, before, after):
    """A copy of a program in which `before`, which occurs once, is `after`."""
    raw = source.read_bytes()
    assert raw.count(before) == 1
    assert len(before) == len(after)
    target.write_bytes(raw.replace(before, after))
    return target


def test_damaged_weight_changes_the_figure(written, towers, folder, reference, tmp_path):
    """A float32 weight of the student lies in the file as it is; its place there is what is computed with."""
    for tower in ("image", "text"):
        source = folder / f"{tower}.float32.coreml.pte"
        weights = [value.detach() for value in getattr(towers, tower).parameters() if value.numel() >= 4096]
        last = next(
            w.numpy().tobytes() for w in reversed(weights) if source.read_bytes().count(w.numpy().tobytes()) == 1
        )
        got = load_program(_changed(source, tmp_path / source.name, last, bytes(len(last))))(reference.inputs(tower))
        assert relative_error(got, reference.features(tower)) > 100 * BUDGETS["float32"]


def test_damaged_files_are_refused(written, folder, tmp_path):
    source, target = folder / "image.float16.coreml.pte", tmp_path / "image.coreml.pte"
    raw = source.read_bytes()
    for count in (0, 7, 100, 20_000):
        target.write_bytes(raw[:count])
        with pytest.raises(DataError, match=r"'image\.coreml\.pte' is (no readable ExecuTorch program|damaged)"):
            load_program(target)
    with pytest.raises(DataError, match=r"'image\.coreml\.pte' is damaged: the delegate's payload is no folder"):
        load_program(_changed(source, target, b'"sedon"{', b'"sedon"\0'))
    with pytest.raises(DataError, match=r"'image\.coreml\.pte' has no readable 'lowered_module/metadata\.json'"):
        load_program(_changed(source, target, b'"inputNames"', b'"inputMames"'))
    with pytest.raises(DataError, match=r"names \[\['imago'\], .* whose package has \[\['image'\]"):
        load_program(_changed(source, target, b'"inputNames": ["image"]', b'"inputNames": ["imago"]'))
    model = _contents(source)[f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"]
    with pytest.raises(DataError, match=r"'image\.coreml\.pte' is no readable Core ML package"):
        load_program(_changed(source, target, model, b"\xff" * len(model)))


def test_package_of_another_shape_is_refused(written, folder, tmp_path):
    file = deserialize_pte_binary((folder / "image.float32.coreml.pte").read_bytes())
    (plan,) = file.program.execution_plan
    plan.values[plan.inputs[0]].val.sizes = [1, 3, 32, 32]
    path = tmp_path / "image.coreml.pte"
    path.write_bytes(bytes(serialize_pte_binary(file)))
    with pytest.raises(
        DataError, match=r"hands image float32 \[1, 3, 32, 32\] to Core ML .* takes image float32 \[1, 3, 64, 64\]"
    ):
        load_program(path)
    plan.values[plan.inputs[0]].val.sizes = [1, 3, 64]
    path.write_bytes(bytes(serialize_pte_binary(file)))
    with pytest.raises(DataError, match=r"takes image float32 \[1, 3, 64\] .*, want one tower's"):
        load_program(path)
    plan.inputs = [99]
    path.write_bytes(bytes(serialize_pte_binary(file)))
    with pytest.raises(DataError, match=r"'image\.coreml\.pte' is no readable ExecuTorch program: IndexError"):
        load_program(path)


def test_program_for_xnnpack_is_refused(towers, reference, tmp_path):
    item = programs.Plan("image", "executorch", "float32")
    programs.write(item, Export(), towers, reference=reference, folder=tmp_path, calibrate=lambda: reference)
    renamed = (tmp_path / item.file_name).rename(tmp_path / "image.coreml.pte")
    wanted = r"'image\.coreml\.pte' has \d+ steps and calls XnnpackBackend, want one call of CoreMLBackend alone"
    with pytest.raises(DataError, match=wanted):
        load_program(renamed)


class _Outside(nn.Module):
    """A tower with an operation that Core ML has not."""

    def forward(self, image):
        return torch.asinh(image.relu()).mean((2, 3))


def test_tower_that_core_ml_cannot_take_whole_is_refused(reference, tmp_path):
    images, path = torch.from_numpy(reference.pixels), tmp_path / "image.float32.coreml.pte"
    job = Job("image", "float32", _Outside(), images[:2], *ports(images, 3), path, Export(), 1.0, lambda: None)
    wanted = r"'image\.float32\.coreml\.pte' would be 2 calls of Core ML with 1 operators outside \(.*asinh"
    with pytest.raises(ExportError, match=wanted):
        executorch_coreml.write(job)
    assert not path.exists()
    # The same from elsewhere: what such a program computes outside of the delegate nobody has evaluated.
    edge = to_edge_transform_and_lower(trace(_Outside(), images, batch=1), partitioner=[CoreMLPartitioner()])
    path.write_bytes(edge.to_executorch().buffer)
    with pytest.raises(DataError, match="has 3 steps and calls CoreMLBackend, want one call of CoreMLBackend alone"):
        load_program(path)


def test_float16_program_rounds_its_output(written, folder, reference):
    """Core ML gives float16 here, and the delegate converts it."""
    encode = load_program(folder / "text.float16.coreml.pte")
    got = encode(reference.tokens)
    np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))


def test_fixed_batch(towers, reference, tmp_path):
    fixed_batch.check("executorch_coreml", towers, reference, tmp_path)
