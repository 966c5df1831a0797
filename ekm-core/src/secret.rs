//! Bytes that must not be seen.

use zeroize::Zeroizing;

/// The protocol's `plaintext`: a data key on its way to or from the caller.
///
/// Has neither `Debug` nor `Serialize`, so that no log or error can contain it; wiped when dropped.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes over `bytes`; they are wiped when this is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for the cipher and for the answer.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
