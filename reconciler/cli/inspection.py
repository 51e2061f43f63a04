"""The verb inspect: all that is known of a container, an image, a volume or a network, from disk and kernel."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from reconciler.agent import client
from reconciler.cli.common import layout_of
from reconciler.cli.listing import printed
from reconciler.cli.signed import rules_of, verdict_of, verdicts_of
from reconciler.engine import cgroup, instance, rootfslimit, tags, volumes
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.network.leases import Leases, decode
from reconciler.engine.network.names import member
from reconciler.engine.record import Record, records
from reconciler.engine.sight import phase_of
from reconciler.engine.snapshot import Uppers
from reconciler.engine.store import Store
from reconciler.engine.usage import usage
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.report import inspection, stored
from reconciler.report.tables import dump_json, dump_yaml, json_line
from reconciler.report.template import Template
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.reference import Reference
from reconciler.state.desired import called
from reconciler.state.image import Image

if TYPE_CHECKING:
    from reconciler.config import TrustRule

Look = Callable[["Inspector", str], list[dict[str, Any]]]
_SHORTEST: Final = 2  # digits of an id that people may leave it at


def inspect(args: argparse.Namespace) -> int:
    """Print what is known of each name; exit 8 if one of them means nothing."""
    template = Template(args.format) if args.format is not None and args.format != "json" else None
    inspector = Inspector(layout_of(args), rules_of(args))
    found: list[dict[str, Any]] = []
    missing: list[ReconcilerError] = []
    for name in args.names:
        try:
            found.append(inspector.find(name, args.type))
        except NotFoundError as error:
            missing.append(error)
    if template is not None:
        sys.stdout.write(printed("".join(f"{template.render(item)}\n" for item in found)))
    elif args.format == "json" or args.output == "jsonl":
        sys.stdout.write("".join(json_line(item) for item in found))
    else:
        sys.stdout.write(dump_yaml(found) if args.output == "yaml" else dump_json(found))
    sys.stdout.flush()
    for one in missing:
        print(f"reconciler: {one}", file=sys.stderr)
    return NotFoundError.exit_code if missing else 0


class Inspector:
    """Looks things up in one state directory; what several of them need is read once."""

    def __init__(self, layout: Layout, rules: "Sequence[TrustRule]") -> None:
        self._layout = layout
        self._rules = rules
        self._instance = instance.read_id(layout)
        self._records = list(records(layout))
        self._store = Store(layout)
        self._images = self._store.images()
        self._status: dict[str, Any] | None = None

    def find(self, name: str, kind: str | None) -> dict[str, Any]:
        """The one thing that `name` means; a container, an image, a volume, a network, in this order.

        NotFoundError where there is none, UsageError with the candidates where an id is ambiguous.
        """
        looks: dict[str, Look] = {
            "container": Inspector.containers,
            "image": Inspector.images,
            "volume": Inspector.volumes,
            "network": Inspector.networks,
        }
        for look in looks.values() if kind is None else (looks[kind],):
            found = look(self, name)
            if len(found) > 1:
                ids = ", ".join(f"{one.get('Name', '')} {one['Id'][:19]}".strip() for one in found)
                raise UsageError(f"{name}: ambiguous: {ids}", hint="use more digits")
            if found:
                return found[0]
        raise NotFoundError(f"{name}: no such {kind or 'container, image, volume or network'}")

    # --- containers --------------------------------------------------------------------------------------------------

    def containers(self, name: str) -> list[dict[str, Any]]:
        same = [r for r in self._records if name in (r.full_name, called(r.app, r.name))]
        if same:
            return [self._container(max(same, key=lambda record: record.created))]
        return [
            self._container(record)
            for record in self._records
            if len(name) >= _SHORTEST and record.id.startswith(name)
        ]

    def _container(self, record: Record) -> dict[str, Any]:
        layout = self._layout
        group = cgroup.open_existing(Hierarchies.detect(), f"reconciler-{self._instance}", record.id)
        return inspection.container(
            inspection.Found(
                record=record,
                config=_document(layout.config(record.id).read_bytes)
                if layout.config(record.id).exists()
                else {},
                phase=phase_of(layout, record.id),
                log=str(layout.log(record.id)),
                frozen=group is not None and cgroup.frozen(group),
                rootfs=self._rootfs(record),
                memory_peak=usage(group).memory_max if group is not None else None,
                networks=dict(self._places(record)),
                image=next((image for image in self._images if str(image.config) == record.image), None),
                status=self._row(record),
                trust=verdict_of(self._rules, layout, Reference.parse(record.reference)),
            )
        )

    def _rootfs(self, record: Record) -> dict[str, Any]:
        limit = record.settings.limits.rootfs
        if limit is None:
            return {}
        found = rootfslimit.use(self._layout, Uppers(self._layout), record.id)
        return {"Limit": limit, "Used": found.used, "KeptBy": "quota" if found.counted else "agent"}

    def _places(self, record: Record) -> Iterator[tuple[str, inspection.Place]]:
        leases: Leases = {}
        with suppress(OSError, ValueError):
            leases = decode(self._layout.leases.read_bytes())
        for key in record.networks:
            name = member(key, record.app, record.name)
            if key in leases and name in leases[key].addresses:
                lease = leases[key]
                address, said = str(lease.addresses[name]), lease.aliases.get(name, ())
                yield (
                    key,
                    inspection.Place(
                        address,
                        str(lease.subnet),
                        str(lease.gateway),
                        said,
                        str(lease.addresses6.get(name, "")),
                        str(lease.subnet6 or ""),
                        str(lease.gateway6 or ""),
                    ),
                )

    def _row(self, record: Record) -> dict[str, Any]:
        """What the running agent says of the container: health, back-off, whether it is as desired."""
        if self._status is None:
            self._status = {}
            with suppress(ReconcilerError):
                self._status = client.request(self._layout, "GET", "/v1/status", timeout=5)
        for item in self._status.get("items", ()):
            for row in item["containers"]:
                if row["id"] == record.id:
                    return dict(row)
        return {}

    # --- images ------------------------------------------------------------------------------------------------------

    def images(self, name: str) -> list[dict[str, Any]]:
        from reconciler.cli.images import (
            image_names,  # a registry's client: not for those who look at containers
        )

        rules = self._rules

        names = image_names(self._layout)
        found: dict[str, Image] = {}
        for image in self._images:
            digests = (str(image.manifest), str(image.index), str(image.config))
            known = names.get(str(image.manifest), ())
            starts = len(name) >= _SHORTEST and any(
                digest.startswith(name) or digest.partition(":")[2].startswith(name) for digest in digests
            )
            if starts or _named(name, known, digests) or _completed(name) in known:
                found[str(image.manifest)] = image
        return [
            self._image(image, known, verdicts_of(rules, self._layout, image, known))
            for image, known in ((image, names.get(manifest, ())) for manifest, image in found.items())
        ]

    def _image(self, image: Image, names: Iterable[str], verdicts: list[dict[str, object]]) -> dict[str, Any]:
        layers = [self._store.layer(layer.chain_id) for layer in image.layers]
        return stored.image(
            image,
            _document(lambda: self._store.read_blob(image.config)),
            names=sorted(names),
            users=sorted(r.full_name for r in self._records if r.manifest == str(image.manifest)),
            sizes=[None if layer is None else layer.size for layer in layers],
            trust=verdicts,
        )

    # --- volumes -----------------------------------------------------------------------------------------------------

    def volumes(self, name: str) -> list[dict[str, Any]]:
        return list(self._volumes(name))

    def _volumes(self, name: str) -> Iterator[dict[str, Any]]:
        from reconciler.cli.volumes import declared  # the models of specs: likewise

        for volume in volumes.volumes(self._layout):
            if volume.full_name != (name if "/" in name else f"{ADHOC}/{name}"):
                continue
            users = [r.full_name for r in self._records if r.app == volume.app and volume.name in r.volumes]
            yield stored.volume(
                volume.app,
                volume.name,
                data=str(self._layout.volume_data(volume.app, volume.name)),
                created=volume.created,
                size=volumes.size(self._layout, volume.app, volume.name),
                users=sorted(users),
                orphaned=not users and name not in declared(self._layout),
                labels=dict(volume.labels),
                size_limit=volumes.size_limit(self._layout, volume.app, volume.name),
            )

    # --- networks ----------------------------------------------------------------------------------------------------

    def networks(self, name: str) -> list[dict[str, Any]]:
        from reconciler.cli.networks import found  # libnftables: likewise

        items = found(self._layout, self._instance) if self._layout.leases.exists() else []
        return [
            stored.network(item)
            for item in items
            if name in (item["name"], item["name"].removeprefix("/"), item["bridge"])
        ]


def _completed(name: str) -> str:
    """The name that `tag` and `rmi` take this for: `web` is `localhost/web:latest`."""
    try:
        return tags.full_name(name)
    except UsageError:
        return name


def _named(name: str, known: Iterable[str], digests: Iterable[str]) -> bool:
    """Whether `name` is one of an image's names: with its tag, without, or pinned."""
    bare, at, digest = name.partition("@")
    if at and digest not in digests:
        return False
    return any(bare == one or f"{bare}:latest" == one or (at and one.startswith(f"{bare}:")) for one in known)


def _document(read: Callable[[], bytes]) -> dict[str, Any]:
    """A JSON object, {} where it can't be had."""
    try:
        value = json.loads(read())
    except (OSError, ValueError, RecursionError, ReconcilerError):
        return {}
    return value if isinstance(value, dict) else {}
