"""The verb verify: is an image signed by whom it should be?"""

import argparse
import os

from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.errors import VerificationError
from reconciler.report.container import rfc3339


def verify(args: argparse.Namespace) -> int:
    """Print who has signed the image; exit 7 if nobody has whose signature is asked for."""
    from reconciler.agent.verifying import verify  # a registry's client

    found = verify(
        layout_of(args),
        device_of(args),
        args.image,
        keys=[os.path.realpath(path) for path in args.key],
        bundle=os.path.realpath(args.bundle) if args.bundle else "",
    )
    document = found.document()
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "VerifiedImage", **document})
    elif found.verdict.voucher is not None:
        voucher = found.verdict.voucher
        print(f"{found.reference}: signed by {found.verdict.key}")
        print(f"  key   {voucher.key}")
        print(f"  form  {voucher.form}, found at {voucher.source}, verified {rfc3339(voucher.time)}")
        print(f"  rule  {document['rule']}")
    if found.verdict.voucher is None:
        raise VerificationError(found.verdict.problem)
    return 0
