"""Commands about exported programs: bundle, page, bench-latency, environment. Loading this loads no runtime."""

import json
import sys
from pathlib import Path

import click

from mobileclip import storage
from mobileclip.cli import tables
from mobileclip.cli.options import FILE, Words


@click.command()
@click.argument("path", type=FILE)
@click.option("--out", default="", help="folder of the bundle; default: the export folder")
@click.option("--version", default="", help="version in its name; default: the first 12 digits of the weights' digest")
@click.option("--page", is_flag=True, help="with the page for browsers; npm gets ONNX Runtime Web once")
def bundle(path: Path, out: str, version: str, page: bool) -> int:
    """Bundle the export in PATH, or check a bundle: every checksum, the contract, nothing beside what is listed."""
    from mobileclip.formats.bundle import archive as bundles

    if path.suffix == bundles.SUFFIX:
        agreed = bundles.verify(path)
        sys.stdout.write(f"{path.name}: whole; {agreed.model}, {len(agreed.programs)} programs\n")
        return 0
    from mobileclip.formats import contract
    from mobileclip.formats.bundle import assemble as shipping
    from mobileclip.formats.bundle import web

    if page:
        shipping.check_page([program.format for program in contract.read(path).programs], key="bundle: got --page")
    extra = web.members() if page else {}
    written = bundles.write(path, Path(out or path), version=version, extra=extra)
    sys.stdout.write(f"{storage.digest_file(written)}  {written}\n")
    return 0


@click.command()
@click.argument("path", type=FILE)
@click.option("--port", type=int, default=8000, show_default=True, help="port; 0 = any free one")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="address; 0.0.0.0 lets phones of the same network in"
)
def page(path: Path, port: int, host: str) -> int:
    """Serve the page of PATH (a bundle, or the output folder of export) until interrupted."""
    from mobileclip.formats.bundle import serve

    with serve.serving(path, host=host, port=port) as server:
        sys.stdout.write(f"{serve.address(server)}   (Ctrl-C ends)\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0


@click.command(cls=Words)
@click.argument("students", nargs=-1, required=True, metavar="STUDENT...")
@click.option("--formats", multiple=True, default=["onnx"], help="onnx, executorch, litert")
@click.option(
    "--precisions", multiple=True, default=["float32"], help="float32, float16, int8, int8_static, int8_weights, ..."
)
@click.option("--threads", type=int, multiple=True, default=[1, 2], help="numbers of threads, each measured apart")
@click.option("--rounds", type=int, default=20, show_default=True, help="measured turns of each program")
@click.option("--out", default="", help="also write the rows there as JSON")
def latency(
    students: tuple[str, ...], formats: tuple[str, ...], precisions: tuple[str, ...], threads: tuple[int, ...],
    rounds: int, out: str,
) -> int:  # fmt: skip
    """Time students in every format and precision, in one interleaved run.

    STUDENT is the output of distill, or an architecture, which gets random weights.
    """
    from mobileclip.formats.measure import bench

    rows = bench.compare(
        list(students), formats=list(formats), precisions=list(precisions), threads=list(threads), rounds=rounds
    )
    tables.show(tables.render(rows))
    if out:
        storage.write_bytes(out, (json.dumps(rows, indent=2) + "\n").encode())
    return 0


@click.command()
@click.argument("name")
def environment(name: str) -> int:
    """Make the environment of its own that the exporter of a format NAME needs: coreai, litert."""
    from mobileclip.formats import environment as environments

    sys.stdout.write(f"{environments.make(name)}\n")
    return 0
