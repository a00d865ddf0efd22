"""The model card of a Hugging Face repository: front matter, how to load each layout, license and attributions."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mobileclip.formats.contract import Contract
from mobileclip.lineage import attribution, licenses
from mobileclip.manifest import Attribution
from mobileclip.sharing.layouts import IMMICH, OPEN_CLIP, TRANSFORMERS_JS

# Names that the hub knows are these in lower case; any other license is `other` with its own name.
_HUB_LICENSES = frozenset({
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-2.0",
    "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-3.0", "cc-by-nc-2.0", "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0", "cc-by-nd-4.0",
    "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "zlib", "wtfpl", "odbl", "pddl", "isc", "ofl-1.1",
    "apple-amlr", "apple-ascl",
})  # fmt: skip
_USE = """## Use

Image and text embeddings for search and zero-shot classification. Test it on images and texts of your kind before you
rely on it, and not for decisions about people."""
_OPEN_CLIP = """### open_clip

```python
import open_clip
{support}
model, preprocess = open_clip.create_model_from_pretrained("{where}")
tokenizer = open_clip.get_tokenizer("{where}")
```
"""
_SUPPORT = (
    "import mobileclip_open_clip_support  # a file of this repository, which registers towers that open_clip lacks"
)
_JS = """### transformers.js

```js
import {{ AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage }}
  from "@huggingface/transformers";

const id = "{name}";
const processor = await AutoProcessor.from_pretrained(id), tokenizer = await AutoTokenizer.from_pretrained(id);
const vision = await CLIPVisionModelWithProjection.from_pretrained(id);
const text = await CLIPTextModelWithProjection.from_pretrained(id);
const {{ image_embeds }} = await vision(await processor(await RawImage.read("photo.jpg")));
const {{ text_embeds }} = await text(tokenizer(["a dog", "a cat"], {{ padding: true, truncation: true }}));
```

The program resizes, as Pillow does, and normalizes; embeddings have length 1. Images of different sizes go one by one.
"""
_IMMICH = """### Immich

`config.json`, `visual/` and `textual/` are the folder of a model as Immich's machine learning keeps it.
"""


def card(
    name: str,
    *,
    stated: Mapping[str, Any],
    agreed: Contract | None,
    layouts: Collection[str],
    needs_support: bool,
) -> str:
    """`README.md`, a function of its arguments alone.

    Args:
        name: Repository, or the folder's name.
        stated: The student's `model.json`; empty where only programs are handed on.
        agreed: Contract of the programs, if there are any.
        layouts: Those in the folder.
        needs_support: Whether open_clip needs the files beside the weights.
    """
    license_, made_from = origin(stated, agreed)
    model = str(stated.get("model") or (agreed.model if agreed else "") or name)
    parts = [_front_matter(license_, layouts), f"# {model}", _summary(stated, agreed, license_), _USE, "## Load it"]
    if OPEN_CLIP in layouts:
        where = f"hf-hub:{name}" if name.count("/") == 1 else "local-dir:FOLDER"
        parts.append(
            _OPEN_CLIP.format(where=where, support=_SUPPORT if needs_support else "").replace("\n\nmodel", "\nmodel")
        )
    parts += [_JS.format(name=name)] if TRANSFORMERS_JS in layouts else []
    parts += [_IMMICH] if IMMICH in layouts else []
    parts += ["## Made from", attribution.markdown(made_from)] if made_from else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def origin(stated: Mapping[str, Any], agreed: Contract | None) -> tuple[str, Sequence[Attribution]]:
    """License of the weights, and everything behind them, from the checkpoint's card or else the contract."""
    if stated:
        return str(stated.get("license", "unknown")), attribution.of_card(stated)
    return (agreed.license, agreed.attributions) if agreed else ("unknown", [])


def _front_matter(license_: str, layouts: Collection[str]) -> str:
    lines = ["---"]
    if license_.lower() in _HUB_LICENSES:
        lines.append(f"license: {license_.lower()}")
    else:
        text = licenses.text(license_)
        lines += ["license: other", f"license_name: {json.dumps(license_, ensure_ascii=False)}"]
        lines += [f"license_link: {text.url}"] if text else []
    if OPEN_CLIP in layouts or TRANSFORMERS_JS in layouts:
        lines.append(f"library_name: {OPEN_CLIP if OPEN_CLIP in layouts else TRANSFORMERS_JS}")
    tags = ["clip", "mobileclip", *(["onnx"] if set(layouts) - {OPEN_CLIP} else []), *sorted(layouts)]
    return "\n".join(
        [*lines, "pipeline_tag: zero-shot-image-classification", "tags:", *(f"- {t}" for t in tags), "---"]
    )


def _summary(stated: Mapping[str, Any], agreed: Contract | None, license_: str) -> str:
    digest = stated.get("sha256") or (agreed.lineage.student_sha256 if agreed else "")
    rows = [("License of the weights", license_), ("Weights (sha256)", f"`{digest}`" if digest else "unknown")]
    if agreed:
        image, text = agreed.image, agreed.text
        rows += [
            ("Embedding", f"{agreed.embed_dim} values"),
            ("Image", f"{image.size} x {image.size} px, {image.resize}, Pillow's {image.interpolation}"),
            ("Text", f"{text.context_length} tokens"),
            ("Logit scale", f"{agreed.logit_scale:.6g}"),
        ]
    lines = ["| | |", "|---|---|", *(f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows)]
    return "\n".join(lines)
