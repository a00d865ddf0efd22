"""A trace to look at: as JSON for files, as a rich tree for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mobileclip.lineage.licenses import because, binding, classify
from mobileclip.lineage.trace import Node, Trace, is_copy

_SHORT = 16


def as_dict(found: Trace) -> dict[str, Any]:
    """A trace as JSON: stages, digests, licenses; without the places it was found at."""
    return {
        "stages": [
            {"stage": node.stage, "record": node.digest, **{k: node.record[k] for k in ("version", "code", "config")}}
            | {"inputs": node.record["inputs"], "files": len(node.record["files"])}
            for node in found.nodes
        ],
        "outside": [{"stage": s, "input": n, "digest": d} for s, n, d, _ in found.outside],
        "licenses": [
            {"stage": u.stage, "what": u.what, "license": u.license, "terms": u.terms.label} for u in found.uses
        ],
        "terms": found.terms.label,
        "reasons": [f"{u.what}: {u.license}" for u in binding(found.uses)[1]],
        "problems": found.problems,
    }


def render(found: Trace, origins: Mapping[str, Mapping[str, str]] | None = None) -> Group:
    """The chain as a tree, the licenses as a table, and what does not agree.

    Args:
        found: The trace.
        origins: Run, commit, DVC and Kubeflow names by record digest.
    """
    by_digest = {node.digest: node for node in found.nodes}
    tree = Tree(_text(f"[bold]{escape(found.target)}[/bold]"))
    _grow(tree, found.nodes[0], by_digest, found, dict(origins or {}), set())
    checked = sum(node.checked for node in found.nodes)
    absent = sum(node.absent for node in found.nodes)
    digests = f"{checked} digests agree" + (f", {absent} files not at hand" if absent else "")
    problems = [_text(f"[red]{escape(problem)}[/red]") for problem in found.problems] or [Text("nothing disagrees")]
    terms, reasons = binding(found.uses)
    verdict = Text(f"License: {terms.label}, because of {because(reasons)}")
    return Group(tree, licenses(found), verdict, Text(digests), *problems)


def licenses(found: Trace) -> Table:
    """Every licensed thing of the chain; those of one stage under one license share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for use in found.uses:
        rows.setdefault((use.stage, use.license), []).append(use.what)
    table = Table("stage", "what", "license", "terms", title="Licenses")
    for (stage, license_), things in rows.items():
        table.add_row(stage, Text(", ".join(dict.fromkeys(things))), Text(license_), classify(license_).label)
    return table


def _grow(
    tree: Tree,
    node: Node,
    by_digest: Mapping[str, Node],
    found: Trace,
    origins: Mapping[str, Mapping[str, str]],
    seen: set[str],
) -> None:
    facts = [f"record {node.digest[:_SHORT]}", f"config {node.record['config'][:_SHORT]}"]
    facts += [f"code {node.record['code'][:_SHORT]}", f"version {node.record['version']}"]
    facts += [f"{name} {_shortened(value)}" for name, value in origins.get(node.digest, {}).items()]
    where = "(record kept in the registry)" if is_copy(node.uri) else escape(node.uri)
    if node.digest in seen:
        tree.add(_text(f"[bold]{node.stage}[/bold] [dim]{node.digest[:_SHORT]}, shown above[/dim]"))
        return
    lines = [f"[bold]{node.stage}[/bold] {where}", *(escape(line) for line in node.holds)]
    branch = tree.add(_text("\n".join([*lines, f"[dim]{escape('  '.join(facts))}[/dim]"])))
    seen.add(node.digest)
    for digest in node.record["inputs"].values():
        if digest in by_digest:
            _grow(branch, by_digest[digest], by_digest, found, origins, seen)
    for stage, name, digest, uri in found.outside:
        if stage == node.stage:
            more = "".join(f"  {label} {_shortened(value)}" for label, value in origins.get(digest, {}).items())
            branch.add(Text(f"{name}: from outside, {digest[:_SHORT]} {uri or '(not at hand)'}{more}"))
    for stage, name, digest in found.lost:
        if stage == node.stage:
            branch.add(_text(f"[red]{name}: {digest[:_SHORT]} not found[/red]"))


def _shortened(value: str) -> str:
    """A digest's first digits, and what is said about it."""
    digest, space, rest = value.partition(" ")
    return f"{digest[:_SHORT]}{space}{rest}"


def _text(markup: str) -> Text:
    """Styled text in which a name like `by trained:locked:` stays what it is; rich would see an emoji in it."""
    return Text.from_markup(markup, emoji=False)
