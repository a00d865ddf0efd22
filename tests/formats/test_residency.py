"""What accelerators would take of a program, by rules that are checked against small graphs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mobileclip.config import Export
from mobileclip.errors import ConfigError, ExportError
from mobileclip.formats import programs, residency
from mobileclip.formats.residency import Operator

FLOAT = frozenset({"float32"})


def _operator(kind, inputs, output, dtypes=FLOAT):
    return Operator(kind, tuple(inputs), (output,), frozenset(dtypes))


@pytest.mark.parametrize(
    ("operator", "issue"),
    [
        (_operator("RESHAPE", [(1, 64, 384)], (1, 64, 3, 12, 32)), "2540"),
        (_operator("BATCH_MATMUL", [(8, 64, 32), (8, 32, 64)], (8, 64, 64)), "8619"),
        (_operator("ADD", [(8, 77, 77), (1, 1, 77, 77)], (1, 8, 77, 77)), "8980"),
        (_operator("BROADCAST_TO", [(1, 4, 1, 64)], (1, 4, 8, 64)), "9191"),
        (_operator("BATCH_MATMUL", [(1, 8, 64, 32), (1, 8, 32, 64)], (1, 8, 64, 64)), ""),
        (_operator("BATCH_MATMUL", [(1, 1, 77), (1, 77, 512)], (1, 1, 512)), ""),  # the end token, one row
        (_operator("ADD", [(1, 64, 384)], (1, 64, 384)), ""),  # a bias is no computed tensor
    ],
)
def test_known_faults_of_phone_gpus(operator, issue):
    figures, report = residency.judge("litert", [operator, _operator("CONV_2D", [(1, 8, 8, 3)], (1, 8, 8, 4))])
    assert figures["residency/litert_gpu"] == (0.5 if issue else 1)
    assert figures["max_rank"] == max(4, operator.rank)
    left = report["litert_gpu"]["left"]
    assert [issue in reason for reason in left] == ([True] if issue else [])
    assert report["litert_gpu"]["how"] == "by rule"


def test_operators_of_an_onnx_file(tmp_path):
    """Weights are not computed; sizes that are not fixed are -1."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 6], np.zeros(24))
    shape = helper.make_tensor("s", TensorProto.INT64, [5], [0, 1, 1, 2, 3])
    nodes = [
        helper.make_node("MatMul", ["image", "w"], ["packed"]),
        helper.make_node("Reshape", ["packed", "s"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])]
    results = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1, 1, 2, 3])]
    graph = helper.make_graph(nodes, "g", ends, results, [weight, shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "image.onnx")
    found = residency.operators_of("onnx", tmp_path / "image.onnx")
    assert found == [
        Operator("MatMul", ((-1, 4),), ((-1, 6),), frozenset({"float"})),
        Operator("Reshape", ((-1, 6),), ((-1, 1, 1, 2, 3),), frozenset({"float"})),
    ]
    figures, _ = residency.judge("onnx", found)
    assert figures == {"max_rank": 5, "residency/qnn": 0, "residency/coreml_ane": 0, "residency/webgpu": 1}


def test_gates_refuse_in_one_sentence():
    figures, report = residency.judge("litert", [_operator("RESHAPE", [(1, 6)], (1, 1, 1, 2, 3))])
    with pytest.raises(
        ExportError, match=r"^export\.max_rank: program 'a\.tflite' has a tensor of 5 axes, want at most 4"
    ):
        residency.check("a.tflite", figures, report, most=4, least={})
    sentence = (
        r"^export\.residency: litert_gpu would take 0% of program 'a\.tflite' \(by rule\), want at least 90%.*RESHAPE"
    )
    with pytest.raises(ExportError, match=sentence):
        residency.check("a.tflite", figures, report, most=0, least={"litert_gpu": 0.9})
    residency.check("a.tflite", figures, report, most=5, least={"litert_gpu": 0.0})


def test_a_gate_without_rules_is_refused_before_work():
    with pytest.raises(ConfigError, match=r"^export\.residency: got litert_gpu, of which no rule is known"):
        programs.plan(Export(formats=["onnx"], residency={"litert_gpu": 1.0}))


def test_programs_of_a_student_are_reported(written, folder):
    for path, program in written.items():
        assert program.figures["max_rank"] <= 4, path
    listed = programs.reports(folder)
    assert listed[-1].name == residency.RESIDENCY_FILE
    assert '"how": "by rule"' in listed[-1].read_text()
