//! `fault.counts`: what was called, in a file that the module maps into memory and the harness reads.
//!
//! Numbers of 64 bits in the machine's order: calls that hang now, PINs that were refused, then calls and failures of each function.
#![expect(unsafe_code, reason = "a file that is mapped into memory")]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::table::Function;

/// The file's name, beside the module.
pub const FILE: &str = "fault.counts";

const NUMBERS: usize = 2 + 2 * Function::ALL.len();
const BYTES: usize = 8 * NUMBERS;

/// The numbers as the module writes them. Mapped for as long as the process lives.
pub(crate) struct Counts(&'static [AtomicU64; NUMBERS]);

impl Counts {
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(file)?;
        file.set_len(BYTES as u64)?;
        // SAFETY: a new mapping of our own choice of address, as long as the file, and never unmapped. Others change it only through
        // atomics as well; nobody makes the file shorter.
        let mapped = unsafe {
            mmap(std::ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)?
        };
        // SAFETY: it starts at a page, is NUMBERS * 8 bytes long, and any bytes are valid numbers.
        Ok(Self(unsafe { &*mapped.cast::<[AtomicU64; NUMBERS]>() }))
    }

    pub(crate) fn hanging(&self) -> &AtomicU64 {
        &self.0[0]
    }

    pub(crate) fn refused_pins(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    pub(crate) fn refuse_pin(&self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self, function: Function) -> &AtomicU64 {
        &self.0[calls_at(function)]
    }

    pub(crate) fn failures(&self, function: Function) -> &AtomicU64 {
        &self.0[calls_at(function) + 1]
    }
}

fn calls_at(function: Function) -> usize {
    2 + 2 * function as usize
}

/// The numbers as they were when the file was read.
pub struct Reading(Vec<u64>);

impl Reading {
    /// Reads the file; zeros if no process has loaded the module yet.
    pub fn of(file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap_or_default();
        let mut numbers: Vec<_> = bytes.as_chunks().0.iter().map(|number| u64::from_ne_bytes(*number)).collect();
        numbers.resize(NUMBERS, 0);
        Self(numbers)
    }

    /// How many calls hang now; those of processes that were killed meanwhile included.
    pub fn hanging(&self) -> u64 {
        self.0[0]
    }

    /// How often a function was called.
    pub fn calls(&self, function: &str) -> u64 {
        self.0[calls_at(Function::named(function))]
    }

    /// How many of these calls failed, for whatever reason.
    pub fn failures(&self, function: &str) -> u64 {
        self.0[calls_at(Function::named(function)) + 1]
    }
}

/// Adds one for as long as it lives.
pub(crate) struct Raised<'a>(&'a AtomicU64);

impl<'a> Raised<'a> {
    pub(crate) fn new(number: &'a AtomicU64) -> Self {
        number.fetch_add(1, Ordering::Relaxed);
        Self(number)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
