"""A small student with its checkpoint, export folder and bundle, made once per process."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mobileclip.config import Export
from mobileclip.formats import contract, contract_writer, programs, proof
from mobileclip.formats.bundle import archive, golden_values, prompt_bank, tokenizer
from mobileclip.formats.towers import split
from mobileclip.models import zoo
from mobileclip.models.embed import embed_texts
from tests.formats.conftest import pattern_samples
from tests.models.perturbed import perturbed_clip

LABELS = ["red", "blue", "gestreift", "縞模様"]


@dataclass(frozen=True)
class Exported:
    """Everything that one student leaves behind.

    Attributes:
        clip: The student.
        checkpoint: Its folder, in open_clip's layout.
        export: Programs in ONNX, float32 and float16, with all that export writes beside them.
        bundle: The zip of that.
    """

    clip: zoo.Clip
    checkpoint: Path
    export: Path
    bundle: Path


@functools.cache
def exported(name: str = "tiny-mci") -> Exported:
    """The student of an architecture with random weights, exported."""
    root = Path(tempfile.mkdtemp(prefix="exports-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    fresh, checkpoint, out = perturbed_clip(name), root / "distill" / "student", root / "export"
    card = {"model": name, "attributions": [
        {"kind": "data", "name": "ann", "license": "CC-BY-4.0", "attribution": "Drawings by Ann.", "url": ""},
    ]}  # fmt: skip
    zoo.save(str(checkpoint), fresh, license="CC-BY-4.0", card=card)
    clip = zoo.load(f"local-dir:{checkpoint}")
    out.mkdir()
    reference = proof.refer(clip, pattern_samples(8))
    written = programs.build(Export(precisions=["float32", "float16"]), split(clip), reference, out)
    bank = prompt_bank.embed(lambda texts: embed_texts(clip, texts, batch_size=8).numpy(), LABELS, ["a {} pattern"])
    described, paths = prompt_bank.build(
        bank, reference.image_features, out, name="patterns", precision="float32", budget=1e-3
    )
    paths = [*paths, golden_values.write(clip, out, written), *tokenizer.write(clip.tokenizer, out / tokenizer.FOLDER)]
    files = [contract.describe(path, root=out) for path in paths]
    agreed = contract_writer.agree(clip, written, files, dataset_sha256="d" * 64, prompt_banks=[described])
    (out / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return Exported(clip, checkpoint, out, archive.write(out, root, version="1.0"))
