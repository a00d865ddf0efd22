"""The layouts that other tools load as they are, side by side in one folder.

open_clip: `open_clip_config.json`, `open_clip_model.safetensors`. transformers.js: `config.json`,
`preprocessor_config.json`, `tokenizer.json`, `onnx/`. Immich: `config.json`, `visual/`, `textual/`. Normalization is a
part of the programs, so both of the latter are told mean 0 and deviation 1.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from mobileclip.errors import DataError
from mobileclip.formats import contract
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.contract import Contract, Program, Tower

OPEN_CLIP, TRANSFORMERS_JS, IMMICH = "open_clip", "transformers.js", "immich"
LAYOUTS = (OPEN_CLIP, TRANSFORMERS_JS, IMMICH)

CONFIG, WEIGHTS, CARD, TEXT = "open_clip_config.json", "open_clip_model.safetensors", "model.json", "text"
SUPPORT = ("open_clip_support", "architectures", "text_repmixer")
# What transformers.js calls the precisions in file names (its `dtype`: fp32, fp16, q8, int8, q4).
_SUFFIXES = {
    "float32": "", "float16": "_fp16", "int8": "_quantized", "int8_static": "_quantized", "int8_weights": "_int8",
    "int4_weights": "_q4",
}  # fmt: skip
_PILLOW = {"nearest": 0, "bilinear": 2, "bicubic": 3}
_FORMAT = "onnx"


def open_clip(student: Path, target: Path) -> None:
    """The checkpoint, and the modules that open_clip needs to build its towers, where it needs any.

    Args:
        student: Checkpoint folder.
        target: Where it goes.
    """
    from mobileclip.models.open_clip_support import needs_support

    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS, CARD):
        shutil.copyfile(student / name, target / name)
    if (student / TEXT).is_dir():
        shutil.copytree(student / TEXT, target / TEXT)
    if needs_support(json.loads((student / CONFIG).read_text())["model_cfg"]):
        folder = Path(__file__).parent.parent / "models"
        for name in SUPPORT:
            shutil.copyfile(folder / f"{name}.py", target / f"mobileclip_{name}.py")


def check_programs(agreed: Contract) -> None:
    """Refuse an export that the layouts cannot be made of, before anything is written.

    Raises:
        DataError: A float32 ONNX program is missing, it takes a fixed number of rows, or the tokenizer is not CLIP's.
    """
    for tower in ("image", "text"):
        program = agreed.program(tower, precision="float32", format=_FORMAT)  # type: ignore[arg-type]
        if isinstance(program.input.shape[0], int):
            raise DataError(f"push: '{program.path}' takes {program.input.shape[0]} rows per call, want any number.")
    if agreed.image.resize != "squash" or agreed.image.interpolation == "nearest":
        got = f"{agreed.image.resize} with '{agreed.image.interpolation}'"
        raise DataError(f"push: images are resized by {got}, want squash with bilinear or bicubic for these layouts.")
    if agreed.text.tokenizer != "clip-bpe":
        raise DataError("push: the text tower has a tokenizer of its own, want one with CLIP's for these layouts.")


def transformers_js(export: Path, agreed: Contract, target: Path) -> None:
    """Programs under the names and ports of transformers.js, with its configuration, preprocessor and tokenizer.

    Args:
        export: Export folder.
        agreed: Its contract.
        target: Where it goes.

    Raises:
        IntegrityError: A program is not the one the contract was written for.
    """
    from mobileclip.sharing import onnx_ports

    for program in _programs(agreed):
        source = contract.check(export, program)
        ports = {"given": program.input, "result": program.output}
        if program.tower == "image":
            path = target / "onnx" / f"vision_model{_suffix(program)}.onnx"
            onnx_ports.vision_model(source, path, **ports, image=agreed.image)
        else:
            path = target / "onnx" / f"text_model{_suffix(program)}.onnx"
            onnx_ports.text_model(source, path, **ports, terms=agreed.text)
    _write(target / "config.json", {**_read(target / "config.json"), **_clip_config(agreed)})
    _write(target / "preprocessor_config.json", preprocessor(agreed))
    _tokenizer(export, agreed, target)


def immich(export: Path, agreed: Contract, target: Path) -> None:
    """Programs and tokenizer as Immich's machine learning looks for them in the folder of a model.

    Args:
        export: Export folder.
        agreed: Its contract.
        target: Where it goes.

    Raises:
        IntegrityError: A program is not the one the contract was written for.
    """
    for tower, folder in (("image", "visual"), ("text", "textual")):
        program = agreed.program(tower, precision="float32", format=_FORMAT)  # type: ignore[arg-type]
        (target / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(contract.check(export, program), target / folder / "model.onnx")
    image = agreed.image
    _write(
        target / "visual" / "preprocess_cfg.json",
        {"size": [image.size, image.size], "mode": image.color_order, "mean": [0.0] * 3, "std": [1.0] * 3,
         "interpolation": image.interpolation, "resize_mode": image.resize, "fill_color": image.fill},
    )  # fmt: skip
    _tokenizer(export, agreed, target / "textual")
    config = {
        "embed_dim": agreed.embed_dim,
        "vision_cfg": {"image_size": image.size},
        "text_cfg": {"context_length": agreed.text.context_length},
    }
    _write(target / "config.json", {**config, **_read(target / "config.json")})


def preprocessor(agreed: Contract) -> dict[str, Any]:
    """`preprocessor_config.json` of a CLIP image processor: the programs resize and normalize themselves."""
    size = {"height": agreed.image.size, "width": agreed.image.size}
    return {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": False, "size": size,
        "resample": _PILLOW[agreed.image.interpolation], "do_center_crop": False, "crop_size": size,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False,
        "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
    }  # fmt: skip


def _clip_config(agreed: Contract) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": agreed.embed_dim,
        "logit_scale": agreed.logit_scale,
        "vision_config": {"model_type": "clip_vision_model", "image_size": agreed.image.size},
        "text_config": {"model_type": "clip_text_model", "max_position_embeddings": agreed.text.context_length},
        # Without it browsers would ask for a quantized program, which not every export has.
        "transformers.js_config": {"dtype": "fp32"},
    }


def _tokenizer(export: Path, agreed: Contract, target: Path) -> None:
    text = agreed.text
    source = export / tokenizer.FOLDER / tokenizer.FILE_NAME
    listed = {file.path: file for file in agreed.files}
    name = f"{tokenizer.FOLDER}/{tokenizer.FILE_NAME}"
    if name not in listed:
        raise DataError(f"push: the export lists no '{name}', want one with its tokenizer.")
    described = json.loads(contract.check(export, listed[name]).read_text(encoding="utf-8"))
    names = {id_: token for token, id_ in described["model"]["vocab"].items()}
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target / tokenizer.FILE_NAME)
    special = {
        "bos_token": names.get(text.start_id, ""), "eos_token": names.get(text.end_id, ""),
        "pad_token": names.get(text.pad_id, ""), "unk_token": names.get(text.end_id, ""),
    }  # fmt: skip
    _write(
        target / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": text.context_length,
         "model_input_names": ["input_ids"], "clean_up_tokenization_spaces": False, **special},
    )  # fmt: skip
    _write(target / "special_tokens_map.json", special)


def _programs(agreed: Contract) -> list[Program]:
    """One ONNX program per tower and file name of transformers.js, the most exact of those that would share one."""
    best: dict[tuple[Tower, str], Program] = {}
    for program in agreed.programs:
        if program.format != _FORMAT or program.precision not in _SUFFIXES:
            continue
        key = (program.tower, _suffix(program))
        if key not in best or program.figures.get("error", 0) < best[key].figures.get("error", 0):
            best[key] = program
    return list(best.values())


def _suffix(program: Program) -> str:
    return _SUFFIXES[program.precision]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
