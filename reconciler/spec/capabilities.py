"""The capabilities that a container has unless its spec says otherwise: Docker's fourteen without four.

Those are NET_RAW, MKNOD, AUDIT_WRITE and SETFCAP. In a module of its own, because who only looks needs no models.
"""

from typing import Final

DEFAULT_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID",
    "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
