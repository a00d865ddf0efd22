"""Turn the logs of `android/benchmark.sh` into a results file: `python examples/on-device/collect.py CONTRACT LOGS`.

Needs no torch. A log without times is named and skipped: that backend does not run the program.
"""

import argparse
import sys
from pathlib import Path

from mobileclip.errors import DataError, MobileClipError
from mobileclip.formats import contract
from mobileclip.formats.contract import Contract
from mobileclip.formats.measure import device_results
from mobileclip.formats.measure.device_results import Device, DeviceResults


def collect(agreed: Contract, logs: Path, device: Device) -> tuple[DeviceResults, list[str]]:
    """Read every `PROGRAM@TOOL@BACKEND@THREADS.log`.

    Returns:
        The results, and a sentence for each log without times.

    Raises:
        DataError: A log is of no program of the contract, or no log holds times.
    """
    programs = {program.path: program for program in agreed.programs}
    measured, skipped = [], []
    for path in sorted(logs.glob("*@*@*@*.log")):
        name, tool, backend, threads = path.stem.split("@")
        if name not in programs or tool not in {"litert", "executorch"} or not threads.isdigit():
            raise DataError(f"collect: '{path.name}' is of no program of the contract.")
        try:
            text = path.read_text(errors="replace")
            measured.append(
                device_results.measure(text, programs[name], tool=tool, backend=backend, threads=int(threads))
            )
        except DataError as error:
            skipped.append(f"{path.name}: {error}")
    if not measured:
        raise DataError(f"collect: no log in '{logs}' holds times.")
    return device_results.merge(device, agreed.lineage.student_sha256, measured), skipped


def describe(logs: Path) -> Device:
    """Model, system and chip as `android/benchmark.sh` asked the device for them."""
    path = logs / "device.txt"
    if not path.is_file():
        raise DataError(f"collect: no device.txt in '{logs}', want the folder that android/benchmark.sh wrote.")
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    if len(lines) < 3 or not (lines[0] and lines[1]):
        raise DataError(f"collect: '{path}' names no model, system and chip: the device was gone when it was asked.")
    name, release, chip, *rest = lines
    wanted = ("level:", "temperature:", "AC powered:", "USB powered:", "Thermal Status:")
    state = "; ".join(line for line in rest if line.startswith(wanted))
    return Device(name=name, system=f"Android {release}", chip=chip, state=state)


def main() -> int:
    """Collect and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contract", type=Path, help="contract.json of the unpacked bundle")
    parser.add_argument("logs", type=Path, help="folder that android/benchmark.sh wrote")
    parser.add_argument("--out", type=Path, required=True, help="NAME.device.json")
    chosen = parser.parse_args()
    try:
        agreed = contract.read(chosen.contract.parent)
        if not chosen.out.parent.is_dir():
            raise DataError(f"collect: no folder '{chosen.out.parent}' for --out.")
        results, skipped = collect(agreed, chosen.logs, describe(chosen.logs))
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for sentence in skipped:
        sys.stderr.write(f"skipped {sentence}\n")
    chosen.out.write_bytes(results.to_bytes())
    print(f"{len(results.measurements)} measurements on {results.device.name}: {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
