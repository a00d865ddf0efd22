"""export: write the student's towers for the phone runtimes, prove each in its runtime, publish with a contract."""

import functools
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileclip import manifest, storage
from mobileclip.config import Export
from mobileclip.data.shards import Sample, read_samples
from mobileclip.errors import ConfigError, DataError, MobileClipError
from mobileclip.formats import contract, programs, proof
from mobileclip.formats import contract_writer as terms
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import assemble as shipping
from mobileclip.formats.bundle import golden_values as golden
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.contract import Contract, File, Program
from mobileclip.formats.measure import latency
from mobileclip.formats.proof import Reference
from mobileclip.formats.qat import fine_tune as qat
from mobileclip.formats.runtime import filled
from mobileclip.formats.towers import Towers, has_clip_tokenizer, split
from mobileclip.manifest import Manifest
from mobileclip.models import zoo
from mobileclip.models.zoo import Clip
from mobileclip.tracking.protocol import Tracker

PROOF_FILE, TIMINGS_FILE = "proof.json", "timings.json"
THREADS = (1, 2)
_PROOF_SPLITS = ("test", "validation", "train")


def run(config: Export, *, out: str, tracker: Tracker, student: str, data: str) -> dict[str, float]:
    """Write programs, tokenizer, golden values, prompt banks, `proof.json`, `contract.json` and the bundle.

    Everything is written to a temporary folder and published after the last proof, the contract last: an export that
    fails leaves nothing behind but `layers-refused.json`, where layers were kept for a program and did not suffice.

    Args:
        config: The `export` section.
        out: Output folder or URI.
        tracker: Gets the proof.
        student: Output of distill; the checkpoint lies in `student/` below it.
        data: Prepared dataset; samples of `config.split` prove the programs.

    Returns:
        Figures of every program, `FORMAT/TOWER/PRECISION/FIGURE`, and bank, `prompt_bank/NAME/FIGURE`.

    Raises:
        ConfigError: Quantization-aware fine-tuning would see the samples of the proof.
        DataError: No usable checkpoint, or too few samples.
        IntegrityError: The checkpoint's weights are not the ones its card was written for.
        ExportError: A program misses its budget.
    """
    content = manifest.read(data)
    config = config.model_copy(update={"split": content.held_out(config.split, _PROOF_SPLITS)})
    if config.qat_steps and config.split == config.calibration_split:
        raise ConfigError(
            f"export.qat_steps: got {config.qat_steps} while split and calibration_split are both '{config.split}', "
            "want two that differ: fine-tuning must not see the samples of the proof."
        )
    page = shipping.page_files(config)
    clip = zoo.load("trained:student", trained=student)
    samples = _draw(data, content, config.split, config.samples, key="split")
    towers = split(clip)
    reference = _refer(config, clip, samples)
    storage.delete(storage.join(out, programs.REFUSED_FILE))  # of an earlier attempt
    with tempfile.TemporaryDirectory(prefix="mobileclip-export-") as name:
        folder = Path(name)
        # First: they take seconds, and a budget that is missed should not cost the minutes of the programs.
        banks, bank_files = shipping.prompt_banks(config, clip, reference, data, content, folder)
        written = programs.build(
            config, towers, reference, folder,
            calibrate=functools.partial(_calibration, config, clip, data, content),
            tune=functools.partial(qat.tune, config, clip, towers, data, content) if config.qat_steps else None,
            refused=functools.partial(_report, out, folder, tracker),
        )  # fmt: skip
        files = _write_sides(clip, reference, written, bank_files, folder)
        agreed = terms.agree(clip, written, files, dataset_sha256=content.digest(), prompt_banks=banks)
        timings = _time(config, clip, towers, reference, folder, written)
        shipping.add_bundle(config, agreed, folder, page)
        _publish(out, folder, agreed)
    storage.write_bytes(storage.join(out, TIMINGS_FILE), _json(timings))
    if not storage.is_s3(out):
        tracker.log_file(storage.join(out, PROOF_FILE), folder="export")
    return programs.metrics(written) | shipping.metrics(banks)


def _draw(data: str, content: Manifest, split_name: str, count: int, *, key: str) -> list[Sample]:
    """The first samples of a split: shards are ordered by a hash of the picture, so this is a random draw."""
    samples = list(itertools.islice(read_samples(data, content, split_name), count))
    if len(samples) < 2:
        raise DataError(f"export.{key}: '{split_name}' has {len(samples)} samples in '{data}', want at least 2.")
    return samples


def _refer(config: Export, clip: Clip, samples: Sequence[Sample]) -> Reference:
    return proof.refer(clip, samples, class_field=config.zero_shot_field, template=config.zero_shot_template)


def _calibration(config: Export, clip: Clip, data: str, content: Manifest) -> Reference:
    """Samples that calibrate int8 programs: those of the proof must not."""
    split_name, count = config.calibration_split, config.calibration_samples
    samples = _draw(data, content, split_name, count + config.samples, key="calibration_split")
    if split_name == config.split:
        samples = samples[config.samples :]
    if len(samples) < 2:
        raise DataError(
            f"export.calibration_split: '{split_name}' has no samples beyond the {config.samples} of the proof."
        )
    return _refer(config, clip, samples[:count])


def _report(out: str, folder: Path, tracker: Tracker, table: bytes) -> str:
    """Leave the layer report of a refused program in the output folder, which is no export by it; where it lies."""
    place = storage.join(out, programs.REFUSED_FILE)
    storage.write_bytes(place, table)
    if storage.is_s3(out):
        (folder / programs.REFUSED_FILE).write_bytes(table)
    tracker.log_file(str(folder / programs.REFUSED_FILE) if storage.is_s3(out) else place, folder="export")
    return place


def _write_sides(
    clip: Clip, reference: Reference, written: Sequence[Program], banks: Sequence[Path], folder: Path
) -> list[File]:
    """Everything beside the programs."""
    paths = [golden.write(clip, folder, written), *banks, *programs.reports(folder)]
    if has_clip_tokenizer(clip):
        paths += tokenizer.write(clip.tokenizer, folder / tokenizer.FOLDER)
    else:
        paths += terms.copy_tokenizer(clip, folder / tokenizer.FOLDER)
    table = {
        "samples": len(reference.uids),
        "uids_sha256": manifest.uids_digest(reference.uids),
        "programs": {p.path: {"budget": p.budget, "executed": p.executed, **p.figures} for p in written},
    }
    (folder / PROOF_FILE).write_bytes(_json(table))
    return [contract.describe(path, root=folder) for path in sorted([*paths, folder / PROOF_FILE])]


def _time(
    config: Export, clip: Clip, towers: Towers, reference: Reference, folder: Path, written: Sequence[Program]
) -> dict[str, Any]:
    """Latency of one row, in calls of as many as the programs take, by tower and number of threads."""
    eager = {"image": towers.image, "text": latency.EagerText(clip.model)}
    timings: dict[str, Any] = {tower: {} for tower in programs.TOWERS}
    if not config.latency_runs:
        return timings
    with tempfile.TemporaryDirectory(prefix="mobileclip-onnx-") as name:
        for tower in programs.TOWERS:
            paths = {p.path: folder / p.path for p in written if p.tower == tower and p.executed}
            onnx = programs.onnx_float32(tower, config, towers, reference, folder, Path(name)) if paths else None
            for threads in THREADS:
                timings[tower][f"threads_{threads}"] = latency.measure(
                    paths,
                    eager[tower],
                    filled(reference.inputs(tower)[: max(1, config.batch)], config.batch),
                    rounds=config.latency_runs,
                    threads=threads,
                    onnx=onnx,
                )
    timings["load"] = {p.path: latency.resources(folder / p.path) for p in written if p.executed}
    return timings


def _publish(out: str, folder: Path, agreed: Contract) -> None:
    """Copy the files, then the contract that makes them an export; drop what an earlier export left."""
    _drop_stale(out, folder, agreed)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != contract.FILE_NAME):
        storage.write_bytes(storage.join(out, path.relative_to(folder).as_posix()), path.read_bytes())
    storage.write_bytes(storage.join(out, contract.FILE_NAME), agreed.to_bytes())


def _drop_stale(out: str, folder: Path, agreed: Contract) -> None:
    """Remove what an earlier export wrote and this one does not, and the packages to be written again.

    Whatever else lies in the folder is somebody else's and stays.
    """
    earlier = storage.join(out, contract.FILE_NAME)
    left = contract.listed(storage.read_bytes(earlier)) if storage.exists(earlier) else []
    bundles = _own_bundle(out) if left else []
    paths = [file.path for file in (*agreed.programs, *agreed.files)]
    # A package's digest is of all files in it: one more, of a run that was killed for example, would break it.
    packages = [path for path in paths if (folder / path).is_dir()]
    for path in sorted({*left, *bundles} - {*paths} | {*packages}):
        storage.delete_tree(storage.join(out, path))


def _own_bundle(out: str) -> list[str]:
    """Name of the bundle that the run before wrote here; none where it wrote none, or where that is not known."""
    try:
        config = json.loads(storage.read_bytes(storage.join(out, "config.json")))
        agreed = Contract.model_validate_json(storage.read_bytes(storage.join(out, contract.FILE_NAME)))
        return [bundle.file_name(agreed, version=config["bundle_version"])] if config["bundle"] != "none" else []
    except (MobileClipError, ValueError, KeyError, TypeError):
        return []


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
