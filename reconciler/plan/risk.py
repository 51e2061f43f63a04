"""What a container may do to the whole device, said before it is made. Pure."""

from reconciler.spec.kernel import DANGEROUS
from reconciler.state.desired import Identity


def risk_of(identity: Identity) -> str:
    """Return a sentence about the power that the device gives the container, or an empty string."""
    if identity.privileged:
        return "privileged: its root can do anything to the device"
    risks = []
    if found := sorted(DANGEROUS & set(identity.cap_add)):
        names = ", ".join(name.removeprefix("CAP_") for name in found)
        risks.append(f"{names}: its root has ways to the whole device")
    if identity.seccomp == "unconfined":
        risks.append("unconfined: it can make every system call that its capabilities allow")
    elif identity.seccomp:
        risks.append("a seccomp profile of its own says which system calls it can make")
    return "; ".join(risks)
