"""Checkpoints that try to run code, read other files or ask for a terabyte: refused in a sentence, nothing is run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, PreTrainedTokenizerFast

from mobileclip.errors import DataError
from mobileclip.models import zoo
from mobileclip.models.trusted_config import checked_config

PAYLOAD = "import pathlib\npathlib.Path({marker!r}).write_text('run')\n"
CODE = (
    PAYLOAD
    + "from transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
    + "class Evil(PreTrainedTokenizerFast):\n    pass\n"
    + "class EvilConfig(BertConfig):\n    model_type = 'evil'\n"
    + "class EvilModel(BertModel):\n    config_class = EvilConfig\n"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A small Hugging Face text tower, configuration and vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "circle"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def good(text, tmp_path_factory) -> Path:
    """A checkpoint with a Hugging Face text tower, as train_teacher leaves one."""
    folder = tmp_path_factory.mktemp("checkpoints") / "good"
    zoo.save(str(folder), zoo.create("locked-lite", text_folder=text), license="MIT", card={})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "plain"
    zoo.save(str(folder), zoo.create("tiny-mci"), license="MIT", card={})
    return folder


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _config(folder: Path, section: str, **values: Any) -> None:
    _edit(folder / zoo.CONFIG_FILE, lambda c: c["model_cfg"][section].update(values))


def _code(folder: Path, file: str, **values: Any) -> None:
    """A module beside the text tower's files, which one of them names."""
    (folder / "text" / "evil.py").write_text(CODE.format(marker=str(folder / "marker")))
    _edit(folder / "text" / file, lambda c: c.update(values))


TOKENIZER_CODE = {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
MODEL_CODE = {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}, "model_type": "evil"}

HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tokenizer code, switched on": (
        lambda f: (
            _code(f, "tokenizer_config.json", **TOKENIZER_CODE),
            _config(f, "text_cfg", tokenizer_kwargs={"trust_remote_code": True}),
        ),
        "text_cfg.tokenizer_kwargs.trust_remote_code",
    ),
    "tokenizer code": (lambda f: _code(f, "tokenizer_config.json", **TOKENIZER_CODE), "auto_map"),
    "text tower code": (lambda f: _code(f, "config.json", **MODEL_CODE), "auto_map"),
    "code without a name": (lambda f: (f / "text" / "evil.py").write_text("1/0\n"), "evil.py"),
    "attention kernel of a hub": (
        lambda f: _code(f, "config.json", _attn_implementation="someone/kernel"), "_attn_implementation",
    ),
    "text tower of another folder": (
        lambda f: (shutil.move(f / "text", f / "other"), _config(f, "text_cfg", hf_model_name=str(f / "other"))),
        "text_cfg.hf_model_name",
    ),
    "vocabulary of another folder": (
        lambda f: (shutil.rmtree(f / "text"), _config(f, "text_cfg", hf_tokenizer_name="../text")),
        "text_cfg.hf_tokenizer_name",
    ),
    "image tower of a folder": (
        lambda f: _config(f, "vision_cfg", timm_model_name=f"local-dir:{f}"), "vision_cfg.timm_model_name",
    ),
    "image tower of a hub": (
        lambda f: _config(f, "vision_cfg", timm_model_name="hf-hub:someone/tower"), "vision_cfg.timm_model_name",
    ),
    "an unknown section": (
        lambda f: _edit(f / zoo.CONFIG_FILE, lambda c: c["model_cfg"].update(pretrained_image="x")), "pretrained_image",
    ),
    "a class by name": (
        lambda f: _config(f, "vision_cfg", norm_kwargs={"_target_": "os.system"}), "vision_cfg.norm_kwargs._target_",
    ),
    "a terabyte of vocabulary": (lambda f: _config(f, "text_cfg", vocab_size=10**12), "text_cfg.vocab_size"),
    "a billion layers": (lambda f: _config(f, "vision_cfg", layers=[1, 10**9]), "vision_cfg.layers"),
    "depth without end": (lambda f: (f / zoo.CONFIG_FILE).write_text("[" * 100_000), "is not JSON"),
    "no mapping": (lambda f: (f / zoo.CONFIG_FILE).write_text("[1]"), "holds list, want a mapping"),
}  # fmt: skip


def test_the_untouched_checkpoint_loads(good):
    assert zoo.load("trained:good", trained=str(good.parent)).encode_text(["red circle"]).shape == (1, 256)


@pytest.mark.parametrize("reference", ["trained", "local-dir"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_checkpoints_are_refused_and_run_nothing(good, tmp_path, monkeypatch, case, reference):
    folder = Path(shutil.copytree(good, tmp_path / "evil"))
    monkeypatch.chdir(tmp_path)
    change, named = HOSTILE[case]
    change(folder)
    names = {"trained": "trained:evil", "local-dir": f"local-dir:{folder}"}
    with pytest.raises(DataError) as caught:
        zoo.load(names[reference], trained=str(tmp_path))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "marker").exists()


def test_a_vocabulary_file_of_another_place_is_refused(plain, tmp_path):
    """open_clip's own tokenizer takes a path, too."""
    folder = Path(shutil.copytree(plain, tmp_path / "evil"))
    _config(folder, "text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"})
    with pytest.raises(DataError, match=r"tokenizer_kwargs\.bpe_path"):
        zoo.load(f"local-dir:{folder}")


def test_a_hub_repository_is_read_as_strictly(good, tmp_path, monkeypatch):
    """The files as the hub's own cache holds them: nothing is asked of the network."""
    repository = tmp_path / "hub" / "models--someone--evil"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(good, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    _config(snapshot, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("mobileclip.models.hub.hf_hub_download", lambda _, name: str(_file(snapshot / name)))
    with pytest.raises(DataError, match=r"text_cfg\.tokenizer_kwargs\.trust_remote_code"):
        zoo.load("hf-hub:someone/evil")


def _file(path: Path) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    if not path.is_file():
        raise EntryNotFoundError("no such file")
    return path


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_published_architecture_passes(name):
    """The list forbids nothing that an architecture of open_clip says."""
    config = open_clip.get_model_config(name)
    if not str(config["text_cfg"].get("hf_model_name", "")).startswith("hf-hub:"):
        assert checked_config(config, where=name) == config
