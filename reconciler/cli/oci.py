"""`reconciler oci`: the OCI runtime command line, in the tree of verbs. It parses for itself, as runc does.

Its exit codes and its errors are runc's, not those of docs/cli.md, and it takes none of the agent's places.
"""

import argparse
from collections.abc import Sequence
from typing import Final

from reconciler.cli.arguments import Verbs
from reconciler.shim import oci_options


def _add(parser: argparse.ArgumentParser) -> None:
    oci_options.build(parser)


VERBS: Final[Verbs] = (
    ("oci", "Be the OCI runtime of podman or containerd; they call it as the program reconciler-oci.", _add),
)


def run(arguments: Sequence[str]) -> int:
    """Do what the words after `oci` say and give the exit code."""
    from reconciler.shim.oci import main  # loads how containers are made, which no other verb needs

    return main(list(arguments))
