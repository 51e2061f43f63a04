"""Where a git source is: URL, branch and path, checked before any of them reaches the git program.

git takes options, transport helpers (`ext::` runs a command) and refspecs from the same words that people write, so
each word is held to a grammar here (CVE-2017-1000117, CVE-2018-17456). Pure.
"""

import re
from typing import Final

from reconciler.errors import UsageError
from reconciler.spec.marks import printable

# What we let git talk: the value is the name of the protocol for GIT_ALLOW_PROTOCOL.
_SCHEMES: Final = {"https": "https", "ssh": "ssh", "git+ssh": "ssh", "file": "file"}
_URL: Final = re.compile(r"([a-z][a-z0-9+]*)://([^\s/]*)(/\S*)", re.ASCII)
_SCP: Final = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?![:/]/)[^\s:-]\S*", re.ASCII)
_AUTHORITY: Final = re.compile(
    r"(?:[^@-][^@]*@)?(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?", re.ASCII
)
_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]*@")
# git-check-ref-format(1), narrowed to what can't be an option or a refspec
_BRANCH: Final = re.compile(r"[^\s~^:?*\[\\\x00-\x20\x7f./-][^\s~^:?*\[\\\x00-\x20\x7f]*")


def protocol(url: str) -> str:
    """Return the protocol that git may use for `url`, or raise UsageError saying what is wrong with it.

    Accepted: https://, ssh:// and user@host:path, file:// and absolute paths.
    """
    shown = hide_credentials(url)
    if not url or not url.isprintable() or any(character.isspace() for character in url):
        raise UsageError(f"git url {shown!r}: empty, or with a space or control character in it")
    if url.startswith("-"):
        raise UsageError(f"git url {shown!r}: begins with a dash")
    if url.startswith("/"):
        return "file"
    match = _URL.fullmatch(url)
    if match is not None:
        scheme, authority, _ = match.groups()
        if scheme not in _SCHEMES:
            raise UsageError(
                f"git url {shown!r}: {scheme} is not supported",
                hint="use https://, ssh://, user@host:path or an absolute path",
            )
        local = scheme == "file"
        if (local and authority not in ("", "localhost")) or (
            not local and not _AUTHORITY.fullmatch(authority)
        ):
            raise UsageError(f"git url {shown!r}: {hide_credentials(authority)!r} is not a host")
        return _SCHEMES[scheme]
    if _SCP.fullmatch(url) is not None:
        return "ssh"
    raise UsageError(
        f"git url {shown!r}: not understood", hint="use https://, ssh://, user@host:path or an absolute path"
    )


def check_branch(branch: str) -> str:
    """Return `branch`, or raise UsageError if it is no name of a branch."""
    bad = (
        _BRANCH.fullmatch(branch) is None
        or not branch.isprintable()
        or len(branch) > 200
        or any(part in branch for part in ("..", "//", "@{", "/."))
        or branch.endswith(("/", ".", ".lock"))
        or ".lock/" in branch
        or branch == "@"
    )
    if bad:
        raise UsageError(f"branch {printable(branch)[:80]!r}: not a name that a branch can have")
    return branch


def check_path(path: str) -> str:
    """Return the directory inside the repository without slashes around it ("" is its root), or raise UsageError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not path.isprintable():
        raise UsageError(f"path {printable(path)[:80]!r}: expected a path inside the repository")
    return "/".join(parts)


def hide_credentials(text: str) -> str:
    """Return `text` without the user and password of any URL in it: they reach no log, metric or message."""
    return _USERINFO.sub("", printable(text))
