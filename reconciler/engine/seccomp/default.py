"""The default profile: which system calls a container may make where its spec says nothing. Data, and pure.

Written from the kernel's tables (linux.seccomp.numbers): every call there is allowed, allowed for some arguments, or
refused. A call that is refused fails with EPERM. A call that the table does not know, because it is newer, and one that
programs try before an older one (ABSENT), fails with ENOSYS: so libc does the same with the older one, as it does on an
older kernel. The result has the form of OCI's `linux.seccomp`, and only what runc and crun read in the same way: no
rule without conditions beside one with conditions for the same call, no two conditions on one argument in a rule.
"""

import errno
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from reconciler.linux.seccomp import numbers

_X86: Final = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
_ARM: Final = ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")
# Which 32-bit calls are let through as well: as strictly filtered, by numbers of their own. Not x32.
ARCHITECTURES: Final = {"x86_64": _X86, "aarch64": _ARM}
TABLES: Final[Mapping[str, tuple[Mapping[str, int], ...]]] = {
    "x86_64": (numbers.X86_64, numbers.X86),
    "aarch64": (numbers.AARCH64, numbers.ARM),
}

# What every program may do, by what it is for.
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    purpose: frozenset(names.split())
    for purpose, names in {
        "files and directories": """
            access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
            fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
            fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
            fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat lchown
            lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
            lstat64 mkdir mkdirat mknod mknodat newfstatat open openat openat2 readahead readlink
            readlinkat removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs
            statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range syncfs truncate
            truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes listmount statmount cachestat
            """,
        "reading, writing and waiting": """
            epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
            eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
            io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect pipe pipe2 poll
            ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readv
            select sendfile sendfile64 signalfd signalfd4 splice tee vmsplice write writev
            """,
        "sockets, once they are there": """
            accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
            recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown
            """,
        "memory": """
            brk get_thread_area madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
            mlockall mmap mmap2 modify_ldt mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
            pkey_mprotect remap_file_pages set_thread_area set_tls cacheflush arch_prctl
            """,
        "processes, threads and signals": """
            alarm breakpoint execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait
            futex_waitv futex_wake get_robust_list getpgid getpgrp getpid getppid getpriority getrlimit getrusage
            getsid gettid ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64
            process_mrelease ptrace restart_syscall rseq rt_sigaction rt_sigpending
            rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
            rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
            sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
            sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list set_tid_address setpgid
            setpriority setrlimit setsid sigaltstack sigprocmask sigreturn tgkill tkill ugetrlimit uretprobe vfork
            wait4 waitid waitpid
            """,
        "users and capabilities": """
            capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid
            getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
            setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
            setuid setuid32
            """,
        "confining oneself further": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
        "time": """
            adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
            clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
            timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
            timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
            """,
        "messages, semaphores and shared memory": """
            ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
            mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt
            shmget
            """,
        "the system": "getcpu getrandom sysinfo uname",
    }.items()
}

# What a capability adds: the call would ask for it anyway, and is of no use without.
BY_CAPABILITY: Final[Mapping[str, frozenset[str]]] = {
    capability: frozenset(names.split())
    for capability, names in {
        "CAP_BPF": "bpf",
        "CAP_DAC_READ_SEARCH": "name_to_handle_at open_by_handle_at",
        "CAP_PERFMON": "perf_event_open",
        "CAP_SYSLOG": "syslog",
        "CAP_SYS_ADMIN": """
            bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
            lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
            quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
            """,
        "CAP_SYS_BOOT": "reboot",
        "CAP_SYS_CHROOT": "chroot",
        "CAP_SYS_MODULE": "delete_module finit_module init_module",
        "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
        "CAP_SYS_PACCT": "acct",
        "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
        "CAP_SYS_RAWIO": "ioperm iopl",
        "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
        "CAP_SYS_TTY_CONFIG": "vhangup",
    }.items()
}

# What programs try first, and do without where the kernel does not have it. clone3 takes its flags in memory, where no
# filter sees them: with ENOSYS, libc calls clone (glibc since 2.34, musl never calls clone3).
ABSENT: Final = frozenset(
    ("clone3", "file_getattr", "file_setattr", "io_uring_enter", "io_uring_register", "io_uring_setup")
)

# Families of sockets. Every other one fails with ENOSYS: AF_ALG, AF_VSOCK and three dozen more, of which most kernels
# load the module on the first call.
FAMILIES: Final = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK"}
_AF_PACKET: Final = 17

_NAMESPACES: Final = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
# PER_LINUX, PER_LINUX32, each with UNAME26, and the question which one it is. Others lift protections of memory.
_PERSONALITIES: Final = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)
# Typing into a terminal that somebody else reads (CVE-2016-2568 and kin), also by way of the console's selection.
TERMINAL: Final = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}
_WORD: Final = 0xFFFFFFFF
# Those of i386 and the one call that makes all of them there: its arguments are in memory, so it makes no sockets.
_SOCKETCALL: Final = {1: "SYS_SOCKET", 8: "SYS_SOCKETPAIR"}

# What decides by its arguments, in words: for docs/security.md.
CONDITIONAL: Final = {
    "clone": "without the flags of new namespaces; with CAP_SYS_ADMIN any",
    "ioctl": "any but TIOCSTI and TIOCLINUX, whatever the upper half of the argument holds",
    "personality": "PER_LINUX, PER_LINUX32, UNAME26, or to ask; else ENOSYS",
    "socket": f"{', '.join(FAMILIES.values())}, and AF_PACKET with CAP_NET_RAW; else ENOSYS",
    "socketpair": "as socket",
    "socketcall": "of 32-bit x86: what uses a socket; to make one fails with ENOSYS",
}


def section(capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return the profile of a container with `capabilities` (full names) as OCI's `linux.seccomp`; sorted."""
    known = frozenset(name for table in TABLES[machine] for name in table)
    allowed = allowed_names(capabilities)
    conditional = (CONDITIONAL.keys() - allowed) & known
    refused = known - allowed - conditional - ABSENT
    rules = [
        _rule("SCMP_ACT_ALLOW", sorted(allowed & known)),
        _rule("SCMP_ACT_ERRNO", sorted(refused), errno.EPERM),
    ]
    families = {*FAMILIES, *([_AF_PACKET] if "CAP_NET_RAW" in capabilities else [])}
    rules += _families(families)
    for name, make in (
        ("clone", _clone),
        ("ioctl", _ioctl),
        ("personality", _personality),
        ("socketcall", _socketcall),
    ):
        if name in conditional:
            rules += make()
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(ARCHITECTURES[machine]),
        "syscalls": rules,
    }


def allowed_names(capabilities: Collection[str]) -> frozenset[str]:
    """Return the calls that are allowed whatever their arguments, on any machine."""
    found = [names for capability, names in BY_CAPABILITY.items() if capability in capabilities]
    return frozenset[str]().union(*ALLOWED.values(), *found)


# --- conditions -------------------------------------------------------------------------------------------------------


def _rule(action: str, names: Iterable[str], number: int = 0, *conditions: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": action}
    if number:
        rule["errnoRet"] = number
    if conditions:
        rule["args"] = list(conditions)
    return rule


def _condition(operator: str, value: int, two: int | None = None, *, index: int = 0) -> dict[str, Any]:
    found = {"index": index, "value": value, "op": f"SCMP_CMP_{operator}"}
    return found if two is None else {**found, "valueTwo": two}


def _clone() -> list[dict[str, Any]]:
    flags = _NAMESPACES.values()
    return [
        _rule("SCMP_ACT_ALLOW", ["clone"], 0, _condition("MASKED_EQ", sum(flags), 0)),
        *(
            _rule("SCMP_ACT_ERRNO", ["clone"], errno.EPERM, _condition("MASKED_EQ", flag, flag))
            for flag in flags
        ),
    ]


def _personality() -> list[dict[str, Any]]:
    return [
        _rule("SCMP_ACT_ALLOW", ["personality"], 0, _condition("EQ", value))
        for value in sorted(_PERSONALITIES)
    ]


def _families(families: Collection[int]) -> list[dict[str, Any]]:
    """For socketpair as for socket: it makes two sockets before it finds that the family has no pairs.

    Without rules that refuse: libseccomp takes a rule about socket for one about socketcall too, whatever the family.
    """
    names = ["socket", "socketpair"]
    return [_rule("SCMP_ACT_ALLOW", names, 0, _condition("EQ", family)) for family in sorted(families)]


def _socketcall() -> list[dict[str, Any]]:
    last = max(_SOCKETCALL)
    others = (number for number in range(1, last) if number not in _SOCKETCALL)
    return [
        *(_rule("SCMP_ACT_ALLOW", ["socketcall"], 0, _condition("EQ", number)) for number in others),
        _rule("SCMP_ACT_ALLOW", ["socketcall"], 0, _condition("GT", last)),
    ]


def _ioctl() -> list[dict[str, Any]]:
    """Refuse two numbers, whatever the upper half of the argument holds: the kernel takes the lower (CVE-2019-10063).

    "Neither of both" has to be said as "one bit is another one than in both", a rule for each bit where both are alike,
    and one for each way in which the other bits can be neither's.
    """
    first, second = TERMINAL.values()
    differing = first ^ second
    bits = [1 << number for number in range(32)]
    alike = [bit for bit in bits if not bit & differing]
    # Most requests differ in the lower bits, so these come first
    conditions = [_condition("MASKED_EQ", bit, ~first & bit) for bit in alike]
    for value in _subsets(differing):
        if value not in (first & differing, second & differing):
            conditions.append(_condition("MASKED_EQ", differing, value))
    return [
        *(_rule("SCMP_ACT_ALLOW", ["ioctl"], 0, {**condition, "index": 1}) for condition in conditions),
        *(
            _rule("SCMP_ACT_ERRNO", ["ioctl"], errno.EPERM, _condition("MASKED_EQ", _WORD, number, index=1))
            for number in TERMINAL.values()
        ),
    ]


def _subsets(mask: int) -> list[int]:
    return [value for value in range(mask + 1) if not value & ~mask]
