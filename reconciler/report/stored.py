"""What `inspect` prints of an image, a volume or a network: Docker's names wherever the meaning is the same. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.report.inspection import NEVER, rfc3339, signature
from reconciler.state.image import Image


def image(
    found: Image,
    document: Mapping[str, Any],
    *,
    names: Sequence[str],
    users: Sequence[str],
    sizes: Sequence[int | None],
    trust: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """One image. `document` is its config as the registry has it; `sizes` what each layer takes here unpacked, None
    where it is missing; `users` are the containers made from it; `trust` is what is known of its signatures, for each
    name that a rule is about.
    """
    system, _, machine = found.platform.partition("/")
    architecture, _, variant = machine.partition("/")
    inner = document.get("config")
    return {
        "Id": str(found.config),
        "RepoTags": [name for name in names if "@" not in name],
        "RepoDigests": sorted({f"{_repository(name)}@{found.manifest}" for name in names}),
        "Created": document.get("created") or NEVER,
        "Author": document.get("author") or "",
        "Architecture": architecture,
        "Variant": variant,
        "Os": system,
        "Size": sum(size or 0 for size in sizes) if None not in sizes else 0,
        "Config": {
            "User": found.user,
            "ExposedPorts": {port: {} for port in found.exposed_ports},
            "Env": list(found.environment),
            "Entrypoint": None if found.entrypoint is None else list(found.entrypoint),
            "Cmd": None if found.command is None else list(found.command),
            "Volumes": {volume: {} for volume in found.volumes},
            "WorkingDir": found.working_dir,
            "Labels": dict(found.labels),
            "StopSignal": found.stop_signal or "",
            **(
                {"Healthcheck": inner["Healthcheck"]}
                if isinstance(inner, dict) and "Healthcheck" in inner
                else {}
            ),
        },
        "RootFS": {"Type": "layers", "Layers": [str(layer.diff_id) for layer in found.layers]},
        "Reconciler": {
            "Index": str(found.index),
            "Manifest": str(found.manifest),
            "Complete": None not in sizes,
            "Signatures": [{"Reference": one["reference"], **signature(one)} for one in trust],
            "DownloadSize": found.download_size,
            "Layers": [str(layer.digest) for layer in found.layers],
            "Unpacked": [
                {
                    "ChainID": str(layer.chain_id),
                    "MediaType": layer.media_type,
                    "DownloadSize": layer.size,
                    "Size": size,
                }
                for layer, size in zip(found.layers, sizes, strict=True)
            ],
            "History": [_step(step) for step in _list(document.get("history")) if isinstance(step, dict)],
            "UsedBy": list(users),
        },
    }


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of an image's history, as whoever built it tells it."""
    return {
        "Created": str(step.get("created") or NEVER),
        "CreatedBy": str(step.get("created_by") or ""),
        "Comment": str(step.get("comment") or ""),
        "Empty": step.get("empty_layer") is True,
    }


def _repository(name: str) -> str:
    """A reference without its tag and digest."""
    name = name.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def volume(
    app: str,
    name: str,
    *,
    data: str,
    created: float,
    size: int,
    users: Sequence[str],
    orphaned: bool,
    labels: Mapping[str, str] | None = None,
    size_limit: int | None = None,
) -> dict[str, Any]:
    """One named volume; `users` are the containers that mount it."""
    return {
        "Name": f"{app}/{name}",
        "Driver": "local",
        "Mountpoint": data,
        "CreatedAt": rfc3339(created),
        "Scope": "local",
        "Labels": dict(labels or {}),
        "Options": {},
        "UsageData": {"Size": size, "RefCount": len(users)},
        "Reconciler": {
            "App": app,
            "Volume": name,
            "UsedBy": list(users),
            "Orphaned": orphaned,
            "SizeLimit": size_limit,
        },
    }


def network(item: Mapping[str, Any]) -> dict[str, Any]:
    """One network, from what `network ls` knows of it; only containers that are connected are told, as with Docker."""
    length, length6 = (str(item[key]).partition("/")[2] for key in ("subnet", "subnet6"))
    ipam = [{"Subnet": item["subnet"], "Gateway": item["gateway"]}]
    if item["subnet6"]:
        ipam.append({"Subnet": item["subnet6"], "Gateway": item["gateway6"]})
    return {
        "Name": item["name"],
        "Id": item["bridge"],
        "Scope": item["scope"],
        "Driver": item["driver"],
        "EnableIPv6": bool(item["subnet6"]),
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": ipam,
        },
        "Internal": item["internal"],
        "Attachable": False,
        "Ingress": False,
        "Containers": {
            one["id"]: {
                "Name": one["name"],
                "IPv4Address": f"{one['address']}/{length}",
                "IPv6Address": f"{one['address6']}/{length6}" if one["address6"] else "",
            }
            for one in item["containers"]
            if one["connected"]
        },
        "Options": {"com.docker.network.bridge.name": item["bridge"]},
        "Labels": item["labels"],
        "Reconciler": {"State": item["state"]},
    }
