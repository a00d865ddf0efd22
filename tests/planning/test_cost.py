"""Costs of a reinforced dataset: the paper's own figures come out again, sums agree, and a probe measures."""

import json

import pytest

from mobileclip import __main__ as cli
from mobileclip.config import Params
from mobileclip.errors import ConfigError
from mobileclip.planning import cost as plan
from mobileclip.planning import probe
from mobileclip.planning.cost import Demand

PAPER_SET = Demand(samples=12_800_000, views=30, captions=5, teachers=2, dtype="bfloat16")


def test_an_epoch_takes_what_the_paper_prints():
    """arXiv 2311.17049: 12.8 million samples on eight A100, in hours."""
    found = plan.plan(PAPER_SET, gpus=8)
    assert found.epoch_stored / 8 == pytest.approx(1.3)
    assert found.epoch_online / 8 == pytest.approx(4.1)
    assert found.epoch_all_online / 8 == pytest.approx(21.1)


def test_embeddings_take_what_the_paper_prints():
    """DataCompDR-12M: (30 + 6) x 1536 x 2 bytes a sample."""
    assert plan.plan(PAPER_SET).embedding_bytes == 36 * 1536 * 2
    halved = plan.plan(plan.replace(PAPER_SET, dtype="int8"))
    assert halved.embedding_bytes == 36 * 2 * (768 + 2)


def test_it_pays_from_the_epoch_on_at_which_both_ways_cost_the_same():
    found = plan.plan(PAPER_SET)
    epochs = found.break_even
    assert found.embed_hours + epochs * found.epoch_stored == pytest.approx(epochs * found.epoch_online)
    epochs = found.break_even_all
    made = found.caption_hours + found.embed_hours
    assert made + epochs * found.epoch_stored == pytest.approx(epochs * found.epoch_all_online)


def test_one_view_and_one_caption_are_what_an_online_epoch_computes():
    found = plan.plan(plan.replace(PAPER_SET, views=1, captions=1))
    assert found.break_even == pytest.approx(1)
    assert found.break_even_all == pytest.approx(1)
    assert found.caption_hours == pytest.approx((21.1 - 4.1) * 8)
    assert found.embed_hours == pytest.approx((4.1 - 1.3) * 8)


@pytest.mark.parametrize(("key", "factor"), [("samples", 3), ("teachers", 2)])
def test_costs_grow_with_what_is_asked(key, factor):
    more = plan.replace(PAPER_SET, **{key: factor * getattr(PAPER_SET, key)})
    assert plan.plan(more).embed_hours == pytest.approx(factor * plan.plan(PAPER_SET).embed_hours)


def test_gpus_change_the_time_and_not_the_work():
    one, eight = plan.plan(PAPER_SET, gpus=1), plan.plan(PAPER_SET, gpus=8)
    assert eight.wall_hours == pytest.approx(one.wall_hours / 8)
    assert eight.embed_hours == one.embed_hours
    assert plan.plan(PAPER_SET, speed=2.0).embed_hours == pytest.approx(one.embed_hours / 2)


@pytest.mark.parametrize(("samples", "groups"), [(3_000, 3), (20_000, 10), (300_000, 30), (65_536_000, 100)])
def test_groups_are_few_and_have_work(samples, groups):
    found = plan.plan(plan.replace(PAPER_SET, samples=samples))
    assert found.groups == groups
    assert found.groups <= found.shards
    assert found.group_hours * found.groups >= (found.caption_hours + found.embed_hours) * 0.999


def test_a_params_file_says_what_is_asked():
    demand = plan.demand_of(Params(), 1000)
    assert (demand.views, demand.captions, demand.teachers, demand.dtype) == (10, 5, 1, "float16")


@pytest.mark.parametrize(("key", "value"), [("samples", 0), ("views", 0), ("teachers", -1), ("captions", -1)])
def test_wrong_numbers_are_named(key, value):
    with pytest.raises(ConfigError, match=f"^{key}: got {value}, want"):
        plan.replace(PAPER_SET, **{key: value})


def test_the_command_prints_a_table_and_json(capsys, tmp_path):
    command = [
        "plan",
        "--params",
        str(tmp_path / "none.yaml"),
        "--samples",
        "12800000",
        "--views",
        "30",
        "--teachers",
        "2",
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "5 views, 5 captions" in said
    assert "views and embeddings [GPU-h]" in said
    assert cli.main([*command, "--gpu", "H100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["epoch_online"] == pytest.approx(4.1 * 8 / 2)
    assert cli.main(["plan", "--samples", "0"]) == 2
    assert cli.main(["plan", "--samples", "10", "--gpus", "0"]) == 2


def test_a_probe_measures_this_machine():
    found = probe.measure(teacher="tiny-mci", student="tiny-mci", captioner="tiny-coca", batch=2, seconds=0.05)
    assert min(found.image, found.text, found.caption, found.student) > 0
    assert found.caption > found.text  # many steps of a decoder against one pass
    assert "tiny-coca" in found.source
    asked = Demand(samples=1000, views=2, captions=1, teachers=1)
    made = plan.plan(asked, rates=found)
    assert made.caption_hours == pytest.approx(1000 * found.caption / 3.6e6)
