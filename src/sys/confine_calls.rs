//! The system calls that a daemon makes while it serves, and the C libraries for it: glibc and musl, of versions that
//! prefer other forms of the same call. Found by tracing the tests; what is in one form is here in all.

/// Calls that are allowed with any arguments, on all architectures.
pub(super) const ALLOWED: &[libc::c_long] = &[
    // Files and directories by descriptor.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    super::file::SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    super::ahead::SYS_CACHESTAT,
    libc::SYS_name_to_handle_at,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    // Extended attributes.
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // setxattrat(2), getxattrat(2), listxattrat(2), removexattrat(2) of Linux 6.13, and file_getattr(2),
    // file_setattr(2) of 6.17: the same numbers on all architectures (arch/*/tools/syscall.tbl).
    463,
    464,
    465,
    466,
    468,
    469,
    // The identity of a caller, for a thread.
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_umask,
    libc::SYS_capget,
    libc::SYS_capset,
    // The clone of a mount, see [`super::mount`].
    libc::SYS_mount_setattr,
    // Ending the mount.
    libc::SYS_umount2,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Waiting, and what wakes.
    libc::SYS_ppoll,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Answers on sockets that are there.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // What this process and machine are.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    NEW_STAT,
    SYNC_RANGE,
];

#[cfg(not(target_arch = "powerpc64"))]
const SYNC_RANGE: libc::c_long = libc::SYS_sync_file_range;
#[cfg(target_arch = "powerpc64")]
const SYNC_RANGE: libc::c_long = libc::SYS_sync_file_range2;

/// fstatat(2).
const NEW_STAT: libc::c_long = libc::SYS_newfstatat;

/// Calls that other architectures do not have any more.
#[cfg(target_arch = "x86_64")]
pub(super) const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_chmod,
    libc::SYS_poll,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_getrlimit,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
/// Calls that other architectures do not have.
#[cfg(target_arch = "aarch64")]
pub(super) const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_renameat];
/// Calls that other architectures do not have.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const ALLOWED_HERE: &[libc::c_long] = &[];

/// Calls that io_uring takes. What is done by it is not filtered; see docs/SECURITY.md.
pub(super) const IO_URING: &[libc::c_long] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Commands of ioctl(2).
pub(super) const IOCTLS: &[u32] = &[
    super::fuse::CLONE as u32,
    super::fuse::BACKING_OPEN as u32,
    super::fuse::BACKING_CLOSE as u32,
    super::flags::GET,
    super::flags::SET,
    super::flags::GET_EXTENDED,
    super::flags::SET_EXTENDED,
    super::handle::GET_UUID,
    super::handle::BTRFS_INFO,
    super::sync::FIEMAP,
    libc::FICLONE as u32,
    libc::FIONBIO as u32,
    libc::FIOCLEX as u32,
    // Whether the log goes to a terminal.
    libc::TCGETS as u32,
    libc::TIOCGWINSZ as u32,
];

/// Commands of prctl(2).
pub(super) const PRCTLS: &[libc::c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    // By the allocators of C libraries.
    libc::PR_SET_VMA,
];
