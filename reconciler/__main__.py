"""`python -m reconciler`, and the `reconciler` program."""

import os
import sys


def runtime() -> int:
    """Run the OCI runtime command line, which is `reconciler oci` as a program: its callers can pass no verb.

    They start it several times for each container, so it does without the tree of all the other verbs.
    """
    from reconciler.shim.oci import main

    return main(sys.argv[1:])


def main() -> int:
    """Run the command line and return its exit code; never wait for a thread that a verb has left behind."""
    from reconciler.cli.main import run

    # Whoever starts it: what should be narrower says so where it is made, and a volume must be 0755 under any umask.
    os.umask(0o022)
    code = run(sys.argv[1:])
    threads = sys.modules.get("threading")
    if threads is not None and threads.active_count() > 1:
        # The interpreter would wait for a worker that waits for a registry, which may take minutes. Whatever a thread
        # is in the middle of is as safe as in a power cut, and what had to be said was said.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
