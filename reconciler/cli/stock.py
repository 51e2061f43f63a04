"""The verbs about what is kept here, images, volumes and files, and their options. Data and argparse only."""

import argparse
from typing import Final

from reconciler.cli.arguments import Add, Verbs, call, completes, filters, listing, output


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
    parser.add_argument("-a", "--all", action="store_true", help="also images that are not here whole")
    parser.add_argument("--digests", action="store_true", help="whole digests")
    filters(parser, "dangling=true|false, reference, label, before and since an image")
    listing(parser, quiet="only digests")


def _pull(parser: argparse.ArgumentParser) -> None:
    call(parser, "pulling:pull")
    parser.add_argument(
        "--bundle", metavar="LAYOUT", default="", help="from this OCI layout, also by the name it has there"
    )
    parser.add_argument(
        "--platform", metavar="OS/ARCH", default="", help="for another platform than this device's"
    )
    output(parser, "json")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY with :TAG, @DIGEST or both")


def _unpack(parser: argparse.ArgumentParser) -> None:
    call(parser, "unpacking:unpack")
    parser.add_argument(
        "--bundle", metavar="LAYOUT", default="", help="from this OCI layout alone, by the name it has there"
    )
    parser.add_argument(
        "--platform", metavar="OS/ARCH", default="", help="for another platform than this device's"
    )
    output(parser, "json")
    parser.add_argument(
        "reference", metavar="IMAGE", help="what is here: a name, a digest or its start; else HOST/REPOSITORY"
    )
    parser.add_argument("directory", metavar="DIR", help="a directory that is empty or not there")


def _digest(parser: argparse.ArgumentParser) -> None:
    call(parser, "pulling:digest")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY:TAG")


def _login(parser: argparse.ArgumentParser) -> None:
    call(parser, "accounts:login")
    parser.add_argument(
        "-u", "--username", metavar="USER", default="", help="the account (default: asked for)"
    )
    parser.add_argument(
        "-p", "--password", metavar="TEXT", default="", help="the password, for everybody who lists processes"
    )
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument(
        "registry", metavar="REGISTRY", help="HOST[:PORT], or HOST[:PORT]/PREFIX for what begins so"
    )


def _logout(parser: argparse.ArgumentParser) -> None:
    call(parser, "accounts:logout")
    parser.add_argument("-a", "--all", action="store_true", help="of every registry")
    parser.add_argument("registry", nargs="?", metavar="REGISTRY", help="as it was logged in to")


def _pin(parser: argparse.ArgumentParser) -> None:
    call(parser, "pinning:pin")
    parser.add_argument(
        "--check", action="store_true", help="write nothing: exit 2 if something would change, 0 if not"
    )
    parser.add_argument(
        "--update", action="store_true", help="also where there is a digest: move to what the tag means now"
    )
    output(parser, "json")
    files = parser.add_argument(
        "files", nargs="+", metavar="FILES", help="spec files, or directories of them"
    )
    completes(files, "files")


def _verify(parser: argparse.ArgumentParser) -> None:
    call(parser, "verifying:verify")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="FILE",
        help="by this public key (PEM), whatever device.yaml asks for; may be repeated: one of them is enough",
    )
    parser.add_argument(
        "--bundle", default="", metavar="LAYOUT", help="take image and signatures from this OCI layout alone"
    )
    output(parser, "json")
    image = parser.add_argument(
        "image", metavar="IMAGE", help="HOST/NAME@sha256:..., a name that is here, or a tag of a registry"
    )
    completes(image, "images")


def _rmi(parser: argparse.ArgumentParser) -> None:
    call(parser, "images:remove")
    parser.add_argument(
        "-f", "--force", action="store_true", help="take all its names away; it stays while it is needed"
    )
    output(parser, "json")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a name, a digest, or the start of a digest"
    )


def _save(parser: argparse.ArgumentParser) -> None:
    call(parser, "archives:save")
    file = parser.add_argument(
        "-o", "--output", dest="file", metavar="FILE", default="", help="this file, not standard output"
    )
    completes(file, "files")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a name, a digest, or the start of a digest"
    )


def _load(parser: argparse.ArgumentParser) -> None:
    call(parser, "archives:load")
    file = parser.add_argument(
        "-i", "--input", metavar="FILE", default="", help="this file, not standard input"
    )
    completes(file, "files")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--platform", metavar="OS/ARCH", default="", help="for another platform than this device's"
    )
    output(parser, "json")


def _bundle_create(parser: argparse.ArgumentParser) -> None:
    call(parser, "bundles:create")
    to = parser.add_argument(
        "-o",
        "--output",
        dest="to",
        metavar="DIR|FILE.tar",
        required=True,
        help="where to; - for standard output",
    )
    completes(to, "files")
    has = parser.add_argument(
        "--for",
        dest="have",
        metavar="LIST",
        default="",
        help="only what that device lacks: what it wrote with `bundle have`, or its state directory",
    )
    completes(has, "files")
    parser.add_argument(
        "--bundle",
        metavar="LAYOUT",
        action="append",
        default=[],
        help="from this OCI layout, not from a registry",
    )
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH",
        default="",
        help="for another platform than the list's, or this device's",
    )
    what = parser.add_argument(
        "what",
        nargs="+",
        metavar="SPECS|IMAGE",
        help="a spec file, a directory of them, or HOST/REPOSITORY...",
    )
    completes(what, "files", "image")


def _bundle_have(parser: argparse.ArgumentParser) -> None:
    call(parser, "bundles:have")


def _bundle_ingest(parser: argparse.ArgumentParser) -> None:
    call(parser, "bundles:ingest")
    parser.add_argument(
        "--platform", metavar="OS/ARCH", default="", help="for another platform than this device's"
    )
    output(parser, "json")
    source = parser.add_argument(
        "source", metavar="DIR|FILE.tar", help="an OCI layout, as a directory or as tar; - for standard input"
    )
    completes(source, "files")


def _tag(parser: argparse.ArgumentParser) -> None:
    call(parser, "images:tag")
    source = parser.add_argument(
        "source", metavar="SOURCE", help="an image that is here: name, digest, or its start"
    )
    completes(source, "image")
    parser.add_argument("target", metavar="TARGET", help="the new name; NAME alone is localhost/NAME:latest")


def _volume_create(parser: argparse.ArgumentParser) -> None:
    call(parser, "volumes:create")
    parser.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="a label; may be repeated"
    )
    name = parser.add_argument(
        "name", metavar="NAME", help="APP/VOLUME, or VOLUME for one of no app (adhoc/VOLUME)"
    )
    completes(name)


def _volume_ls(parser: argparse.ArgumentParser) -> None:
    call(parser, "volumes:listing")
    filters(parser, "dangling=true|false (nothing mounts it), orphaned, name, label")
    listing(parser, quiet="only names")


def _network_ls(parser: argparse.ArgumentParser) -> None:
    call(parser, "networks:listing")
    filters(parser, "name, driver, dangling=true|false (no container is in it)")
    listing(parser, quiet="only names")


def _volume_rm(parser: argparse.ArgumentParser) -> None:
    call(parser, "volumes:remove")
    parser.add_argument("-f", "--force", action="store_true", help="one that is not there is no error")
    names = parser.add_argument("names", nargs="+", metavar="NAME", help="APP/VOLUME, or VOLUME of no app")
    completes(names, "volume")


def _prune(what: str, everything: str = "") -> Add:
    def add(parser: argparse.ArgumentParser) -> None:
        call(parser, "pruning:prune")
        parser.set_defaults(what=what, all=False)
        if everything:
            parser.add_argument("-a", "--all", action="store_true", help=everything)
        if what == "system":
            parser.add_argument("--volumes", action="store_true", help="volumes too, and their data")
        parser.add_argument("-f", "--force", action="store_true", help="do not ask")
        parser.add_argument("--dry-run", action="store_true", help="only list what would go, and why")
        filters(parser, "until (a time or a duration), label, label! (label!=KEY)")
        output(parser, "json")

    return add


def _df(parser: argparse.ArgumentParser) -> None:
    call(parser, "pruning:df")
    parser.add_argument("-v", "--verbose", action="store_true", help="each thing, with what uses it")
    listing(parser)


def noun(actions: Verbs) -> Add:
    """A verb that is a noun, with actions of its own."""

    def add(parser: argparse.ArgumentParser) -> None:
        inner = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        for name, help_text, build in actions:
            build(inner.add_parser(name, help=help_text[0].lower() + help_text[1:-1], description=help_text))

    return add


def _fsck(parser: argparse.ArgumentParser) -> None:
    call(parser, "fsck:fsck")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="fetch again what is damaged and needed, drop what is damaged and is not",
    )
    listing(parser)


def _gc(parser: argparse.ArgumentParser) -> None:
    call(parser, "store:gc")
    parser.add_argument(
        "--dry-run", action="store_true", help="list every object, kept or not, with the reason"
    )
    listing(parser)


_PRUNE_IMAGES: Final = (
    "Remove images that nothing needs and nobody named, and packed layers that are unpacked."
)
_PRUNE_RUNS: Final = (
    "Remove ad-hoc containers that have ended, and what is kept of runs that nobody wants any more."
)
VOLUME: Final[Verbs] = (
    ("create", "Make a volume by hand.", _volume_create),
    ("ls", "List volumes, with size and users.", _volume_ls),
    ("rm", "Delete volumes and their data for good.", _volume_rm),
    (
        "prune",
        "Delete volumes that nobody named and nothing mounts; with -a named ones too.",
        _prune("volume", "also volumes that somebody named, but nothing declares or mounts"),
    ),
)
NETWORK: Final[Verbs] = (
    ("ls", "List the networks of apps, with their containers and what is wrong with them.", _network_ls),
)
_BUNDLE: Final[Verbs] = (
    ("create", "Write what a device lacks of some images, as a directory or one file.", _bundle_create),
    ("have", "Print what this device has, for `bundle create --for` elsewhere.", _bundle_have),
    ("ingest", "Bring the images of a bundle here, verify and unpack them.", _bundle_ingest),
)
_SYSTEM: Final[Verbs] = (
    ("df", "Show what takes room on the disk, and what a prune would give back.", _df),
    (
        "prune",
        "Remove ended ad-hoc containers, images that nothing needs, old runs; volumes only with --volumes.",
        _prune("system", "also images, and with --volumes volumes, that somebody named"),
    ),
)
# What has no verb of its own: the rest of these nouns are other words for verbs.
IMAGE: Final[Verbs] = (
    ("unpack", "Write the root file system of an image into a new or empty directory.", _unpack),
    ("prune", _PRUNE_IMAGES, _prune("image", "also images that somebody named, but nothing needs")),
)
CONTAINER: Final[Verbs] = (("prune", _PRUNE_RUNS, _prune("container")),)
VERBS: Final[Verbs] = (
    ("cp", "Copy files out of a container or into it, whether it runs or not.", _cp),
    ("images", "List the images that are here, with what uses them.", _images),
    ("pull", "Fetch an image, verify and unpack it.", _pull),
    ("digest", "Print the reference of an image with the digest that its tag has now.", _digest),
    ("login", "Check an account at a registry, and keep it for pulls of private images.", _login),
    ("logout", "Forget an account that login kept.", _logout),
    ("pin", "Write the digests of images into spec files, in place; --check says what is not pinned.", _pin),
    ("verify", "Check who has signed an image, by the device's rules or with a key.", _verify),
    ("tag", "Give an image another name on this device.", _tag),
    ("save", "Write images that are here into one archive, for docker, podman, skopeo or load.", _save),
    ("load", "Bring the images of an archive here, as docker and podman save them or an OCI layout.", _load),
    ("bundle", "Carry images to a device that no registry reaches: create, have, ingest.", noun(_BUNDLE)),
    ("rmi", "Take a name from an image, and with its last one the image.", _rmi),
    ("system", "The device's room: df, prune.", noun(_SYSTEM)),
    ("df", "Show what takes room on the disk, and what a prune would give back.", _df),
    (
        "fsck",
        "Check every blob, layer and record of the store; with --repair put right what is wrong.",
        _fsck,
    ),
    ("gc", "Delete what nothing wants any more from the store.", _gc),
)
