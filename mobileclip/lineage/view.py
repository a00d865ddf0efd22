"""A trace to look at: as JSON for files, as a rich tree for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from mobileclip.lineage.licenses import binding
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
    tree = Tree(f"[bold]{found.target}[/bold]")
    _grow(tree, found.nodes[0], by_digest, found, dict(origins or {}), set())
    terms, reasons = binding(found.uses)
    because = "; ".join(f"{use.what}: {use.license}" for use in reasons) or "nothing is recorded"
    checked = sum(node.checked for node in found.nodes)
    absent = sum(node.absent for node in found.nodes)
    digests = f"{checked} digests agree" + (f", {absent} files not at hand" if absent else "")
    problems = [f"[red]{escape(problem)}[/red]" for problem in found.problems] or ["nothing disagrees"]
    return Group(tree, licenses(found), f"License: [bold]{terms.label}[/bold] ({because})", digests, *problems)


def licenses(found: Trace) -> Table:
    """Every licensed thing of the chain."""
    table = Table("stage", "what", "license", "terms", title="Licenses")
    for use in found.uses:
        table.add_row(use.stage, use.what, use.license, use.terms.label)
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
    facts += [f"{name} {value[:_SHORT]}" for name, value in origins.get(node.digest, {}).items()]
    where = "(record kept in the registry)" if is_copy(node.uri) else escape(node.uri)
    branch = tree.add(f"[bold]{node.stage}[/bold] {where}\n[dim]{escape('  '.join(facts))}[/dim]")
    if node.digest in seen:
        branch.add("[dim]shown above[/dim]")
        return
    seen.add(node.digest)
    for digest in node.record["inputs"].values():
        if digest in by_digest:
            _grow(branch, by_digest[digest], by_digest, found, origins, seen)
    for stage, name, digest, uri in found.outside:
        if stage == node.stage:
            branch.add(f"{name}: from outside, {digest[:_SHORT]} {escape(uri) or '(not at hand)'}")
    for stage, name, digest in found.lost:
        if stage == node.stage:
            branch.add(f"[red]{name}: {digest[:_SHORT]} not found[/red]")
