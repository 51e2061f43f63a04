"""Feed one parser what coverage suggests, with atheris (libFuzzer): `python -m tests.fuzz.run TARGET SECONDS`.

It ends with 0 after that time, and with a traceback and the input in a file `crash-*` at a finding.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["reconciler"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, seconds = sys.argv[1:3]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        child = os.fork()  # libFuzzer ends its process by _exit: somebody has to be left to remove the corpus
        if child == 0:
            options = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-verbosity=0", corpus]
            atheris.Setup([sys.argv[0], *options], target.run)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


if __name__ == "__main__":
    main()
