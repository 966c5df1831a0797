//! Bytes that must not be seen.

/// The protocol's `plaintext`: a data key on its way to or from the caller.
///
/// Has neither `Debug` nor `Serialize`, so that no log or error can contain it; wiped when dropped.
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// Takes over `bytes`; they are wiped when this is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves, for the cipher and for the answer.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Plaintext {
    /// As `Zeroizing` does, which takes every byte by itself, twice: that would be a tenth of the time in which a catalog is read.
    fn drop(&mut self) {
        self.0.clear();
        self.0.resize(self.0.capacity(), 0);
        zeroize::optimization_barrier(self.0.as_slice());
    }
}

impl zeroize::ZeroizeOnDrop for Plaintext {}
