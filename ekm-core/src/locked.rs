//! Memory for key material: never swapped, never in a core dump, wiped in a forked child and on drop.
//!
//! The only module of this repository with `unsafe`: the system calls take pointers, and no maintained crate without a
//! C library does this job.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// An AES-256 key's length.
const KEY_BYTES: usize = 32;

/// Whole pages: `mlock`ed, `MADV_DONTDUMP`, `MADV_WIPEONFORK`, filled with zeros, wiped before they are given back.
struct Pages {
    base: NonNull<u8>,
    length_bytes: usize,
}

// SAFETY: the mapping belongs to its owner alone, like a `Box`'s.
unsafe impl Send for Pages {}
// SAFETY: shared access gives only an address and a length.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(at_least_bytes: usize) -> io::Result<Self> {
        let length_bytes = at_least_bytes.max(1).next_multiple_of(rustix::param::page_size());
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
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, length_bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nobody has an address in these pages any more; they are wiped while still mapped, then given back.
        unsafe {
            wipe(self.base, self.length_bytes);
            let _ = rustix::mm::munmap(self.base.as_ptr().cast(), self.length_bytes);
        }
    }
}

/// # Safety
/// `base..base + length_bytes` is mapped, writable, and nobody else reads or writes it.
unsafe fn wipe(base: NonNull<u8>, length_bytes: usize) {
    for offset in 0..length_bytes {
        // SAFETY: within the range that the caller vouches for.
        unsafe { ptr::write_volatile(base.as_ptr().add(offset), 0) };
    }
}

/// A value in pages of its own: `mlock`ed, `MADV_DONTDUMP`, `MADV_WIPEONFORK`.
///
/// Constructing the value first may leave a short-lived copy on the stack; only the resting place is protected.
pub struct Locked<T> {
    value: NonNull<T>,
    _pages: Pages,
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
        let pages = Pages::new(size_of::<T>())?;
        let target = pages.base.cast::<T>();
        // SAFETY: page-aligned, large enough for a T, and uninitialised.
        unsafe { target.as_ptr().write(value) };
        Ok(Self { value: target, _pages: pages })
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
        // SAFETY: the value is dropped once; its pages are wiped and given back after that, when the field is dropped.
        unsafe { ptr::drop_in_place(self.value.as_ptr()) };
    }
}

/// Locked memory for many keys of 32 bytes: a page holds 128 of them, where [`Locked`] takes a page for each. A million keys lock
/// 31 MiB.
///
/// Pages are never given back while the arena or one of its keys lives; slots are wiped and used again.
#[derive(Default)]
pub struct KeyArena {
    slots: Arc<Slots>,
}

/// A key in a [`KeyArena`], which it keeps alive. Wiped when dropped.
pub struct LockedKey {
    slot: Slot,
    home: Arc<Slots>,
}

#[derive(Default)]
struct Slots {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    free: Vec<Slot>,
    pages: Vec<Pages>,
}

/// The place of one key. It is either in the list of free ones or in one [`LockedKey`], never twice.
struct Slot(NonNull<UnsafeCell<[u8; KEY_BYTES]>>);

// SAFETY: a slot has one owner, and its pages live as long as `Slots`, which every owner holds.
unsafe impl Send for Slot {}
// SAFETY: through a shared slot nothing is written: `LockedKey` gives `&[u8; 32]`, and is written to before and after its life only.
unsafe impl Sync for Slot {}

impl KeyArena {
    /// Copies a key into locked memory. The caller wipes his copy.
    ///
    /// # Errors
    /// As [`Locked::new`].
    pub fn store(&self, key: &[u8; KEY_BYTES]) -> io::Result<LockedKey> {
        let slot = self.slots.take()?;
        // SAFETY: the slot was free, so nobody else reads or writes it, and its page is mapped.
        unsafe { *slot.0.as_ref().get() = *key };
        Ok(LockedKey { slot, home: Arc::clone(&self.slots) })
    }
}

impl Slots {
    fn take(&self) -> io::Result<Slot> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = state.free.pop() {
            return Ok(slot);
        }
        let pages = Pages::new(1)?;
        let count = pages.length_bytes / KEY_BYTES;
        // From the last to the first, so that the first is handed out first.
        state.free.extend((0..count).rev().map(|index| {
            // SAFETY: inside the mapping, and aligned for bytes.
            Slot(unsafe { pages.base.add(index * KEY_BYTES) }.cast())
        }));
        state.pages.push(pages);
        state.free.pop().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Deref for LockedKey {
    type Target = [u8; KEY_BYTES];

    fn deref(&self) -> &[u8; KEY_BYTES] {
        // SAFETY: written in `store`, and not again until `drop`; the page lives as long as `home`.
        unsafe { &*self.slot.0.as_ref().get() }
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        // SAFETY: nobody borrows the key any more, and the page is mapped as long as `home` lives.
        unsafe { wipe(self.slot.0.cast(), KEY_BYTES) };
        let mut state = self.home.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.push(Slot(self.slot.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that an address is in; neighbours of one kind may have been merged into one.
    fn assert_locked(address: usize) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds = |line: &&str| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let parse = |text: &str| usize::from_str_radix(text, 16).ok();
            range.and_then(|(from, to)| Some((parse(from)?..parse(to)?).contains(&address))).unwrap_or(false)
        };
        let mut lines = smaps.lines().skip_while(|line| !holds(line));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).expect("a mapping");
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split_whitespace().any(|f| f == flag), "{flag} missing in {flags}");
        }
    }

    #[test]
    fn a_locked_value_is_readable_and_its_pages_are_locked() {
        let locked = Locked::new([7u8; 100]).unwrap();
        assert_eq!(*locked, [7u8; 100]);
        assert_locked(locked.value.as_ptr() as usize);
    }

    #[test]
    fn a_page_holds_128_keys_and_each_stays_what_it_is() {
        let arena = KeyArena::default();
        let per_page = rustix::param::page_size() / KEY_BYTES;
        let keys: Vec<_> = (0..=per_page).map(|n| arena.store(&[n as u8; 32]).unwrap()).collect();
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(**key, [n as u8; 32]);
            assert_locked(key.as_ptr() as usize);
        }
        assert_eq!(arena.slots.state.lock().unwrap().pages.len(), 2);
    }

    #[test]
    fn a_dropped_keys_place_is_wiped_and_used_again() {
        let arena = KeyArena::default();
        let (first, _second) = (arena.store(&[1; 32]).unwrap(), arena.store(&[2; 32]).unwrap());
        let place = first.as_ptr();
        drop(first);
        let free = arena.slots.state.lock().unwrap().free.last().unwrap().0;
        // SAFETY: the slot is free and its page mapped; nothing else uses this arena.
        assert_eq!(unsafe { *free.as_ref().get() }, [0; 32]);
        let third = arena.store(&[3; 32]).unwrap();
        assert_eq!((third.as_ptr(), *third), (place, [3; 32]));
    }

    #[test]
    fn keys_outlive_their_arena_and_are_used_from_several_threads() {
        let arena = KeyArena::default();
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                let keys: Vec<_> = (0..500).map(|_| arena.store(&[n; 32]).unwrap()).collect();
                std::thread::spawn(move || keys.iter().all(|key| **key == [n; 32]))
            })
            .collect();
        drop(arena);
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    }
}
