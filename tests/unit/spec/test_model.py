"""What a valid file comes to: short and long forms, defaults, values kept as written."""

import pytest

from reconciler.spec.defaults import Defaults, with_defaults
from reconciler.spec.fields import docs
from reconciler.spec.load import load
from reconciler.spec.model import (
    App,
    BindMount,
    ConfigMount,
    Container,
    Dependency,
    Limits,
    Logging,
    Port,
    Restart,
    TmpfsMount,
    Volume,
    VolumeMount,
    restart_fields,
)
from reconciler.spec.network import Span
from reconciler.spec.reference import Reference
from reconciler.spec.terms import Terms

IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64
ALLOWED = ("/srv",)


def app(container: str, rest: str = "", *, defaults: Defaults | None = None) -> App:
    """Return an app whose container `web` has these fields (lines of YAML without indentation)."""
    lines = "".join(f"    {line}\n" for line in container.splitlines())
    text = (
        f"apiVersion: reconciler/v1\nkind: App\nname: web\ncontainers:\n  web:\n    image: {IMAGE}\n{lines}"
    )
    if "\nlimits" not in f"\n{container}":
        text += "    limits: {memory: 64Mi}\n"
    loaded = load(
        {"web.yaml": f"{text}{rest}".encode()},
        lambda name: b"",
        terms=Terms(binds=ALLOWED, devices=("/dev/a",)),
        defaults=defaults or Defaults(),
    )
    assert loaded.problems == ()
    return loaded.apps["web"].app


def web(container: str, rest: str = "", *, defaults: Defaults | None = None) -> Container:
    return app(container, rest, defaults=defaults).containers["web"]


def test_a_container_with_nothing_but_an_image_has_the_documented_defaults() -> None:
    found = web("limits: {memory: 64Mi}")
    assert found.image == Reference.parse(IMAGE)
    assert found == Container(image=Reference.parse(IMAGE), limits=Limits(memory=64 << 20))
    assert (found.entrypoint, found.command, found.working_dir, found.user, found.hostname) == (None,) * 5
    assert found.limits == Limits(memory=64 << 20, swap=0, pids=512)
    assert found.limits.cpus is None
    assert found.restart == Restart(
        policy="always", max_attempts=0, delay=1.0, max_delay=300.0, factor=2.0, jitter=0.1, reset_after=600.0
    )
    assert found.logging == Logging(driver="file", max_size=10 << 20, max_files=3, compress=True)
    assert found.stop_grace_period == 10.0
    assert found.stop_signal is None


def test_defaults_spelled_out_give_the_same_model() -> None:
    spelled = """\
environment: {}
configs: []
ports: []
volumes: []
tmpfs: []
limits: {memory: 64Mi, swap: 0, pids: 512}
restart: {policy: always, max_attempts: 0, delay: 1s, max_delay: 5m, factor: 2, jitter: 0.1, reset_after: 10m}
stop_grace_period: 10s
init: false
read_only: false
depends_on: []
labels: {}
logging: {driver: file, max_size: 10Mi, max_files: 3, compress: true}"""
    assert app(spelled) == app("limits: {memory: 64Mi}")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ('ports: ["8080:80"]', "ports: [{published: 8080, target: 80, host_ip: 0.0.0.0, protocol: tcp}]"),
        (
            'ports: ["127.0.0.1:53:5353/udp"]',
            "ports: [{host_ip: 127.0.0.1, published: 53, target: 5353, protocol: udp}]",
        ),
        ("ports: [80:80/tcp]", "ports: [{published: 80, target: 80}]"),
        (
            'volumes: ["/srv/x:/x:ro"]',
            "volumes: [{type: bind, source: /srv/x/, target: /x//, read_only: true}]",
        ),
        ('volumes: ["/srv:/x:rw"]', "volumes: [{type: bind, source: /srv, target: /./x}]"),
        ('tmpfs: ["/tmp"]', 'tmpfs: ["/tmp:size=64Mi"]'),
        ("restart: no", "restart: {policy: no}"),
        ('restart: "no"', "restart: {policy: no, max_attempts: 0}"),
        ("restart: on-failure", "restart: {policy: on-failure}"),
        ("restart: on-failure:5", "restart: {policy: on-failure, max_attempts: 5}"),
        ("environment: [A=1, B=x=y, C=]", 'environment: {A: 1, B: "x=y", C: ""}'),
        ("entrypoint: /bin/sh -c 'echo \"a b\"'", "entrypoint: [/bin/sh, -c, 'echo \"a b\"']"),
        ("command: serve --port 80", 'command: [serve, --port, "80"]'),
        ("stop_signal: TERM", "stop_signal: SIGTERM"),
        ("limits: {memory: 64Mi, cpus: 0.5}", "limits: {memory: 67108864, cpus: 500m}"),
        ("user: 1000", 'user: "1000"'),
        ("group_add: [44, video, 44]", 'group_add: [video, "44"]'),
        ("ulimits: {nofile: {soft: 65536, hard: 1048576}}", "ulimits: {}"),
        ("ulimits: {core: 0, fsize: unlimited}", "ulimits: {RLIMIT_CORE: {soft: 0, hard: 0}, FSIZE: -1}"),
        ("sysctls: {net/core/somaxconn: 1}", 'sysctls: {net.core.somaxconn: "1"}'),
        ("cap_drop: [all]\nno_new_privileges: true", "cap_drop: [ALL]"),
        ("cap_drop: [CAP_CHOWN, net-bind-service, chown]", "cap_drop: [NET_BIND_SERVICE, CHOWN]"),
        ('devices: ["/dev/a:/dev/b:wr"]', "devices: [{source: /dev//a, target: /dev/b, permissions: rw}]"),
        ("cpuset: 3", 'cpuset: "3-3"'),
        ('cpuset: "4,0-2,1,3"', 'cpuset: "0-4"'),
        ("reserve: {cpus: 0.5, memory: 1Mi}", "reserve: {cpus: 500m, memory: 1048576}"),
        (
            "limits: {memory: 64Mi, io: {read_bps: 1Mi}}",
            "limits: {memory: 64Mi, io: {read_bps: 1048576}}",
        ),
        (
            'volumes: ["/srv:/x:ro,rslave"]',
            "volumes: [{type: bind, source: /srv, target: /x, read_only: true, propagation: rslave}]",
        ),
        (
            'volumes: ["/srv:/x"]',
            "volumes: [{type: bind, source: /srv, target: /x, create_host_path: false, propagation: rprivate}]",
        ),
        ("shm_size: 64Mi\noom_score_adj: 0", "shm_size: 67108864"),
    ],
)
def test_short_and_long_forms_give_the_same_model(short: str, long: str) -> None:
    assert app(short) == app(long)


def test_a_dependency_is_a_name_or_a_map() -> None:
    rest = f"  db:\n    image: {IMAGE}\n    limits: {{memory: 64Mi}}\n"
    forms = ["[db]", "{db: {}}", "{db: {condition: started}}", "{db: {required: true, restart: false}}"]
    found = [app(f"depends_on: {form}", rest) for form in forms]
    assert found == [found[0]] * 4
    assert found[0].containers["web"].depends_on == {"db": Dependency()}


def test_a_declared_volume_needs_no_map() -> None:
    container = 'volumes: ["data:/data"]'
    for rest in ("volumes: {data: }\n", "volumes: {data: {}}\n", "volumes: {data: {retain: true}}\n"):
        found = app(container, rest)
        assert found.volumes == {"data": Volume()}
        assert found.containers["web"].volumes == (VolumeMount(source="data", target="/data"),)


def test_numbers_in_the_environment_are_kept_as_they_are_written() -> None:
    found = web(
        'environment: {A: 0755, B: 1_000, C: 1e400, D: 22:22, E: 1.50, F: -0, G: yes, H: "true", I: 0x1F}'
    )
    assert found.environment == {
        "A": "0755", "B": "1_000", "C": "1e400", "D": "22:22", "E": "1.50", "F": "-0", "G": "yes", "H": "true",
        "I": "0x1F",
    }  # fmt: skip


def test_mounts_are_values_of_their_own_types() -> None:
    container = """\
volumes:
  - {type: volume, source: data, target: /data, read_only: true}
  - {type: bind, source: /srv/photos, target: /photos}
  - {type: tmpfs, target: /cache, size: 1Mi, mode: "0700"}
tmpfs: ["/tmp:size=8Mi"]
configs: [conf, {source: conf, target: /etc/conf, uid: 5, gid: 6, mode: "0440"}]"""
    found = web(container, "volumes: {data: {}}\nconfigs: {conf: {content: x}}\n")
    assert found.volumes == (
        VolumeMount(source="data", target="/data", read_only=True),
        BindMount(source="/srv/photos", target="/photos"),
        TmpfsMount(target="/cache", size=1 << 20, mode=0o700),
    )
    assert found.tmpfs == (TmpfsMount(target="/tmp", size=8 << 20, mode=0o1777),)
    assert found.configs == (
        ConfigMount(source="conf", target="/conf", mode=0o444),
        ConfigMount(source="conf", target="/etc/conf", uid=5, gid=6, mode=0o440),
    )


def test_a_volume_may_be_a_part_of_it_and_not_filled_from_the_image() -> None:
    container = """volumes: ["data:/a:nocopy,ro", {type: volume, source: data, target: /b, subpath: x/y}]"""
    found = web(container, "volumes: {data: {external: true}}\nallow_empty: true\n")
    assert found.volumes == (
        VolumeMount(source="data", target="/a", read_only=True, nocopy=True),
        VolumeMount(source="data", target="/b", subpath="x/y"),
    )


def test_extensions_are_ignored_where_they_are_allowed() -> None:
    assert app("x-note: {any: [thing]}", "x-top: [1, 2]\n") == app("limits: {memory: 64Mi}")


def test_an_empty_entrypoint_is_not_the_same_as_none() -> None:
    assert web("entrypoint: []").entrypoint == ()
    assert web("init: true").entrypoint is None


@pytest.mark.parametrize("name", ["SIGTERM", "INT", "SIGRTMIN", "SIGRTMIN+3", "RTMAX-14", "WINCH"])
def test_signals_have_full_names(name: str) -> None:
    assert web(f"stop_signal: {name}").stop_signal == (name if name.startswith("SIG") else f"SIG{name}")


@pytest.mark.parametrize(
    "user", ["0", "1000:1000", "www-data", "nobody:nogroup", "_apt", "1000:users", '"2147483647"']
)
def test_users(user: str) -> None:
    assert web(f"user: {user}").user == user.strip('"')


def test_what_the_device_gives_fills_only_what_the_spec_leaves_out() -> None:
    given = Defaults(
        host_ip="127.0.0.1",
        logging=Logging(max_size=1 << 20),
        restart=Restart(policy="on-failure", delay=5.0),
    )
    container = 'ports: ["80:80", "0.0.0.0:81:80"]\nrestart: {max_delay: 1m}\nlogging: {max_files: 9}'
    found = web(container, defaults=given)
    assert [port.host_ip for port in found.ports] == ["127.0.0.1", "0.0.0.0"]
    assert found.restart == Restart(policy="on-failure", delay=5.0, max_delay=60.0)
    assert found.logging == Logging(max_size=1 << 20, max_files=9)
    assert web("restart: always", defaults=given).restart == Restart(policy="always", delay=5.0)


def test_giving_defaults_twice_changes_nothing_more() -> None:
    given = Defaults(host_ip="127.0.0.1", restart=Restart(delay=5.0), logging=Logging(driver="none"))
    once = with_defaults(app('ports: ["80:80"]\nrestart: {max_delay: 1m}'), given)
    assert with_defaults(once, given) == once
    assert with_defaults(with_defaults(once, Defaults(host_ip="10.0.0.1")), given) == once


def test_what_restarts_a_container_is_written_down_for_every_field() -> None:
    found = restart_fields()
    assert {name for name, restarts in found.items() if restarts} == {
        "image", "entrypoint", "command", "working_dir", "user", "group_add", "environment", "env_from", "configs",
        "volumes", "tmpfs", "ulimits", "oom_score_adj", "shm_size", "sysctls", "cap_add", "cap_drop",
        "privileged", "no_new_privileges", "seccomp", "userns", "devices", "init", "read_only", "hostname",
        "network_mode", "networks", "dns", "dns_search", "dns_opt", "extra_hosts", "logging.driver",
    }  # fmt: skip
    assert {name.partition(".")[0] for name, restarts in found.items() if not restarts} == {
        "ports", "limits", "reserve", "cpuset", "restart", "stop_signal", "stop_grace_period", "depends_on", "labels",
        "annotations", "logging", "replicas",
    }  # fmt: skip
    assert {name.partition(".")[0] for name in found} == {name for name, _ in docs(Container)}


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        web("init: true").init = False  # type: ignore[misc]


def test_a_port_is_a_value() -> None:
    one, other = Span(80, 80), Span(8000, 8000)
    assert web('ports: ["80:8000"]').ports == (Port(published=one, target=other),)
    assert web("ports: [{published: 80, target: 8000}]").ports == (Port(published=one, target=other),)


def test_a_range_of_ports_is_as_long_as_the_other() -> None:
    (port,) = web('ports: ["127.0.0.1:8000-8010:80-90/udp"]').ports
    assert (port.published, port.target, port.protocol) == (Span(8000, 8010), Span(80, 90), "udp")
    assert web('ports: [{published: "1-3", target: "5-7"}]').ports[0].target == Span(5, 7)
