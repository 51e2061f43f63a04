"""The command line of the benchmarks: choose, run each in the place, tell what was found, go on after a failure."""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import flow, many, pull, report, start, streams, turn
from bench.images import SUBJECTS
from bench.measure import BenchError
from bench.place import arrange, contain
from bench.session import Session

Benchmark = Callable[[Session], list[report.Row]]

BENCHMARKS: Final[Mapping[str, tuple[str, Benchmark]]] = {
    "pull": ("cold pulls of five images, beside podman, docker and containerd", pull.run),
    "start": ("prepared bundle to first instruction, beside runc and crun", start.run),
    "path": ("request to first instruction with bridge and port, beside podman and docker", start.path),
    "many": ("50 containers up, and an edit beside them", many.run),
    "memory": ("memory with 10 and 50 containers, and idleness", many.footprint),
    "turn": ("a turn over 1000 specs", turn.run),
    "logs": ("the log pump at 100 MB/s", streams.logs),
    "port": ("throughput of a published port", streams.port),
    "ports": ("one of 1000 published ports, by iperf3 and wrk", flow.published),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure the program beside its peers.")
    told = "; ".join(f"{name}: {what}" for name, (what, _) in BENCHMARKS.items())
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=BENCHMARKS,
        help=f"only this one, may be repeated ({told})",
    )
    parser.add_argument(
        "--image",
        metavar="NAME",
        action="append",
        choices=[subject.name for subject in SUBJECTS],
        help="pulls of this image only, may be repeated (%(choices)s)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, help="how often each contestant has its turn")
    parser.add_argument("--quick", action="store_true", help="a minute or two: few rounds, fewer peers")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.add_argument(
        "--disk",
        metavar="DIR",
        type=Path,
        default=Path("/var/tmp"),
        help="where the file of the ext4 is made (default /var/tmp)",
    )
    parser.add_argument("--inside", metavar="DIR", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    chosen = [name for name in BENCHMARKS if name in (options.only or BENCHMARKS)]
    if options.inside is not None:
        return measure(options, chosen)
    if os.geteuid() != 0:
        print("bench: not root: containers can't be started", file=sys.stderr)
        return 1
    if "pull" in chosen:
        for subject in SUBJECTS:
            subject.build()  # may need a network, which the place does not have
    if options.json is not None:
        options.json.touch()  # made out here: the place goes with all that is in it
        arguments = [*arguments, "--json", str(options.json.absolute())]
    return contain(arguments, options.disk.absolute())


def measure(options: argparse.Namespace, chosen: list[str]) -> int:
    """Run the chosen benchmarks in the place that we have been started in."""
    place = arrange(options.inside, options.disk)
    rows: list[report.Row] = []
    failed: dict[str, str] = {}
    began = time.monotonic()
    about: dict[str, Any] = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "started": time.time(),
    }
    with Session(place, rounds=options.rounds, quick=options.quick, images=options.image) as session:
        for name in chosen:
            session.say(f"{time.monotonic() - began:3.0f} s: {BENCHMARKS[name][0]} ...")
            try:
                found = BENCHMARKS[name][1](session)
            except BenchError as error:
                failed[name] = str(error)
            except Exception as error:  # noqa: BLE001 one broken benchmark does not hold up the others
                failed[name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            else:
                rows += found
        about |= {"seconds": time.monotonic() - began, "missing": session.peers.missing, "failed": failed}
    print(
        f"Linux {about['kernel']}, Python {about['python']}, {about['processors']} processors, load {about['load']:.1f}"
    )
    print(f"{about['seconds']:.0f} s in all. A ratio is our median through theirs, of the same rounds.\n")
    print(report.text(rows), end="")
    for reason in about["missing"]:
        print(f"* not measured: {reason}")
    for name, reason in failed.items():
        print(f"* {name} failed: {reason}")
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(rows, about), indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
