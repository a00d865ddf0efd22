"""One name, six places: every door has the stages and the edges of `mobileclip.chain.CHAIN`."""

import re
from pathlib import Path

import pytest
import yaml

from mobileclip.chain import CHAIN
from mobileclip.config import STAGES

ROOT = Path(__file__).parents[1]
STAGE_NAMES = [row.stage for row in CHAIN]


@pytest.fixture(scope="module")
def dvc():
    """dvc.yaml with its variables put in."""
    text = (ROOT / "dvc.yaml").read_text()
    (values,) = yaml.safe_load(text)["vars"]
    return values, yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text))


def test_sections_follow_the_chain():
    assert list(STAGES) == STAGE_NAMES


@pytest.mark.parametrize("stage", STAGE_NAMES)
@pytest.mark.parametrize(
    "place",
    ["mobileclip/stages/{}.py", "components/{}.py", "tests/stages/test_{}.py", "docs/stages/{}.md"],
)
def test_a_stage_has_its_files(stage, place):
    assert (ROOT / place.format(stage)).is_file()


def test_every_stage_reads_only_earlier_ones():
    for index, row in enumerate(CHAIN):
        assert set(row.inputs.values()) <= set(STAGE_NAMES[:index])
        assert set(row.optional) <= set(row.names)


def test_dvc_has_the_stages_and_edges_of_the_chain(dvc):
    values, file = dvc
    assert list(file["stages"]) == ["params", *STAGE_NAMES]
    for row in CHAIN:
        stage = file["stages"][row.stage]
        wanted = {"params": f"{values['root']}/params.yaml", "out": f"{values['root']}/{row.stage}"}
        wanted |= {name: values[name] for name in row.external}
        wanted |= {name: f"{values['root']}/{source}" for name, source in row.inputs.items()}
        words = stage["cmd"].removesuffix(" || test $? -eq 3").split()
        assert words[:4] == ["python", "-m", "mobileclip", row.stage]
        assert dict(zip(words[4::2], words[5::2], strict=True)) == {f"--{k}": v for k, v in wanted.items()}
        assert stage["outs"] == [wanted["out"]]


def test_dvc_runs_a_stage_again_when_code_section_or_inputs_change(dvc):
    values, file = dvc
    completed = f"{values['root']}/params.yaml"
    first = file["stages"]["params"]
    assert first["cmd"] == f"python -m mobileclip params {values['params']} --out {completed}"
    assert first["deps"] == ["mobileclip/config", values["params"]]
    assert first["outs"] == [completed]
    for row in CHAIN:
        stage = file["stages"][row.stage]
        assert stage["params"] == [{completed: [row.stage]}]
        external = [values[name] for name in row.external]
        records = [f"{values['root']}/{source}/record.json" for source in row.inputs.values()]
        assert stage["deps"] == ["mobileclip", *external, *records]


def test_dvc_shows_the_metrics_of_every_stage(dvc):
    values, file = dvc
    assert file["metrics"] == [f"{values['root']}/{stage}/metrics.json" for stage in STAGE_NAMES]


def test_dvc_plots_show_figures_of_stages(dvc):
    """Pictures alone: DVC draws anything else with a script from the network."""
    values, file = dvc
    for name in file["plots"]:
        root, stage, figure = name.rsplit("/", 2)
        assert (root, stage in STAGE_NAMES) == (values["root"], True)
        assert figure == "figures" or figure.endswith(".png")
