"""Mount options as the OCI runtime specification spells them (config.md, "Linux mount options"), as kernel flags.

Pure. An option that is neither a flag here nor refused by name is data for the file system, as with mount(8).
"""

from reconciler.linux import mount

_PLAIN = {
    "ro": (mount.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, mount.MOUNT_ATTR_RDONLY),
    "nosuid": (mount.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, mount.MOUNT_ATTR_NOSUID),
    "nodev": (mount.MOUNT_ATTR_NODEV, 0),
    "dev": (0, mount.MOUNT_ATTR_NODEV),
    "noexec": (mount.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, mount.MOUNT_ATTR_NOEXEC),
    "nodiratime": (mount.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, mount.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (mount.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, mount.MOUNT_ATTR_NOSYMFOLLOW),
    # The three ways to keep access times exclude each other: setting one clears the field (mount_setattr(2)).
    "noatime": (mount.MOUNT_ATTR_NOATIME, mount.MOUNT_ATTR__ATIME),
    "atime": (mount.MOUNT_ATTR_RELATIME, mount.MOUNT_ATTR__ATIME),
    "relatime": (mount.MOUNT_ATTR_RELATIME, mount.MOUNT_ATTR__ATIME),
    "norelatime": (mount.MOUNT_ATTR_STRICTATIME, mount.MOUNT_ATTR__ATIME),
    "strictatime": (mount.MOUNT_ATTR_STRICTATIME, mount.MOUNT_ATTR__ATIME),
    "nostrictatime": (mount.MOUNT_ATTR_RELATIME, mount.MOUNT_ATTR__ATIME),
}
_PROPAGATION = {
    "private": mount.MS_PRIVATE,
    "slave": mount.MS_SLAVE,
    "shared": mount.MS_SHARED,
    "unbindable": mount.MS_UNBINDABLE,
}
# Flags of the superblock: the file system is told, not the mount.
_SUPERBLOCK = ("sync", "dirsync", "lazytime", "mand", "iversion")
_NOTHING = ("defaults", "async", "nomand", "nolazytime", "noiversion", "loud", "silent")
_REFUSED = ("remount", "idmap", "ridmap")
# Everything that has a meaning here, for whoever asks
NAMES = (
    *_PLAIN,
    *(f"r{name}" for name in _PLAIN if f"r{name}" not in _PLAIN),
    *_PROPAGATION,
    *(f"r{name}" for name in _PROPAGATION),
    *_SUPERBLOCK,
    *_NOTHING,
    *("bind", "rbind", "tmpcopyup"),
)


class Options:
    """What the options of one mount come to.

    `set`/`clear` are MOUNT_ATTR_* of the mount itself, `tree_set`/`tree_clear` of the mount and all under it. What
    restricts (ro, nosuid, ...) counts for the whole tree of an rbind even without the r: a writable file system below
    a read-only one is no read-only bind. What permits (rw, exec, ...) counts for the tree only with the r, so that it
    never lifts a restriction of the host's. `data` are (key, value or None) for the file system.
    """

    __slots__ = (
        "bind",
        "clear",
        "copy_up",
        "data",
        "propagation",
        "propagation_recursive",
        "recursive",
        "set",
        "tree_clear",
        "tree_set",
    )

    def __init__(self) -> None:
        self.set = 0
        self.clear = 0
        self.tree_set = 0
        self.tree_clear = 0
        self.propagation = 0
        self.propagation_recursive = False
        self.bind = False
        self.recursive = False
        self.copy_up = False
        self.data: tuple[tuple[str, str | None], ...] = ()

    def value(self, key: str) -> str | None:
        """Give the last value of data option `key`."""
        found = None
        for name, value in self.data:
            if name == key:
                found = value
        return found


def parse(options: list[str]) -> Options:
    """Read mount options in order, a later one beating an earlier; raise ValueError for one that is not supported."""
    result = Options()
    data: list[tuple[str, str | None]] = []
    for option in options:
        name = option
        recursive = option[:1] == "r" and (option[1:] in _PLAIN or option[1:] in _PROPAGATION)
        # `rw`, `ro`, `relatime` begin with r and are plain; `rro`, `rnosuid`, `rprivate` are the recursive forms
        if recursive and option not in _PLAIN:
            name = option[1:]
        else:
            recursive = False
        if name in _PLAIN:
            _attributes(result, *_PLAIN[name], recursive)
        elif name in _PROPAGATION:
            result.propagation = _PROPAGATION[name]
            result.propagation_recursive = recursive
        elif option in ("bind", "rbind"):
            result.bind = True
            result.recursive = option == "rbind"
        elif option == "tmpcopyup":
            result.copy_up = True
        elif option in _SUPERBLOCK:
            data.append((option, None))
        elif option in _REFUSED:
            raise ValueError(f"mount option {option}: not supported")
        elif option not in _NOTHING and option:
            key, equals, value = option.partition("=")
            data.append((key, value if equals else None))
    result.data = tuple(data)
    return result


def _attributes(result: Options, set_: int, clear: int, recursive: bool) -> None:
    both = set_ | clear
    result.set, result.clear = result.set & ~both | set_, result.clear & ~both | clear
    if recursive or set_:
        result.tree_set, result.tree_clear = (
            result.tree_set & ~both | set_,
            result.tree_clear & ~both | clear,
        )
    else:
        result.tree_set &= ~both
