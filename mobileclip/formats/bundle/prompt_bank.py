"""Prompt banks: class embeddings computed beforehand, so that an app can ship without the text tower.

A bank is the mean of a label's unit-norm prompt embeddings, brought to unit norm again, as in CLIP's zero-shot
classification (Radford et al. 2021, section 3.1.4). It is made with the student itself, so its only error is that of
storing it: a bank beside an int8 text program is more exact than that program.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mobileclip.errors import DataError, ExportError, IntegrityError
from mobileclip.formats.contract import Bank, Contract, check

FOLDER = "prompts"
Precision = Literal["float32", "float16", "int8"]
Floats = NDArray[np.float32]

_EMBEDDINGS, _SCALES = "embeddings", "scales"
_LARGEST_INT8 = 127


@dataclass(frozen=True)
class PromptBank:
    """A bank in memory.

    Attributes:
        labels: Class names.
        templates: Prompts; `{}` takes the label.
        features: Unit-norm float32 [labels, dim].
    """

    labels: list[str]
    templates: list[str]
    features: Floats


def embed(encode: Callable[[list[str]], Floats], labels: Sequence[str], templates: Sequence[str]) -> PromptBank:
    """Compute a bank.

    Args:
        encode: Texts to unit-norm embeddings [texts, dim].
        labels: Class names, each once.
        templates: Prompts with `{}`.

    Raises:
        DataError: There is no label, a label occurs twice, or a template has no place for it.
    """
    check_prompts(labels, templates)
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    each = encode(prompts).reshape(len(labels), len(templates), -1)
    return PromptBank(list(labels), list(templates), _unit(each.astype(np.float64).mean(axis=1)))


def check_prompts(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse labels and templates that no bank can be made of.

    Raises:
        DataError: There is no label, a label occurs twice, or a template has no place for it.
    """
    if isinstance(labels, str):
        raise DataError(f"prompt bank: labels: got the text '{labels[:60]}', want a list of labels.")
    if not templates or any("{}" not in template for template in templates):
        got = next((f"'{template}'" for template in templates if "{}" not in template), "none")
        raise DataError(f"prompt bank: template: got {got}, want a text with {{}} for the label.")
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if not labels or doubles:
        got = f"'{doubles[0]}' twice" if doubles else "none"
        raise DataError(f"prompt bank: labels: got {got}, want each of at least one label once.")


def write(bank: PromptBank, folder: Path, *, name: str, precision: Precision) -> tuple[Path, Path]:
    """Write `NAME.safetensors` (embeddings, and one scale a row for int8) and `NAME.json` (labels, templates).

    Returns:
        Both paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, about = folder / f"{name}.safetensors", folder / f"{name}.json"
    save_file(_pack(bank.features, precision), data)
    described = {"labels": bank.labels, "templates": bank.templates, "precision": precision}
    about.write_text(json.dumps(described, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return data, about


def read(path: Path) -> PromptBank:
    """Read a bank from its `.safetensors`; stored values are widened to float32 and brought to unit norm.

    Raises:
        DataError: It is not there.
        IntegrityError: Embeddings and labels do not fit together, or a file is damaged.
    """
    about = path.with_suffix(".json")
    if not path.is_file() or not about.is_file():
        raise DataError(f"prompt bank: no '{path.name}' with '{about.name}' in '{path.parent}'.")
    try:
        described = json.loads(about.read_text(encoding="utf-8"))
        tensors = load_file(path)
        features = tensors[_EMBEDDINGS].astype(np.float32)
        if described["precision"] == "int8":
            features *= tensors[_SCALES][:, None]
        labels, templates = list(described["labels"]), list(described["templates"])
        if features.shape[0] != len(labels) or features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(f"{features.shape[0]} embeddings for {len(labels)} labels")
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"prompt bank: '{path.name}' is damaged: {' '.join(str(error).split())}.") from None
    return PromptBank(labels, templates, _unit(features))


def load(folder: Path, agreed: Contract, name: str) -> PromptBank:
    """A bank of an export, after its bytes were checked against the contract.

    Raises:
        DataError: The export has no such bank.
        IntegrityError: A file is not the one the contract was written for.
    """
    banks = {bank.name: bank for bank in agreed.prompt_banks}
    if name not in banks:
        raise DataError(f"prompt bank: got '{name}', the export has {', '.join(sorted(banks)) or 'none'}.")
    bank = read(folder / banks[name].path)
    for file in agreed.files:
        if file.path in {banks[name].path, str(Path(banks[name].path).with_suffix(".json").as_posix())}:
            check(folder, file)
    if bank.features.shape != (banks[name].labels, agreed.embed_dim):
        raise IntegrityError(f"prompt bank: '{name}' has shape {list(bank.features.shape)}, the contract says other.")
    return bank


def prove(stored: Floats, wanted: Floats, image_features: Floats) -> dict[str, float]:
    """Compare a stored bank with the student's own class embeddings.

    Args:
        stored: Unit-norm [labels, dim], as an app reads it.
        wanted: Unit-norm [labels, dim], from PyTorch float32.
        image_features: Unit-norm [samples, dim] of the evaluation samples.

    Returns:
        `error` (relative to the embeddings' spread; for one label to the embedding itself), `cosine_min`, and
        `agreement`: share of samples whose most likely label stays the same.
    """
    spread = float(np.linalg.norm(wanted - wanted.mean(0))) if len(wanted) > 1 else float(np.linalg.norm(wanted))
    distance = float(np.linalg.norm(stored - wanted))
    same = (image_features @ stored.T).argmax(1) == (image_features @ wanted.T).argmax(1)
    return {
        "error": distance / spread if spread > 0 else float(distance > 0),
        "cosine_min": float((stored * wanted).sum(1).min()),
        "agreement": float(same.mean()),
    }


def build(
    bank: PromptBank, image_features: Floats, folder: Path, *, name: str, precision: Precision, budget: float
) -> tuple[Bank, list[Path]]:  # fmt: skip
    """Write a bank below an export folder, prove what was written, and describe it for the contract.

    Args:
        bank: Made with the student in PyTorch.
        image_features: Unit-norm [samples, dim] of the evaluation samples.
        folder: The export folder.
        name: Its name.
        precision: How it is stored.
        budget: Largest error allowed.

    Raises:
        ExportError: The stored bank misses its budget.
    """
    data, about = write(bank, folder / FOLDER, name=name, precision=precision)
    figures = prove(read(data).features, bank.features, image_features)
    if not figures["error"] <= budget:
        raise ExportError(
            f"export: prompt bank '{name}' in {precision} has error {figures['error']:.3g} relative to the spread of "
            f"its classes, its budget is {budget:g}; nothing was published."
        )
    described = Bank(
        name=name, path=data.relative_to(folder).as_posix(), labels=len(bank.labels), precision=precision,
        budget=budget, figures=figures,
    )  # fmt: skip
    return described, [data, about]


def _pack(features: Floats, precision: Precision) -> dict[str, NDArray[Any]]:
    if precision != "int8":
        return {_EMBEDDINGS: features.astype(np.dtype(precision))}
    scales = np.maximum(np.abs(features).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST_INT8)
    rows = np.clip(np.rint(features / scales[:, None]), -_LARGEST_INT8, _LARGEST_INT8)
    return {_EMBEDDINGS: rows.astype(np.int8), _SCALES: scales.astype(np.float32)}


def _unit(rows: NDArray[Any]) -> Floats:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)
