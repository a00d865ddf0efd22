"""Draw up the contract of an export from the student it was made of."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mobileclip import manifest
from mobileclip.formats.bundle.tokenizer import CLEANING, PAD_ID, SPACING
from mobileclip.formats.contract import (
    Attribution,
    Bank,
    Contract,
    File,
    ImageContract,
    Lineage,
    Program,
    TextContract,
)
from mobileclip.formats.programs import versions
from mobileclip.formats.towers import has_clip_tokenizer, is_causal
from mobileclip.lineage import attribution, licenses
from mobileclip.models.zoo import TEXT_FOLDER, Clip


def agree(
    clip: Clip,
    programs: Sequence[Program],
    files: Sequence[File],
    *,
    dataset_sha256: str,
    prompt_banks: Sequence[Bank] = (),
) -> Contract:
    """The contract of an export.

    Args:
        clip: The student.
        programs: Proved programs.
        files: Everything beside them.
        dataset_sha256: Digest of the manifest whose samples proved the programs.
        prompt_banks: Proved prompt banks.
    """
    bias = getattr(clip.model, "logit_bias", None)
    card = {key: value for key, value in clip.card.items() if key != attribution.CARD_KEY}
    return Contract(
        model=_name(clip), license=clip.license, attributions=_attributions(clip), embed_dim=clip.embed_dim,
        logit_scale=clip.logit_scale, logit_bias=0.0 if bias is None else float(bias.detach().reshape(-1)[0]),
        image=_image(clip), text=_text(clip), programs=list(programs), prompt_banks=list(prompt_banks),
        files=list(files),
        lineage=Lineage(student_sha256=clip.sha256, dataset_sha256=dataset_sha256, card=card),
        versions=versions(sorted({program.format for program in programs})),
    )  # fmt: skip


def copy_tokenizer(clip: Clip, folder: Path) -> list[Path]:
    """Copy the tokenizer files of a Hugging Face text tower; empty where there are none."""
    source = Path(clip.folder) / TEXT_FOLDER
    found = sorted(p for p in source.glob("*") if p.name.startswith(("tokenizer", "vocab", "special", "merges")))
    if found:
        folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(path, folder / path.name)) for path in found]


def _name(clip: Clip) -> str:
    return str(clip.card.get("model", clip.name))


def _attributions(clip: Clip) -> list[Attribution]:
    """What the student's card records; of one that records nothing only its own license can be told."""
    own = manifest.Attribution(kind="weights", name=_name(clip), license=clip.license)
    found = attribution.of_card(clip.card) or [own]
    return [
        Attribution(**one.model_dump(), license_urls={name: _url(name) for name in licenses.names(one.license)})
        for one in found
    ]


def _url(license_: str) -> str:
    text = licenses.text(license_)
    return text.url if text else ""


def _image(clip: Clip) -> ImageContract:
    preprocess = clip.preprocess
    return ImageContract(
        size=preprocess.size, interpolation=preprocess.interpolation,  # type: ignore[arg-type]
        resize=preprocess.resize,  # type: ignore[arg-type]
        crop="center" if preprocess.resize == "shortest" else "none", fill=preprocess.fill,
        mean=list(preprocess.mean), std=list(preprocess.std),
    )  # fmt: skip


def _text(clip: Clip) -> TextContract:
    is_clip = has_clip_tokenizer(clip)
    start, end, pad = _special_ids(clip)
    return TextContract(
        tokenizer="clip-bpe" if is_clip else "hugging-face", context_length=int(clip.tokenizer([""]).shape[1]),
        start_id=start, end_id=end, pad_id=pad, causal=is_causal(clip),
        cleaning=CLEANING if is_clip else [*CLEANING, SPACING],
    )  # fmt: skip


def _special_ids(clip: Clip) -> tuple[int, int, int]:
    """Ids of start, end and padding; -1 = none."""
    tokenizer = clip.tokenizer
    if has_clip_tokenizer(clip):
        return int(tokenizer.sot_token_id), int(tokenizer.eot_token_id), PAD_ID  # type: ignore[attr-defined]
    inner = getattr(tokenizer, "tokenizer", None)
    ids = (getattr(inner, f"{name}_token_id", None) for name in ("cls", "sep", "pad"))
    start, end, pad = (-1 if value is None else int(value) for value in ids)
    return start, end, pad
