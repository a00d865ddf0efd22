"""open_clip itself loads the students of this project, with equal embeddings, in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.models import zoo
from mobileclip.models.open_clip_support import needs_support
from tests.models.perturbed import perturbed_clip

OWN = ["tiny-mci", "tiny-resnet", "timm:resnet10_slim@64+MobileCLIP-S0", "timm:vit_tiny_patch16_224@64+tiny-mci"]
PLAIN = ["timm:resnet18@64+tiny-mci", "timm:vit_tiny_patch16_224+tiny-mci"]
TEXTS = ["a photo of a dog.", "Zürich & „Bern“", "word " * 90]
LOADS = """
import json, sys
import numpy as np, open_clip, torch
from PIL import Image
if sys.argv[3] == "support":
    import mobileclip.models.open_clip_support
folders, texts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for number, folder in enumerate(folders):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        pixels = preprocess(Image.open(sys.argv[4]))[None]
        found[f"image{number}"] = model.eval().encode_image(pixels, normalize=True).numpy()
        found[f"text{number}"] = model.encode_text(tokens, normalize=True).numpy()
np.savez(sys.argv[5], **found)
"""


@pytest.mark.parametrize(("names", "how"), [(OWN, "support"), (PLAIN, "plain")])
def test_equal_embeddings(names, how, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)).save(tmp_path / "a.png")
    clips = [perturbed_clip(name) for name in names]
    folders = [str(tmp_path / str(number)) for number in range(len(clips))]
    for folder, clip in zip(folders, clips, strict=True):
        zoo.save(folder, clip, license="CC0-1.0", card={"model": clip.name})
    assert [needs_support(clip.config) for clip in clips] == [how == "support"] * len(clips)
    arguments = [json.dumps(folders), json.dumps(TEXTS), how, tmp_path / "a.png", tmp_path / "got.npz"]
    done = subprocess.run([sys.executable, "-c", LOADS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "got.npz")
    for number, clip in enumerate(clips):
        how_ = clip.preprocess
        pixels = images.resize(images.decode((tmp_path / "a.png").read_bytes()), how_)[None]
        with torch.no_grad():
            image, text = clip.encode_image(image_tensor(pixels, how_)), clip.encode_text(TEXTS)
        np.testing.assert_allclose(got[f"image{number}"], image.numpy(), atol=1e-5, err_msg=clip.name)
        np.testing.assert_allclose(got[f"text{number}"], text.numpy(), atol=1e-5, err_msg=clip.name)


def test_support_changes_nothing_for_others():
    import open_clip

    import mobileclip.models.open_clip_support as support

    config = open_clip.get_model_config("RN50")
    torch.manual_seed(0)
    before = open_clip.model._build_text_tower
    support.extend()
    assert open_clip.model._build_text_tower is before
    assert not support.needs_support(config)
    with pytest.raises(ValueError, match="which open_clip cannot find; load it with"):
        open_clip.model._build_text_tower(8, {"hf_model_name": "text"})
