"""The default profile as a table: at least as strict as Docker's on every call, stricter where it should be, and cheap.

Docker's is put down here as facts: the calls that Docker 28's default profile allows whatever their arguments, and
those that it allows with a capability.
"""

from itertools import combinations

import pytest

from reconciler.engine.bundle import CAPABILITIES
from reconciler.engine.seccomp import default
from reconciler.linux.capability import NAMES
from reconciler.linux.seccomp import numbers
from reconciler.linux.seccomp.compile import compile
from tests.bpf import AARCH64, ALLOW, ARM, ERRNO, KILL_PROCESS, X86, X86_64, Filter

FACES = {
    "x86_64": ((X86_64, numbers.X86_64), (X86, numbers.X86)),
    "aarch64": ((AARCH64, numbers.AARCH64), (ARM, numbers.ARM)),
}
_EPERM, _ENOSYS = ERRNO | 1, ERRNO | 38

_NAMES = """
_llseek _newselect accept accept4 access add_key adjtimex alarm bind brk cachestat capget capset chdir chmod chown
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt
gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
ioprio_get ioprio_set ipc keyctl kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat
lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock
mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 request_key restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto
set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown
sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink
unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls
"""
DOCKER = frozenset(_NAMES.split())
DOCKER_WITH = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare
        """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
# By arguments in Docker's too: socket any family but AF_VSOCK, personality the same five, clone without namespaces
DOCKER_CONDITIONAL = frozenset(("socket", "personality", "clone"))
STRICTER = frozenset(("add_key", "keyctl", "request_key"))


def docker(capabilities: tuple[str, ...]) -> frozenset[str]:
    added = [DOCKER_WITH[capability].split() for capability in capabilities if capability in DOCKER_WITH]
    return DOCKER.union(*added)


def filter_of(capabilities: tuple[str, ...], machine: str) -> Filter:
    return Filter(compile(default.section(capabilities, machine), machine))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [(), CAPABILITIES, NAMES, *((name,) for name in DOCKER_WITH)])
def test_s4_no_call_is_allowed_that_docker_refuses(capabilities: tuple[str, ...], machine: str) -> None:
    program = filter_of(capabilities, machine)
    theirs = docker(capabilities)
    for arch, table in FACES[machine]:
        for name, number in table.items():
            tried = [program.run(number, arch, (argument, argument)) for argument in (0, 1, 8, 17)]
            if name not in theirs | DOCKER_CONDITIONAL:
                assert all(answer.value in (_EPERM, _ENOSYS) for answer in tried), name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_s4_what_docker_allows_is_allowed_but_for_what_is_named(machine: str) -> None:
    program = filter_of(NAMES, machine)
    for arch, table in FACES[machine]:
        refused = {
            name
            for name, number in table.items()
            if name in docker(NAMES) and program.run(number, arch, (2, 2)).value != ALLOW
        }
        assert refused == STRICTER & table.keys()


def test_s4_all_that_is_said_of_docker_is_about_calls_that_there_are() -> None:
    known = {name for tables in default.TABLES.values() for table in tables for name in table}
    assert not (docker(NAMES) | DOCKER_CONDITIONAL) - known
    assert not default.allowed_names(NAMES) - known
    assert set(default.BY_CAPABILITY) <= set(NAMES)


def test_every_call_is_named_once() -> None:
    groups = [*default.ALLOWED.values(), default.ABSENT - {"clone3"}, default.CONDITIONAL.keys() - {"clone"}]
    assert not [one & other for one, other in combinations(groups, 2) if one & other]
    everything = frozenset[str]().union(*default.ALLOWED.values())
    assert not [names & everything for names in default.BY_CAPABILITY.values() if names & everything]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_call_that_is_always_allowed_costs_a_dozen_instructions(machine: str) -> None:
    program = filter_of(CAPABILITIES, machine)
    always = default.allowed_names(CAPABILITIES)
    for arch, table in FACES[machine]:
        answers = [program.run(number, arch) for name, number in table.items() if name in always]
        assert {answer.value for answer in answers} == {ALLOW}
        assert max(answer.instructions for answer in answers) <= 14
    assert len(program.code) < 600


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_s4_usual_arguments_are_found_soon(machine: str) -> None:
    program = filter_of(CAPABILITIES, machine)
    arch, table = FACES[machine][0]
    threads = 0x3D0F00  # what pthread_create passes to clone
    for name, args in (
        *(("socket", (family, 1)) for family in (1, 2, 10, 16)),
        *(("ioctl", (0, request)) for request in (0x5401, 0x5413, 0x5421, 0x541B, 0x8912, 0x5451)),
        ("clone", (threads,)),
        ("clone", (17,)),
    ):
        answer = program.run(table[name], arch, args)
        assert answer.value == ALLOW
        assert answer.instructions <= 30, (name, args)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_s4_newer_calls_are_enosys_and_foreign_ones_end_the_process(machine: str) -> None:
    program = filter_of(CAPABILITIES, machine)
    native = FACES[machine][0][0]
    for arch, table in FACES[machine]:
        for number in (471, 500, 0x7FF, 0xFFFFFFFF):
            if number not in table.values():
                assert program.run(number, arch).value == _ENOSYS
    for arch in {X86_64, X86, AARCH64, ARM, 0x80000016, 0} - {arch for arch, _ in FACES[machine]}:
        assert program.run(0, arch).value == KILL_PROCESS
    wanted = KILL_PROCESS if machine == "x86_64" else _ENOSYS
    assert program.run(0x40000000, native).value == wanted


def test_s4_capabilities_open_what_needs_them_and_nothing_else() -> None:
    nothing = filter_of((), "x86_64")
    for capability in NAMES:
        program = filter_of((capability,), "x86_64")
        opened = {
            name
            for name, number in numbers.X86_64.items()
            if program.run(number).value == ALLOW and nothing.run(number).value != ALLOW
        }
        expected = default.BY_CAPABILITY.get(capability, frozenset()) & numbers.X86_64.keys()
        assert opened == expected - {"clone"}, capability
    packet = numbers.X86_64["socket"]
    assert nothing.run(packet, args=(17,)).value == _ENOSYS
    assert filter_of(("CAP_NET_RAW",), "x86_64").run(packet, args=(17,)).value == ALLOW


def test_s4_io_uring_and_its_kin_are_closed_to_every_capability() -> None:
    program = filter_of(NAMES, "x86_64")
    names = (
        *(
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
        ),
        *("kexec_load", "kexec_file_load", "pivot_root", "swapon", "move_pages", "vserver"),
    )
    for name in names:
        assert program.run(numbers.X86_64[name]).value in (_EPERM, _ENOSYS), name
    for name in ("bpf", "perf_event_open", "mount", "unshare", "setns"):
        assert filter_of(CAPABILITIES, "x86_64").run(numbers.X86_64[name]).value == _EPERM, name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_it_has_only_what_other_runtimes_read_in_the_same_way(machine: str) -> None:
    for capabilities in ((), CAPABILITIES, NAMES):
        rules = default.section(capabilities, machine)["syscalls"]
        plain = {name for rule in rules if "args" not in rule for name in rule["names"]}
        conditional = {name for rule in rules if "args" in rule for name in rule["names"]}
        assert not plain & conditional
        assert all(len(rule["args"]) == 1 for rule in rules if "args" in rule)
        assert not [
            rule for rule in rules if "socket" in rule["names"] and rule["action"] != "SCMP_ACT_ALLOW"
        ]
