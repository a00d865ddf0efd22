"""The folder inside of an ExecuTorch program for Core ML: what the delegate gets is a file system flattened to bytes.

The files lie one after another; behind them stands a table of all nodes, children before their folders and the root
last, as JSON written backwards, so that it can be read from the end. ExecuTorch's own extension does the same, but ends
the process where the bytes are damaged, and orders the files as the disk does, which no two machines share.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mobileclip.errors import DataError

PACKAGE = "lowered_module/model.mlpackage"  # where the delegate looks for them
METADATA = "lowered_module/metadata.json"
_FILE, _FOLDER = 0, 1
_LARGEST_TABLE = 1 << 20  # bytes; a package of Core ML has ten nodes in 1 kB


def pack(files: Mapping[str, bytes]) -> bytes:
    """Flatten files, the same to the same bytes.

    Args:
        files: Contents by path, `/` between its parts; all below one folder.
    """
    nodes: list[Any] = []
    written: list[bytes] = []
    ((root, below),) = _by_first_part(files).items()
    _add(root, below, nodes, written)
    table = json.dumps({"nodes": nodes}, sort_keys=True, separators=(",", ":")).encode()
    return b"".join([*written, table[::-1]])


def unpack(payload: bytes) -> dict[str, bytes]:
    """The files of a payload by path.

    Raises:
        DataError: It is no such payload, or damaged.
    """
    try:
        table = payload[-_LARGEST_TABLE:][::-1].decode("latin-1")
        found, length = json.JSONDecoder().raw_decode(table)
        nodes, files = found["nodes"], dict[str, bytes]()
        _take(nodes, len(nodes) - 1, PurePosixPath(), memoryview(payload)[:-length], files)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"the delegate's payload is no folder of files ({type(error).__name__}).") from None
    return files


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a payload's files below a folder; gives the path of the Core ML package among them."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder / PACKAGE


def _add(name: str, files: Mapping[str, bytes], nodes: list[Any], written: list[bytes]) -> int:
    """Add a file (whose path is empty by now), or a folder behind all it holds; gives its place in the table."""
    node: dict[str, Any] = {"name": name, "children": {}, "dataRegion": {"offset": 0, "size": 0}, "kind": _FOLDER}
    if "" in files:
        node |= {"kind": _FILE, "dataRegion": {"offset": sum(map(len, written)), "size": len(files[""])}}
        written.append(files[""])
    else:
        below = _by_first_part(files)
        node["children"] = {child: _add(child, below[child], nodes, written) for child in sorted(below)}
    nodes.append(node)
    return len(nodes) - 1


def _by_first_part(files: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    below: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        first, _, rest = path.partition("/")
        below.setdefault(first, {})[rest] = content
    return below


def _take(nodes: list[Any], index: int, above: PurePosixPath, data: memoryview, files: dict[str, bytes]) -> None:
    """Read a node and all below it, each once."""
    node, nodes[index] = nodes[index], None
    path = above / node["name"]
    if path.name != node["name"]:
        raise ValueError(f"got the name {node['name']!r}")
    if node["kind"] == _FILE:
        offset, size = int(node["dataRegion"]["offset"]), int(node["dataRegion"]["size"])
        if not 0 <= offset <= offset + size <= len(data):
            raise ValueError(f"got {size} bytes at {offset} of {len(data)}")
        files[path.as_posix()] = bytes(data[offset : offset + size])
        return
    for child in node["children"].values():
        if not 0 <= child < index:
            raise ValueError(f"got the child {child} of node {index}")
        _take(nodes, child, path, data, files)
