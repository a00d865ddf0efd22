"""Commands that use a model on a folder of images: search, classify, embed."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from mobileclip import storage
from mobileclip.errors import ConfigError

_NAMED = 10  # broken files that the terminal names


def search(
    model: str,
    folder: str,
    query: str = "",
    *,
    like: Sequence[Path] = (),
    top: int = 24,
    json_: bool = False,
    sheet: Path | None = None,
    index: Path | None = None,
    image: str = "",
    text: str = "",
    batch_size: int = 32,
) -> int:
    """Find the images of a folder that fit a text, or look like given images.

    The folder's index is kept in `FOLDER/.mobileclip` and brought up to date first: only new images are embedded.

    Args:
        model: A bundle, an export folder, the root of a run, a student's folder, hf-hub:OWNER/NAME or NAME:TAG.
        folder: Images; subfolders are read, what is hidden is not.
        query: What to look for, for example "a dog on grass".
        like: Example images in place of a text.
        top: Most images to show.
        json_: Print JSON instead of a table.
        sheet: Where the contact sheet goes; default: search.html beside the index.
        index: Folder of the index, for image folders that cannot be written.
        image: Precision of a bundle's image program; default: the most exact one.
        text: Precision of its text program; the same.
        batch_size: Images that are in memory at a time.
    """
    from mobileclip.search import index as indexes
    from mobileclip.search import rank
    from mobileclip.search import sheet as sheets
    from mobileclip.search.model import folder_of, open_model

    if bool(query.strip()) == bool(like):
        raise ConfigError("query: got both a text and --like, want one." if like else "query: got none, want a text.")
    _check_top(top)
    place = folder_of(folder)
    opened = open_model(model, image=image, text=text)
    wanted = rank.embed_query(opened, list(like) or query)
    found, done = indexes.update(place, opened, place=index, batch_size=batch_size)
    hits = rank.nearest(found, wanted, top=top)
    page = sheet or indexes.path_of(opened, place, index).with_name("search.html")
    asked = query or " + ".join(path.name for path in like)
    facts = {"Images": f"{len(found.names):,}", "Model": opened.name, "Shown": f"the {len(hits)} nearest, by cosine"}
    shown = {"": [sheets.Shown(hit.name, f"{hit.score:.3f}") for hit in hits]}
    _write_page(page, sheets.render(place, shown, title=asked, facts=facts, broken=found.broken, kind="Search"))
    rows = [{"rank": rank_, "score": round(hit.score, 6), "image": hit.name} for rank_, hit in enumerate(hits, 1)]
    if json_:
        _print_json(
            {"query": asked, "model": opened.name, "hits": rows, "update": asdict(done), "broken": found.broken}
        )
    else:
        _print_rows(("", "cosine", "image"), [(row["rank"], f"{row['score']:.3f}", row["image"]) for row in rows])
        sys.stdout.write(f"contact sheet: {page}\n")
    _tell(done, found.broken)
    return 0


def classify(
    model: str,
    folder: str,
    *,
    labels: Sequence[str],
    template: Sequence[str] = ("a photo of a {}.",),
    out: str = "",
    json_: bool = False,
    top: int = 24,
    sheet: Path | None = None,
    index: Path | None = None,
    image: str = "",
    text: str = "",
    batch_size: int = 32,
) -> int:
    """Give every image of a folder the most likely of several labels.

    Args:
        model: A bundle, an export folder, the root of a run, a student's folder, hf-hub:OWNER/NAME or NAME:TAG.
        folder: Images; subfolders are read, what is hidden is not.
        labels: Labels separated by commas, or one file with a label per line.
        template: Prompt with {} for the label; of several the mean embedding is taken.
        out: Where every image's label and probabilities go: .csv, .json or .jsonl.
        json_: Print JSON instead of a table.
        top: Most images of each label on the contact sheet.
        sheet: Where the contact sheet goes; default: classify.html beside the index.
        index: Folder of the index, for image folders that cannot be written.
        image: Precision of a bundle's image program; default: the most exact one.
        text: Precision of its text program; the same.
        batch_size: Images that are in memory at a time.
    """
    from mobileclip.formats.bundle.prompt_bank import check_prompts
    from mobileclip.search import index as indexes
    from mobileclip.search import rank
    from mobileclip.search import sheet as sheets
    from mobileclip.search.model import folder_of, open_model

    names = read_labels(labels)
    if out and Path(out).suffix not in _WRITERS:
        raise ConfigError(f"out: got '{out}', want a file that ends in {', '.join(_WRITERS)}.")
    _check_top(top)
    check_prompts(names, template)
    place = folder_of(folder)
    opened = open_model(model, image=image, text=text)
    found, done = indexes.update(place, opened, place=index, batch_size=batch_size)
    guesses = rank.classify(found, opened, names, templates=template)
    rows = [
        {"image": g.name, "label": g.label, "probability": round(g.probability, 6),
         "probabilities": dict(zip(names, (round(value, 6) for value in g.probabilities), strict=True))}
        for g in guesses
    ]  # fmt: skip
    if out:
        storage.write_bytes(out, _WRITERS[Path(out).suffix](rows).encode("utf-8", "replace"))
    counts = Counter(guess.label for guess in guesses)
    best = {
        name: sorted((g for g in guesses if g.label == name), key=lambda g: -g.probability)[:top] for name in counts
    }
    sections = {
        f"{name} ({count:,})": [sheets.Shown(g.name, f"{g.probability:.0%}") for g in best[name]]
        for name, count in counts.most_common()
    }
    page = sheet or indexes.path_of(opened, place, index).with_name("classify.html")
    facts = {"Images": f"{len(guesses):,}", "Model": opened.name, "Prompt": " / ".join(template)}
    title = ", ".join(names)
    _write_page(page, sheets.render(place, sections, title=title, facts=facts, broken=found.broken, kind="Classes"))
    if json_:
        _print_json(
            {"labels": names, "model": opened.name, "images": rows, "update": asdict(done), "broken": found.broken}
        )
    else:
        table = [(name, counts[name], f"{best[name][0].probability:.0%}" if name in best else "") for name in names]
        _print_rows(("label", "images", "surest"), table)
        sys.stdout.write(f"contact sheet: {page}\n" + (f"labels: {out}\n" if out else ""))
    _tell(done, found.broken)
    return 0


def embed(
    model: str,
    folder: str,
    *,
    out: str,
    index: Path | None = None,
    image: str = "",
    batch_size: int = 32,
) -> int:
    """Write the embeddings of a folder's images for other tools.

    Args:
        model: A bundle, an export folder, the root of a run, a student's folder, hf-hub:OWNER/NAME or NAME:TAG.
        folder: Images; subfolders are read, what is hidden is not.
        out: File or s3:// object: .parquet (path, sha256, embedding) or .npz (paths, sha256, embeddings).
        index: Folder of the index, for image folders that cannot be written.
        image: Precision of a bundle's image program; default: the most exact one.
        batch_size: Images that are in memory at a time.
    """
    from mobileclip.search import index as indexes
    from mobileclip.search import table
    from mobileclip.search.model import folder_of, open_model

    table.check(out)
    place = folder_of(folder)
    opened = open_model(model, image=image)
    found, done = indexes.update(place, opened, place=index, batch_size=batch_size)
    count = table.write(found, opened, out)
    sys.stdout.write(f"{count:,} embeddings of {opened.embed_dim} values: {out}\n")
    _tell(done, found.broken)
    return 0


def read_labels(given: Sequence[str]) -> list[str]:
    """Labels as they are given: several, one text with commas, or one file with a label per line.

    Raises:
        ConfigError: There are none, one occurs twice, or the file is no UTF-8 text.
    """
    names = list(given)
    if len(names) == 1 and Path(names[0]).is_file():
        try:
            names = Path(names[0]).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise ConfigError(f"labels: '{given[0]}' is no UTF-8 text, want a label per line.") from None
    else:
        names = [part for name in names for part in name.split(",")]
    names = [name.strip() for name in names if name.strip()]
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if not names or doubles:
        got = f"'{doubles[0]}' twice" if doubles else "none"
        raise ConfigError(f"labels: got {got}, want each of at least one label once.")
    return names


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigError(f"top: got {top}, want 1 or more.")


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *rows[0]["probabilities"]])
    writer.writerows([row["image"], row["label"], row["probability"], *row["probabilities"].values()] for row in rows)
    return stream.getvalue()


def _as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_WRITERS = {".csv": _as_csv, ".json": _as_json, ".jsonl": _as_jsonl}


def _write_page(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"sheet: '{path}' cannot be written ({error.strerror}), want --sheet, a file.") from None


def _print_rows(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns, of which the last one is never wrapped or cut: it holds names that are copied and piped."""
    lines = [[_readable(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(head) - 1)]
    for line in lines:
        padded = [set_cell_size(cell, width) for cell, width in zip(line[:-1], widths, strict=True)]
        sys.stdout.write("  ".join([*padded, line[-1]]).rstrip() + "\n")


def _print_json(value: Mapping[str, Any]) -> None:
    # In ASCII: any terminal and any pipe takes it, names that are no Unicode included.
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _tell(done: Any, broken: Mapping[str, str]) -> None:
    """What was read, and every file that could not be, on the error stream: JSON has the output for itself."""
    parts = [f"{done.embedded:,} embedded", f"{done.kept + done.known:,} known", f"{done.removed:,} removed"]
    lines = [f"index: {', '.join(parts)}"]
    if broken:
        lines.append(f"{len(broken):,} {'file' if len(broken) == 1 else 'files'} could not be read:")
        lines += [f"  {name}: {fault}" for name, fault in list(broken.items())[:_NAMED]]
        lines += [f"  and {len(broken) - _NAMED:,} more"] if len(broken) > _NAMED else []
    sys.stderr.write(_readable("\n".join(lines)) + "\n")


def _readable(text: str) -> str:
    """File names that are no Unicode, with what cannot be shown replaced; no name steers the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.encode("utf-8", "replace").decode()
