"""The file that the zygote's interpreter executes, by its absolute path: `entry.py FDS PATHS DIRECTORY PADDING`.

It runs with -I -S -E on a sealed copy of the interpreter, so it sets sys.path itself, from PATHS. All that zygote and
shims will ever need is imported here; afterwards an import is an error, because it would find the files of another
release after an upgrade, or those of a container after pivot_root. FDS are the socket for requests and the
interpreter's own descriptor, which is closed; DIRECTORY is a place for temporary files, on a tmpfs.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[2].split(":")

import codecs
import encodings.ascii
import encodings.latin_1
import encodings.utf_8
import os
import warnings

from reconciler.shim import zygote
from reconciler.shim.imports import NoMoreImports

_USED = (
    warnings,
    encodings.ascii,
    encodings.latin_1,
    encodings.utf_8,
)  # what the interpreter itself would import late


def main() -> None:
    requests, interpreter = (int(fd) for fd in sys.argv[1].split(","))
    os.close(interpreter)
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    sys.meta_path[:] = [NoMoreImports]
    sys.path_importer_cache.clear()
    zygote.serve(requests, sys.argv[3])


if __name__ == "__main__":
    main()
