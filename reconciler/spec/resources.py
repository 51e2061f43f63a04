"""What a container may use at most, and what is kept for it. Pure, as `spec.parts` is."""

import re
from typing import Annotated, Final, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from reconciler.spec.fault import Fault
from reconciler.spec.fields import Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.quantity import format_bytes
from reconciler.spec.values import (
    BYTES_SCHEMA,
    Bytes,
    Cpus,
    OptionalBytes,
    OptionalPath,
    Whole,
    describe,
    entries,
    size,
    text,
)
from reconciler.spec.yaml12 import WrittenInt

LEAST_MEMORY: Final = 6 << 20
_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)
_MOST_CPUS: Final = 8192


def _limit(value: object) -> int:
    amount = size(value)
    if amount < LEAST_MEMORY:
        raise Fault(f"must be at least {format_bytes(LEAST_MEMORY)}, not {format_bytes(amount)}")
    return amount


def cpuset(value: object) -> str:
    """Return a list of CPUs as the kernel writes it: ranges in order, neighbours joined."""
    found = value.text if isinstance(value, WrittenInt) else text(value)
    numbers: set[int] = set()
    for part in found.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match is not None else (1, 0)
        if first > last or last >= _MOST_CPUS:
            raise Fault(f"must be CPUs such as 0-2,4, not {quote(found)}")
        numbers.update(range(first, last + 1))
    return _ranges(sorted(numbers))


def _ranges(numbers: list[int]) -> str:
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _rate(value: object) -> int:
    if isinstance(value, bool):
        raise Fault(f"must be a size, not {describe(value)}")
    amount = size(value)
    if not 1 <= amount < 2**63:
        raise Fault(f"must be at least 1, not {amount}")
    return amount


_Rate = Annotated[
    int | None,
    PlainValidator(_rate),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(Ki|Mi|Gi|k|M|G)?$", "minimum": 1}),
]
_Count = Annotated[Whole, Field(ge=1, le=2**31 - 1)]


_SMALLEST_ROOTFS: Final = 64 << 10
_SMALLEST_HUGE_PAGE: Final = 16 << 10


def hugepages(value: object) -> dict[int, int]:
    """Return bytes by size of page, both as numbers, or raise Fault; no page of a size is a limit, too."""

    def of_size(key: object, item: object) -> tuple[int, int]:
        page, amount = _page(str(key)), size(item)
        if amount % page:
            raise Fault(f"must be whole pages of {key}, not {format_bytes(amount)}")
        return page, amount

    return entries(value, of_size)


def _page(text: str) -> int:
    try:
        page = size(text)
    except Fault:
        page = 0
    if page < _SMALLEST_HUGE_PAGE or page & (page - 1):
        raise Fault(
            f"{quote(text)} is no size of a huge page",
            subject=False,
            at_key=True,
            hint="such as 2Mi or 1Gi: see /sys/kernel/mm/hugepages",
        )
    return page


HugePages = Annotated[
    dict[int, int],
    PlainValidator(hugepages),
    WithJsonSchema({"type": "object", "additionalProperties": BYTES_SCHEMA}),
]


class IoLimits(Part):
    """How fast a container may read from and write to a disk."""

    read_bps: Annotated[_Rate, Doc("Bytes read per second.", "bytes", "10Mi", "no limit", False)] = None
    write_bps: Annotated[_Rate, Doc("Bytes written per second.", "bytes", "5Mi", "no limit", False)] = None
    read_iops: Annotated[_Count | None, Doc("Reads per second.", "integer", "200", "no limit", False)] = None
    write_iops: Annotated[_Count | None, Doc("Writes per second.", "integer", "100", "no limit", False)] = (
        None
    )
    device: Annotated[
        OptionalPath,
        Doc(
            "The disk, or a path on it; a partition stands for its disk.",
            "path",
            "/dev/sda",
            "the disk of the state directory",
            False,
        ),
    ] = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.read_bps is self.write_bps is self.read_iops is self.write_iops is None:
            raise Fault("must have at least one of read_bps, write_bps, read_iops and write_iops")
        return self


class Limits(Part):
    """What a container may use at most."""

    cpus: Annotated[
        Cpus, Doc("CPUs, as a number or in thousandths.", "number or `500m`", "0.5", "no limit", False)
    ] = None
    memory: Annotated[
        Annotated[
            int | None,
            PlainValidator(_limit),
            WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(Ki|Mi|Gi|k|M|G)?$"}),
        ],
        Doc(
            "Memory; at least 6Mi. Without it there is a warning. Where it runs out the whole container is killed, "
            "with what `exec` runs in it, and the restart policy decides.",
            "bytes",
            "64Mi",
            "no limit",
            False,
        ),
    ] = None
    swap: Annotated[Bytes, Doc("Swap beside `memory`, not the sum of both.", "bytes", "32Mi", "0", False)] = 0
    pids: Annotated[
        Whole,
        Field(ge=1, le=4_194_304),
        Doc("Processes and threads together.", "integer", "100", "512", False),
    ] = 512
    io: Annotated[
        IoLimits | None,
        Doc("How fast it may use a disk.", "map", "{write_bps: 5Mi}", "no limit", False),
    ] = None
    io_weight: Annotated[
        Annotated[Whole, Field(ge=1, le=10_000)] | None,
        Doc(
            "Its part of the disk of the state directory when others want it too, relative to theirs; 100 is what "
            "others have. Needs the scheduler bfq, or io.cost of cgroup version 2.",
            "1-10000",
            "500",
            "",
            False,
        ),
    ] = None
    hugepages: Annotated[
        HugePages,
        Doc(
            "Memory in huge pages, by their size. They are beside `memory`: the kernel counts them on their own. Sizes "
            "that are not named have no limit.",
            "map",
            "{2Mi: 64Mi}",
            "no limit",
            False,
        ),
    ] = Field(default_factory=dict)

    rootfs: Annotated[
        OptionalBytes,
        Doc(
            "What it may write to its own file system, beside its volumes; at least 64Ki. Kept by the kernel where "
            "the file system of the state directory has project quotas: what goes beyond it fails. Elsewhere the agent "
            "measures it every few seconds, and ends a container that has reached its limit, which then starts anew by "
            "its restart policy, empty; `reconciler doctor` says which.",
            "bytes",
            "256Mi",
            "no limit",
            False,
        ),
    ] = None

    @model_validator(mode="after")
    def _rootfs_holds_something(self) -> Self:
        if self.rootfs is not None and self.rootfs < _SMALLEST_ROOTFS:
            raise Fault("must be at least 64Ki", path=("rootfs",))
        return self

    @model_validator(mode="after")
    def _swap_needs_memory(self) -> Self:
        if self.swap and self.memory is None:
            raise Fault("needs limits.memory too", path=("swap",))
        return self


class Reserve(Part):
    """What is kept for a container when others want it too."""

    memory: Annotated[
        OptionalBytes,
        Doc(
            "Memory that the kernel takes from others first. On cgroup version 1 it is the soft limit.",
            "bytes",
            "32Mi",
            "none",
            False,
        ),
    ] = None
    cpus: Annotated[
        Cpus,
        Doc(
            "CPUs that it gets when all of them are wanted, as a number or in thousandths.",
            "number or `500m`",
            "0.5",
            "none",
            False,
        ),
    ] = None


Cpuset = Annotated[
    str | None,
    PlainValidator(cpuset),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(-\d+)?( *, *\d+(-\d+)?)*$"}),
]
