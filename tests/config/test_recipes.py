"""Recipes: merging, complete results, every shipped file valid, sourced, documented, and as published."""

from pathlib import Path

import open_clip
import pytest

from mobileclip.__main__ import main
from mobileclip.config import Params, read_params
from mobileclip.config.recipes import about
from mobileclip.errors import ConfigError
from mobileclip.models.published import VARIANTS, variant_of_hub
from mobileclip.training.optimizer import learning_rate

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
BASE = ROOT / "params.yaml"


def _read(*names: str) -> Params:
    return read_params(BASE, recipes=[FOLDER / f"{name}.yaml" for name in names])


@pytest.fixture
def write(tmp_path):
    def write(text, name="r.yaml", *, about="recipe: {title: t, source: s}\n"):
        (tmp_path / name).write_text(about + text)
        return tmp_path / name

    return write


class TestMerging:
    def test_only_what_is_named_changes(self, write):
        recipe = write("distill: {seed: 7, training: {steps: 5}}")
        found, base = read_params(BASE, recipes=[recipe]), read_params(BASE)
        assert (found.distill.seed, found.distill.training.steps) == (7, 5)
        values = found.model_dump()
        values["distill"]["seed"], values["distill"]["training"]["steps"] = (
            base.distill.seed, base.distill.training.steps,
        )  # fmt: skip
        assert Params.model_validate(values) == base

    def test_extended_files_come_first_and_later_recipes_last(self, write):
        write("distill: {seed: 1, model: a}", "below.yaml")
        top = write("distill: {seed: 2}", about="recipe: {title: t, source: s, extends: [below.yaml]}\n")
        last = write("distill: {seed: 3}", "last.yaml")
        assert read_params(BASE, recipes=[top]).distill.seed == 2
        found = read_params(BASE, recipes=[top, last])
        assert (found.distill.seed, found.distill.model) == (3, "a")

    def test_title_and_source_are_optional(self, write):
        assert read_params(BASE, recipes=[write("distill: {seed: 7}", about="")]).distill.seed == 7
        assert (
            read_params(BASE, recipes=[write("distill: {seed: 7}", about="recipe: {title: mine}\n")]).distill.seed == 7
        )
        assert read_params(BASE, recipes=[write("", about="")]) == read_params(BASE)

    def test_a_params_file_may_extend_another(self, write):
        write("distill: {seed: 1, model: a}", "below.yaml", about="")
        assert read_params(write("distill: {seed: 2}", about="recipe: {extends: [below.yaml]}\n")).distill == (
            Params().distill.model_copy(update={"seed": 2, "model": "a"})
        )

    def test_lists_and_scales_by_teacher_are_replaced_and_new_items_completed(self, write):
        recipes = [
            write("calibrate: {given: {a: 1}}\nreinforce: {teachers: [{name: a}, {name: b}]}", "1.yaml"),
            write("calibrate: {given: {c: 2}}\nreinforce: {teachers: [{name: c, license: MIT}]}", "2.yaml"),
        ]
        found = read_params(BASE, recipes=recipes)
        assert found.calibrate.given == {"c": 2.0}
        assert [(t.name, t.license, t.pretrained) for t in found.reinforce.teachers] == [("c", "MIT", "")]

    @pytest.mark.parametrize(
        ("text", "about", "match"),
        [
            ("distil: {}", None, r"^distil: unknown key, did you mean distill\.$"),
            (
                "distill: {training: {step: 1}}",
                None,
                r"^distill\.training\.step: unknown key, did you mean ",
            ),
            ("distill: {seed: x}", None, r"^distill\.seed: got 'x', input should be a valid integer"),
            ("[]", "", r"^recipe: '.*' holds list, want a mapping with sections of stages\.$"),
            ("", "recipe: {title: t, source: s, more: 1}", r"^recipe\.more: unknown key in '.*'\.$"),
            ("", "recipe: {title: t, source: s, extends: [r.yaml]}", r"^recipe: '.*' extends itself, or too many"),
            (
                "",
                "recipe: {title: t, source: s, extends: [x.yaml]}",
                r"^recipe: no file '.*x\.yaml', want a YAML file",
            ),
            ("a: [", None, r"^recipe: '.*' is not YAML: "),
        ],
    )
    def test_wrong_recipes_get_one_sentence(self, write, text, about, match):
        path = write(text) if about is None else write(text, about=about)
        with pytest.raises(ConfigError, match=match) as caught:
            read_params(BASE, recipes=[path])
        assert "\n" not in str(caught.value)

    def test_the_command_line_prints_the_complete_file(self, write, capsys, tmp_path):
        recipe = write("distill: {seed: 7}")
        assert main(["params", str(BASE), "--recipe", str(recipe)]) == 0
        (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
        assert read_params(tmp_path / "whole.yaml") == read_params(BASE, recipes=[recipe])

    def test_run_and_status_take_recipes(self, capsys, tmp_path):
        code = main(["status", "--params", str(BASE), "--recipe", str(tmp_path / "no.yaml"), "--root", str(tmp_path)])
        assert code == 2
        assert "no file" in capsys.readouterr().err
        small = str(FOLDER / "small-budget.yaml")
        assert main(["status", "--params", str(BASE), "--recipe", small, "--root", str(tmp_path)]) == 0


class TestShipped:
    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
    def test_valid_sourced_documented_and_of_known_models(self, path):
        params = _read(path.stem)
        found = about(path)
        assert "arXiv" in found["source"]
        assert f"`{path.stem}`" in (ROOT / "docs" / "recipes.md").read_text()
        known = {*open_clip.list_models(), *VARIANTS}
        loaded = [(t.model, t.pretrained) for t in params.reinforce.teachers]
        loaded += [(t.model, t.pretrained) for t in params.train_teacher.teachers]
        loaded += [(params.caption.model, params.caption.pretrained), (params.distill.model, params.distill.pretrained)]
        loaded += [(params.finetune_captioner.model, params.finetune_captioner.pretrained)]
        for model, tag in loaded:
            if model.startswith("hf-hub:"):
                assert variant_of_hub(model.removeprefix("hf-hub:"))
            elif not model.startswith(("trained", "tiny")):
                assert model in known
                assert not tag or tag in open_clip.list_pretrained_tags_by_model(model)
        names = {teacher.name for teacher in params.reinforce.teachers}
        assert not params.calibrate.given or set(params.calibrate.given) == names
        assert params.distill.training.optimizer.warmup_steps < params.distill.training.steps

    def test_every_published_student_of_the_papers_has_its_recipes(self):
        stems = {path.stem for path in FILES}
        assert stems >= {f"mobileclip-{s}-{n}" for s in ("s0", "s1", "s2", "b") for n in ("12m", "1b")}
        assert stems >= {f"mobileclip2-{s}-{n}" for s in ("s0", "s2", "b", "s3", "s4") for n in ("12m", "2b")}

    # As published: student, steps, batch, warm-up, last rate, decay of the mean, lambda, views, captions, scales.
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("mobileclip-s0-12m", ("MobileCLIP-S0", 30_000, 8192, 2000, 1e-6, 0.9995, 1.0, 30, 5, [100, 100])),
            ("mobileclip-b-1b", ("MobileCLIP-B", 200_000, 65_536, 2000, 1e-6, 0.9995, 0.75, 10, 5, [100, 100])),
            ("mobileclip-b-lt-1b", ("MobileCLIP-B-LT", 600_000, 65_536, 2000, 1e-6, 0.9995, 0.75, 10, 5, [100, 100])),
            ("mobileclip2-b-12m", ("MobileCLIP2-B", 30_000, 8192, 1000, 0.0, 0.0, 1.0, 30, 5, [70, 60])),
            ("mobileclip2-s0-2b", ("MobileCLIP2-S0", 200_000, 65_536, 10_000, 1e-6, 0.0, 1.0, 2, 5, [70, 60])),
            ("mobileclip2-b-2b", ("MobileCLIP2-B", 200_000, 65_536, 2000, 1e-6, 0.0, 1.0, 2, 5, [70, 60])),
            ("mobileclip2-s4-2b", ("MobileCLIP2-S4", 200_000, 114_688, 2000, 0.0, 0.0, 1.0, 2, 5, [70, 60])),
            ("small-budget", ("MobileCLIP2-S0", 30_000, 8192, 1000, 0.0, 0.0, 1.0, 2, 2, [70])),
        ],
    )
    def test_published_numbers(self, name, expected):
        p = _read(name)
        t = p.distill.training
        found = (
            p.distill.model, t.steps, t.batch_size, t.optimizer.warmup_steps, t.optimizer.lr_end, t.ema_decay,
            p.distill.distill_weight, p.reinforce.views.num_views, p.caption.num_captions,
            [p.calibrate.given[teacher.name] for teacher in p.reinforce.teachers],
        )  # fmt: skip
        assert found == expected
        adam = (t.optimizer.lr, t.optimizer.weight_decay, t.optimizer.beta1, t.optimizer.beta2)
        assert adam == (1e-3, 0.2, 0.9, 0.95)
        assert t.precision == "bfloat16"
        assert not t.global_batch_norm  # the scripts' option for it is off

    def test_the_long_training_holds_its_rate_for_half_of_it(self):
        training = _read("mobileclip-b-lt-1b").distill.training
        rates = [learning_rate(training.optimizer, step=n, steps=training.steps) for n in (2_000, 299_999, 450_000)]
        assert rates[:2] == [1e-3, 1e-3]
        assert rates[2] == pytest.approx((1e-3 + 1e-6) / 2)

    def test_recipes_to_put_over_others(self):
        found = _read("mobileclip-s0-12m", "retrieval")
        assert (found.distill.model, found.distill.distill_weight) == ("MobileCLIP-S0", 0.7)
        found = _read("mobileclip2-s0-12m", "captioner-docci")
        assert (found.caption.model, found.finetune_captioner.enabled) == ("trained", True)
        assert _read("fine-tune").distill.start_share == 0.5
        assert _read("commercial").promote.gate.commercial_use
