"""What the export stage adds for those who ship: prompt banks, and the bundle of all."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mobileclip.config import Export, LabelBank
from mobileclip.data.shards import read_samples
from mobileclip.errors import ConfigError
from mobileclip.evaluation.features import field_values
from mobileclip.formats import contract
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import prompt_bank, web
from mobileclip.formats.bundle.archive import Source
from mobileclip.formats.contract import Bank, Contract
from mobileclip.formats.proof import Reference, one_thread
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip

_PAGE_FORMAT = "onnx"


def page_files(config: Export) -> Mapping[str, Source]:
    """Members of the page, if a bundle with one is asked for; called first, since it may need the network.

    Raises:
        ConfigError: The page would have no program that it can run.
        DataError: ONNX Runtime Web cannot be had.
    """
    if config.bundle != "page":
        return {}
    check_page(config.formats, key="export.bundle: got 'page'")
    return web.members()


def check_page(formats: Collection[str], *, key: str) -> None:
    """Refuse a page that could run none of the programs.

    Args:
        formats: Of the programs.
        key: What asks for a page, for the sentence.

    Raises:
        ConfigError: There is no program for it.
    """
    if _PAGE_FORMAT not in formats:
        raise ConfigError(
            f"{key} with formats {sorted(set(formats))}, want '{_PAGE_FORMAT}' among them: the page runs nothing else."
        )


def prompt_banks(
    config: Export, clip: Clip, reference: Reference, data: str, content: Manifest, folder: Path
) -> tuple[list[Bank], list[Path]]:  # fmt: skip
    """Compute, write and prove every bank of the section.

    Raises:
        ConfigError: A bank names neither labels nor field, or both, or its name is taken.
        DataError: No sample has the field, or a label occurs twice.
        ExportError: A bank misses its budget.
    """
    names = [spec.name for spec in config.prompt_banks]
    if len(set(names)) < len(names):
        raise ConfigError(f"export.prompt_banks: got the names {', '.join(names)}, want each once.")
    banks, paths = [], []
    for index, spec in enumerate(config.prompt_banks):
        labels = _labels(spec, data, content, config.split, key=f"export.prompt_banks.{index}")
        with one_thread():
            bank = prompt_bank.embed(lambda texts: clip.encode_text(texts).numpy(), labels, spec.templates)
        described, written = prompt_bank.build(
            bank, reference.image_features, folder,
            name=spec.name, precision=spec.precision, budget=spec.max_error,
        )  # fmt: skip
        banks.append(described)
        paths += written
    return banks, paths


def metrics(banks: Sequence[Bank]) -> dict[str, float]:
    """The banks' numbers: `prompt_bank/NAME/FIGURE`."""
    shown = {bank.name: {**bank.figures, "budget": bank.budget, "labels": bank.labels} for bank in banks}
    return {f"prompt_bank/{name}/{key}": float(value) for name, row in shown.items() for key, value in row.items()}


def add_bundle(config: Export, agreed: Contract, folder: Path, page: Mapping[str, Source]) -> None:
    """Write the bundle into a finished export folder, if it is asked for."""
    if config.bundle != "none":
        (folder / contract.FILE_NAME).write_bytes(agreed.to_bytes())
        bundle.write(folder, folder, version=config.bundle_version, extra=page)


def _labels(spec: LabelBank, data: str, content: Manifest, split: str, *, key: str) -> list[str]:
    if bool(spec.labels) == bool(spec.field):
        raise ConfigError(f"{key}: got {'both' if spec.field else 'neither'} of labels and field, want one.")
    if spec.labels:
        return spec.labels
    metadata = [sample.metadata for sample in read_samples(data, content, split)]
    values = field_values(metadata, spec.field, key=f"{key}.field")
    return sorted({value for value in values if value is not None})
