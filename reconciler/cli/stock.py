"""The verbs about what is kept here, images, volumes and files, and their options. Data and argparse only."""

import argparse
from typing import Final

from reconciler.cli.arguments import Verbs, call, listing


def _cp(parser: argparse.ArgumentParser) -> None:
    call(parser, "copying:copy")
    parser.add_argument(
        "-a", "--archive", action="store_true", help="keep owners, set-uid bits and extended attributes"
    )
    parser.add_argument(
        "-L", "--follow-link", action="store_true", help="copy what SOURCE leads to, not the link itself"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "source", metavar="SOURCE", help="CONTAINER:PATH, a local path, or - for a tar archive"
    )
    parser.add_argument("target", metavar="TARGET", help="the same; one of the two is CONTAINER:PATH")


def _images(parser: argparse.ArgumentParser) -> None:
    call(parser, "images:images")
    listing(parser, quiet="only digests")


def _pull(parser: argparse.ArgumentParser) -> None:
    call(parser, "images:pull")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY[:TAG]@DIGEST")


def _digest(parser: argparse.ArgumentParser) -> None:
    call(parser, "images:digest")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY:TAG")


def _volume(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    ls = actions.add_parser("ls", help="list volumes", description="List volumes, with size and users.")
    call(ls, "volumes:listing")
    listing(ls, quiet="only names")
    removal = actions.add_parser(
        "rm", help="delete volumes", description="Delete volumes and their data for good."
    )
    call(removal, "volumes:remove")
    removal.add_argument("names", nargs="+", metavar="APP/VOLUME")


def _gc(parser: argparse.ArgumentParser) -> None:
    call(parser, "store:gc")
    parser.add_argument(
        "--dry-run", action="store_true", help="list every object, kept or not, with the reason"
    )
    listing(parser)


VERBS: Final[Verbs] = (
    ("cp", "Copy files out of a container or into it, whether it runs or not.", _cp),
    ("images", "List the images that are here.", _images),
    ("pull", "Fetch an image, verify and unpack it.", _pull),
    ("digest", "Print the reference of an image with the digest that its tag has now.", _digest),
    ("volume", "List and delete named volumes.", _volume),
    ("gc", "Delete what nothing wants any more from the store.", _gc),
)
