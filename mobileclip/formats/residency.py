"""Which accelerator would take which share of a program: ranks, operators, types and shapes against written rules.

A program that a delegate takes in part runs the rest on the CPU, without a word, and one that it takes whole can still
compute nonsense. XNNPACK's share is measured elsewhere (`delegated`); here are delegates that no machine without the
device can run, judged **by rule**. A rule that lists known faults cannot promise that there are no others: the kit for
devices measures.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileclip.errors import ExportError

RESIDENCY_FILE = "residency.json"


@dataclass(frozen=True)
class Operator:
    """One operation of a program.

    Attributes:
        kind: Its name in the format, `BATCH_MATMUL` or `MatMul`.
        inputs: Shapes of what is computed at run time; -1 = any number.
        outputs: Shapes of its results.
        dtypes: Of both.
    """

    kind: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    dtypes: frozenset[str]

    @property
    def rank(self) -> int:
        """Largest number of axes of its tensors."""
        return max((len(shape) for shape in (*self.inputs, *self.outputs)), default=0)


@dataclass(frozen=True)
class Delegate:
    """What an accelerator takes of a format, by rule.

    Attributes:
        name: As in `export.residency`.
        formats: Whose operators its rules know.
        rules: What it refuses or miscomputes with the public report of that, and whether an operator is such.
    """

    name: str
    formats: tuple[str, ...]
    rules: tuple[tuple[str, Callable[[Operator], bool]], ...]


def _kinds(*names: str) -> Callable[[Operator], bool]:
    return lambda operator: operator.kind in names


def _above(rank: int) -> Callable[[Operator], bool]:
    return lambda operator: operator.rank > rank


def _is_dynamic(operator: Operator) -> bool:
    return any(size < 0 for shape in (*operator.inputs, *operator.outputs) for size in shape)


def _has_heads_as_batch(operator: Operator) -> bool:
    """A product of two computed tensors of rank 3 whose batch is no row of input: programs are of one row here."""
    products = [shape for shape in operator.inputs if len(shape) == 3 and shape[0] > 1]
    return operator.kind == "BATCH_MATMUL" and len(products) == 2


def _mixes_ranks(operator: Operator) -> bool:
    ranks = {len(shape) for shape in operator.inputs}
    return operator.kind in {"ADD", "MUL", "SUB", "DIV"} and len(operator.inputs) == 2 and len(ranks) > 1


_WIDE = ("tensors above rank 4 (google-ai-edge/LiteRT issue 2540)", _above(4))
DELEGATES = (
    Delegate(
        "litert_gpu", ("litert",),
        (
            _WIDE,
            ("BROADCAST_TO at any rank (google-ai-edge/LiteRT issue 9191)", _kinds("BROADCAST_TO")),
            ("attention with heads as batch of rank 3, miscomputed (google-ai-edge/LiteRT issue 8619)",
             _has_heads_as_batch),
            ("sums and products of tensors of different rank, miscomputed (google-ai-edge/LiteRT issues 8593, 8980)",
             _mixes_ranks),
            ("look-ups and comparisons of token ids", _kinds("EMBEDDING_LOOKUP", "GATHER", "EQUAL", "ARG_MAX")),
            ("integers of 64 bits", lambda operator: "int64" in operator.dtypes),
        ),
    ),
    Delegate(
        "qnn", ("litert", "onnx"),
        (
            ("tensors above rank 4", _above(4)),
            ("shapes that are not fixed", _is_dynamic),
            ("integers of 64 bits", lambda operator: "int64" in operator.dtypes),
            ("products quantized per call",
             _kinds("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulNBits")),
        ),
    ),
    Delegate(
        "coreml_ane", ("onnx",),
        (
            ("tensors above rank 5", _above(5)),
            ("shapes that are not fixed", _is_dynamic),
            ("look-ups and comparisons of token ids", _kinds("Gather", "Equal", "ArgMax")),
            ("products quantized per call",
             _kinds("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulNBits")),
        ),
    ),
    Delegate(
        "webgpu", ("onnx",),
        (
            ("integers of 64 bits", lambda operator: "int64" in operator.dtypes),
            ("products quantized per call", _kinds("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")),
        ),
    ),
)  # fmt: skip


def judge(form: str, operators: Sequence[Operator]) -> tuple[dict[str, float], dict[str, Any]]:
    """Share of a program that each delegate of its format would take.

    Args:
        form: Format.
        operators: Of the program; none where nothing is known of its format.

    Returns:
        Figures for the proof (`max_rank`, `residency/DELEGATE`), and the report: by delegate, how its share is known,
        and how many operators of which kind each rule keeps from it.
    """
    if not operators:
        return {}, {}
    figures = {"max_rank": float(max(operator.rank for operator in operators))}
    report: dict[str, Any] = {}
    for delegate in DELEGATES:
        if form not in delegate.formats:
            continue
        reasons: dict[str, Counter[str]] = {}
        refused = 0
        for operator in operators:
            reason = next((text for text, applies in delegate.rules if applies(operator)), None)
            if reason is not None:
                refused += 1
                reasons.setdefault(reason, Counter())[operator.kind] += 1
        share = round(1 - refused / len(operators), 4)
        figures[f"residency/{delegate.name}"] = share
        kept = {reason: dict(sorted(kinds.items())) for reason, kinds in sorted(reasons.items())}
        report[delegate.name] = {"how": "by rule", "share": share, "operators": len(operators), "left": kept}
    return figures, report


def check(name: str, figures: dict[str, float], report: dict[str, Any], *, most: int, least: dict[str, float]) -> None:
    """Refuse a program that accelerators would not take.

    Args:
        name: File name.
        figures: Of `judge`.
        report: Of `judge`.
        most: Largest rank allowed; 0 = any.
        least: Smallest share by delegate; those that have no rules for the format are passed by.

    Raises:
        ExportError: With the figure, what is wanted, and the reasons.
    """
    if most and figures.get("max_rank", 0) > most:
        raise ExportError(
            f"export.max_rank: program '{name}' has a tensor of {figures['max_rank']:.0f} axes, want at most {most}; "
            "nothing was published."
        )
    for delegate, share in least.items():
        got = figures.get(f"residency/{delegate}", 1.0)
        if got < share:
            left = report[delegate]["left"].items()
            why = "; ".join(f"{reason}: {', '.join(kinds)}" for reason, kinds in left)
            raise ExportError(
                f"export.residency: {delegate} would take {got:.0%} of program '{name}' (by rule), want at least "
                f"{share:.0%}; it leaves {why}; nothing was published."
            )


def unknown(delegates: Iterable[str], formats: Sequence[str]) -> list[str]:
    """Those of the delegates that have no rules for any of the formats."""
    known = {delegate.name for delegate in DELEGATES if set(delegate.formats) & set(formats)}
    return sorted(set(delegates) - known)


def operators_of(form: str, path: Path) -> list[Operator]:
    """The operations of a program, for the formats that rules know; none for others."""
    if form == "litert":
        from mobileclip.formats.litert.runtime import list_operators

        return [Operator(*found) for found in list_operators(path)]
    if form == "onnx":
        from mobileclip.formats.onnx.runtime import list_operators as list_nodes

        return [Operator(*found) for found in list_nodes(path)]
    return []
