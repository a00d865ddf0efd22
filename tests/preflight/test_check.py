"""Preflight: every key that cannot work is named at once, with the nearest one that would, before anything runs."""

from pathlib import Path

import pytest

from mobileclip.__main__ import main
from mobileclip.config import Params, read_params
from mobileclip.config.reading import complete
from mobileclip.errors import ConfigError
from mobileclip.models import hub
from mobileclip.preflight.check import check
from mobileclip.preflight.facts import Facts, read_facts
from mobileclip.preflight.problem import Problem, report

ROOT = Path(__file__).parents[2]
SMALL = read_params(ROOT / "params" / "own-small.yaml")
FACTS = Facts(
    samples={"train": 800, "validation": 100},
    captions={"train": {"captions": 512, "alt": 300}, "validation": {"captions": 100}},
    fields={"train": {"kind": 512}, "validation": {"kind": 100, "one": 100}},
    classes={"train": {"kind": 5}, "validation": {"kind": 5, "one": 1}},
    bytes=1000,
)


def _with(changes: dict, base: Params = SMALL) -> Params:
    return complete(base.model_dump(mode="json"), changes)


@pytest.fixture(autouse=True)
def _there(monkeypatch):
    """A machine that reaches the hub and has MLflow."""
    monkeypatch.setattr(hub, "is_reachable", lambda repository: True)  # noqa: ARG005


PLAIN = {split: {"captions": 9} for split in ("train", "validation")}
TOWERS = {"name": "teacher", "model": "tiny-mci", "image_weights": "nett.safetensors"}

# One key that cannot work, and the keys that are named for it.
SECTIONS = [
    ({"filter": {"model": "trained:techer"}}, {"filter.model": "trained:teacher"}),
    ({"filter": {"model": "trained:x", "enabled": False}}, {}),
    (
        {"reinforce": {"teachers": [{"name": "teacher", "model": "trained:other"}]}},
        {"reinforce.teachers.0.model": "trained:teacher"},
    ),
    ({"reinforce": {"teachers": []}}, {"reinforce.teachers": ""}),
    ({"reinforce": {"captions": ["coca"]}}, {"reinforce.captions": ""}),
    ({"distill": {"synthetic": ["coca"]}}, {"distill.synthetic": ""}),
    ({"distill": {"teachers": ["teach"]}}, {"distill.teachers": "teacher"}),
    ({"calibrate": {"given": {"teecher": 10}}}, {"calibrate.given": "teacher"}),
    ({"distill": {"caption_field": "alt"}}, {"distill.caption_field": "captions"}),
    ({"caption": {"enabled": True}}, {"caption.model": ""}),
    (
        {"caption": {"enabled": True}, "finetune_captioner": {"enabled": True}, "reinforce": {"captions": ["coco"]}},
        {"reinforce.captions": "coca"},
    ),
    ({"evaluate": {"headline": "retrieval/meen/r5"}}, {"evaluate.headline": "retrieval/mean/r5"}),
    ({"evaluate": {"headline": "zero_shot/kind/top1", "classifications": [{"field": "kind"}]}}, {}),
    ({"promote": {"gate": {"metric": "student/zero_shot/group/top1"}}}, {"promote.gate.metric": None}),
    ({"promote": {"gate": {"metric": "student/retrieval/i2t/r10/low"}}}, {}),
    ({"promote": {"gate": {"metric": "control/retrieval/i2t/r10"}}}, {"promote.gate.metric": None}),
    (
        {"promote": {"gate": {"minimums": {"student/retrieval/mean/r11": 0.5, "export/x": 1}}}},
        {"promote.gate.minimums.student/retrieval/mean/r11": None},
    ),
    ({"promote": {"gate": {"beat_control": True}}}, {"promote.gate.beat_control": ""}),
    ({"promote": {"gate": {"beat_control": True}}, "distill": {"control": True}}, {}),
    ({"export": {"qat_steps": 5, "split": "train"}}, {"export.split": ""}),
    ({"export": {"precisions": ["int4_weights"], "formats": ["onnx"]}}, {}),
    ({"export": {"precisions": ["float32"], "bundle": "page"}}, {}),
    ({"distill": {"model": "MobileCLIP-B-L"}}, {"distill.model": "MobileCLIP-B-LT"}),
    ({"distill": {"model": "MobileCLIP2-S0", "pretrained": "dfndr2c"}}, {"distill.pretrained": "dfndr2b"}),
    ({"distill": {"model": "MobileCLIP2-S0", "pretrained": "dfndr2b"}}, {}),
    ({"filter": {"model": "ViT-L-14"}}, {"filter.pretrained": None}),
    ({"distill": {"model": "local-dir:/nowhere"}}, {"distill.model": ""}),
    ({"distill": {"model": "timm:no_such_net+ViT-B-32"}}, {"distill.model": ""}),
    ({"distill": {"model": "tiny-mci", "pretrained": "/nowhere/w.safetensors"}}, {"distill.pretrained": ""}),
    ({"train_teacher": {"teachers": [TOWERS]}}, {"train_teacher.teachers.0.image_weights": ""}),
]  # fmt: skip


def _keys(problems: list[Problem]) -> set[str]:
    return {problem.key for problem in problems}


@pytest.mark.parametrize(("changes", "wanted"), SECTIONS)
def test_sections_against_each_other_and_the_machine(changes, wanted):
    found = check(_with(changes))
    assert _keys(found) == set(wanted)
    for problem in found:
        if wanted[problem.key] is not None:
            assert problem.nearest == wanted[problem.key]
        assert str(problem).startswith(f"{problem.key}: got ")


DATA = [
    ({}, set()),
    ({"evaluate": {"split": "test"}}, {"evaluate.split"}),
    ({"export": {"split": "test"}}, {"export.split"}),
    ({"evaluate": {"classifications": [{"field": "group"}]}}, {"evaluate.classifications.0.field"}),
    ({"evaluate": {"classifications": [{"field": "kind"}, {"field": "one"}]}}, {"evaluate.classifications.1.field"}),
    ({"evaluate": {"slice_field": "seen"}}, {"evaluate.slice_field"}),
    ({"evaluate": {"retrieval_field": "alt"}}, {"evaluate.retrieval_field"}),
    ({"evaluate": {"knn": 3, "probe_split": "test"}}, {"evaluate.probe_split"}),
    ({"export": {"zero_shot_field": "kinds"}}, {"export.zero_shot_field"}),
    ({"export": {"prompt_banks": [{"field": "kinds"}, {"labels": ["a"]}]}}, {"export.prompt_banks.0.field"}),
    (
        {"export": {"precisions": ["int8"], "calibration_split": "validation", "samples": 99}},
        {"export.calibration_split"},
    ),
    ({"train_teacher": {"captions": ["captions", "texts"]}}, {"train_teacher.captions"}),
    ({"finetune_captioner": {"enabled": True, "finetune_field": "texts"}}, {"finetune_captioner.finetune_field"}),
    ({"reinforce": {"splits": ["validation"]}}, {"reinforce.splits"}),
    ({"distill": {"training": {"batch_size": 8192, "accumulate": 900}}}, {"distill.training.accumulate"}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "wanted"), DATA)
def test_sections_against_the_data(changes, wanted):
    assert _keys(check(_with(changes), facts=FACTS)) == wanted
    assert _keys(check(_with(changes))) == set()


def test_best_weights_and_short_runs_need_a_validation_split():
    alone = Facts(samples={"train": 10, "test": 5}, captions={"train": {"captions": 10}, "test": {"captions": 5}})
    changes = {"distill": {"training": {"keep_weights": "best"}}, "calibrate": {"student": "tiny-mci"}}
    assert _keys(check(_with(changes), facts=alone)) == {"distill.training.keep_weights", "calibrate.student"}


def test_weights_of_the_hub_need_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda repository: repository.startswith("mine/"))
    changes = {"filter": {"model": "hf-hub:mine/x"}, "distill": {"model": "hf-hub:other/y"}}
    (problem,) = check(_with(changes))
    assert problem.key == "distill.model"
    assert "cannot be reached" in problem.got


def test_the_hub_is_asked_where_it_lies(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(hub, "getproxies", dict)
    hub._answers.cache_clear()
    assert not hub.is_reachable("nobody/nothing")
    hub._answers.cache_clear()


def test_towers_are_looked_for_where_they_are_given(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"x")
    (problem,) = check(_with({"train_teacher": {"teachers": [TOWERS]}}), towers=str(tmp_path))
    assert (problem.key, problem.nearest) == ("train_teacher.teachers.0.image_weights", "net.safetensors")
    right = {**TOWERS, "image_weights": "net.safetensors"}
    assert check(_with({"train_teacher": {"teachers": [right]}}), towers=str(tmp_path)) == []


def test_a_disk_that_is_too_small_is_named(tmp_path):
    huge = Facts(
        samples={"train": 10**15, "validation": 9}, captions={s: {"captions": 9} for s in ("train", "validation")}
    )
    (problem,) = check(SMALL, facts=huge, root=str(tmp_path / "runs"))
    assert problem.key == "reinforce"
    assert "GB free" in problem.got


def test_only_stages_that_will_run_are_asked(tmp_path):
    wrong = _with({"filter": {"model": "trained:x"}, "distill": {"teachers": ["x"]}})
    assert _keys(check(wrong, stages=["prepare", "filter"])) == {"filter.model"}


def test_all_problems_come_in_one_refusal():
    problems = check(_with({"filter": {"model": "trained:x"}, "distill": {"teachers": ["x"]}}))
    with pytest.raises(ConfigError) as caught:
        report(problems)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "filter.model",
        "distill.teachers",
    ]
    with pytest.raises(ConfigError, match=r"^filter\.model: got 'trained:x', want"):
        report(problems[:1])
    report([])


def test_facts_of_a_prepared_dataset(tiny_data):
    facts = read_facts(tiny_data)
    assert facts.samples["train"] > 0
    assert set(facts.captions["train"]) >= {"captions"}
    assert facts.captions["train"]["captions"] == min(facts.samples["train"], 512)
    assert facts.classes["train"]["group"] >= 2
    assert facts.held_out("auto", ("test", "validation")) in facts.samples


def test_a_run_is_refused_before_it_begins_and_again_after_prepare(tmp_path, tiny_source, capsys, monkeypatch):
    """What the params alone show costs nothing; what the data show costs `prepare`, whose output stays."""
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    params, root = tmp_path / "p.yaml", tmp_path / "runs"
    arguments = ["run", "--params", str(params), "--root", str(root), "--source", str(tiny_source)]
    small = "recipe: {extends: [" + str(ROOT / "params" / "own-small.yaml") + "]}\n"
    params.write_text(small + "filter: {model: 'trained:x'}\npromote: {gate: {metric: student/nothing}}\n")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "2 keys cannot work" in said
    assert not root.exists()
    params.write_text(
        small + "prepare: {shard_samples: 8}\nevaluate: {slice_field: sen}\nexport: {zero_shot_field: groupp}\n"
    )
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "evaluate.slice_field: got 'sen'" in said
    assert "(nearest: 'group')" in said
    assert (root / "prepare" / "record.json").is_file()
    assert not (root / "train_teacher").exists()
    assert main(arguments) == 2  # prepare is current: told at once
    assert "evaluate.slice_field: got 'sen'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own-small", "own-gpu"])
def test_the_files_for_own_data_fit_any_captioned_folder(name):
    plain = Facts(
        samples={"train": 900, "validation": 50}, captions={s: {"captions": 9} for s in ("train", "validation")}
    )
    path = ROOT / "params" / f"{name}.yaml"
    assert check(read_params(path), facts=plain) == []
    assert len([line for line in path.read_text().splitlines() if not line.startswith("#")]) <= 12


def test_the_demo_has_no_problem(tmp_path):
    for name in ("efficientnet_lite0.safetensors", "minilm/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert check(read_params(ROOT / "params" / "demo.yaml"), towers=str(tmp_path)) == []
