/* What a process in a container can see and do, one "NAME VALUE" per line; static, so that the image needs nothing.
 *
 * Nothing is changed that outlives it: calls get arguments that would fail or do nothing where they are allowed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CALL(name, ...) { #name, SYS_##name, {__VA_ARGS__} }

static const char *said(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }

/* In a child, which may die of it: by a filter that kills, or by what the call does. */
static void in_child(const char *kind, const char *name, long (*act)(const void *), const void *of) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(2);
        printf("%s.%s %s\n", kind, name, said(act(of)));
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("%s.%s signal %d\n", kind, name, WTERMSIG(status));
}

struct call { const char *name; long number; long args[6]; };
static char zeros[4096];
static const char *nowhere = "/nowhere";

static long do_call(const void *of) {
    const struct call *call = of;
    const long *a = call->args;
    return syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static long do_socket(const void *of) {
    const int *family = of;
    return socket(family[0], family[1], family[2]);
}

static long do_open(const void *of) { return open(of, O_WRONLY | O_NONBLOCK | O_CLOEXEC); }
static long do_read(const void *of) { return open(of, O_RDONLY | O_NONBLOCK | O_CLOEXEC); }

static long do_clone3(const void *of) { (void)of; return syscall(SYS_clone3, zeros, 0L); }
static long do_namespace(const void *of) { return unshare(*(const int *)of); }
static long do_tiocsti(const void *of) {
    char typed = 'x';
    return syscall(SYS_ioctl, 0, *(const unsigned long *)of, &typed);
}
static long do_mknod(const void *of) { (void)of; return mknod("/dev/shm/node", S_IFBLK | 0600, makedev(254, 0)); }
static long do_raise_id(const void *of) { (void)of; return setuid(0) || setgid(0) ? -1 : 0; }

static void status(void) {
    char line[4096];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        const char *wanted[] = {"Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp:", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
        for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (!strncmp(line, wanted[i], strlen(wanted[i]))) {
                char *value = strchr(line, ':');
                *value++ = 0;
                printf("status.%s", line);
                for (char *word = strtok(value, " \t\n"); word; word = strtok(NULL, " \t\n")) printf(" %s", word);
                printf("\n");
            }
    }
    if (file) fclose(file);
}

static void descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] != '.' && atoi(entry->d_name) > 2 && atoi(entry->d_name) != dirfd(directory))
            printf("descriptor.%s open\n", entry->d_name);
    if (directory) closedir(directory);
}

static void devices(void) {
    DIR *directory = opendir("/dev");
    struct dirent *entry;
    struct stat info;
    while (directory && (entry = readdir(directory))) {
        if (entry->d_name[0] == '.' || fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW)) continue;
        const char *kind = S_ISCHR(info.st_mode) ? "char" : S_ISBLK(info.st_mode) ? "block" : S_ISLNK(info.st_mode) ? "link" : S_ISDIR(info.st_mode) ? "directory" : "other";
        if (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode))
            printf("device.%s %s %u:%u\n", entry->d_name, kind, major(info.st_rdev), minor(info.st_rdev));
        else
            printf("device.%s %s\n", entry->d_name, kind);
    }
    if (directory) closedir(directory);
}

static void mounts(void) {
    char line[8192];
    FILE *file = fopen("/proc/self/mounts", "r");
    while (file && fgets(line, sizeof line, file)) {
        strtok(line, " ");
        char *place = strtok(NULL, " "), *type = strtok(NULL, " "), *options = strtok(NULL, " ");
        printf("mount.%s %s", place, type);
        for (char *option = strtok(options, ","); option; option = strtok(NULL, ","))
            if (!strcmp(option, "ro") || !strcmp(option, "rw") || !strcmp(option, "nosuid") || !strcmp(option, "nodev") || !strcmp(option, "noexec"))
                printf(" %s", option);
        printf("\n");
    }
    if (file) fclose(file);
}

int main(void) {
    status();
    descriptors();
    mounts();
    devices();
    static const char *writable[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/0/smp_affinity",
        "/proc/bus/pci/devices", "/proc/fs/ext4", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug",
        "/proc/acpi", "/proc/scsi/scsi", "/proc/self/uid_map", "/proc/self/oom_score_adj", "/proc/self/mem", "/proc/1/mem",
        "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cgroup.procs", "/sys/firmware", "/sys/module/kernel/parameters/panic",
    };
    for (unsigned i = 0; i < sizeof writable / sizeof *writable; i++) in_child("write", writable[i], do_open, writable[i]);
    static const char *readable[] = {"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kallsyms",
        "/proc/1/environ", "/sys/firmware/acpi/tables", "/sys/kernel/debug", "/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/fuse", "/dev/net/tun"};
    for (unsigned i = 0; i < sizeof readable / sizeof *readable; i++) in_child("read", readable[i], do_read, readable[i]);

    static const struct { const char *name; int of[3]; } sockets[] = {
        {"unix", {AF_UNIX, SOCK_STREAM, 0}}, {"inet", {AF_INET, SOCK_STREAM, 0}}, {"inet-raw", {AF_INET, SOCK_RAW, 1}},
        {"inet-ping", {AF_INET, SOCK_DGRAM, 1}}, {"inet6", {AF_INET6, SOCK_STREAM, 0}}, {"inet6-raw", {AF_INET6, SOCK_RAW, 58}},
        {"netlink-route", {AF_NETLINK, SOCK_RAW, 0}}, {"netlink-audit", {AF_NETLINK, SOCK_RAW, 9}}, {"packet", {AF_PACKET, SOCK_RAW, 0}},
        {"alg", {38, SOCK_SEQPACKET, 0}}, {"vsock", {40, SOCK_STREAM, 0}}, {"key", {15, SOCK_RAW, 2}}, {"can", {29, SOCK_RAW, 1}},
        {"bluetooth", {31, SOCK_RAW, 1}}, {"tipc", {30, SOCK_RDM, 0}}, {"rds", {21, SOCK_SEQPACKET, 0}}, {"xdp", {44, SOCK_RAW, 0}},
        {"x25", {9, SOCK_SEQPACKET, 0}}, {"appletalk", {5, SOCK_DGRAM, 0}}, {"smc", {43, SOCK_STREAM, 0}}, {"qipcrtr", {42, SOCK_DGRAM, 0}},
    };
    for (unsigned i = 0; i < sizeof sockets / sizeof *sockets; i++) in_child("socket", sockets[i].name, do_socket, sockets[i].of);

    long nothing = (long)zeros, path = (long)nowhere;
    const struct call calls[] = {
        CALL(acct, path), CALL(add_key, nothing, nothing, 0, 0, -2), CALL(adjtimex, nothing), CALL(bpf, 0, nothing, 0),
        CALL(chroot, path), CALL(clock_settime, 0, nothing), CALL(close_range, 1000, 1000, 0), CALL(delete_module, path, 0),
        CALL(fanotify_init, 0, 0), CALL(finit_module, -1, nothing, 0), CALL(fsconfig, -1, 0, 0, 0, 0), CALL(fsmount, -1, 0, 0),
        CALL(fsopen, path, 0), CALL(fspick, -1, path, 0), CALL(get_mempolicy, 0, 0, 0, 0, 0), CALL(getcwd, nothing, 4096),
        CALL(init_module, nothing, 0, nothing), CALL(io_uring_enter, -1, 0, 0, 0, 0, 0), CALL(io_uring_register, -1, 0, 0, 0),
        CALL(io_uring_setup, 1, nothing), CALL(kcmp, 1, 1, 0, 0, 0), CALL(kexec_load, 0, 0, 0, 0), CALL(keyctl, 0, -3, 0),
        CALL(landlock_create_ruleset, 0, 0, 1), CALL(lookup_dcookie, 0, nothing, 0), CALL(mbind, 0, 0, 0, 0, 0, 0),
        CALL(memfd_create, path, 0), CALL(mount, path, path, path, 0, 0), CALL(mount_setattr, -1, path, 0, nothing, 32),
        CALL(move_mount, -1, path, -1, path, 0), CALL(move_pages, 0, 0, 0, 0, 0, 0), CALL(name_to_handle_at, -1, path, nothing, nothing, 0),
        CALL(nfsservctl, 0, 0, 0), CALL(open_by_handle_at, -1, nothing, 0), CALL(open_tree, -1, path, 0), CALL(openat2, -1, path, nothing, 24),
        CALL(perf_event_open, nothing, 0, -1, -1, 0), CALL(personality, 0x0008000), CALL(pidfd_getfd, -1, 0, 0), CALL(pidfd_open, 1, 0),
        CALL(pivot_root, path, path), CALL(process_madvise, -1, 0, 0, 0, 0), CALL(process_vm_readv, 1, 0, 0, 0, 0, 0),
        CALL(process_vm_writev, 1, 0, 0, 0, 0, 0), CALL(ptrace, PTRACE_TRACEME, 0, 0, 0), CALL(quotactl, 0, path, 0, 0),
        CALL(reboot, 0, 0, 0, 0), CALL(request_key, nothing, nothing, 0, -2), CALL(sched_setattr, 0, nothing, 0),
        CALL(seccomp, 0, 1, 0), CALL(set_mempolicy, 0, 0, 0), CALL(setdomainname, path, -1), CALL(sethostname, path, -1),
        CALL(setns, -1, 0), CALL(settimeofday, 0, 0), CALL(swapoff, path), CALL(swapon, path, 0), CALL(sync_file_range, -1, 0, 0, 0),
        CALL(syslog, 10, 0, 0), CALL(umount2, path, 0), CALL(unshare, 0), CALL(userfaultfd, 1),
        CALL(vhangup), CALL(vmsplice, -1, 0, 0, 0), CALL(get_robust_list, 0, 0, 0),
        CALL(rseq, 0, 0, 0, 0), CALL(membarrier, 0, 0, 0), CALL(copy_file_range, -1, 0, -1, 0, 0, 0), {"next-year", 1000, {0}},
#ifdef __x86_64__
        CALL(iopl, 0), CALL(ioperm, 0, 0, 0), CALL(modify_ldt, 0, 0, 0), CALL(uselib, path), CALL(ustat, 0, nothing),
#endif
    };
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) in_child("call", calls[i].name, do_call, &calls[i]);
    in_child("call", "clone3", do_clone3, NULL);
    static const struct { const char *name; int flag; } kinds[] = {
        {"user", CLONE_NEWUSER}, {"net", CLONE_NEWNET}, {"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"uts", CLONE_NEWUTS},
        {"ipc", CLONE_NEWIPC}, {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) in_child("unshare", kinds[i].name, do_namespace, &kinds[i].flag);
    static const unsigned long typing[] = {TIOCSTI, TIOCSTI | 1UL << 32, 0x541C};
    in_child("ioctl", "TIOCSTI", do_tiocsti, &typing[0]);
    in_child("ioctl", "TIOCSTI-high", do_tiocsti, &typing[1]);
    in_child("ioctl", "TIOCLINUX", do_tiocsti, &typing[2]);
    in_child("do", "mknod-disk", do_mknod, NULL);
    in_child("do", "become-root", do_raise_id, NULL);
    return 0;
}
