"""Images that Pillow does not read by itself: drawings are rendered, HEIC photographs decoded, both stored as PNG."""

import io
import math
import re
from xml.etree import ElementTree

from mobileclip.data.shards import IMAGE_EXTENSIONS
from mobileclip.errors import DataError

RENDERED = ("svg", "heic", "heif")
"""Endings of images that are stored as PNG."""
IMAGES = (*IMAGE_EXTENSIONS, *RENDERED)
"""Endings of all images that are read."""
_MAX_SVG = 16 << 20
_MAX_RATIO = 50
_UNITS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_LENGTH = re.compile(r"\s*\+?([\d.]+(?:[eE][+-]?\d+)?)\s*([a-z]*)\s*")


def render(data: bytes, extension: str, *, size: int, max_pixels: int) -> bytes:
    """PNG bytes of an SVG drawing or a HEIC photograph; equal bytes give equal bytes.

    Args:
        data: The file's bytes.
        extension: One of `RENDERED`.
        size: Longer side of a drawing [pixels].
        max_pixels: Larger photographs are refused.

    Raises:
        DataError: Damaged, too large, a drawing that refers to other files, or the package that reads it is absent.
    """
    return _svg(data, size) if extension == "svg" else _heic(data, max_pixels)


def _svg(data: bytes, size: int) -> bytes:
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise DataError("image: SVG needs the package 'resvg-py', install mobileclip-pipelines[svg].") from None
    if len(data) > _MAX_SVG:
        raise DataError(f"image: an SVG of {len(data)} bytes, want at most {_MAX_SVG}.")
    try:
        root = ElementTree.fromstring(data)
        _check_references(root)
        _scale(root, size)
        # What was checked is rendered, written anew: entities are expanded, the document type is gone.
        text = ElementTree.tostring(root, encoding="unicode")
        return bytes(resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True))
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"image: cannot be decoded: {reason}.") from None


def _check_references(root: ElementTree.Element) -> None:
    """The renderer reads files that a drawing names, wherever they lie."""
    for element in root.iter():
        if str(element.tag).rpartition("}")[2] == "a":
            continue
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] == "href" and not value.strip().startswith(("#", "data:")):
                raise DataError(f"image: the SVG refers to another file, '{ascii(value[:60])[1:-1]}'.")


def _scale(root: ElementTree.Element, size: int) -> None:
    """Give a drawing the longer side `size`; by itself one of a billion units would be rendered as large."""
    stated = [_length(root.get(name, "")) for name in ("width", "height")]
    box = [float(value) for value in re.split(r"[\s,]+", root.get("viewBox", "").strip()) if value]
    sizes = stated if all(stated) else box[2:]
    if len(sizes) != 2 or not all(math.isfinite(side) and side > 0 for side in sizes):
        raise DataError("image: the SVG states no size, want width and height or a viewBox.")
    width, height = sizes
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise DataError(f"image: the SVG is {width:g} by {height:g}, want at most {_MAX_RATIO} to 1.")
    if len(box) != 4:
        root.set("viewBox", f"0 0 {width} {height}")
    scale = size / max(width, height)
    root.set("width", str(max(1, round(width * scale))))
    root.set("height", str(max(1, round(height * scale))))


def _length(text: str) -> float:
    """Pixels; 0 for what depends on a page (`100%`)."""
    match = _LENGTH.fullmatch(text)
    return float(match[1]) * _UNITS.get(match[2], 0.0) if match else 0.0


def _heic(data: bytes, max_pixels: int) -> bytes:
    try:
        import pillow_heif
    except ModuleNotFoundError:
        raise DataError("image: HEIC needs the package 'pillow-heif', install mobileclip-pipelines[heic].") from None
    from PIL import ImageOps

    try:
        file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
        width, height = file.size
        if width * height > max_pixels:
            raise DataError(f"image: {width}x{height} pixels, want at most {max_pixels} in all.")
        stream = io.BytesIO()
        ImageOps.exif_transpose(file.to_pillow()).save(stream, "PNG")
    except (ValueError, OSError, RuntimeError, EOFError) as error:
        raise DataError(f"image: cannot be decoded: {str(error).rstrip('.')}.") from None
    return stream.getvalue()
