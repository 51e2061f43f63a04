"""Every path the engine keeps on disk. Nothing else joins path components.

STATE  (/var/lib/reconciler, 0700)
  agent.lock                 flock: one agent, or one verb that changes something, per state directory
  instance                   16 hex digits made once: kernel names (bridges, cgroups, nft table) derive from it
  key                        32 random bytes, 0600: the key of keyed hashes
  auth.json                  0600: credentials that `login` keeps, in the form of containers-auth.json; replaced by
                             rename under flock of auth.lock
  oci-layout  index.json     an OCI image layout; index.json is replaced (rename) under `store.lock`
  store.lock                 flock, shared while content is being added, exclusive while garbage is swept
  blobs/<algorithm>/<hex>    complete by rename from partial/; named by content, so never rewritten; the attribute
                             user.reconciler.public says that a registry gave it without being told who asks
  partial/                   downloads and unpacking in progress; anything here may be deleted when store.lock is free
  downloads/<alg>-<hex>-<n>  packed bytes of a layer from byte n on, of a transfer that takes long, under flock;
                             appended to and never believed, may be deleted at any time
  resolved/<alg>-<hex>.json  digest as pinned -> resolved image: a cache, may be deleted at any time
  signatures/<alg>-<hex>.json
                             who has vouched for an image, and its signatures, to verify them again; goes with the image
  tags/<sha256 of name>.json a name that a person gave to an image here; one file each, replaced by rename
  layers/<hex of chain id>/  an unpacked layer (a directory for overlayfs), made by rename from partial/
  layers/<hex>.json          its record: written after the rename, and durable; without it the layer does not exist
  layers/<hex>.files         its index: the sha256 of every file, as sha256sum writes it
  replaced/<hex>.<boot>...   a layer that `fsck --repair` replaced under a container that runs; goes with that one's end
  containers/<id>/           config.json (OCI bundle), seccomp.bpf (its linux.seccomp, compiled),
                             identity.json (written last: it makes the container exist),
                             upper/ work/ (overlay), rootfs/ (mount point), log/, configs/,
                                 hosts, resolv.conf, hostname (bind-mounted, and written from inside too),
                                 exit.json where the outcome must survive a reboot,
                                 quota.json (the project of upper/ and work/, where they have a limit)
  trash/                     directories renamed away on removal; deleted in the background
  previous/<app>/<name>/     log/, identity.json and exit.json of the container that ran before (logs --previous)
  volumes/<app>/<name>/      volume.json, data/ (what is mounted), pending (no copy-up yet); never removed by a plan,
                             but for an anonymous one of which somebody said that it goes with its container
  network/leases.json        subnets and addresses, replaced by rename under network/lock
  network/sysctls.json       values found before we changed them, restored by clean-up
  adhoc/<name>.json          an ad-hoc container: its id, its spec, what people want of it; without one it is removed
  adhoc/.renaming            which of them is being given another name, until that is done
  wishes/<app>/<name>.json   what people want of a declared container: held stopped, or started anew
  lastgood/<app>.json        the spec last read without error, with its config files; replaced by rename
  repository.git/            a bare repository, where specs come from git; beside it repository.git.lock
  generations/<n>.json       what was applied; written once each
  events.jsonl[.1]           bounded event log and its predecessor
  scrub.json                 the last pass of the scrub, what it found, and once a day how far it has come
  session.json               the boot in which something last came in, and whether it has ended in order since

RUN  (/run/reconciler, 0711; a tmpfs, so it vanishes at a reboot)
  agent.sock                 the agent's HTTP API, 0660
  agent.json                 pid, start time and addresses of the running agent
  failures.json              outcomes of steps that failed, with boottime stamps, for back-off
  scrub.json                 how far the scrub has come
  verified                   layers that were read in this boot, and were whole, because the last one broke off
  zygote/                    the sealed interpreter's support files, if any
  containers/<id>/           shim.json, exit.json, control.sock,
                                 stopping (an empty mark: a plan asked it to end),
                                 overfull.json (why the agent ended it: it had written too much),
                                 identity.json (a copy, written first: damage on the disk is mended from it)
"""

from dataclasses import dataclass
from pathlib import Path

from reconciler.spec.reference import Digest


@dataclass(frozen=True, slots=True)
class Layout:
    """Absolute paths under the two roots; pure: it creates nothing and checks nothing on disk."""

    state: Path
    run: Path

    # --- state: one file each -------------------------------------------------------------------------------------
    @property
    def agent_lock(self) -> Path:
        return self.state / "agent.lock"

    @property
    def instance(self) -> Path:
        return self.state / "instance"

    @property
    def key(self) -> Path:
        return self.state / "key"

    @property
    def auth(self) -> Path:
        return self.state / "auth.json"

    @property
    def oci_layout(self) -> Path:
        return self.state / "oci-layout"

    @property
    def index(self) -> Path:
        return self.state / "index.json"

    @property
    def store_lock(self) -> Path:
        return self.state / "store.lock"

    @property
    def session(self) -> Path:
        return self.state / "session.json"

    @property
    def scrub(self) -> Path:
        return self.state / "scrub.json"

    @property
    def events(self) -> Path:
        return self.state / "events.jsonl"

    # --- images ---------------------------------------------------------------------------------------------------
    @property
    def blobs(self) -> Path:
        return self.state / "blobs"

    def blob(self, digest: Digest) -> Path:
        return self.blobs / digest.algorithm / digest.hex

    @property
    def partial(self) -> Path:
        return self.state / "partial"

    @property
    def downloads(self) -> Path:
        return self.state / "downloads"

    @property
    def resolved(self) -> Path:
        return self.state / "resolved"

    def resolved_image(self, digest: Digest) -> Path:
        return self.resolved / f"{digest.algorithm}-{digest.hex}.json"

    @property
    def signatures(self) -> Path:
        return self.state / "signatures"

    def signature(self, digest: Digest) -> Path:
        return self.signatures / f"{digest.algorithm}-{digest.hex}.json"

    @property
    def layers(self) -> Path:
        return self.state / "layers"

    def layer(self, chain_id: Digest) -> Path:
        return self.layers / chain_id.hex

    def layer_record(self, chain_id: Digest) -> Path:
        return self.layers / f"{chain_id.hex}.json"

    @property
    def replaced(self) -> Path:
        return self.state / "replaced"

    @property
    def tags(self) -> Path:
        return self.state / "tags"

    def tag(self, key: str) -> Path:
        return self.tags / f"{key}.json"

    @property
    def trash(self) -> Path:
        return self.state / "trash"

    # --- containers -----------------------------------------------------------------------------------------------
    @property
    def containers(self) -> Path:
        return self.state / "containers"

    def container(self, container_id: str) -> Path:
        return self.containers / container_id

    def config(self, container_id: str) -> Path:
        return self.container(container_id) / "config.json"

    def filter(self, container_id: str) -> Path:
        return self.container(container_id) / "seccomp.bpf"

    def identity(self, container_id: str) -> Path:
        return self.container(container_id) / "identity.json"

    def upper(self, container_id: str) -> Path:
        return self.container(container_id) / "upper"

    def work(self, container_id: str) -> Path:
        return self.container(container_id) / "work"

    def rootfs(self, container_id: str) -> Path:
        return self.container(container_id) / "rootfs"

    def log(self, container_id: str) -> Path:
        return self.container(container_id) / "log"

    def configs(self, container_id: str) -> Path:
        return self.container(container_id) / "configs"

    def hosts(self, container_id: str) -> Path:
        return self.container(container_id) / "hosts"

    def resolv_conf(self, container_id: str) -> Path:
        return self.container(container_id) / "resolv.conf"

    def hostname(self, container_id: str) -> Path:
        return self.container(container_id) / "hostname"

    def quota(self, container_id: str) -> Path:
        return self.container(container_id) / "quota.json"

    def settled_exit(self, container_id: str) -> Path:
        return self.container(container_id) / "exit.json"

    @property
    def previous_root(self) -> Path:
        return self.state / "previous"

    def previous(self, app: str, container: str) -> Path:
        return self.previous_root / app / container

    # --- volumes, network, specs ------------------------------------------------------------------------------------
    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    def volume(self, app: str, name: str) -> Path:
        return self.volumes / app / name

    def volume_record(self, app: str, name: str) -> Path:
        return self.volume(app, name) / "volume.json"

    def volume_data(self, app: str, name: str) -> Path:
        return self.volume(app, name) / "data"

    def volume_pending(self, app: str, name: str) -> Path:
        return self.volume(app, name) / "pending"

    @property
    def network(self) -> Path:
        return self.state / "network"

    @property
    def network_lock(self) -> Path:
        return self.network / "lock"

    @property
    def leases(self) -> Path:
        return self.network / "leases.json"

    @property
    def sysctls(self) -> Path:
        return self.network / "sysctls.json"

    @property
    def adhoc_root(self) -> Path:
        return self.state / "adhoc"

    def adhoc(self, name: str) -> Path:
        return self.adhoc_root / f"{name}.json"

    @property
    def renaming(self) -> Path:
        return self.adhoc_root / ".renaming"

    @property
    def wishes_root(self) -> Path:
        return self.state / "wishes"

    def wish(self, app: str, container: str) -> Path:
        return self.wishes_root / app / f"{container}.json"

    @property
    def lastgood_root(self) -> Path:
        return self.state / "lastgood"

    def lastgood(self, app: str) -> Path:
        return self.lastgood_root / f"{app}.json"

    @property
    def repository(self) -> Path:
        return self.state / "repository.git"

    @property
    def generations(self) -> Path:
        return self.state / "generations"

    def generation(self, number: int) -> Path:
        return self.generations / f"{number}.json"

    # --- run --------------------------------------------------------------------------------------------------------
    @property
    def agent_socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def agent_record(self) -> Path:
        return self.run / "agent.json"

    @property
    def failures(self) -> Path:
        return self.run / "failures.json"

    @property
    def scrub_progress(self) -> Path:
        return self.run / "scrub.json"

    @property
    def verified(self) -> Path:
        return self.run / "verified"

    @property
    def zygote(self) -> Path:
        return self.run / "zygote"

    @property
    def run_containers(self) -> Path:
        return self.run / "containers"

    def run_container(self, container_id: str) -> Path:
        return self.run_containers / container_id

    def shim_record(self, container_id: str) -> Path:
        return self.run_container(container_id) / "shim.json"

    def exit_record(self, container_id: str) -> Path:
        return self.run_container(container_id) / "exit.json"

    def control_socket(self, container_id: str) -> Path:
        return self.run_container(container_id) / "control.sock"

    def stopping(self, container_id: str) -> Path:
        return self.run_container(container_id) / "stopping"

    def overfull(self, container_id: str) -> Path:
        return self.run_container(container_id) / "overfull.json"

    def identity_copy(self, container_id: str) -> Path:
        return self.run_container(container_id) / "identity.json"


def existing(path: Path) -> Path:
    """The nearest existing ancestor, which is where a directory would be made."""
    while not path.exists():
        path = path.parent
    return path.resolve()
