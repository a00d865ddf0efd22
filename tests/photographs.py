"""Real photographs that come with the libraries, in shapes as people send them."""

from importlib.resources import files

from PIL import Image

# Share of the width and height that is kept: landscape, portrait, a panorama, a strip, odd sizes.
_PARTS = ((1.0, 1.0), (0.62, 1.0), (1.0, 0.31), (0.17, 0.93), (0.501, 0.497), (0.35, 0.347), (0.09, 0.98), (0.2, 0.4))


def photographs() -> list[Image.Image]:
    """Twenty-four RGB images of three photographs, none of them square."""
    paths = [
        files("sklearn") / "datasets/images/china.jpg", files("sklearn") / "datasets/images/flower.jpg",
        files("matplotlib") / "mpl-data/sample_data/grace_hopper.jpg",
    ]  # fmt: skip
    found = []
    for path in paths:
        with path.open("rb") as stream:
            image = Image.open(stream).convert("RGB")
        for across, down in _PARTS:
            width, height = round(across * (image.width - 3)), round(down * (image.height - 5))
            found.append(image.crop((3, 5, 3 + width, 5 + height)))
    return found
