//! What a worker process may not ask the kernel for: a vendor's library that was taken over should find nothing to go on with.
//!
//! Such calls fail with EPERM; all others pass, because nobody knows which ones a vendor's library needs.

use std::collections::BTreeMap;
use std::io;

use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK, EPERM};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

/// Other programs and processes, the file system's shape, the kernel's own code, other identities.
const NEVER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
];

/// Before the vendor's library is loaded. Cannot be taken back.
pub(super) fn confine() -> io::Result<()> {
    apply(NEVER.iter().map(|call| (*call, Vec::new())).collect())
}

/// For an HSM that is not on a network: no socket but those of this machine (unix(7)).
pub(super) fn without_network() -> io::Result<()> {
    let of = |family: i32| {
        let family = u64::try_from(family).map_err(io::Error::other)?;
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family);
        SeccompRule::new(vec![condition.map_err(io::Error::other)?]).map_err(io::Error::other)
    };
    let families = [AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK].map(of);
    apply([(libc::SYS_socket, families.into_iter().collect::<io::Result<Vec<_>>>()?)].into())
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>) -> io::Result<()> {
    let refuse = SeccompAction::Errno(EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    apply_filter_all_threads(&program).map_err(io::Error::other)
}
