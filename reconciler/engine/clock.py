"""Whether the device's clock can be believed: certificates, ages of garbage and times in logs go by it."""

from reconciler.linux import clock


def synchronized() -> bool | None:
    """Whether the kernel's clock is kept right by somebody (NTP, PTP, a radio); None where the kernel does not say.

    The kernel clears STA_UNSYNC when a daemon adjusts the clock, and sets it again once its possible error has grown
    to 16 s, which takes 9 hours without an adjustment. chrony leaves it set unless it is told `rtcsync`, as Debian's
    configuration does.
    """
    try:
        return not clock.status() & clock.STA_UNSYNC
    except OSError:
        return None
