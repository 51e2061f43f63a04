"""The shrink guard: a source that suddenly lists far fewer apps is more often broken than meant. Pure."""

from collections.abc import Set


def shrink_reason(
    *,
    known: Set[str],
    desired: Set[str],
    max_removed: float,
    min_apps: int,
    emptied: bool,
    allow: bool,
) -> str:
    """Return why no app may be removed now, as a sentence with the remedy, or an empty string where they may.

    `known` are the apps applied so far and `desired` those wanted now. More than `max_removed` percent of the known
    apps may not go at once; with fewer than `min_apps` of them going that never counts, except where the source was
    `emptied`: no spec file is left in it. `allow` is the operator's word that it is meant.
    """
    removed = known - desired
    if allow or not removed:
        return ""
    too_many = len(removed) >= min_apps and 100 * len(removed) > max_removed * len(known)
    if not emptied and not too_many:
        return ""
    apps = "app" if len(known) == 1 else "apps"
    return (
        f"refusing: the source removes {len(removed)} of {len(known)} {apps}; "
        "if that is meant, run: reconciler apply --allow-empty"
    )
