"""How much a volume may hold: a project quota (engine.projectquota) of its directory, whose project is in its record.

There is no other way to limit one: a limit that is measured now and then would hold up nobody who shares the disk.
"""

from reconciler.engine import projectquota
from reconciler.engine.layout import Layout
from reconciler.engine.projectquota import Holder, Project, lacking, read_project
from reconciler.errors import UnsupportedError

__all__ = ["Project", "apply", "begin", "in_force", "lacking", "read_project", "release", "require"]


def require(layout: Layout, app: str, name: str) -> None:
    """Raise UnsupportedError where no limit can be enforced, before anything is made."""
    missing, remedy = lacking(layout.volumes if layout.volumes.is_dir() else layout.state)
    if missing:
        raise UnsupportedError(f"volume {app}/{name}: size_limit can't be enforced: {missing}", hint=remedy)


def begin(layout: Layout, app: str, name: str, limit: int) -> Project:
    """Give the new, empty directory of a volume its project and its limit, and return it for the record."""
    return projectquota.begin(_holder(layout, app, name, empty=True), limit)


def apply(layout: Layout, app: str, name: str, limit: int | None) -> None:
    """Have a volume that is there hold at most `limit` bytes, None for all the room there is; running or not."""
    if limit is not None or read_project(str(layout.volume_record(app, name))) is not None:
        require(layout, app, name)
        projectquota.apply(_holder(layout, app, name), limit)


def in_force(layout: Layout, app: str, name: str, project: Project | None) -> tuple[int, int] | None:
    """The limit (0 for none) and the use of the volume in bytes as the kernel has them; None where it has neither."""
    return projectquota.in_force(_holder(layout, app, name), project)


def release(layout: Layout, app: str, name: str) -> None:
    """Lift the limit of a volume that is about to go; its project stays leased for as long as anything carries it."""
    projectquota.release(_holder(layout, app, name))


def _holder(layout: Layout, app: str, name: str, *, empty: bool = False) -> Holder:
    return Holder(
        layout=layout,
        label=f"volume {app}/{name}: size_limit",
        record=layout.volume_record(app, name),
        root=layout.volume(app, name),
        names=() if empty else ("data",),
        whole=True,
        blank={"version": 1, "app": app, "name": name, "created": 0.0},
    )
