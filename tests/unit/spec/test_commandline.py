"""The options of `run` become the spec that a person would have written, and errors speak of the options."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import UsageError
from reconciler.spec.adhoc import is_name
from reconciler.spec.commandline import (
    CONTAINER,
    Options,
    anonymous_name,
    changed_text,
    load_text,
    spec_text,
)
from reconciler.spec.defaults import BUILT_IN
from reconciler.spec.model import BindMount, Container, TmpfsMount, VolumeMount
from reconciler.spec.seccomp import Profile
from reconciler.spec.units import size

IMAGE = "registry.example/box@sha256:" + "1" * 64


def made(**options: object) -> Container:
    text, said = spec_text(Options.parse(options), IMAGE, identity="0123456789ab" + "0" * 20)
    return load_text(text, BUILT_IN, said).app.containers[CONTAINER]


def refused(**options: object) -> str:
    with pytest.raises(UsageError) as error:
        made(**options)
    return f"{error.value} {error.value.hint}"


def test_nothing_said_is_dockers_default() -> None:
    container = made()
    assert container.restart.policy == "no"
    assert container.hostname == "0123456789ab"
    assert container.command is None
    assert container.limits.memory is None


def test_every_option_reaches_its_field() -> None:
    container = made(
        command=["sh", "-c", "echo \x1b\u2028 \U0001f600"],
        entrypoint="/bin/x",
        ports=["127.0.0.1:8080:80/udp"],
        environment=["A=1", "A=2", "B="],
        volumes=["data:/data:ro", "/srv:/srv"],
        mounts=["type=bind,src=/a,dst=/b,readonly", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=0755"],
        tmpfs=["/tmp:size=2m,mode=1777"],
        user="1000:1000",
        workdir="/w",
        hostname="h",
        init=True,
        read_only=True,
        restart="on-failure:3",
        stop_signal="INT",
        stop_timeout="-1",
        labels=["a=b", "c"],
        memory="64m",
        memory_swap="96m",
        cpus="1.5",
        pids_limit="-1",
        network="default",
        dns=["192.0.2.1"],
        dns_search=["lab"],
        dns_option=["ndots:2"],
        add_host=["printer:192.0.2.7", "gate:host-gateway"],
        group_add=["44"],
        cap_add=["NET_ADMIN"],
        cap_drop=["CHOWN"],
        security_opt=["no-new-privileges=false"],
        add_device=["/dev/fuse:/dev/f:rw"],
        ulimit=["nofile=10:20", "core=0"],
        sysctl=["net.core.somaxconn=7"],
        shm_size="1m",
        cpuset_cpus="0",
        oom_score_adj="-7",
        annotation=["a=b=c"],
        log_driver="json-file",
        log_opt=["max-size=1m", "max-file=2", "compress=false"],
    )
    assert container.command == ("sh", "-c", "echo \x1b\u2028 \U0001f600")
    assert container.entrypoint == ("/bin/x",)
    assert [(port.host_ip, port.protocol) for port in container.ports] == [("127.0.0.1", "udp")]
    assert container.environment == {"A": "2", "B": ""}
    assert [type(mount) for mount in container.volumes] == [
        VolumeMount,
        BindMount,
        BindMount,
        TmpfsMount,
        TmpfsMount,
    ]
    assert [mount.target for mount in container.volumes] == ["/data", "/srv", "/b", "/t", "/tmp"]
    assert (container.user, container.working_dir, container.hostname) == ("1000:1000", "/w", "h")
    assert container.init
    assert container.read_only
    assert (container.restart.policy, container.restart.max_attempts) == ("on-failure", 3)
    assert (container.stop_signal, container.stop_grace_period) == ("SIGINT", 365 * 86400.0)
    assert container.labels == {"a": "b", "c": ""}
    limits = container.limits
    assert (limits.memory, limits.swap, limits.cpus, limits.pids) == (64 << 20, 32 << 20, 1500, 4_194_304)
    assert (container.network_mode, container.dns, container.dns_search) == (
        "bridge",
        ("192.0.2.1",),
        ("lab",),
    )
    assert container.dns_opt == ("ndots:2",)
    assert container.extra_hosts == (("gate", "host-gateway"), ("printer", "192.0.2.7"))
    assert (container.group_add, container.cap_add, container.cap_drop) == (
        ("44",),
        ("CAP_NET_ADMIN",),
        ("CAP_CHOWN",),
    )
    assert not container.no_new_privileges
    assert made(privileged=True).privileged
    assert container.seccomp == "default"
    assert made(security_opt=["seccomp=unconfined"]).seccomp == "unconfined"
    assert made(security_opt=["seccomp:unconfined"]).seccomp == "unconfined"
    assert made(security_opt=["seccomp=builtin"]).seccomp == "default"
    profile = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    assert made(security_opt=[f"seccomp={profile}"]).seccomp == Profile(content=profile)
    assert [(one.source, one.target, one.permissions) for one in container.devices] == [
        ("/dev/fuse", "/dev/f", "rw")
    ]
    assert {name: (limit.soft, limit.hard) for name, limit in container.ulimits.items()} == {
        "nofile": (10, 20),
        "core": (0, 0),
    }
    assert (container.sysctls, container.annotations) == ({"net.core.somaxconn": "7"}, {"a": "b=c"})
    assert (container.shm_size, container.cpuset, container.oom_score_adj) == (1 << 20, "0", -7)
    logging = container.logging
    assert (logging.driver, logging.max_size, logging.max_files, logging.compress) == (
        "file",
        1 << 20,
        2,
        False,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ports": ["80808:80"]}, "-p 80808:80 must be at most 65535, not 80808"),
        ({"ports": ["80:80", "80:81"]}, "published twice by this container"),
        ({"volumes": ["data:rel"]}, "-v data:rel must be an absolute path"),
        ({"volumes": ["data"]}, "write data:/path, or /path"),
        ({"volumes": ["a:/x", "b:/x"]}, "-v b:/x is mounted at /x, and so is -v a:/x"),
        ({"volumes": ["/:/host"]}, "the whole device is behind it"),
        ({"mounts": ["type=bind,target=/x"]}, "--mount type=bind,target=/x"),
        ({"mounts": ["type=bind,src=/a,dst=/b,x=y"]}, "'x' is not understood"),
        ({"tmpfs": ["/x:uid=3"]}, "'uid' is not understood"),
        ({"memory": "1k"}, "--memory must be at least 6Mi"),
        ({"memory": "much"}, "--memory: 'much' is not a size"),
        ({"memory_swap": "1g"}, "needs --memory too"),
        ({"memory": "64m", "memory_swap": "32m"}, "can't be less than --memory"),
        ({"cpus": "abc"}, "--cpus must be a number of CPUs"),
        ({"pids_limit": "x"}, "--pids-limit x: expected a number"),
        ({"restart": "sometimes"}, "expected no, on-failure[:N], always or unless-stopped"),
        ({"restart": "on-failure:x"}, "expected on-failure:N"),
        ({"user": "a b"}, "-u must be uid[:gid] or a user name"),
        ({"stop_signal": "FOO"}, "--stop-signal must be the name of a signal"),
        ({"hostname": "ä_"}, "--hostname must be a host name"),
        ({"network": "lan", "network_alias": ["ok", "-x"]}, "--network-alias -x must be a host name"),
        (
            {"network": "host", "network_alias": ["ok"]},
            "--network-alias ok: goes with a network that has a name",
        ),
        (
            {"network": "container:..x"},
            "--network must be bridge, host, none or container:NAME, not 'container:..x'",
        ),
        ({"network": "Mine"}, "--network Mine: expected bridge, host, none, container:NAME, or the name"),
        (
            {"network": "shop/back"},
            "--network shop/back: expected bridge, host, none, container:NAME, or the name",
        ),
        ({"network": "host", "ports": ["80:80"]}, "can't be published with network_mode: host"),
        ({"add_host": ["x"]}, "--add-host"),
        ({"ulimit": ["nofile=many"]}, "--ulimit nofile=many: 'many' is not a whole number"),
        ({"ulimit": ["nofile=3:2"]}, "--ulimit"),
        ({"oom_score_adj": "1001"}, "--oom-score-adj must be at most 1000"),
        ({"security_opt": ["apparmor=unconfined"]}, "known: no-new-privileges"),
        ({"security_opt": ["seccomp="]}, "known: no-new-privileges"),
        ({"security_opt": ["seccomp={}"]}, "--security-opt seccomp: this profile: defaultAction: "),
        ({"cap_add": ["FLY"]}, "--cap-add FLY"),
        ({"sysctl": ["kernel.hostname=x"]}, "the sysctl 'kernel.hostname' belongs to the whole device"),
        ({"add_device": ["/etc/passwd"]}, "--add-device /etc/passwd"),
        ({"log_opt": ["tag=x"]}, "known: max-size, max-file, compress"),
        ({"log_driver": "syslog"}, "--log-driver"),
        ({"colour": "red"}, "colour: not an option"),
        ({"ports": "80:80"}, "ports: expected a list of strings"),
        ({"init": "yes"}, "init: expected true or false"),
    ],
)
def test_what_is_wrong_is_said_of_the_option(options: dict[str, object], said: str) -> None:
    assert said in refused(**options)


def test_a_shared_network_is_joined_with_the_ipv6_that_it_has() -> None:
    for ipv6 in (False, True):
        text, _ = spec_text(Options(network="lan", ipv6=ipv6, ports=("80:80",)), IMAGE, identity="h")
        assert load_text(text, BUILT_IN).app.networks["lan"].ipv6 is ipv6
    said = refused(network="lan", ports=["[2001:db8::5]:80:80"])
    assert "2001:db8::5 is an IPv6 address: no network by which the container is reached has IPv6" in said
    assert "--network NAME" in said


def test_update_changes_what_it_names_and_nothing_else() -> None:
    text, _ = spec_text(Options(command=("a",), memory="64m", cpus="1"), IMAGE, identity="h")
    after, _ = changed_text(text, Options(pids_limit="7", memory="32m", restart="always"))
    container = load_text(after, BUILT_IN).app.containers[CONTAINER]
    assert (container.limits.memory, container.limits.cpus, container.limits.pids) == (32 << 20, 1000, 7)
    assert container.restart.policy == "always"
    assert container.command == ("a",)


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_no_text_breaks_the_spec(text: str, command: list[str]) -> None:
    try:
        container = made(command=command, environment=[f"V={text}"])
    except UsageError:
        return
    assert container.command == (tuple(command) or None)
    assert container.environment == {"V": text}


@pytest.mark.parametrize(
    ("text", "count"),
    [("5", 5), ("5b", 5), ("1k", 1024), ("1K", 1024), ("2m", 2 << 20), ("2MB", 2 << 20), ("1Gi", 1 << 30)],
)
def test_sizes_are_dockers(text: str, count: int) -> None:
    assert size(text, "-m") == count


def test_names_are_dockers_and_never_paths() -> None:
    assert all(is_name(name) for name in ("web1", "My_web.2", "a", "0-1"))
    assert not any(
        is_name(name) for name in ("", ".", "..", "-a", "a/b", "../x", "a b", "ä", "a\n", "x" * 64)
    )


@given(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32), st.sampled_from(["/a", "/a/b", "/c"]))
def test_a_volume_without_a_name_is_called_by_its_container_and_its_place(identity: str, target: str) -> None:
    text, _ = spec_text(Options(command=("a",), volumes=(target,)), IMAGE, identity=identity)
    app = load_text(text, BUILT_IN).app
    (name,) = app.volumes
    assert name == anonymous_name(identity, target)
    assert name != anonymous_name(identity, "/other")
    assert name != anonymous_name(identity[::-1] + "0", target)


def test_a_path_of_the_device_is_made_by_v_and_not_by_mount() -> None:
    options = Options(
        command=("a",), volumes=("/a:/a", "/b:/b:ro"), mounts=("type=bind,source=/c,target=/c",)
    )
    text, _ = spec_text(options, IMAGE, identity="0")
    fields = json.loads(text)["containers"]["main"]["volumes"]
    assert [one.get("create_host_path", False) for one in fields] == [True, True, False]
    assert [one.get("read_only", False) for one in fields] == [False, True, False]
