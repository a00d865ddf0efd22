"""Params from outside: defaults fill gaps, wrong keys are named with dots, files come back as written."""

import copy
import itertools
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mobileclip.chain import CHAIN
from mobileclip.config import (
    STAGES,
    Classification,
    Distill,
    Evaluate,
    Optimizer,
    Params,
    Prepare,
    Teacher,
    Training,
    TrainTeacher,
    check_section,
    read_params,
)
from mobileclip.config.params_file import render
from mobileclip.config.reading import complete
from mobileclip.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILES = sorted(itertools.chain(ROOT.glob("params.yaml"), ROOT.glob("params/*.yaml")))


def _values() -> dict:
    params = Params(
        train_teacher=TrainTeacher(teachers=[Teacher(), Teacher(name="b")]),
        evaluate=Evaluate(classifications=[Classification()]),
    )
    return params.model_dump(mode="json")


def _write(folder, values) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump(values) if isinstance(values, dict) else values)
    return folder / "params.yaml"


def _put(values, dotted, value):
    *path, last = [int(p) if p.isdigit() else p for p in dotted.split(".")]
    place = values
    for part in path:
        place = place[part]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("dotted", "value", "sentence"),
    [
        ("distil", {}, "unknown key, did you mean distill."),
        ("distill.training.optimizer.learning_rate", 1, "unknown key."),
        ("distill.training.btach_size", 1, "unknown key, did you mean distill.training.batch_size."),
        ("train_teacher.teachers.1.modle", "x", "unknown key, did you mean train_teacher.teachers.1.model."),
        ("distill.eps", 1, "unknown key, did you mean distill.training.optimizer.eps."),
        ("calibrate.lr", 1, "unknown key, did you mean calibrate.student_training.optimizer.lr."),
        ("finetune_captioner.warmup_steps", 1, "unknown key."),  # two trainings have one
        ("caption.seed", "x", "got 'x', input should be a valid integer, unable to parse string as an integer."),
        ("caption.seed", 2.5, "got 2.5, input should be a valid integer, got a number with a fractional part."),
        ("distill.training.steps", 0, "got 0, input should be greater than 0."),
        ("distill.training.steps", None, "got None, input should be a valid integer."),
        ("distill.training", 3, "got 3, input should be a valid dictionary or instance of Training."),
        ("distill.distill_weight", 1.1, "got 1.1, input should be less than or equal to 1."),
        ("distill.teachers", "a", "got 'a', input should be a valid list."),
        ("distill.training.optimizer.lr", math.nan, "got nan, input should be a finite number."),
        ("distill.training.optimizer.lr", math.inf, "got inf, input should be a finite number."),
        ("distill.training.ema_decay", 1, "got 1, input should be less than 1."),
        ("distill.training.optimizer.beta1", 1, "got 1, input should be less than 1."),
        ("distill.training.optimizer.beta2", 1.0, "got 1.0, input should be less than 1."),
        ("distill.synthetic", ["../x"], ".0: got '../x', string should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$'."),
        ("reinforce.dtype", "float8", "got 'float8', input should be 'float16', 'bfloat16', 'float32' or 'int8'."),
        ("evaluate.classifications.0.templates", ["none"], ".0: got 'none', string should match pattern '\\{\\}'."),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_what_came_and_what_is_wanted(tmp_path, dotted, value, sentence):
    path = _write(tmp_path, _put(_values(), dotted, value))
    with pytest.raises(ConfigError) as caught:
        read_params(path)
    # A sentence that starts with a dot is about an item below the key that was changed.
    expected = f"{dotted}{sentence}" if sentence.startswith(".") else f"{dotted}: {sentence}"
    assert str(caught.value) == expected


def test_several_wrong_keys_are_all_named(tmp_path):
    values = _put(_put(_values(), "filter.keep_share", 2), "distill.sed", 1)
    with pytest.raises(ConfigError, match=r"^filter\.keep_share: got 2, .*; distill\.sed: unknown key, did"):
        read_params(_write(tmp_path, values))


def test_equal_names_and_contradictions_are_refused(tmp_path):
    for dotted, value, match in (
        ("train_teacher.teachers.1.name", "teacher", r"^params: train_teacher\.teachers: names must differ, got \['t"),
        ("caption.min_tokens", 30, r"^caption: min_tokens is 30, want less than max_tokens \(30\)\.$"),
        ("caption.name", "views", r"^caption: name is 'views', want another one: the dataset has a column of that "),
        ("reinforce.views.scale_min", 1.0, None),
        ("reinforce.views.scale_max", 0.01, r"^reinforce\.views: scale_min is 0\.08, want at most scale_max \(0\."),
        ("reinforce.views.ratio_min", 1.5, r"^reinforce\.views: ratio_min is 1\.5, want at most ratio_max \(1\.3"),
    ):  # fmt: skip
        path = _write(tmp_path, _put(_values(), dotted, value))
        if match is None:
            read_params(path)
            continue
        with pytest.raises(ConfigError, match=match):
            read_params(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", r"^params: '.*params\.yaml' is not YAML: while parsing"),
        ("- 1", r"^params: '.*' holds list, want a mapping with sections of stages\.$"),
        ("recipe: 1", r"^params: '.*' has a block `recipe` that is no mapping"),
        ("recipe: {extends: x.yaml}", r"^recipe\.extends: got 'x\.yaml' in '.*', want a list of files\.$"),
    ],
)
def test_what_is_no_mapping(tmp_path, text, match):
    with pytest.raises(ConfigError, match=match) as caught:
        read_params(_write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^params: no file '.*nothing\.yaml', want a YAML file with sections of stages\.$"
    ):
        read_params(tmp_path / "nothing.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"is not YAML"):
        read_params(tmp_path / "params.yaml")


def _floats(value):
    """What a Kubeflow parameter does to numbers: every integer comes as a float."""
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("stage", STAGES)
def test_a_section_survives_json_that_turns_integers_into_floats(stage):
    section = getattr(Params.model_validate(_values()), stage)
    again = check_section(stage, _floats(section.model_dump(mode="json")))
    assert again == section
    assert again.model_dump_json() == section.model_dump_json()


class TestCheckSection:
    def test_a_checked_section_passes_and_another_stages_does_not(self):
        section = Distill(seed=4)
        assert check_section("distill", section) is section
        with pytest.raises(ConfigError, match=r"^distill: got a section of type Prepare, want Distill\.$"):
            check_section("distill", Prepare())

    def test_a_half_filled_one_is_completed(self):
        assert check_section("distill", {"training": {"steps": 5}}) == Distill(training=Training(steps=5))
        assert check_section("filter", {}) == Params().filter
        with pytest.raises(ConfigError, match=r"^stage: got 'nothing', want one of prepare, "):
            check_section("nothing", {})

    def test_sections_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            Distill().seed = 3


def test_stages_have_one_name_everywhere():
    assert tuple(row.stage for row in CHAIN) == STAGES
    for name in STAGES:
        assert (ROOT / "mobileclip" / "stages" / f"{name}.py").is_file()
    assert {p.stem for p in (ROOT / "mobileclip" / "stages").glob("[a-z]*.py")} == set(STAGES)


def _models(model: type[BaseModel]):
    yield model
    for info in model.model_fields.values():
        kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _models(kind)


def test_every_key_has_its_meaning_and_no_key_may_be_null():
    for model in set(_models(Params)) - {Params}:
        assert model.__doc__
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            assert type(None) not in getattr(info.annotation, "__args__", ()), f"{model.__name__}.{name}"


class TestDefaults:
    @pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "distill:\nfilter:\n", "distill: {training: }"])
    def test_a_file_that_says_nothing_is_all_defaults(self, tmp_path, text):
        assert read_params(_write(tmp_path, text)) == Params()

    def test_a_section_keeps_the_defaults_of_where_it_stands(self, tmp_path):
        """The short runs of `calibrate` have other defaults than a training elsewhere."""
        found = read_params(_write(tmp_path, {"calibrate": {"student_training": {"steps": 5}}})).calibrate
        assert found.student_training == Params().calibrate.student_training.model_copy(update={"steps": 5})
        assert found.student_training.batch_size == 256 != Training().batch_size

    def test_items_of_a_list_are_completed_one_by_one(self, tmp_path):
        text = "train_teacher: {teachers: [{name: a}, {name: b, training: {optimizer: {lr: 0.5}}}]}"
        first, second = read_params(_write(tmp_path, text)).train_teacher.teachers
        assert first == Teacher(name="a")
        assert second == Teacher(name="b", training=Training(optimizer=Optimizer(lr=0.5)))

    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
    def test_a_shipped_file_comes_back_short_and_whole(self, path):
        params = read_params(path)
        for short in (True, False):
            assert complete(yaml.safe_load(render(params, short=short)) or {}) == params

    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
    def test_a_shipped_file_has_the_values_that_were_reviewed(self, path):
        """A changed default changes no shipped run unseen: write the new list with `mobileclip params`."""
        golden = Path(__file__).parent / "golden" / path.name
        wanted = yaml.safe_load(golden.read_text())
        assert read_params(path).model_dump(mode="json") == wanted, f"mobileclip params {path} --out {golden}"


printable = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=0, max_size=8)


class TestRender:
    def test_defaults_come_back(self, tmp_path):
        path = _write(tmp_path, render(Params(), head="Two lines\n\nof a head"))
        assert read_params(path) == Params()
        assert path.read_text().startswith("# Two lines\n#\n# of a head\n\n# Turn a user's")

    @settings(max_examples=25, deadline=None)
    @given(
        text=printable, lr=st.floats(1e-12, 1e12), share=st.floats(0, 1), flag=st.booleans(),
        names=st.lists(printable, max_size=3), count=st.integers(1, 2**40),
        limits=st.dictionaries(printable, st.floats(-1e9, 1e9), max_size=3),
    )  # fmt: skip
    def test_any_values_come_back(self, tmp_path_factory, text, lr, share, flag, names, count, limits):
        values = _values()
        for dotted, value in {
            "prepare.license": text, "distill.training.optimizer.lr": lr, "filter.keep_share": share,
            "train_teacher.teachers.0.lock": flag, "promote.gate.allowed_licenses": names,
            "train_teacher.teachers.1.training.steps": count, "promote.gate.minimums": limits,
        }.items():  # fmt: skip
            _put(values, dotted, copy.deepcopy(value))
        params = Params.model_validate(values)
        path = _write(tmp_path_factory.mktemp("render"), render(params))
        assert read_params(path) == params
        assert render(read_params(path)) == path.read_text()

    def test_every_key_is_there_with_its_meaning(self):
        lines = render(Params()).splitlines()
        assert "  max_pixels: 50000000  # Larger pictures are quarantined [pixels]." in lines
        assert "      lr_end: 1.0e-06  # Learning rate at the last step." in lines
        assert all(
            "#" in line or line.endswith(":") for line in lines if line.startswith("  ") and not line.startswith("   ")
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start_share": 0.5}, "start_share is 0.5 and 'tiny-mci' starts from scratch, want weights whose share stays"),
        ({"caption_use": "mix", "synthetic": []}, "caption_use is 'mix' and synthetic is empty, want a caption column"),
        ({"teacher_biases": [-10.0]}, "teacher_biases are given and affinity is 'softmax', but only 'sigmoid' has"),
    ],
)
def test_keys_that_do_nothing_together_are_refused(changes, sentence):
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Distill.model_validate({"model": "tiny-mci"} | changes)


@pytest.mark.parametrize("weights", [{"pretrained": "openai"}, {"model": "local-dir:x"}, {"image_weights": "x"}])
def test_a_share_of_the_start_stays_where_there_are_weights(weights):
    assert Teacher.model_validate({"start_share": 0.5} | weights).start_share == 0.5
    with pytest.raises(ValidationError, match=r"start_share is 0\.5 and 'tiny-resnet' starts from scratch"):
        Teacher(start_share=0.5)
