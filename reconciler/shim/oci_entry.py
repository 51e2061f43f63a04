"""The file that `reconciler oci` executes on a sealed copy of the interpreter: `oci_entry.py FD PATHS ARGUMENTS...`

It runs with -I -S -E, so it sets sys.path itself, from PATHS; FD is the interpreter's own descriptor, which is closed.
All that is ever needed is imported before the command is carried out: after pivot_root an import would find the files
of the container.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[2].split(":")

import codecs
import encodings.ascii
import encodings.latin_1
import encodings.utf_8
import locale
import os
import shutil

from reconciler.linux import process
from reconciler.shim import oci, oci_entering
from reconciler.shim.imports import NoMoreImports

_USED = (
    oci_entering,
    encodings.ascii,
    encodings.latin_1,
    encodings.utf_8,
    locale,
    shutil,
)  # what argparse would import late


def _ready() -> None:
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    sys.meta_path[:] = [NoMoreImports]
    sys.path_importer_cache.clear()


def main() -> int:
    os.close(int(sys.argv[1]))
    process.set_dumpable(False)
    return oci.serve(sys.argv[3:], _ready)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
