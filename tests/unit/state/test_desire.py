"""From a spec and its image to what should run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from reconciler.plan.diff import plan
from reconciler.spec.defaults import Defaults
from reconciler.spec.load import LoadedApp, load
from reconciler.spec.model import Logging, Restart, restart_fields
from reconciler.spec.terms import ANYTHING, Terms
from reconciler.state.desire import DEFAULT_PATH, desire, references
from reconciler.state.desired import (
    App,
    BindMount,
    ConfigMount,
    Container,
    Device,
    Io,
    Limits,
    Port,
    RestartPolicy,
    Rotation,
    Settings,
    TmpfsMount,
    VolumeMount,
)
from reconciler.state.image import Image, Unresolved
from reconciler.state.network import Attachment, Network
from tests import values

IMAGE = values.image("one")
REFERENCE = f"registry.example/one:1@{IMAGE.index}"


TERMS = replace(ANYTHING, binds=("/srv",), labels={"site": "lab"})


def loaded(containers: Mapping[str, Any], *, terms: Terms = TERMS, **more: Any) -> LoadedApp:
    named = {name: {"image": REFERENCE, **fields} for name, fields in containers.items()}
    spec = {"apiVersion": "reconciler/v1", "kind": "App", "name": "web", "containers": named, **more}
    result = load(
        {"apps/web.yaml": json.dumps(spec).encode()},
        lambda path: f"content of {path}".encode(),
        terms=terms,
    )
    assert not result.failed, result.problems
    return result.apps["web"]


def made(
    fields: Mapping[str, Any], image: Image = IMAGE, *, defaults: Defaults | None = None, **more: Any
) -> Container:
    app = desire(loaded({"site": fields}, **more), {REFERENCE: image}, defaults=defaults or Defaults())
    assert app.unresolved == ()
    return app.containers["site"]


@pytest.mark.parametrize(
    ("entrypoint", "command", "spec", "arguments"),
    [
        (None, ("serve",), {}, ("serve",)),
        (("init",), ("serve",), {}, ("init", "serve")),
        (("init",), None, {}, ("init",)),
        (("init",), ("serve",), {"command": ["other"]}, ("init", "other")),
        (("init",), ("serve",), {"command": []}, ("init",)),
        (("init",), ("serve",), {"entrypoint": ["mine"]}, ("mine",)),
        (("init",), ("serve",), {"entrypoint": ["mine"], "command": ["x"]}, ("mine", "x")),
        (("init",), ("serve",), {"entrypoint": [], "command": ["x"]}, ("x",)),
        (None, None, {"command": "sh -c 'a b'"}, ("sh", "-c", "a b")),
    ],
)
def test_entrypoint_and_command_follow_dockers_rules(
    entrypoint: tuple[str, ...] | None,
    command: tuple[str, ...] | None,
    spec: dict[str, Any],
    arguments: tuple[str, ...],
) -> None:
    image = replace(IMAGE, entrypoint=entrypoint, command=command)
    assert made(spec, image).identity.arguments == arguments


@pytest.mark.parametrize("spec", [{}, {"entrypoint": []}, {"command": []}])
def test_nothing_to_run_holds_up_the_app_with_a_sentence(spec: dict[str, Any]) -> None:
    image = replace(IMAGE, entrypoint=None, command=None)
    app = desire(loaded({"site": spec, "db": {"command": ["db"]}}), {REFERENCE: image})
    assert sorted(app.containers) == ["db"]
    (item,) = app.unresolved
    assert (item.container, item.unresolved.transient) == ("site", False)
    assert item.unresolved.reason == "neither the image nor the spec says what to run: set `command`"


def test_an_image_that_is_not_known_holds_up_its_app() -> None:
    waiting = Unresolved("no image for linux/arm64, only linux/amd64", transient=False)
    app = desire(loaded({"site": {}}), {REFERENCE: waiting})
    assert app.containers == {}
    assert [(item.container, item.reference, item.unresolved) for item in app.unresolved] == [
        ("site", REFERENCE, waiting)
    ]


def test_the_environment_is_the_images_overlaid_by_the_specs_sorted() -> None:
    image = replace(IMAGE, environment=("Z=image", "A=image=1", "BROKEN"))
    environment = made({"environment": {"Z": "spec", "B": 1}}, image).identity.environment
    assert environment == ("A=image=1", "B=1", f"PATH={DEFAULT_PATH}", "Z=spec")
    with_path = replace(IMAGE, environment=("PATH=/app",))
    assert made({}, with_path).identity.environment == ("PATH=/app",)
    assert made({"environment": {"PATH": ""}}, with_path).identity.environment == ("PATH=",)


def test_variables_of_configs_and_labels_stand_between_the_images_and_the_specs() -> None:
    image = replace(IMAGE, environment=("A=image", "B=image", "C=image"))
    configs = {"one": {"content": "A=one\nB=one\nC=one\nD=one"}, "two": {"content": "B=two\r\n"}}
    fields = {
        "env_from": [{"config": "one"}, {"config": "two"}],
        "environment": {"C": "spec", "E": {"config": "two"}, "F": {"device": "labels.site"}},
    }
    environment = dict(
        entry.split("=", 1) for entry in made(fields, image, configs=configs).identity.environment
    )
    assert {name: environment[name] for name in "ABCDEF"} == {
        **{"A": "one", "B": "two", "C": "spec", "D": "one", "E": "B=two", "F": "lab"}
    }


def test_a_label_of_the_device_that_is_used_is_part_of_what_was_read() -> None:
    fields = {"site": {"environment": {"F": {"device": "labels.site"}}}}
    other = Terms(labels={"site": "shop", "floor": "1"})
    assert loaded(fields).digest != loaded(fields, terms=other).digest
    assert loaded({"site": {}}).digest == loaded({"site": {}}, terms=other).digest
    assert (
        "F=shop"
        in desire(loaded(fields, terms=other), {REFERENCE: IMAGE}).containers["site"].identity.environment
    )


def test_labels_of_the_app_are_those_of_every_container_that_sets_no_own() -> None:
    one = made({"labels": {"tier": "web"}}, labels={"tier": "all", "team": "doors"})
    assert one.settings.labels == (("team", "doors"), ("tier", "web"))


@pytest.mark.parametrize(
    ("fields", "added", "dropped"),
    [
        ({}, (), ()),
        (
            {"cap_add": ["chown", "NET_RAW"], "cap_drop": ["KILL", "SYS_ADMIN"]},
            ("CAP_NET_RAW",),
            ("CAP_KILL",),
        ),
        ({"cap_add": ["CHOWN"], "cap_drop": ["ALL"]}, ("CAP_CHOWN",), ("ALL",)),
        ({"cap_add": ["ALL", "NET_RAW"], "cap_drop": ["SYS_ADMIN"]}, ("ALL",), ("CAP_SYS_ADMIN",)),
        ({"privileged": True, "cap_drop": ["SYS_ADMIN"]}, (), ("CAP_SYS_ADMIN",)),
    ],
)
def test_capabilities_count_by_what_they_change(
    fields: dict[str, Any], added: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    identity = made(fields).identity
    assert (identity.cap_add, identity.cap_drop) == (added, dropped)


def test_devices_are_at_their_own_place_unless_the_spec_names_another() -> None:
    fields = {"devices": ["/dev/b", "/dev/c:/dev/a:rw", {"source": "/dev/d", "optional": True}]}
    assert made(fields).identity.devices == (
        Device("/dev/c", "/dev/a", "rw"),
        Device("/dev/b", "/dev/b"),
        Device("/dev/d", "/dev/d", optional=True),
    )


def test_user_and_directory_are_the_images_unless_the_spec_names_others() -> None:
    image = replace(IMAGE, user="app", working_dir="/app")
    inherited = made({}, image).identity
    assert (inherited.user, inherited.working_dir, inherited.hostname) == ("app", "/app", "web-site")
    own = made({"user": "0", "working_dir": "/", "hostname": "www"}, image).identity
    assert (own.user, own.working_dir, own.hostname) == ("0", "/", "www")


def test_the_default_host_name_fits_the_kernel() -> None:
    spec = {"apiVersion": "reconciler/v1", "kind": "App", "name": "a" * 40}
    spec |= {"containers": {"b" * 23 + "-" + "c" * 20: {"image": REFERENCE}}}  # type: ignore[dict-item]
    app = load({"x.yaml": json.dumps(spec).encode()}, lambda path: b"").apps["a" * 40]
    (one,) = desire(app, {REFERENCE: IMAGE}).containers.values()
    assert len(one.identity.hostname) <= 64
    assert not one.identity.hostname.endswith("-")


def test_mounts_of_every_kind_get_their_defaults_and_are_sorted_by_target() -> None:
    one = made(
        {
            "volumes": ["data:/data", "/srv/x:/b:ro"],
            "tmpfs": ["/tmp", "/run:size=1Mi"],
            "configs": ["conf", {"source": "file", "target": "/etc/file", "mode": "0400", "uid": 7}],
        },
        volumes={"data": {}},
        configs={"conf": {"content": "text"}, "file": {"file": "conf/file"}},
    )
    text = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    mounts = one.identity.mounts
    assert [mount.target for mount in mounts] == ["/b", "/conf", "/data", "/etc/file", "/run", "/tmp"]
    assert mounts[0] == BindMount("/srv/x", "/b", read_only=True)
    assert mounts[1] == ConfigMount("conf", "/conf", text, mode=0o444)
    assert mounts[2] == VolumeMount("data", "/data")
    assert isinstance(mounts[3], ConfigMount)
    assert (mounts[3].uid, mounts[3].mode) == (7, 0o400)
    assert mounts[4:] == (TmpfsMount("/run", 1 << 20), TmpfsMount("/tmp", 64 << 20))
    assert one.configs == {"conf": b"text", "file": b"content of conf/file"}


def test_the_long_form_of_mounts_is_kept_and_its_defaults_count_nothing() -> None:
    fields = {
        "volumes": [
            {"type": "volume", "source": "data", "target": "/a", "subpath": "x/y", "nocopy": True},
            {
                "type": "bind",
                "source": "/srv/x",
                "target": "/b",
                "create_host_path": True,
                "propagation": "rslave",
            },
        ]
    }
    mounts = made(fields, volumes={"data": {"external": True}}).identity.mounts
    assert mounts == (
        VolumeMount("data", "/a", subpath="x/y", nocopy=True),
        BindMount("/srv/x", "/b", create_host_path=True, propagation="rslave"),
    )
    short = made({"volumes": ["data:/a", "/srv/x:/b"]}, volumes={"data": {}})
    long = made(
        {
            "volumes": [
                {"type": "volume", "source": "data", "target": "/a", "nocopy": False},
                {"type": "bind", "source": "/srv/x", "target": "/b", "propagation": "rprivate"},
            ]
        },
        volumes={"data": {"external": False}},
    )
    assert short.fingerprint == long.fingerprint


def test_an_app_says_which_volumes_are_never_made() -> None:
    app = desire(
        loaded({"site": {"volumes": ["a:/a"]}}, volumes={"a": {"external": True}, "b": {}}),
        {REFERENCE: IMAGE},
    )
    assert app.volumes == ("a", "b")
    assert app.external == {"a"}


def test_a_volume_of_the_image_that_the_spec_does_not_mount_is_no_mount() -> None:
    assert made({}, replace(IMAGE, volumes=("/var/lib/db",))).identity.mounts == ()


def test_settings_come_from_the_spec() -> None:
    one = desire(
        loaded(
            {
                "site": {
                    "limits": {"memory": "64Mi", "cpus": "500m", "swap": "1Mi", "pids": 7},
                    "ports": ["8080:80", "127.0.0.1:53:53/udp"],
                    "depends_on": ["db"],
                    "labels": {"b": "2", "a": "1"},
                    "restart": "on-failure:3",
                    "stop_signal": "INT",
                    "stop_grace_period": "1m",
                    "logging": {"max_size": "1Mi", "max_files": 2, "compress": False},
                },
                "db": {},
            }
        ),
        {REFERENCE: IMAGE},
    ).containers["site"]
    assert one.settings == Settings(
        limits=Limits(500, 64 << 20, 1 << 20, 7),
        restart=RestartPolicy("on-failure", 3),
        stop_signal="SIGINT",
        stop_grace=60.0,
        ports=(Port("0.0.0.0", 8080, 80), Port("127.0.0.1", 53, 53, "udp")),
        depends_on=("web/db",),
        labels=(("a", "1"), ("b", "2")),
        rotation=Rotation(1 << 20, 2, False),
    )


def test_limits_of_every_kind_are_one_value() -> None:
    one = made(
        {
            "limits": {
                "memory": "64Mi",
                "io_weight": 7,
                "io": {"write_bps": "1M", "read_iops": 9, "device": "/dev/sda"},
            },
            "reserve": {"memory": "1Mi", "cpus": "250m"},
            "cpuset": "3,0-1",
        }
    )
    assert one.settings.limits == Limits(
        memory=64 << 20,
        io=Io("/dev/sda", write_bps=10**6, read_iops=9),
        io_weight=7,
        cpuset="0-1,3",
        reserve_cpus=250,
        reserve_memory=1 << 20,
    )


def test_the_stop_signal_is_the_specs_then_the_images_then_sigterm() -> None:
    quiet = replace(IMAGE, stop_signal="SIGQUIT")
    assert made({}).settings.stop_signal == "SIGTERM"
    assert made({}, quiet).settings.stop_signal == "SIGQUIT"
    assert made({"stop_signal": "SIGINT"}, quiet).settings.stop_signal == "SIGINT"


def test_the_device_decides_only_what_the_spec_leaves_out() -> None:
    defaults = Defaults("127.0.0.1", Logging(driver="none", max_files=9), Restart(policy="no", delay=7.0))
    left_out = made({"ports": ["80:80"]}, defaults=defaults)
    assert left_out.settings.ports == (Port("127.0.0.1", 80, 80),)
    assert (left_out.identity.log_driver, left_out.settings.rotation.max_files) == ("none", 9)
    assert (left_out.settings.restart.policy, left_out.settings.restart.delay) == ("no", 7.0)
    own = made(
        {"ports": ["0.0.0.0:80:80"], "restart": "always", "logging": {"driver": "file"}}, defaults=defaults
    )
    assert own.settings.ports == (Port("0.0.0.0", 80, 80),)
    assert (own.identity.log_driver, own.settings.rotation.max_files) == ("file", 9)
    assert own.settings.restart.policy == "always"


def test_second_plan_is_empty_after_defaults_are_spelled_out() -> None:
    """compose#13998, compose#14011, argo-cd#15898: saying what is the default changes nothing."""
    short = made({"ports": ["80:8000"], "tmpfs": ["/tmp"]})
    long = made(
        {
            "ports": [{"published": 80, "target": 8000, "host_ip": "0.0.0.0", "protocol": "tcp"}],
            "volumes": [{"type": "tmpfs", "target": "/tmp", "size": "64Mi", "mode": "1777"}],
            "restart": {"policy": "always", "max_attempts": 0, "delay": "1s", "jitter": 0.1},
            "init": False,
            "hostname": "web-site",
            "group_add": [],
            "ulimits": {"nofile": {"soft": 65536, "hard": 1048576}},
            "oom_score_adj": 0,
            "shm_size": "64Mi",
            "sysctls": {},
            "env_from": [],
            "cap_add": ["CHOWN"],
            "cap_drop": ["NET_RAW"],
            "privileged": False,
            "no_new_privileges": True,
            "userns": "auto",
            "devices": [],
            "network_mode": "bridge",
            "dns": [],
            "dns_search": [],
            "dns_opt": [],
            "extra_hosts": [],
            "reserve": {},
            "annotations": {},
            "stop_signal": "SIGTERM",
            "environment": {},
            "limits": {"pids": 512},
            "logging": {"driver": "file", "max_size": "10Mi"},
        }
    )
    assert short == long
    assert short.fingerprint == long.fingerprint


def test_an_index_and_its_manifest_make_the_same_container() -> None:
    """compose#13998: only the config's digest is in the identity, not the way the image was pinned."""
    by_index = made({})
    by_manifest = desire(
        loaded({"site": {"image": f"registry.example/one@{IMAGE.manifest}"}}),
        {f"registry.example/one@{IMAGE.manifest}": replace(IMAGE, index=IMAGE.manifest)},
    ).containers["site"]
    assert by_index.fingerprint == by_manifest.fingerprint


def test_edit_only_a_config_file_changes_exactly_the_containers_that_mount_it() -> None:
    """compose#11900, doco-cd#488."""

    def app(content: str) -> App:
        containers = {"site": {"configs": ["conf"]}, "db": {}}
        spec = loaded(containers, configs={"conf": {"content": content}})
        return desire(spec, {REFERENCE: IMAGE})

    before, after = app("one"), app("two")
    changed = [
        n for n in before.containers if before.containers[n].fingerprint != after.containers[n].fingerprint
    ]
    assert changed == ["site"]
    assert before.digest != after.digest


def test_an_app_carries_what_the_planner_and_status_need() -> None:
    spec = loaded({"site": {}}, volumes={"logs": {}, "data": {}})
    app = desire(spec, {REFERENCE: IMAGE}, stale="apps/web.yaml:3:1: unknown key")
    assert (app.name, app.path, app.digest) == ("web", "apps/web.yaml", spec.digest)
    assert (app.volumes, app.stale) == (("data", "logs"), "apps/web.yaml:3:1: unknown key")
    one = app.containers["site"]
    assert (one.full_name, one.reference, one.image) == ("web/site", REFERENCE, IMAGE)
    assert one.mark.startswith("apps/web.yaml:1:")


def test_references_are_each_needed_once() -> None:
    spec = loaded({"a": {}, "b": {}, "c": {"image": f"registry.example/two@{values.image('two').index}"}})
    assert [str(reference) for reference in references(spec)] == [
        REFERENCE,
        f"registry.example/two@{values.image('two').index}",
    ]


CHANGES: dict[str, Any] = {
    "network_mode": "none",
    "dns": ["192.0.2.53"],
    "dns_search": ["lab"],
    "dns_opt": ["ndots:2"],
    "extra_hosts": {"printer": "192.0.2.7"},
    "image": f"registry.example/two@{values.image('two').index}",
    "entrypoint": ["x"],
    "command": ["x"],
    "working_dir": "/x",
    "user": "7",
    "group_add": [44],
    "env_from": [{"config": "conf"}],
    "ulimits": {"core": 0},
    "oom_score_adj": 7,
    "shm_size": "7Mi",
    "sysctls": {"net.core.somaxconn": 7},
    "annotations": {"a": "1"},
    "cap_add": ["NET_ADMIN"],
    "cap_drop": ["CHOWN"],
    "privileged": True,
    "seccomp": "unconfined",
    "no_new_privileges": False,
    "userns": "host",
    "devices": ["/dev/ttyUSB0"],
    "environment": {"A": "1"},
    "configs": ["conf"],
    "ports": ["80:80"],
    "volumes": ["data:/data"],
    "tmpfs": ["/tmp"],
    "limits.cpus": 2,
    "limits.memory": "64Mi",
    "limits.pids": 7,
    "limits.io": {"read_bps": "7Mi"},
    "limits.io_weight": 7,
    "limits.rootfs": "64Mi",
    "limits.hugepages": {"2Mi": "4Mi"},
    "reserve.memory": "7Mi",
    "reserve.cpus": 0.7,
    "cpuset": "7",
    "restart.policy": "no",
    "restart.max_attempts": 7,
    "restart.delay": "7s",
    "restart.max_delay": "7m",
    "restart.factor": 7.0,
    "restart.jitter": 0.7,
    "restart.reset_after": "7s",
    "networks": ["back"],
    "stop_signal": "SIGINT",
    "stop_grace_period": "7s",
    "init": True,
    "read_only": True,
    "hostname": "x",
    "depends_on": ["db"],
    "labels": {"a": "1"},
    "logging.driver": "none",
    "logging.max_size": "7Mi",
    "logging.max_files": 7,
    "logging.compress": False,
}


def test_a_port_is_published_by_ipv6_where_a_network_that_it_is_reached_by_has_that() -> None:
    networks = {"back": {"internal": True, "ipv6": True}, "front": {}, "six": {"ipv6": True}}
    ports = ["80:8000", "0.0.0.0:81:81", "[2001:db8::5]:82-83:82-83/udp", "[::]:84:84"]
    place = ["back", "front", "six"]
    site = made({"networks": place, "ports": ports}, networks=networks)
    assert site.settings.ports == (
        Port("0.0.0.0", 80, 8000, network="web/front"),
        Port("0.0.0.0", 81, 81, network="web/front"),
        Port("2001:db8::5", 82, 82, "udp", network="web/six"),
        Port("2001:db8::5", 83, 83, "udp", network="web/six"),
        Port("::", 80, 8000, network="web/six"),
        Port("::", 84, 84, network="web/six"),
    )
    assert [str(port) for port in site.settings.ports][-2:] == ["[::]:80->8000/tcp", "[::]:84->84/tcp"]
    without = made({"networks": ["back", "front"], "ports": ["80:8000"]}, networks=networks)
    assert without.settings.ports == (Port("0.0.0.0", 80, 8000, network="web/front"),)
    local = made({"ports": ["80:80"]}, networks={"default": {"ipv6": True}}, defaults=Defaults("127.0.0.1"))
    assert local.settings.ports == (Port("127.0.0.1", 80, 80),)


def test_a_network_says_what_it_declares_of_ipv6_and_a_gateway_that_it_has_anyway_is_left_out() -> None:
    subnets = ["fd12:3456:789a::/64", "10.20.0.0/24"]
    gateways = ["10.20.0.1", "fd12:3456:789a:0:0::1"]
    place = {"back": {"ipv6_address": "fd12:3456:789a::0005", "ipv4_address": "10.20.0.5"}}
    networks = {"back": {"ipv6": True, "subnet": subnets, "gateway": gateways}}
    site = made({"networks": place}, networks=networks)
    network = Network("web/back", "10.20.0.0/24", ipv6=True, subnet6="fd12:3456:789a::/64")
    assert site.identity.networks == (Attachment(network, "10.20.0.5", "fd12:3456:789a::5"),)
    plain = made(
        {"networks": place}, networks={"back": {k: v for k, v in networks["back"].items() if k != "gateway"}}
    )
    assert plain.fingerprint == site.fingerprint
    app = desire(loaded({"site": {"networks": place}}, networks=networks), {REFERENCE: IMAGE})
    assert app.networks["web/back"].fixed6 == (("site", "fd12:3456:789a::5"),)


def test_what_says_nothing_of_ipv6_has_the_fingerprint_that_it_had() -> None:
    assert made({}).identity.networks == ()
    spelled = made({}, networks={"default": {"ipv6": False}})
    assert spelled.fingerprint == made({}).fingerprint
    assert made({}, networks={"default": {"ipv6": True}}).fingerprint != made({}).fingerprint


@pytest.mark.parametrize("field", sorted(restart_fields().keys() - {"replicas"}))  # that adds and removes
def test_the_reference_says_truly_whether_changing_a_field_restarts_the_container(field: str) -> None:
    outer, _, inner = field.partition(".")
    value = CHANGES[field] if field in CHANGES else {"limits.swap": "1Mi"}[field]
    fields = {outer: {inner: value} if inner else value}
    if field == "limits.swap":
        fields["limits"] = {"memory": "64Mi", "swap": value}
    images = {REFERENCE: IMAGE, CHANGES["image"]: values.image("two")}
    more: dict[str, Any] = {
        "volumes": {"data": {}},
        "configs": {"conf": {"content": "A=1"}},
        "networks": {"back": {}},
    }
    before = desire(loaded({"site": {}, "db": {}}, **more), images).containers["site"]
    after = desire(loaded({"site": fields, "db": {}}, **more), images).containers["site"]
    assert (before.fingerprint != after.fingerprint) is restart_fields()[field]
    assert before != after
    stored = (IMAGE, values.image("two"))
    have = values.world(
        values.found(before),
        images=stored,
        volumes={"web": frozenset(("data",))},
        devices=frozenset(("/dev/ttyUSB0",)),
    )
    app = values.app("web", after, volumes=("data",))
    steps = [
        type(step).__name__ for step in values.steps_of(plan(values.desired(app), have, values.NOW), "web")
    ]
    restarts = ["StopContainer", "RemoveContainer", "CreateContainer", "StartContainer"]
    leaves = (
        ["RemoveNetwork"] if field in ("network_mode", "networks") else []
    )  # it was the last one in there
    assert steps == (restarts + leaves if restart_fields()[field] else ["UpdateContainer"])


def test_replicas_differ_in_name_and_host_name_only() -> None:
    app = desire(
        loaded(
            {
                "site": {"replicas": 3, "depends_on": ["db"]},
                "db": {"replicas": 2, "hostname": "db"},
                "none": {"replicas": 0},
                "client": {"depends_on": ["site"]},
            }
        ),
        {REFERENCE: IMAGE},
    )
    assert sorted(app.containers) == ["client", "db", "db.2", "site", "site.2", "site.3"]
    first, third = app.containers["site"], app.containers["site.3"]
    assert (first.identity.hostname, third.identity.hostname) == ("web-site", "web-site-3")
    named = replace(first, name="site.3", identity=replace(first.identity, hostname="web-site-3"))
    assert third == named
    assert app.containers["db.2"].fingerprint == app.containers["db"].fingerprint
    assert third.settings.depends_on == ("web/db", "web/db.2")
    assert app.containers["client"].settings.depends_on == ("web/site", "web/site.2", "web/site.3")


def test_one_in_the_network_of_another_waits_for_it_and_has_no_host_name_of_its_own() -> None:
    joined = {"network_mode": "container:site", "depends_on": ["db"], "replicas": 2}
    app = desire(loaded({"site": {"replicas": 2}, "db": {}, "log": joined}), {REFERENCE: IMAGE})
    first, second = app.containers["log"], app.containers["log.2"]
    assert (first.joins, second.joins) == ("web/site", "web/site.2")
    assert (first.identity.hostname, first.networks, first.places) == ("", (), ())
    assert first.settings.depends_on == ("web/db", "web/site")
    assert second.settings.depends_on == ("web/db", "web/site.2")
    assert app.containers["site"].joins == ""


def test_replicas_share_the_ports_that_say_so() -> None:
    ports = [{"published": 80, "target": 8080, "balance": True}]
    app = desire(loaded({"site": {"replicas": 2, "ports": ports}}), {REFERENCE: IMAGE})
    shared = (Port("0.0.0.0", 80, 8080, "tcp", True),)
    assert [app.containers[name].settings.ports for name in ("site", "site.2")] == [shared, shared]


def test_a_replicas_host_name_keeps_its_number() -> None:
    name = "n" * 63
    app = desire(loaded({name: {"replicas": 12}}), {REFERENCE: IMAGE})
    assert app.containers[name].identity.hostname == f"web-{name}"[:64]
    last = app.containers[f"{name}.12"].identity.hostname
    assert len(last) == 64
    assert last.endswith("n-12")


def test_a_container_without_replicas_needs_no_image() -> None:
    app = loaded({"site": {"replicas": 0}})
    assert references(app) == ()
    assert desire(app, {}).unresolved == ()
    assert desire(app, {}).replicas == {"site": 0}


def test_each_replica_waits_for_its_image() -> None:
    app = desire(loaded({"site": {"replicas": 2}}), {REFERENCE: Unresolved("not looked up yet")})
    assert [item.container for item in app.unresolved] == ["site", "site.2"]


def test_one_replica_more_touches_no_other() -> None:
    two, three = (
        desire(loaded({"site": {"replicas": count}}), {REFERENCE: IMAGE}).containers for count in (2, 3)
    )
    assert {name: three[name] for name in two} == two
    assert restart_fields()["replicas"] is False
