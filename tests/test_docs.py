"""The documents: links resolve, paths exist, decisions have one form, and the code on the Python page runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([\w-]+))?\)|\]\(#([\w-]+)\)")
PATH = re.compile(
    r"`((?:mobileclip|tests|components|pipelines|docs|examples|benchmarks|docker|deploy|params)/[\w./-]+)`"
)
# What a user makes, and a path in another project.
ELSEWHERE = {"deploy/secret.yaml", "examples/portable/executor_runner"}
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_resolve(page):
    text = page.read_text(encoding="utf-8")
    broken = []
    for target, anchor, own in LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        place = (page.parent / target) if target else page
        wanted = anchor or own
        if not place.exists() or (wanted and place.suffix == ".md" and wanted not in _anchors(place)):
            broken.append(f"{target}#{wanted}")
    named = {name for name in PATH.findall(text) if "X" not in Path(name).stem} - ELSEWHERE
    assert (broken, sorted(name for name in named if not (ROOT / name).exists())) == ([], [])


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_decisions_have_one_form(page):
    text = page.read_text(encoding="utf-8")
    assert re.match(rf"# {page.stem[:4]}: [A-Z`]", text)
    order = [text.find(f"**{head}.**") for head in ("Context", "Decision", "Consequences")]
    assert order == sorted(order)
    assert order[0] > 0
    assert f"({page.name})" in (page.parent / "README.md").read_text(encoding="utf-8")


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    absent = [name for name in pages if f"({name})" not in index and not name.startswith("decisions/0")]
    assert absent == ["index.md"]


def test_the_code_of_the_python_page_runs(tiny_reinforced, tiny_teachers, tiny_source, capsys):
    from tests.exports import exported

    made = exported()
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names = {
        "DATA": tiny_reinforced, "TEACHERS": tiny_teachers, "STUDENT": str(made.checkpoint), "EXPORT": str(made.export),
        "IMAGE": str(next(tiny_source.glob("*.png"))),
    }  # fmt: skip
    for block in blocks:
        exec(compile(block, "python-api.md", "exec"), names)
    assert len(blocks) == 5
    assert names["batch"]["image"].shape[0] == 8
    assert float(names["losses"]["loss"]) > 0
    assert [len(captions) for captions in names["captions"]] == [2]
    assert float(names["probabilities"].sum()) == pytest.approx(1)
    assert names["image_features"].shape[0] == 1
