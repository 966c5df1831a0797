//! Memory for key material: never swapped, never in a core dump, wiped in a forked child and on drop.
//!
//! The only module of this repository with `unsafe`: the system calls take pointers, and no maintained crate without a
//! C library does this job.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A value in pages of its own: `mlock`ed, `MADV_DONTDUMP`, `MADV_WIPEONFORK`.
///
/// Constructing the value first may leave a short-lived copy on the stack; only the resting place is protected.
pub struct Locked<T> {
    value: NonNull<T>,
    length_bytes: usize,
}

// SAFETY: `Locked` owns its value like a `Box`; access follows the borrow of `self`.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: shared access gives only `&T`.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Moves `value` into locked memory.
    ///
    /// # Errors
    /// The kernel's: mostly `ENOMEM` when RLIMIT_MEMLOCK (`ulimit -l`, systemd's `LimitMEMLOCK=`) is used up.
    pub fn new(value: T) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        let page = rustix::param::page_size();
        let length_bytes = size_of::<T>().max(1).next_multiple_of(page);
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                length_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // SAFETY: `base..base + length_bytes` is the mapping just made, and nobody else knows it.
        let protected = unsafe {
            rustix::mm::mlock(base, length_bytes)
                .and_then(|()| rustix::mm::madvise(base, length_bytes, Advice::LinuxDontDump))
                .and_then(|()| rustix::mm::madvise(base, length_bytes, Advice::LinuxWipeOnFork))
        };
        if let Err(errno) = protected {
            // SAFETY: unmaps the mapping just made, which holds nothing yet.
            let _ = unsafe { rustix::mm::munmap(base, length_bytes) };
            return Err(errno.into());
        }
        let Some(target) = NonNull::new(base.cast::<T>()) else {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        };
        // SAFETY: page-aligned, large enough for a T, and uninitialised.
        unsafe { target.as_ptr().write(value) };
        Ok(Self { value: target, length_bytes })
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised in `new`, valid until `drop`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let base = self.value.as_ptr().cast::<u8>();
        // SAFETY: the value is dropped once, its pages are wiped while still mapped, then given back.
        unsafe {
            ptr::drop_in_place(self.value.as_ptr());
            for offset in 0..self.length_bytes {
                ptr::write_volatile(base.add(offset), 0);
            }
            let _ = rustix::mm::munmap(base.cast(), self.length_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_value_is_readable_and_its_pages_are_locked() {
        let locked = Locked::new([7u8; 100]).unwrap();
        assert_eq!(*locked, [7u8; 100]);
        let address = format!("{:x}-", locked.value.as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = smaps
            .lines()
            .skip_while(|line| !line.starts_with(&address))
            .find(|line| line.starts_with("VmFlags:"))
            .expect("a mapping of its own, not merged with a neighbour's");
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split_whitespace().any(|f| f == flag), "{flag} missing in {flags}");
        }
    }
}
