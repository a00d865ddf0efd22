"""Published variants: sizes as published, the right pixels and license for tags, hub names and lone files."""

import json
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from huggingface_hub.utils import close_session
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch.nn import functional as F

from mobileclip.data.images import resize
from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.errors import ConfigError, DataError
from mobileclip.lineage.licenses import Terms, classify
from mobileclip.models import listing, zoo
from mobileclip.models.published import OPENAI, PLAIN, VARIANTS, license_of, statistics_of_file
from tests.photographs import photographs

# Millions of parameters of image tower and text tower, as published (MobileCLIP2-S0's text tower as it really is: its
# README prints that of MobileCLIP-S0).
PUBLISHED = {
    "MobileCLIP-S0": (11.4, 42.4),
    "MobileCLIP-S1": (21.5, 63.4),
    "MobileCLIP-S2": (35.7, 63.4),
    "MobileCLIP-B": (86.3, 63.4),
    "MobileCLIP-B-LT": (86.3, 63.4),
    "MobileCLIP-S3": (125.1, 123.6),
    "MobileCLIP-S4": (321.6, 123.6),
    "MobileCLIP-L-14": (304.0, 123.6),
    "MobileCLIP2-S0": (11.4, 63.4),
    "MobileCLIP2-S2": (35.7, 63.4),
    "MobileCLIP2-B": (86.3, 63.4),
    "MobileCLIP2-S3": (125.1, 123.6),
    "MobileCLIP2-S4": (321.6, 123.6),
    "MobileCLIP2-L-14": (304.0, 123.6),
}


class TestTable:
    @pytest.fixture(scope="class")
    def rows(self, tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            first = listing.describe_models()
            patch.setattr(listing, "_count", lambda _: pytest.fail("counted twice"))
            # Compared as printed: a model that needs files of its own has no counts.
            assert [row.cells() for row in listing.describe_models()] == [row.cells() for row in first]
        return {row.model: row for row in first}

    def test_every_published_variant_and_every_own_architecture_is_there(self, rows):
        assert set(PUBLISHED) == set(VARIANTS)
        assert set(rows) >= {*PUBLISHED, "tiny-mci", "tiny-resnet", "tiny-coca", "locked-lite"}

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_parameters_as_published(self, rows, name):
        image, text = PUBLISHED[name]
        # Published image counts are of the folded tower; one printed digit.
        assert rows[name].folded_image == pytest.approx(image, abs=0.06)
        assert rows[name].text == pytest.approx(text, abs=0.06)
        assert rows[name].total == pytest.approx(rows[name].image + rows[name].text, abs=1e-5)
        assert rows[name].folded_total <= rows[name].total

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_the_documented_counts_are_these(self, rows, name):
        text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} | "))
        assert line.split(" | ")[2] == f"{rows[name].folded_image:.3f} + {rows[name].folded_text:.3f} |"

    def test_exact_counts_before_and_after_folding(self, rows):
        counts = {name: (round(r.image, 3), round(r.folded_image, 3)) for name, r in rows.items()}
        assert counts["MobileCLIP2-S0"] == (11.407, 11.358)
        assert counts["MobileCLIP2-S4"] == (321.785, 321.570)
        assert counts["MobileCLIP-B"] == (86.349, 86.349)
        # 42,441,216 parameters in the published file; folding leaves two kernels of 11 and two biases of 512 channels.
        first = rows["MobileCLIP-S0"]
        assert first.text * 1e6 == pytest.approx(42_441_216)
        # Of each mixer: three norms of 2 x 512 and a scale of 512 go, a bias of 512 comes.
        assert (first.text - first.folded_text) * 1e6 == pytest.approx(2 * (3 * 1024 + 512 - 512))
        assert rows["MobileCLIP2-S0"].folded_text == rows["MobileCLIP2-S0"].text
        for row in (first, rows["MobileCLIP2-S0"]):
            assert row.folded_total == pytest.approx(row.folded_image + row.folded_text, abs=1e-5)

    def test_input_and_license_columns(self, rows):
        s0, s4, large = (rows[name] for name in ("MobileCLIP2-S0", "MobileCLIP2-S4", "MobileCLIP2-L-14"))
        assert (s0.size, s0.context, s0.statistics, s0.interpolation) == (256, 77, "0 / 1", "bilinear")
        assert (s4.size, s4.statistics, s4.interpolation) == (256, "OpenAI", "bilinear")
        assert (large.size, large.statistics, large.interpolation) == (224, "OpenAI", "bicubic")
        assert (s0.weights, s0.license) == ("dfndr2b", "apple-amlr")
        assert rows["tiny-mci"].license == ""
        assert rows["locked-lite"].cells()[1] == ""
        assert all(len(row.cells()) == len(listing.HEADINGS) for row in rows.values())


class TestKnowledge:
    def test_normalization_agrees_with_open_clips_tags(self):
        for name, variant in VARIANTS.items():
            config = open_clip.get_pretrained_cfg(variant.architecture, variant.tag)
            if config and variant.stated:
                assert (tuple(config["mean"]), tuple(config["std"])) == variant.statistics, name
                assert config["interpolation"] == variant.interpolation, name
                assert config["resize_mode"] == variant.resize, name

    def test_normalization_of_other_architectures_is_known_only_where_all_weights_agree(self):
        assert statistics_of_file("coca_ViT-L-14") == (OPENAI, "bicubic", "shortest")
        assert statistics_of_file("MobileCLIP-S0") == (PLAIN, "bilinear", "shortest")
        for unknown in ("ViT-L-14", "MobileCLIP-S3", "tiny-mci", "ViT-B-99"):  # ViT-L-14: LAION-400M's differ
            assert statistics_of_file(unknown) is None

    @pytest.mark.parametrize(
        ("name", "terms"),
        [
            ("dfndr2b", Terms.RESEARCH_ONLY),
            ("datacompdr_lt", Terms.RESEARCH_ONLY),
            ("dfn5b", Terms.RESEARCH_ONLY),
            ("apple/mobileclip2_coca_dfn2b_s13b_mscoco38k_s12m_context77", Terms.RESEARCH_ONLY),
            ("timm/MobileCLIP2-S4-OpenCLIP", Terms.RESEARCH_ONLY),
            ("metaclip_fullcc", Terms.RESEARCH_ONLY),
            ("openai", Terms.PERMISSIVE),
            ("laion2b_s13b_b90k", Terms.PERMISSIVE),
            ("datacomp_xl_s13b_b90k", Terms.PERMISSIVE),
            ("webli", Terms.PERMISSIVE),
            ("somebody/model", Terms.UNKNOWN),
        ],
    )
    def test_licenses(self, name, terms):
        assert classify(license_of(name)) == terms


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> tuple[zoo.Clip, Path]:
    """MobileCLIP2-S0 with random weights in the layout it is published in."""
    torch.manual_seed(0)
    clip = zoo.create("MobileCLIP2-S0")
    path = tmp_path_factory.mktemp("published") / "mobileclip2_s0.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in clip.model.state_dict().items()}}, path)
    return clip, path


class TestFile:
    def test_open_clips_layout_gets_the_variants_normalization_where_open_clip_takes_openais(self, second):
        clip, path = second
        found = zoo.load("MobileCLIP2-S0", pretrained=str(path))
        assert (found.preprocess.mean, found.preprocess.std) == PLAIN
        assert found.preprocess.interpolation == "bilinear"
        assert found.license == "apple-amlr"
        assert len(found.sha256) == 64
        for name, value in clip.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value), name

    def test_photographs_reach_published_weights_as_in_open_clip(self, second):
        found = zoo.load("MobileCLIP2-S0", pretrained=str(second[1]))
        published = open_clip.get_pretrained_cfg("MobileCLIP2-S0", "dfndr2b")
        said = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        theirs = image_transform_v2(PreprocessCfg(size=256, **said), is_train=False)
        for image in photographs():
            mine = image_tensor(resize(image, found.preprocess)[None], found.preprocess)[0]
            assert torch.equal(mine, theirs(image)), image.size

    @pytest.mark.parametrize(
        ("said", "wanted"), [({}, "shortest"), ({"resize_mode": "longest", "fill_color": 9}, "longest")]
    )
    def test_a_folder_without_a_resize_mode_is_read_as_open_clip_reads_it(self, tmp_path, said, wanted):
        clip = zoo.create("tiny-mci")
        assert clip.preprocess.resize == "squash"
        zoo.save(str(tmp_path), clip, license="MIT", card={})
        assert zoo.load(f"local-dir:{tmp_path}").preprocess == clip.preprocess
        path = tmp_path / zoo.CONFIG_FILE
        raw = json.loads(path.read_text())
        assert raw["preprocess_cfg"].pop("resize_mode") == "squash"
        (tmp_path / zoo.CARD_FILE).unlink()  # somebody else's folder: no card vouches for its files
        path.write_text(json.dumps({**raw, "preprocess_cfg": raw["preprocess_cfg"] | said}))
        found = zoo.load(f"local-dir:{tmp_path}").preprocess
        assert (found.resize, found.fill) == (wanted, said.get("fill_color", 0))
        theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")[2]
        image = photographs()[0]
        assert torch.equal(theirs(image), image_tensor(resize(image, found)[None], found)[0])

    @pytest.mark.parametrize(
        "said",
        [{"resize_mode": "stretch"}, {"interpolation": "lanczos"}, {"resize_mode": "longest", "fill_color": [1, 2, 3]}],
    )
    def test_unknown_preprocessing_is_refused(self, tmp_path, said):
        zoo.save(str(tmp_path), zoo.create("tiny-mci"), license="MIT", card={})
        (tmp_path / zoo.CARD_FILE).unlink()
        path = tmp_path / zoo.CONFIG_FILE
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({**raw, "preprocess_cfg": raw["preprocess_cfg"] | said}))
        with pytest.raises(DataError, match=rf"preprocess_cfg\.{list(said)[-1]}: got .*, want "):
            zoo.load(f"local-dir:{tmp_path}")

    def test_where_the_normalization_is_unknown_the_file_is_refused(self, second):
        sentence = r"nothing says which normalization 'mobileclip2_s0\.pt' .* wants; want a"
        for name in ("MobileCLIP-S3", "ViT-L-14", "tiny-mci"):
            with pytest.raises(DataError, match=sentence):
                zoo.load(name, pretrained=str(second[1]))

    def test_a_variants_tags_are_its_own(self):
        # MobileCLIP-S3 shares MobileCLIP2-S3's architecture, not its weights.
        for name, tag, known in (
            ("MobileCLIP-S3", "dfndr2b", "datacompdr"),
            ("MobileCLIP-B-LT", "datacompdr", "datacompdr_lt"),
        ):
            with pytest.raises(ConfigError, match=rf"got '{tag}' for model '{name}', want one of \['{known}'\] or a"):
                zoo.load(name, pretrained=tag)

    def test_of_another_architecture(self, second):
        sentence = r"'mobileclip2_s0\.pt' does not fit the architecture 'MobileCLIP-S0': "
        with pytest.raises(DataError, match=sentence) as caught:
            zoo.load("MobileCLIP-S0", pretrained=str(second[1]))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("cut.pt", b"PK\x03\x04 nothing"),
            ("empty.pt", b""),
            ("text.safetensors", b"hello"),
            ("pickle.pt", b"cos\nsystem\n(S'true'\ntR."),
        ],
    )
    def test_damage_and_foreign_files_get_one_sentence(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"^model: '{name}' is damaged or holds no weights: .*\.$") as caught:
            zoo.load("MobileCLIP-S0", pretrained=str(tmp_path / name))
        assert "\n" not in str(caught.value)

    def test_a_file_without_tensors(self, tmp_path):
        torch.save({"state_dict": {"epoch": 3}}, tmp_path / "x.pt")
        with pytest.raises(
            DataError, match=r"'x\.pt' holds no weights: 'epoch' is a int, want a dictionary of tensors\.$"
        ):
            zoo.load("MobileCLIP-S0", pretrained=str(tmp_path / "x.pt"))

    def test_apples_own_vit_is_refused(self, tmp_path):
        # Its stem pads the picture, timm's does not: all names fit and the embeddings are wrong.
        save_file({"image_encoder.model.patch_emb.0.block.conv.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
        with pytest.raises(DataError, match=r"Apple's own ViT.*want MobileCLIP-B with the tag datacompdr"):
            zoo.load("MobileCLIP-B", pretrained=str(tmp_path / "b.safetensors"))


def _published_s0() -> dict[str, torch.Tensor]:
    """Random tensors under the names and shapes of the published `mobileclip_s0.pt`."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for line in (Path(__file__).parent / "mobileclip_s0_layout.txt").read_text().splitlines():
        name, written = line.split()
        shape = () if written == "scalar" else tuple(int(n) for n in written.split("x"))
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(1)
        elif name.endswith("running_var"):
            found[name] = noise.abs() + 0.5
        elif noise.ndim > 1 and "embedding" not in name and "layer_scale" not in name:
            found[name] = noise / noise[0].numel() ** 0.5
        else:
            found[name] = noise * 0.3 + (1.0 if name.endswith(("norm.weight", "bn.weight", "rbr_skip.weight")) else 0)
    return found


def _literal_text(w: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """MobileCLIP-S0's text tower written out from the paper over the published names, in double precision."""
    w = {k.removeprefix("text_encoder."): v.double() for k, v in w.items() if k.startswith("text_encoder.")}

    def norm(x, name):  # batch norm on [batch, channels, tokens]
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        scaled = (x - mean[:, None]) / (var[:, None] + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]

    def conv(x, name):  # depthwise over tokens, kernel 11
        return F.conv1d(x, w[f"{name}.weight"][:, :, 0], padding=5, groups=512)

    def repmixer(x, name):
        x = x.transpose(1, 2)
        mixer = f"{name}.token_mixer.mixer"
        mixed = norm(conv(x, f"{mixer}.rbr_conv.0.conv"), f"{mixer}.rbr_conv.0.bn") + norm(x, f"{mixer}.rbr_skip")
        scale = w[f"{name}.token_mixer.layer_scale"][:, :, 0]
        x = x + scale * (mixed - norm(x, f"{name}.token_mixer.norm.rbr_skip"))
        y = norm(conv(x, f"{name}.convffn.conv.conv"), f"{name}.convffn.conv.bn")
        y = torch.einsum("oc,bct->bot", w[f"{name}.convffn.fc1.weight"][:, :, 0, 0], y)
        y = F.gelu(y + w[f"{name}.convffn.fc1.bias"][:, None])
        y = torch.einsum("oc,bct->bot", w[f"{name}.convffn.fc2.weight"][:, :, 0, 0], y)
        y = y + w[f"{name}.convffn.fc2.bias"][:, None]
        return (x + w[f"{name}.layer_scale"][:, :, 0] * y).transpose(1, 2)

    def attention(x, name):
        y = F.layer_norm(x, (512,), w[f"{name}.pre_norm_mha.0.weight"], w[f"{name}.pre_norm_mha.0.bias"])
        qkv = y @ w[f"{name}.pre_norm_mha.1.qkv_proj.weight"].T + w[f"{name}.pre_norm_mha.1.qkv_proj.bias"]
        q, k, v = (part.unflatten(2, (8, 64)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        y = ((q @ k.transpose(2, 3) / 8).softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        x = x + y @ w[f"{name}.pre_norm_mha.1.out_proj.weight"].T + w[f"{name}.pre_norm_mha.1.out_proj.bias"]
        y = F.layer_norm(x, (512,), w[f"{name}.pre_norm_ffn.0.weight"], w[f"{name}.pre_norm_ffn.0.bias"])
        y = F.gelu(y @ w[f"{name}.pre_norm_ffn.1.weight"].T + w[f"{name}.pre_norm_ffn.1.bias"])
        return x + y @ w[f"{name}.pre_norm_ffn.4.weight"].T + w[f"{name}.pre_norm_ffn.4.bias"]

    x = w["embedding_layer.weight"][tokens] + w["positional_embedding.pos_embed.pos_embed"][0, 0]
    x = repmixer(x, "transformer.0")
    for index in range(1, 5):
        x = attention(x, f"transformer.{index}")
    x = F.layer_norm(repmixer(x, "transformer.5"), (512,), w["final_layer_norm.weight"], w["final_layer_norm.bias"])
    return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ w["projection_layer"]


class TestTextRepMixer:
    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory) -> tuple[dict[str, torch.Tensor], Path]:
        weights = _published_s0()
        path = tmp_path_factory.mktemp("s0") / "mobileclip_s0.pt"
        torch.save(weights, path)
        return weights, path

    @torch.no_grad()
    def test_a_published_checkpoint_gives_the_papers_tower(self, file):
        weights, path = file
        clip = zoo.load("MobileCLIP-S0", pretrained=str(path))
        assert clip.model.logit_scale == weights["logit_scale"]
        assert (clip.preprocess.mean, clip.preprocess.interpolation) == (PLAIN[0], "bilinear")
        tokens = clip.tokenizer(["a photo of a cat", "x" * 400, ""])
        found = clip.model.double().encode_text(tokens)
        expected = _literal_text(weights, tokens)
        assert torch.linalg.norm(found - expected) / torch.linalg.norm(expected) < 1e-12
        assert torch.linalg.norm(expected[0] - expected[1]) > 0.1 * torch.linalg.norm(expected[0])

    def test_comes_back_from_a_folder_of_ours(self, file, tmp_path):
        clip = zoo.load("MobileCLIP-S0", pretrained=str(file[1]))
        zoo.save(str(tmp_path), clip, license=clip.license, card={})
        again = zoo.load(f"local-dir:{tmp_path}")
        assert torch.equal(again.encode_text(["a", "b c"]), clip.encode_text(["a", "b c"]))
        assert again.preprocess == clip.preprocess


def _cache(root: Path, repository: str, files: dict[str, Path | bytes]) -> None:
    """A repository in the hub client's own cache, as a download would leave it."""
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for index, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{index:040d}"
        blob.write_bytes(content) if isinstance(content, bytes) else blob.symlink_to(content)
        (snapshot / name).symlink_to(blob)


class TestHub:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        close_session()  # an open one would not learn that it is off-line
        yield tmp_path
        close_session()

    def _tiny(self, folder, **preprocess) -> dict[str, Path | bytes]:
        torch.manual_seed(0)
        clip = zoo.create("tiny-mci")
        zoo.save(str(folder), clip, license="x", card={})
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["preprocess_cfg"] = preprocess
        return {
            "open_clip_config.json": json.dumps(config).encode(),
            "open_clip_model.safetensors": (folder / "open_clip_model.safetensors").read_bytes(),
        }

    def test_normalization_and_license_come_from_the_repository(self, cache, tmp_path_factory):
        pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
        files = self._tiny(tmp_path_factory.mktemp("tiny"), **pixels)
        card = b"---\nlicense: other\nlicense_name: my-license\n---\n# Model"
        _cache(cache, "somebody/small", {**files, "README.md": card})
        clip = zoo.load("hf-hub:somebody/small")
        assert (clip.preprocess.mean, clip.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)
        assert (clip.license, clip.preprocess.size, clip.name) == ("my-license", 64, "hf-hub:somebody/small")

    def test_a_repository_that_does_not_say_is_refused(self, cache, tmp_path_factory):
        _cache(cache, "somebody/silent", self._tiny(tmp_path_factory.mktemp("tiny")))
        with pytest.raises(DataError, match=r"'hf-hub:somebody/silent/open_clip_config\.json' lacks 'mean'\.$"):
            zoo.load("hf-hub:somebody/silent")

    def test_a_variants_name_of_another_owner_means_nothing(self, cache, second, tmp_path_factory):
        pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
        files = self._tiny(tmp_path_factory.mktemp("tiny"), **pixels)
        for owner, preprocess in (
            ("somebody", Preprocess(64, (0.5,) * 3, (0.25,) * 3, "bicubic", "shortest")),
            ("timm", Preprocess(64, *PLAIN, "bilinear", "shortest")),  # its table says which
        ):
            _cache(cache, f"{owner}/MobileCLIP2-S0", files)
            assert zoo.load(f"hf-hub:{owner}/MobileCLIP2-S0").preprocess == preprocess
        silent = self._tiny(tmp_path_factory.mktemp("silent"))
        _cache(cache, "somebody/MobileCLIP2-S2-OpenCLIP", silent)
        with pytest.raises(DataError, match=r"'hf-hub:somebody/MobileCLIP2-S2-OpenCLIP/.*' lacks 'mean'\.$"):
            zoo.load("hf-hub:somebody/MobileCLIP2-S2-OpenCLIP")
        _cache(cache, "nobody/MobileCLIP2-S0", {"mobileclip2_s0.pt": second[1]})
        with pytest.raises(DataError, match=r"no open_clip_config\.json in 'hf-hub:nobody/MobileCLIP2-S0', and"):
            zoo.load("hf-hub:nobody/MobileCLIP2-S0")

    def test_apples_repositories_hold_a_lone_file(self, cache, second):
        _cache(cache, "apple/MobileCLIP2-S0", {"mobileclip2_s0.pt": second[1]})
        clip = zoo.load("hf-hub:apple/MobileCLIP2-S0")
        assert ((clip.preprocess.mean, clip.preprocess.std), clip.license) == (PLAIN, "apple-amlr")
        assert torch.equal(clip.encode_text(["a cat"]), second[0].encode_text(["a cat"]))

    def test_what_is_not_there(self, cache):
        with pytest.raises(DataError, match=r"^model: 'hf-hub:apple/MobileCLIP2-S0' cannot be reached"):
            zoo.load("hf-hub:apple/MobileCLIP2-S0")
        _cache(cache, "apple/MobileCLIP-S3", {"mobileclip_s3.pt": b"never read"})
        with pytest.raises(DataError, match=r"nothing says which normalization 'hf-hub:apple/MobileCLIP-S3'"):
            zoo.load("MobileCLIP-S3", pretrained="datacompdr")
        _cache(cache, "somebody/else", {"README.md": b"# nothing"})
        with pytest.raises(DataError, match=r"no open_clip_config\.json in 'hf-hub:somebody/else', and"):
            zoo.load("hf-hub:somebody/else")

    def test_weights_trained_with_quick_gelu_get_it_where_open_clip_only_warns(self, cache):
        torch.manual_seed(0)
        right = open_clip.create_model("RN50-quickgelu").eval()
        weights = cache / "rn50.safetensors"
        save_file(right.state_dict(), weights)
        _cache(cache, "timm/resnet50_clip.yfcc15m", {"open_clip_model.safetensors": weights})
        clip = zoo.load("RN50", pretrained="yfcc15m")
        assert clip.config["quick_gelu"] is True
        with torch.no_grad():
            expected = right.encode_text(clip.tokenizer(["a cat"]), normalize=True)
        torch.testing.assert_close(clip.encode_text(["a cat"]), expected, rtol=0, atol=1e-6)


class TestCustomStudents:
    def test_any_timm_tower_with_any_text_tower(self):
        torch.manual_seed(0)
        clip = zoo.create("timm:mobilenetv3_small_050@96+tiny-mci")
        text = zoo.architecture("tiny-mci")
        assert clip.config["text_cfg"] == text["text_cfg"]
        assert clip.preprocess.size == 96
        assert clip.encode_image(torch.rand(2, 3, 96, 96)).shape == (2, text["embed_dim"])
        assert clip.encode_text(["a"]).shape == (1, text["embed_dim"])

    def test_comes_back_from_its_folder(self, tmp_path):
        torch.manual_seed(0)
        clip = zoo.create("timm:vit_tiny_patch16_224@64+tiny-resnet")
        zoo.save(str(tmp_path), clip, license="MIT", card={})
        again, images = zoo.load(f"local-dir:{tmp_path}"), torch.rand(2, 3, 64, 64)
        assert torch.equal(again.encode_image(images), clip.encode_image(images))

    def test_normalization_is_what_timm_says_of_the_tower(self):
        found = {
            name: zoo.default_preprocess(f"timm:{name}+tiny-mci", zoo.architecture(f"timm:{name}+tiny-mci"))
            for name in ("fastvit_mci0.apple_mclip", "vit_base_patch16_siglip_224.webli", "mobilenetv3_small_050")
        }
        assert found["fastvit_mci0.apple_mclip"].mean == (0.0, 0.0, 0.0)
        assert found["vit_base_patch16_siglip_224.webli"].mean == (0.5, 0.5, 0.5)
        assert found["mobilenetv3_small_050"].mean[0] == pytest.approx(0.485)

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("timm:resnet18", r"^model: got 'timm:resnet18', want timm:IMAGE\+TEXT or timm:IMAGE@SIZE\+TEXT\.$"),
            ("timm:nothing+tiny-mci", r"^model: timm has no image tower 'nothing', want a name of timm"),
            ("timm:resnet18+nothing", r"^model: unknown architecture 'nothing', want"),
        ],
    )
    def test_wrong_names(self, name, match):
        with pytest.raises(ConfigError, match=match):
            zoo.create(name)
