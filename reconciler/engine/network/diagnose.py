"""What a refusal of the kernel means to a person: which errors say that this host can't do networking at all.

The one place where errno becomes one of our errors, so that every part of the network says the same thing.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.errors import ReconcilerError, UnsupportedError

_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
_MISSING = frozenset({errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


def explain(error: OSError, subject: str) -> ReconcilerError:
    """The error that says what `subject` could not do, with what to do about it where the host lacks something."""
    text = error.strerror or os.strerror(error.errno or 0)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return UnsupportedError(
                f"{subject}: not permitted ({text})",
                hint="the agent needs CAP_NET_ADMIN in its network namespace: run it as root, "
                "or give its container --cap-add NET_ADMIN",
            )
        case errno.EROFS:
            return UnsupportedError(
                f"{subject}: /proc/sys is read-only here ({text})",
                hint="inside a container, set the value from outside: --sysctl net.ipv4.ip_forward=1",
            )
        case errno.ELIBACC:
            return UnsupportedError(
                f"{subject}: libnftables can't be loaded ({text})",
                hint="install it: apt-get install libnftables1",
            )
        case number if number in _MISSING:
            return UnsupportedError(
                f"{subject}: this kernel lacks what is needed ({text})",
                hint="bridge, veth, nf_tables, nft_nat, nft_masq, nft_fib_ipv4 and nf_conntrack must be built in "
                "or loadable: modprobe -a bridge veth nf_tables nft_masq nft_fib_ipv4",
            )
        case number:
            return ReconcilerError(f"{subject}: {text}", transient=number in _PASSING)


@contextmanager
def kernel(subject: str) -> Iterator[None]:
    """Turn an OSError from below into an error with a subject and a remedy."""
    try:
        yield
    except OSError as error:
        raise explain(error, subject) from error
