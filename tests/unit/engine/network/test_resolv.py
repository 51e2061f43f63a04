"""Names inside a container: which servers it asks, what its hosts file says, and how that file changes in place."""

import os
import threading
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.resolv import (
    FALLBACK_SERVERS,
    Asked,
    host_resolv_conf,
    render_hosts,
    render_resolv_conf,
    update_hosts,
)

STUB = "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"
REAL = "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch .\n"


class TestResolvConf:
    def test_takes_the_servers_behind_a_stub_and_the_stubs_search_list(self) -> None:
        assert render_resolv_conf([STUB, REAL]) == (
            b"nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch example.org\noptions edns0\n"
        )

    def test_takes_the_hosts_own_servers_where_they_are_real(self) -> None:
        assert render_resolv_conf([REAL, "nameserver 192.0.2.99\n"]).startswith(b"nameserver 192.0.2.53\n")

    @pytest.mark.parametrize(
        "server", ["127.0.0.1", "127.0.0.53", "::1", "fe80::1%eth0", "2001:db8::1", "0.0.0.0", "x"]
    )
    def test_drops_what_a_container_cannot_reach(self, server: str) -> None:
        text = f"nameserver {server}\nnameserver 192.0.2.53\n"
        assert render_resolv_conf([text]) == b"nameserver 192.0.2.53\n"

    @pytest.mark.parametrize("files", [[], [""], [STUB.splitlines()[1]], ["nameserver ::1"]])
    def test_without_any_server_asks_the_documented_ones(self, files: list[str]) -> None:
        expected = "".join(f"nameserver {server}\n" for server in FALLBACK_SERVERS)
        assert render_resolv_conf(files) == expected.encode()

    def test_keeps_servers_of_ipv6_for_a_container_that_has_that(self) -> None:
        text = "nameserver fe80::1%eth0\nnameserver ::1\nnameserver 2001:db8::53\nnameserver 192.0.2.53\n"
        assert render_resolv_conf([text], ipv6=True) == b"nameserver 2001:db8::53\nnameserver 192.0.2.53\n"
        assert render_resolv_conf([text]) == b"nameserver 192.0.2.53\n"

    def test_names_no_more_than_the_c_library_reads(self) -> None:
        text = "".join(f"nameserver 192.0.2.{last}\n" for last in range(1, 9))
        assert render_resolv_conf([text]).count(b"nameserver") == 3

    def test_reads_comments_and_the_last_search_or_domain_line(self) -> None:
        text = "search a.example ; no\ndomain b.example # no\n;nameserver 192.0.2.1\nnameserver 192.0.2.2 # yes\n"
        assert render_resolv_conf([text]) == b"nameserver 192.0.2.2\nsearch b.example\n"

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            (Asked(("192.0.2.1",)), "nameserver 192.0.2.1\nsearch example.org\noptions edns0\n"),
            (
                Asked(search=("lab",)),
                "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch lab\noptions edns0\n",
            ),
            (Asked(("127.0.0.1",), (".",), ("ndots:2",)), "nameserver 127.0.0.1\noptions ndots:2\n"),
        ],
    )
    def test_gives_what_a_spec_asks_for_instead(self, asked: Asked, text: str) -> None:
        assert render_resolv_conf([STUB, REAL], asked).decode() == text

    def test_keeps_a_stub_where_it_can_be_reached(self) -> None:
        text = "nameserver 127.0.0.53\nnameserver ::1\nsearch example.org\noptions edns0\n"
        assert render_resolv_conf([STUB + "nameserver ::1\n", REAL], stubs=True).decode() == text

    @given(st.lists(st.text(max_size=80), max_size=3))
    def test_of_noise_is_always_a_file_that_asks_somebody(self, files: list[str]) -> None:
        lines = render_resolv_conf(files).decode().splitlines()
        assert lines[0].startswith("nameserver ")
        assert all(line.split()[0] in ("nameserver", "search", "options") for line in lines)

    def test_reads_the_files_of_the_host_that_exist(self, tmp_path: Path) -> None:
        (tmp_path / "etc").write_text(STUB)
        (tmp_path / "real").write_text(REAL)
        files = [tmp_path / "etc", tmp_path / "missing", tmp_path / "etc" / "no-directory", tmp_path / "real"]
        assert host_resolv_conf(files).startswith(b"nameserver 192.0.2.53\n")


class TestHosts:
    MEMBERS = {  # noqa: RUF012
        "web": IPv4Address("172.20.5.2"),
        "db": IPv4Address("172.20.5.3"),
        "cache.2": IPv4Address("172.20.5.4"),
    }

    def test_name_every_container_of_the_app_itself_first(self) -> None:
        assert render_hosts(self.MEMBERS, "web", "shop-web") == (
            b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            b"172.20.5.2\tshop-web web\n172.20.5.4\tcache.2\n172.20.5.3\tdb\n"
        )

    def test_name_those_that_have_an_address_of_ipv6_by_that_too(self) -> None:
        members = {"web": IPv4Address("10.0.0.3"), "db": IPv4Address("10.0.0.2")}
        hosts = render_hosts(
            members, "web", "shop-web", aliases={"db": ["store"]}, members6={"db": IPv6Address("fd12::2")}
        )
        assert hosts.decode().splitlines()[2:] == [
            "10.0.0.3\tshop-web web",
            "10.0.0.2\tdb store",
            "fd12::2\tdb store",
        ]

    def test_do_not_name_itself_twice(self) -> None:
        assert b"172.20.5.2\tweb\n" in render_hosts(self.MEMBERS, "web", "web")

    def test_do_not_depend_on_the_order_of_members(self) -> None:
        shuffled = dict(reversed(self.MEMBERS.items()))
        assert render_hosts(shuffled, "db", "h") == render_hosts(self.MEMBERS, "db", "h")


class TestUpdatingInPlace:
    @given(st.lists(st.binary(max_size=100), min_size=1, max_size=5))
    def test_ends_with_exactly_the_content_and_the_same_inode(self, contents: list[bytes]) -> None:
        path = Path(f"/dev/shm/hosts-{os.getpid()}")
        try:
            update_hosts(path, b"first\n")
            inode = path.stat().st_ino
            for content in contents:
                before = path.read_bytes()
                assert update_hosts(path, content) == (before != content)
                assert path.read_bytes() == content
                assert not update_hosts(path, content)
            assert path.stat().st_ino == inode
        finally:
            path.unlink()

    def test_says_whether_anything_changed_and_writes_only_then(self, tmp_path: Path) -> None:
        path = tmp_path / "hosts"
        assert update_hosts(path, b"a\n")
        assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()
        before = path.stat().st_mtime_ns
        assert not update_hosts(path, b"a\n")
        assert path.stat().st_mtime_ns == before

    def test_a_file_that_somebody_made_huge_is_cut_first(self) -> None:
        path = Path(f"/dev/shm/hosts-{os.getpid()}")
        try:
            with path.open("wb") as file:
                file.truncate(1 << 40)  # more than could be padded
            inode = path.stat().st_ino
            assert update_hosts(path, b"a\n")
            assert path.read_bytes() == b"a\n"
            assert path.stat().st_ino == inode
        finally:
            path.unlink()

    def test_does_not_follow_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_bytes(b"precious\n")
        (tmp_path / "hosts").symlink_to(tmp_path / "target")
        with pytest.raises(OSError, match="symbolic links"):
            update_hosts(tmp_path / "hosts", b"a\n")
        assert (tmp_path / "target").read_bytes() == b"precious\n"

    def test_never_shows_a_reader_an_empty_file(self) -> None:
        path = Path(f"/dev/shm/hosts-race-{os.getpid()}")
        long = b"127.0.0.1\tlocalhost\n" + b"172.20.5.2\tserver\n" * 50
        short = b"127.0.0.1\tlocalhost\n"
        update_hosts(path, long)
        seen: set[bytes] = set()
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.add(path.read_bytes())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for _ in range(300):
                update_hosts(path, short)
                update_hosts(path, long)
        finally:
            stop.set()
            reader.join()
            path.unlink()
        # A read beside a write is no snapshot on any file system: old and new lines may mix, but something is there.
        assert all(content.startswith(short) for content in seen)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
