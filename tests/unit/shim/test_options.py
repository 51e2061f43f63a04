"""Mount options against the runtime specification's list, and the rule about whole trees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux import mount
from reconciler.shim import options

_WORDS = sorted([*options._PLAIN, *("r" + name for name in options._PLAIN), *options._PROPAGATION])


def test_restrictions_count_for_the_tree_and_permissions_for_the_mount_only() -> None:
    found = options.parse(["rbind", "ro", "nosuid", "exec"])
    assert found.bind
    assert found.recursive
    restricted = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID
    assert (found.set, found.clear) == (restricted, mount.MOUNT_ATTR_NOEXEC)
    assert (found.tree_set, found.tree_clear) == (restricted, 0)


def test_the_recursive_forms_count_for_the_tree() -> None:
    found = options.parse(["rbind", "rrw", "rexec", "rnoatime"])
    assert found.tree_clear & (mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOEXEC)
    assert found.tree_set == mount.MOUNT_ATTR_NOATIME
    assert found.tree_clear & mount.MOUNT_ATTR__ATIME == mount.MOUNT_ATTR__ATIME


def test_the_last_of_two_contradicting_options_wins() -> None:
    assert options.parse(["ro", "rw"]).set == 0
    assert options.parse(["ro", "rw"]).tree_set == 0
    assert options.parse(["rw", "ro"]).set == mount.MOUNT_ATTR_RDONLY
    assert options.parse(["noatime", "strictatime"]).set == mount.MOUNT_ATTR_STRICTATIME


def test_what_is_no_flag_is_data_for_the_file_system() -> None:
    found = options.parse(["nosuid", "size=64k", "mode=755", "newinstance", "dirsync", "defaults"])
    assert found.data == (("size", "64k"), ("mode", "755"), ("newinstance", None), ("dirsync", None))
    assert found.value("mode") == "755"
    assert found.value("uid") is None


@pytest.mark.parametrize(
    ("word", "propagation", "recursive"),
    [
        ("private", mount.MS_PRIVATE, False),
        ("rprivate", mount.MS_PRIVATE, True),
        ("rslave", mount.MS_SLAVE, True),
        ("rshared", mount.MS_SHARED, True),
        ("runbindable", mount.MS_UNBINDABLE, True),
    ],
)
def test_propagation(word: str, propagation: int, recursive: bool) -> None:
    found = options.parse([word])
    assert (found.propagation, found.propagation_recursive) == (propagation, recursive)


@pytest.mark.parametrize("word", ["remount", "idmap", "ridmap"])
def test_what_cannot_be_done_is_refused_by_name(word: str) -> None:
    with pytest.raises(ValueError, match=word):
        options.parse([word])


@given(st.lists(st.sampled_from(_WORDS)))
def test_nothing_is_both_set_and_lifted(words: list[str]) -> None:
    found = options.parse(words)
    flags = ~mount.MOUNT_ATTR__ATIME  # that field is cleared before it is set
    assert found.set & found.clear & flags == 0
    assert found.tree_set & found.tree_clear & flags == 0
    # an option that only permits never lifts what the host restricts below
    if not any(
        word.startswith("r") and word[1:] in options._PLAIN and word not in options._PLAIN for word in words
    ):
        assert found.tree_clear & flags == 0
