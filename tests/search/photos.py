"""A folder of colored images as people have them: subfolders, Unicode names, hidden files, broken ones, duplicates."""

import shutil

import numpy as np
from PIL import Image

from tests.models.perturbed import patterned_images


def fill(folder, count=9):
    """Distinct images, one twice, two broken, several hidden; the names of the distinct ones."""
    names = [f"{index:02d}.png" for index in range(count - 3)] + ["Ferien/Zürich ö.jpg", "旅行/東京.webp", "b&<i>.jpg"]
    for name, pixels in zip(names, patterned_images(count, 60, seed=4), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(path)
    shutil.copy(folder / "00.png", folder / "copy of 00.png")
    for name in (".hidden.png", "._00.png", ".git/a.png", "__MACOSX/00.png", "@eaDir/00.png", "Ferien/.thumbs/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "01.png", folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b&<i>.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return sorted([*names, "copy of 00.png"])
