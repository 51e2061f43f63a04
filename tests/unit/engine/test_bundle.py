"""config.json: golden files, the runtime specification's own JSON Schema, and what must hold for every container."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from referencing import Registry, Resource

from reconciler.engine import bundle
from reconciler.engine.devices import DEFAULT, Node, rules
from reconciler.engine.layout import Layout
from reconciler.engine.seccomp import default
from reconciler.errors import ReconcilerError
from reconciler.linux import capability
from reconciler.shim.config import prepare
from reconciler.spec.reference import Digest
from reconciler.state.desired import (
    BindMount,
    ConfigMount,
    Container,
    Identity,
    Limits,
    Rotation,
    Settings,
    TmpfsMount,
    VolumeMount,
)
from reconciler.state.image import Image

TESTS = Path(__file__).parents[2]
GOLDEN = TESTS / "golden" / "bundle"
SCHEMAS = TESTS / "schemas" / "runtime-spec"
LAYOUT = Layout(Path("/var/lib/reconciler"), Path("/run/reconciler"))
ID = "0123456789abcdef0123456789abcdef"

DIGEST = Digest("sha256", "a" * 64)
IMAGE = Image(
    DIGEST,
    DIGEST,
    DIGEST,
    (),
    "linux/amd64",
    labels=(("dev.reconciler.user", "root"), ("dev.reconciler.init", "true")),
)
PLAIN = Container(
    "web",
    "page",
    Identity(str(DIGEST), ("/page",)),
    Settings(limits=Limits(pids=None)),
    IMAGE,
    "r.example/page@sha256:a",
)
FULL = Container(
    "web",
    "db",
    Identity(
        image=str(DIGEST),
        arguments=("/bin/db", "--listen", "0.0.0.0"),
        environment=("LANG=C.UTF-8", "PATH=/usr/bin:/bin"),
        working_dir="/srv",
        user="db:data",
        hostname="web-db",
        mounts=(
            VolumeMount("data", "/srv/data"),
            VolumeMount("shared", "/srv/data/shared", read_only=True),
            VolumeMount("shared", "/part", subpath="a/b"),
            VolumeMount("fresh", "/fresh", nocopy=True),
            BindMount("/srv/usb", "/usb", create_host_path=True, propagation="rslave"),
            BindMount("/srv/media", "/media", read_only=True),
            BindMount("/srv/in", "/in"),
            TmpfsMount("/tmp", 32 * 1024 * 1024),
            TmpfsMount("/dev/shm", 128 * 1024 * 1024, 0o1770),
            ConfigMount("conf", "/etc/db/db.conf", "c" * 64, uid=5, gid=6, mode=0o440),
            ConfigMount("hosts", "/etc/hosts", "d" * 64),
        ),
        init=True,
        read_only=True,
        groups=("44", "video"),
        ulimits=(("core", 0, -1), ("nofile", 100, 200)),
        oom_score_adj=500,
        shm_size=1 << 20,
        sysctls=(("net.core.somaxconn", "1024"), ("net.ipv4.conf.a/b.forwarding", "1")),
        cap_add=("CAP_NET_ADMIN",),
        cap_drop=("CAP_CHOWN",),
        no_new_privileges=False,
    ),
    Settings(
        limits=Limits(
            cpus=1500,
            memory=256 * 1024 * 1024,
            swap=64 * 1024 * 1024,
            pids=200,
            cpuset="0-1",
            reserve_memory=1 << 20,
        ),
        rotation=Rotation(1024 * 1024, 5, compress=False),
        labels=(("dev.reconciler.cgroup", "escape"),),
    ),
    IMAGE,
    "r.example/db@sha256:a",
)


def render(
    desired: Container, *, nofile_hard: int = 1048576, nodes: tuple[Node, ...] = (), ids: int = 0
) -> dict[str, Any]:
    return bundle.render(
        desired,
        id=ID,
        layout=LAYOUT,
        layers=[LAYOUT.layer(Digest("sha256", digit * 64)) for digit in "21"],
        upper=LAYOUT.upper(ID),
        work=LAYOUT.work(ID),
        cgroup={"v2": "/sys/fs/cgroup/reconciler-1/c", "v1": []},
        cgroups_path="/reconciler-1/c",
        nofile_hard=nofile_hard,
        nodes=nodes,
        rules=rules(desired.identity, nodes),
        seccomp=None
        if desired.identity.privileged
        else {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38},
        ids=ids,
    )


def validator() -> jsonschema.Draft4Validator:
    """The schema's files refer to each other by relative names."""
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    for schema in schemas.values():
        schema.pop("id", None)
        schema.setdefault("$schema", "http://json-schema.org/draft-04/schema#")
    registry: Registry[Any] = Registry().with_resources(
        (name, Resource.from_contents(schema)) for name, schema in schemas.items()
    )
    return jsonschema.Draft4Validator(schemas["config-schema.json"], registry=registry)


VALIDATOR = validator()


def mounts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in config["mounts"]}


@pytest.mark.parametrize("name", ["plain", "full", "privileged"])
def test_a_bundle_is_the_golden_one(name: str) -> None:
    desired = {"plain": PLAIN, "full": FULL, "privileged": PRIVILEGED}[name]
    path = GOLDEN / f"{name}.json"
    text = json.dumps(render(desired), indent=2, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("desired", [PLAIN, FULL])
def test_a_bundle_satisfies_the_schema_of_the_runtime_specification(desired: Container) -> None:
    VALIDATOR.validate(render(desired))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_default_seccomp_profile_is_one_of_the_specification(machine: str) -> None:
    config = render(PLAIN)
    config["linux"]["seccomp"] = default.section(bundle.CAPABILITIES, machine)
    VALIDATOR.validate(config)


def test_ids_of_its_own_are_a_mapping_for_the_container_and_for_every_bind() -> None:
    plain, config = render(FULL), render(FULL, ids=1 << 31)
    VALIDATOR.validate(config)
    mapping = [{"containerID": 0, "hostID": 1 << 31, "size": 65536}]
    linux = config["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == mapping
    assert {"type": "user"} in linux["namespaces"]
    for mount in config["mounts"]:
        mapped = (mount.get("uidMappings"), mount.get("gidMappings"))
        assert mapped == ((mapping, mapping) if mount["type"] == "bind" else (None, None))
    assert linux["sysctl"] == {"net.ipv4.ip_unprivileged_port_start": "0", **plain["linux"]["sysctl"]}
    assert prepare(config).process.ids == (1 << 31, 65536)
    joined = replace(FULL, identity=replace(FULL.identity, network_mode="container:web/a"))
    assert "net.ipv4.ip_unprivileged_port_start" not in render(joined, ids=1 << 31)["linux"]["sysctl"]


def test_the_schema_refuses_what_is_no_bundle() -> None:
    config = render(PLAIN)
    config["process"]["cwd"] = 5
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(config)


@pytest.mark.parametrize("desired", [PLAIN, FULL])
def test_our_own_shim_takes_a_bundle_as_it_is(desired: Container) -> None:
    prepared = prepare(render(desired), str(LAYOUT.container(ID)))
    assert prepared.name == desired.full_name
    assert prepared.process.user == desired.identity.user
    assert prepared.init is desired.identity.init
    assert prepared.cgroup_v2 == "/sys/fs/cgroup/reconciler-1/c"
    assert prepared.layers == tuple(str(LAYOUT.layer(Digest("sha256", digit * 64))) for digit in "21")


PRIVILEGED = replace(
    FULL,
    name="root",
    identity=replace(
        FULL.identity,
        privileged=True,
        cap_add=(),
        cap_drop=("CAP_SYS_BOOT",),
        mounts=(BindMount("/srv/in", "/in"),),
    ),
)


def test_a_privileged_bundle_masks_nothing_and_takes_all_that_the_agent_has() -> None:
    config = render(PRIVILEGED)
    VALIDATOR.validate(config)
    assert config["linux"]["maskedPaths"] == config["linux"]["readonlyPaths"] == []
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    found = mounts(config)
    assert "rw" in found["/sys"]["options"]
    assert "rw" in found["/sys/fs/cgroup"]["options"]
    assert not {"nodev", "nosuid"} & set(found["/in"]["options"])
    bounding = config["process"]["capabilities"]["bounding"]
    assert set(bounding) == set(capability.NAMES) - {"CAP_SYS_BOOT"}
    assert (
        render(replace(PRIVILEGED, identity=replace(PRIVILEGED.identity, cap_drop=("ALL",))))["process"][
            "capabilities"
        ]["bounding"]
        == []
    )


@pytest.mark.parametrize(
    ("added", "dropped", "expected"),
    [
        ((), (), {"CAP_CHOWN"}),
        (("CAP_KILL",), (), {"CAP_CHOWN", "CAP_KILL"}),
        ((), ("ALL",), set()),
        (("CAP_KILL",), ("ALL",), {"CAP_KILL"}),
        (("ALL",), (), {"CAP_CHOWN", "CAP_SYS_ADMIN"}),
        (("ALL",), ("CAP_CHOWN",), {"CAP_SYS_ADMIN"}),
    ],
)
def test_what_is_not_named_is_what_the_agent_itself_has(
    added: tuple[str, ...], dropped: tuple[str, ...], expected: set[str]
) -> None:
    identity = replace(PLAIN.identity, cap_add=added, cap_drop=dropped)
    assert set(bundle.capabilities(identity, ("CAP_CHOWN", "CAP_SYS_ADMIN"))) == expected


def test_s5_every_bundle_denies_all_devices_but_the_listed_ones() -> None:
    node = Node("/dev/modem", "c", 188, 0, 0o660, 0, 20, "rw")
    config = render(FULL, nodes=(node,))
    VALIDATOR.validate(config)
    first, *rest = config["linux"]["resources"]["devices"]
    assert first == {"allow": False, "access": "rwm"}
    assert rest == [*(rule.document() for rule in DEFAULT), node.rule.document()]
    assert config["linux"]["devices"] == [
        {"path": "/dev/modem", "type": "c", "major": 188, "minor": 0, "fileMode": 0o660, "uid": 0, "gid": 20}
    ]
    assert ("/dev/modem", 0o20660, 188, 0, 0, 20) in prepare(config).devices


def test_s1_capabilities_are_the_ten_and_none_is_inheritable_or_ambient() -> None:
    capabilities = render(PLAIN)["process"]["capabilities"]
    assert len(bundle.CAPABILITIES) == 10
    for kind in ("bounding", "effective", "permitted"):
        assert capabilities[kind] == list(bundle.CAPABILITIES)
    assert capabilities["inheritable"] == capabilities["ambient"] == []


def test_s10_labels_of_the_image_and_the_spec_reach_no_annotation() -> None:
    assert "dev.reconciler.init" not in render(PLAIN)["annotations"]
    annotations = render(FULL)["annotations"]
    assert annotations["dev.reconciler.user"] == "db:data"
    assert json.loads(annotations["dev.reconciler.cgroup"])["v2"] == "/sys/fs/cgroup/reconciler-1/c"
    assert "escape" not in json.dumps(render(FULL))


def test_s5_volumes_binds_and_configs_carry_no_devices_and_no_setuid_programs() -> None:
    for mount in mounts(render(FULL)).values():
        if mount["type"] == "bind":
            assert {"nodev", "nosuid"} <= set(mount["options"])


def test_p12_cgroups_and_sys_are_read_only() -> None:
    found = mounts(render(FULL))
    assert "ro" in found["/sys"]["options"]
    assert "ro" in found["/sys/fs/cgroup"]["options"]


def test_a_mount_on_our_own_file_replaces_it_once() -> None:
    config = render(FULL)
    destinations = [mount["destination"] for mount in config["mounts"]]
    assert len(destinations) == len(set(destinations))
    assert mounts(config)["/etc/hosts"]["source"] == str(LAYOUT.configs(ID) / "hosts")
    assert "mode=1770" in mounts(config)["/dev/shm"]["options"]


@pytest.mark.parametrize("hard", [4096, 20000, 65536, 1048576, 2**63, -1])
def test_the_default_file_limit_never_exceeds_what_we_may_give(hard: int) -> None:
    (limit,) = render(PLAIN, nofile_hard=hard)["process"]["rlimits"]
    assert 0 < limit["soft"] <= limit["hard"] <= 1048576
    assert hard < 0 or limit["hard"] <= hard


def test_limits_that_the_spec_names_are_asked_for_as_they_are_and_by_name() -> None:
    config = render(FULL, nofile_hard=150)
    limits = {limit["type"]: (limit["soft"], limit["hard"]) for limit in config["process"]["rlimits"]}
    assert limits == {"RLIMIT_CORE": (0, 2**64 - 1), "RLIMIT_NOFILE": (100, 200)}
    requested = json.loads(config["annotations"]["dev.reconciler.rlimits-requested"])
    assert requested == ["RLIMIT_CORE", "RLIMIT_NOFILE"]
    assert prepare(config).process.rlimits == (("RLIMIT_CORE", 0, -1), ("RLIMIT_NOFILE", 100, 200))
    assert "dev.reconciler.rlimits-requested" not in render(PLAIN)["annotations"]


def test_sysctls_and_groups_reach_the_shim_as_the_spec_means_them() -> None:
    prepared = prepare(render(FULL))
    assert prepared.sysctl == (
        ("net/core/somaxconn", "1024"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
        ("net/ipv4/conf/a.b/forwarding", "1"),
    )
    assert prepared.process.groups == ("44", "video")
    assert render(FULL)["process"]["user"]["additionalGids"] == [44]


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/sys", "/dev", "/dev/pts", "/sys/fs/cgroup"])
def test_a_mount_over_the_containers_kernel_files_is_refused(target: str) -> None:
    identity = replace(PLAIN.identity, mounts=(BindMount("/srv", target),))
    with pytest.raises(ReconcilerError, match="kernel files"):
        render(replace(PLAIN, identity=identity))


def test_two_mounts_on_one_target_are_refused() -> None:
    identity = replace(PLAIN.identity, mounts=(TmpfsMount("/x", 1), VolumeMount("v", "/x")))
    with pytest.raises(ReconcilerError, match="two mounts on /x"):
        render(replace(PLAIN, identity=identity))


def test_a_config_shown_twice_with_other_owners_is_two_files() -> None:
    shown = (
        ConfigMount("conf", "/a", "c" * 64, uid=5, mode=0o400),
        ConfigMount("conf", "/b", "c" * 64),
        ConfigMount("conf", "/c", "c" * 64, uid=5, mode=0o400),
        ConfigMount("more", "/d", "d" * 64),
    )
    desired = replace(PLAIN, identity=replace(PLAIN.identity, mounts=shown))
    files = bundle.config_files(desired)
    assert {name: (mount.config, mount.uid, mount.mode) for name, mount in files.items()} == {
        "conf": ("conf", 5, 0o400),
        "conf.1": ("conf", 0, 0o444),
        "more": ("more", 0, 0o444),
    }
    found = mounts(render(desired))
    assert [Path(found[target]["source"]).name for target in ("/a", "/b", "/c", "/d")] == [
        *("conf", "conf.1", "conf", "more")
    ]


@pytest.mark.parametrize(
    "source",
    [
        *("/", "/proc", "/proc/1/root", "/var/lib", "/run", "/run/reconciler/agent.sock"),
        *("/var/lib/reconciler", "/var/lib/reconciler/volumes/a"),
    ],
)
def test_y7_a_bind_that_hands_over_the_device_is_refused_whatever_is_allowed(source: str) -> None:
    desired = replace(PLAIN, identity=replace(PLAIN.identity, mounts=(BindMount(source, "/x"),)))
    with pytest.raises(ReconcilerError, match=f"web/page: bind of {source}: "):
        render(desired)


@pytest.mark.parametrize("source", ["/run/reconcilers", "/var/lib/reconciler2/x", "/srv", "/process"])
def test_a_bind_beside_it_is_allowed(source: str) -> None:
    desired = replace(PLAIN, identity=replace(PLAIN.identity, mounts=(BindMount(source, "/x"),)))
    assert mounts(render(desired))["/x"]["source"] == source


def test_the_swap_of_the_specification_is_the_sum() -> None:
    assert {k: v for k, v in render(FULL)["linux"]["resources"].items() if k != "devices"} == {
        "cpu": {"quota": 150_000, "period": 100_000, "cpus": "0-1"},
        "memory": {"limit": 268435456, "swap": 335544320, "reservation": 1 << 20},
        "pids": {"limit": 200},
    }
    assert render(PLAIN)["linux"]["resources"].keys() == {"devices"}


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
TARGETS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/m/" + "/".join(parts))
MOUNTS = st.one_of(
    st.builds(VolumeMount, NAMES, TARGETS, st.booleans()),
    st.builds(BindMount, TARGETS, TARGETS, st.booleans()),
    st.builds(TmpfsMount, TARGETS, st.integers(4096, 2**40), st.integers(0, 0o7777)),
    st.builds(ConfigMount, NAMES, TARGETS, st.just("d" * 64), mode=st.integers(0, 0o777)),
)
CONTAINERS = st.builds(
    lambda arguments, environment, user, found, init, read_only, limits: Container(
        "app",
        "c",
        Identity(
            image=str(DIGEST),
            arguments=tuple(arguments),
            environment=tuple(f"{key}={value}" for key, value in sorted(environment.items())),
            user=user,
            hostname="h",
            mounts=tuple(found),
            init=init,
            read_only=read_only,
        ),
        Settings(limits=limits),
        IMAGE,
        "r.example/a@sha256:a",
    ),
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1
    ),
    st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    st.text(max_size=8),
    st.lists(MOUNTS, max_size=6, unique_by=lambda mount: mount.target),
    st.booleans(),
    st.booleans(),
    st.builds(
        Limits,
        cpus=st.none() | st.integers(10, 64000),
        memory=st.none() | st.integers(6 << 20, 2**50),
        swap=st.integers(0, 2**40),
        pids=st.none() | st.integers(1, 2**22),
    ),
)


@given(CONTAINERS)
def test_every_bundle_is_valid_and_mounts_parents_first(desired: Container) -> None:
    config = render(desired)
    VALIDATOR.validate(config)
    assert json.loads(json.dumps(config)) == config
    assert render(desired) == config
    destinations = [mount["destination"] for mount in config["mounts"]]
    assert len(destinations) == len(set(destinations))
    for index, destination in enumerate(destinations):
        assert not any(later + "/" == destination[: len(later) + 1] for later in destinations[index + 1 :])
    assert all(key.startswith("dev.reconciler.") for key in config["annotations"])
