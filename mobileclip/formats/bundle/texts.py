"""The two texts of a bundle: the card of its student, and the notices its licenses ask for."""

from collections.abc import Sequence
from typing import Any

from mobileclip.formats.contract import Contract, ImageContract, TextContract
from mobileclip.formats.program_ports import describe
from mobileclip.lineage import attribution

_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""

_USE = """## Use

Image and text embeddings for search and zero-shot classification. It was tested for no other purpose, least of all for
decisions about people. How well it does on pictures and texts of your kind, only an evaluation on them can tell."""

_FILES = """## Files

| file | what |
|---|---|
| `contract.json`, `contract.schema.json` | all an app must know, and the JSON Schema of it |
| `golden.json` | texts and a picture by formula with the student's own tokens and embeddings: the app's self-test |
| `tokenizer/` | `tokenizer.json` (Hugging Face), `vocab.json` and `merges.txt`, `vectors.json` with expected tokens |
| `prompts/` | class embeddings computed beforehand, where there are any |
| `page/` | a page that runs the student in a browser, where it was asked for |
| `proof.json` | every figure of every program |
| `NOTICES.md` | licenses |
| `SHA256SUMS` | digests of all members: `sha256sum -c SHA256SUMS` |"""

_ALTERED = """The student was trained on scaled, cropped and altered copies of these pictures, on these texts and on
what these models computed of them. The bundle holds none of the pictures."""


def card(agreed: Contract, *, version: str = "") -> str:
    """Markdown about the student and its programs, a function of the contract alone."""
    parts = [f"# {agreed.model}", _summary(agreed, version), _USE, _programs(agreed), _banks(agreed)]
    parts += [_feeding(agreed.image, agreed.text), _FILES, _made_from(agreed), _origin(agreed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def notices(agreed: Contract, *, with_page: bool) -> str:
    """What is in the bundle, by whom, under which license."""
    weights = (
        f"**Weights and programs.** License as recorded in their lineage: `{agreed.license}`. The student inherits the "
        "licenses of its pictures, captions, captioners and teachers; the most restrictive one binds."
    )
    parts = ["# Notices", weights]
    if agreed.attributions:
        parts += [f"## What the student was made from\n\n{_ALTERED}", attribution.markdown(agreed.attributions)]
    others = []
    if agreed.text.tokenizer == "clip-bpe":
        others.append(
            f"**Tokenizer.** Vocabulary and merges of CLIP, as open_clip ships them.\n\n"
            f"Copyright (c) 2021 OpenAI\n\nMIT License\n\n{_MIT}"
        )
    if with_page:
        page = (
            "**The page** (`page/`). Copyright MobileCLIP Pipelines contributors, Apache License 2.0, "
            "https://www.apache.org/licenses/LICENSE-2.0."
        )
        runtime = "**ONNX Runtime Web** (`page/ort/`).\n\nCopyright (c) Microsoft Corporation"
        others += [page, f"{runtime}\n\nMIT License\n\n{_MIT}"]
    parts += ["## Files of the bundle", *others] if others else []
    return "\n\n".join(parts) + "\n"


def _summary(agreed: Contract, version: str) -> str:
    rows = [
        ("Version", version or agreed.lineage.student_sha256[:12]),
        ("License of the weights", agreed.license),
        ("Weights (sha256)", f"`{agreed.lineage.student_sha256}`"),
        ("Embedding", f"{agreed.embed_dim} values, unit length"),
        ("Logit scale", f"{agreed.logit_scale:.6g}"),
        ("Logit bias", f"{agreed.logit_bias:.6g}"),
    ]
    return _table(("", "value"), rows)


def _programs(agreed: Contract) -> str:
    rows = [
        (
            f"`{p.path}`", p.format, p.precision, describe(p.input), f"{p.bytes / 1e6:.2f}",
            f"{p.figures.get('error', float('nan')):.2e}", f"{p.budget:.2e}", "executed" if p.executed else "emulated",
        )
        for p in agreed.programs
    ]  # fmt: skip
    text = (
        "## Programs\n\nError is the distance to the student in PyTorch float32 relative to the spread of the "
        "embeddings, on samples of the evaluation split; a program above its budget is not published.\n\n"
    )
    return text + _table(("file", "format", "precision", "input", "MB", "error", "budget", "proof"), rows)


def _banks(agreed: Contract) -> str:
    rows = [
        (f"`{b.path}`", b.labels, b.precision, f"{b.figures.get('error', float('nan')):.2e}", f"{b.budget:.2e}")
        for b in agreed.prompt_banks
    ]
    return "## Prompt banks\n\n" + _table(("file", "labels", "precision", "error", "budget"), rows) if rows else ""


def _feeding(image: ImageContract, text: TextContract) -> str:
    return (
        "## Feed it\n\n"
        f"**Pictures.** Turn upright by EXIF, lay on {image.transparency}, {_resizing(image)} "
        f"with Pillow's `{image.interpolation}` (antialiased). An array holds {image.color_order} "
        f"divided by 255; a picture is handed over as it is. Nothing else: mean {image.mean} and standard deviation "
        f"{image.std} are inside the programs.\n\n"
        f"**Texts.** {text.context_length} token ids, start {text.start_id}, end {text.end_id}, padded with "
        f"{text.pad_id}; too long ones are cut and still end with {text.end_id}.\n\n"
        "**Scores.** `logit_scale * image @ text + logit_bias`, softmax over the texts."
    )


def _resizing(image: ImageContract) -> str:
    area = f"{image.size} x {image.size} pixels"
    return {
        "squash": f"squash to {area}",
        "shortest": f"scale the shorter side to {image.size} pixels and crop the center to {area}",
        "longest": f"scale the longer side to {image.size} pixels and fill up to {area} with gray {image.fill}",
    }[image.resize]


def _made_from(agreed: Contract) -> str:
    rows = [(one.name, one.kind, f"`{one.license}`") for one in agreed.attributions]
    text = "## Made from\n\nWhom to name, and where to read the licenses: `NOTICES.md`.\n\n"
    return text + _table(("what", "as", "license"), rows) if rows else ""


def _origin(agreed: Contract) -> str:
    rows = [(name, f"`{value}`") for name, value in sorted(agreed.lineage.card.items())]
    rows.append(("samples of the proof (manifest)", f"`{agreed.lineage.dataset_sha256}`"))
    return "## Origin\n\n" + _table(("", "recorded"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
