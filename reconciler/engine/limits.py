"""Hard limits on what an image may cost this device, in one frozen value.

They are far above every honest image and below what would hurt: whoever signs a digest vouches for the content, not for
its size. The registry's own limits (time, rates, header sizes) live with the client. Pure.
"""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes. `ratio` counts only beyond `ratio_floor`: small layers of zeros are common and harmless.

    What has a setting in device.yaml is checked for the layer while it is unpacked, and for the image before the layer
    is taken: `unpacked` and `entries` are of all layers together.
    """

    document: int = (
        4 * MIB
    )  # manifest or config: the OCI distribution specification's own ceiling (1.1, "Pulling")
    layers: int = 500  # OVL_MAX_STACK, fs/overlayfs/params.h
    packed: int = 64 * GIB  # one compressed layer
    nesting: int = 3  # documents from the pinned digest to a manifest; nobody was seen to need more than two
    unpacked: int = 128 * GIB  # an image's files, holes counted as if written
    entries: int = (
        4_000_000  # an image's files, directories and links; a layer's tar headers, extended ones included
    )
    directories: int = 400_000  # one layer's: each is made, and then given its metadata
    directory_names: int = 48 * MIB  # their paths together, with those of whiteouts
    replaced: int = 100  # directories that a layer makes and then replaces itself: each costs a search
    symlink_hops: int = 50_000  # paths of one layer that lead through its own symlinks
    ratio: int = 300  # unpacked : packed; deflate can reach 1032, zstd 32768
    ratio_floor: int = GIB
    header: int = MIB  # one pax or GNU extended header
    path: int = 4095  # PATH_MAX without its NUL
    sparse_segments: int = 65_536
    xattr_value: int = 64 * KIB  # XATTR_SIZE_MAX
    reserve: int = 8 * MIB  # kept free on the state file system, so that state can still be written
