"""A container that attacks from inside, with root's uid and the ten capabilities: nothing of the host's is in reach."""

import os
from pathlib import Path

import pytest

from reconciler.engine.process import Command, CommandError
from tests.kernel.shims import Host

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

_LOOK = "for fd in 0 1 2; do stat -L -c %t:%T:%d:%i /proc/self/fd/$fd; done; stat -L -c null:%d:%i /dev/null"


def null_of_host() -> str:
    info = os.stat("/dev/null")
    return f"{info.st_dev}:{info.st_ino}"


def nulls(lines: list[str]) -> set[str]:
    """The device and inode of every descriptor among `lines` that is the null device."""
    return {line.split(":", 2)[2] for line in lines if line.startswith("1:3:")}


def test_the_null_device_of_a_program_is_the_containers_own(host: Host) -> None:
    """Root inside may chmod and chown what it has a descriptor of; the host's null device is everybody's."""
    case = host.shell(f"{_LOOK}; exec sleep 1000").start()
    own = case.exec("stat", "-L", "-c", "%d:%i", "/dev/null").strip()
    case.until(f"null:{own}".encode())
    assert nulls([line.decode() for line in case.output()]) == {own}
    assert nulls(case.exec("sh", "-c", _LOOK).splitlines()) == {own}
    assert own != null_of_host()


def test_a_container_without_its_null_device_gets_no_other_one(host: Host) -> None:
    case = host.shell("rm /dev/null; echo gone; exec sleep 1000").start()
    case.until(b"gone")
    with pytest.raises(CommandError, match="stdio"):
        case.exec("true")
    for decoy in ("mkfifo /dev/null", "ln -s /proc/1/fd/1 /dev/null", "echo > /dev/null"):
        swap(host, decoy)


def swap(host: Host, decoy: str) -> None:
    case = host.shell(f"rm /dev/null; {decoy}; echo done; exec sleep 1000").start()
    case.until(b"done")
    with pytest.raises(CommandError, match="stdio"):
        case.exec("true")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_of_the_host_does_not_enter_by_exec(host: Host, tmp_path: Path, place: int) -> None:
    """Through /proc/self/fd root inside could open it again for writing, and make it a program that is root's."""
    case = host.case("/bin/sleep", "1000").start()
    (tmp_path / "file").write_text("untouched")
    fds = [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
    os.close(fds[place])
    for wrong in (tmp_path / "file", tmp_path, Path("/dev/zero"), Path("/proc/version")):
        fds[place] = os.open(wrong, os.O_RDONLY)
        with case.control() as control, pytest.raises(CommandError, match=f"descriptor {place}"):
            control.execute(Command(("true",)), (fds[0], fds[1], fds[2]))
        os.close(fds[place])
    for fd in {*fds} - {fds[place]}:
        os.close(fd)
