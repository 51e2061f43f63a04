"""What `make bench` runs: puts the clone at the head of the module path, and the benchmarks under way.

It must not do more: everything else is in the package `bench`, which can't be imported before this.
"""

import os
import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
# A wish for no bytecode would have every verb compile the whole program, as it does not where it is installed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
runpy.run_module("bench", run_name="__main__", alter_sys=True)
