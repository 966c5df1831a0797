//! The catalog sealed against the database that stores it: whoever can write SQL can destroy rows, and cannot read one, change one,
//! exchange two, bring an old one back, or take one away, without being found out.
//!
//! - A row's body is its record's JSON under XAES-256-GCM; kind, id and revision are the associated data, so the tag is the row's MAC.
//! - The head holds the revision, the sum of one keyed term for each row (a multiset hash: Clarke et al., "Incremental Multiset Hash
//!   Functions", ASIACRYPT 2003, MSet-Add-Hash; the sum is sealed, so nobody can calculate with it), and the log's last hash.
//! - Every change is in the log, with the terms of the rows it wrote, chained by SHA-256. When the sum does not fit, the log says which
//!   row is wrong.
//!
//! What this cannot see: the whole database taken back to an earlier state. A frontend that knows a later revision refuses it; a
//! frontend without any memory cannot.

use std::borrow::Cow;

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use uuid::Uuid;

use super::record::Kind;
use crate::locked::Locked;
use crate::software::SoftwareError;
use crate::xaes;

/// One row as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRow {
    /// The kind's word; perhaps one that this version does not know.
    pub kind: Cow<'static, str>,
    /// The row's id.
    pub id: Uuid,
    /// The change that wrote it.
    pub revision: u64,
    /// Nonce, ciphertext, tag.
    pub body: Vec<u8>,
}

/// The head as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHead {
    /// Which catalog this is.
    pub catalog: Uuid,
    /// Grows by one with every change.
    pub revision: u64,
    /// A sealed [`Head`].
    pub body: Vec<u8>,
}

/// One entry of the log as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedChange {
    /// The revision that it made.
    pub revision: u64,
    /// A sealed [`Change`].
    pub body: Vec<u8>,
}

/// What the catalog amounts to at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// As in the row that holds this.
    pub revision: u64,
    /// Grows when an operator accepts that the database was taken back to an earlier state.
    pub epoch: u64,
    /// How many rows there are.
    pub rows: u64,
    /// The sum of the rows' terms.
    pub sum: Sum,
    /// The last entry's hash.
    pub chain: Hash,
    /// When the last change was made.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl Head {
    /// Of a catalog without rows, before its first change.
    pub fn empty() -> Self {
        let (sum, chain, at) = (Sum::default(), Hash::default(), OffsetDateTime::UNIX_EPOCH);
        Self { revision: 0, epoch: 0, rows: 0, sum, chain, at }
    }
}

/// One entry of the log: who changed what, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// From 1, none missing.
    pub revision: u64,
    /// When. Never earlier than the entry before, however clocks jump.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who: a person's or a pipeline's name, or `ekm` for what happens by itself.
    pub actor: String,
    /// Who approved it, if it needed a second person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Why, in the actor's words.
    #[serde(default)]
    pub reason: String,
    /// What was done, such as `key disable`.
    pub action: String,
    /// To what: a path or a name.
    pub target: String,
    /// How fast it has to spread.
    pub class: Class,
    /// The command with its parameters; never key material.
    #[serde(default)]
    pub detail: serde_json::Value,
    /// The rows that it wrote.
    pub rows: Vec<Touched>,
    /// The entry before; zeros for the first.
    pub previous: Hash,
}

/// A row that a change wrote, and its term from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touched {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: Uuid,
    /// Its term.
    pub term: Sum,
}

/// How fast a change has to spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Takes something away, or takes a change back: to every frontend at once.
    Fast,
    /// May be spread step by step.
    Staged,
}

impl Class {
    /// The word in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Staged => "staged",
        }
    }
}

/// The catalog key: opens and seals everything. In locked memory.
pub struct CatalogKey {
    catalog: Uuid,
    material: Locked<[u8; 32]>,
    seal: xaes::Key,
    term: hmac::Key,
}

impl CatalogKey {
    /// From the 32 bytes that the HSM or the key file unwraps. Two keys are derived: one for sealing, one for terms.
    pub fn new(catalog: Uuid, material: &[u8; 32]) -> Result<Self, SoftwareError> {
        let root = hmac::Key::new(hmac::HMAC_SHA256, material);
        let derive = |purpose: &[u8]| {
            let mut key = zeroize::Zeroizing::new([0; 32]);
            key.copy_from_slice(
                hmac::sign(&root, &[b"ekm catalog v2 ", purpose, catalog.as_bytes()].concat()).as_ref(),
            );
            key
        };
        let term = hmac::Key::new(hmac::HMAC_SHA256, derive(b"term ").as_slice());
        let (material, seal) = (Locked::new(*material)?, xaes::Key::new(&derive(b"seal "))?);
        Ok(Self { catalog, material, seal, term })
    }

    /// The 32 bytes, to be wrapped by something else, too.
    pub fn material(&self) -> &[u8; 32] {
        &self.material
    }

    /// Which catalog it opens.
    pub fn catalog(&self) -> Uuid {
        self.catalog
    }

    /// Seals a record as the row that a revision writes.
    pub fn seal_row(
        &self,
        kind: Kind,
        id: Uuid,
        revision: u64,
        record: &impl Serialize,
    ) -> Result<SealedRow, SoftwareError> {
        let body = self.seal(&row_binding(kind.name(), id, revision), record)?;
        Ok(SealedRow { kind: kind.name().into(), id, revision, body })
    }

    /// Opens a row. The error says what is wrong with it, without its content.
    pub fn open_row<T: DeserializeOwned>(&self, row: &SealedRow) -> Result<T, String> {
        self.open(&row_binding(&row.kind, row.id, row.revision), &row.body)
    }

    /// What a row adds to the sum. A function of the row as it is stored, so that a row that does not open has one, too.
    pub fn term(&self, row: &SealedRow) -> Sum {
        let mut context = hmac::Context::with_key(&self.term);
        context.update(&row_binding(&row.kind, row.id, row.revision));
        context.update(&row.body);
        let tag = context.sign();
        Sum(tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes"))
    }

    /// Seals the head.
    pub fn seal_head(&self, head: &Head) -> Result<SealedHead, SoftwareError> {
        let body = self.seal(&binding("head", head.revision), head)?;
        Ok(SealedHead { catalog: self.catalog, revision: head.revision, body })
    }

    /// Opens the head.
    pub fn open_head(&self, sealed: &SealedHead) -> Result<Head, String> {
        if sealed.catalog != self.catalog {
            return Err("it belongs to another catalog".into());
        }
        let head: Head = self.open(&binding("head", sealed.revision), &sealed.body)?;
        if head.revision != sealed.revision { Err("its revision contradicts itself".into()) } else { Ok(head) }
    }

    /// Seals an entry of the log.
    pub fn seal_change(&self, change: &Change) -> Result<SealedChange, SoftwareError> {
        Ok(SealedChange { revision: change.revision, body: self.seal(&binding("changes", change.revision), change)? })
    }

    /// Opens an entry of the log.
    pub fn open_change(&self, sealed: &SealedChange) -> Result<Change, String> {
        self.open(&binding("changes", sealed.revision), &sealed.body)
    }

    /// Seals something that is no part of the catalog, such as what a frontend notes about its own copy of it.
    pub fn seal_note(&self, name: &str, note: &impl Serialize) -> Result<Vec<u8>, SoftwareError> {
        self.seal(&[b"note\0", name.as_bytes()].concat(), note)
    }

    /// The reverse of [`Self::seal_note`].
    pub fn open_note<T: DeserializeOwned>(&self, name: &str, note: &[u8]) -> Result<T, String> {
        self.open(&[b"note\0", name.as_bytes()].concat(), note)
    }

    fn seal(&self, binding: &[u8], record: &impl Serialize) -> Result<Vec<u8>, SoftwareError> {
        let json = zeroize::Zeroizing::new(serde_json::to_vec(record).expect("records have only text as map keys"));
        self.seal.seal(binding, &json)
    }

    fn open<T: DeserializeOwned>(&self, binding: &[u8], body: &[u8]) -> Result<T, String> {
        let json = self.seal.open(binding, body);
        let json = json.ok_or("its MAC is wrong: it was changed, exchanged, or sealed under another catalog key")?;
        serde_json::from_slice(json.as_bytes()).map_err(|error| {
            // serde_json's own text may repeat a value of the record.
            format!("it holds what this version of ekm does not understand (line {})", error.line())
        })
    }
}

fn row_binding(kind: &str, id: Uuid, revision: u64) -> Vec<u8> {
    [b"records\0", kind.as_bytes(), b"\0", id.as_bytes().as_slice(), &revision.to_be_bytes()].concat()
}

fn binding(table: &str, revision: u64) -> Vec<u8> {
    [table.as_bytes(), b"\0", &revision.to_be_bytes()].concat()
}

impl Change {
    /// What is hashed.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a change has only text as map keys")
    }

    /// This entry's link of the chain: SHA-256 of its JSON, which names the entry before.
    pub fn hash(&self) -> Hash {
        Hash::of(self.to_json().as_bytes())
    }
}

/// 256 bits, the least first, that are added modulo 2^256.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum([u8; 32]);

impl Sum {
    /// One row more.
    pub fn add(&mut self, term: &Self) {
        let mut carry = false;
        for (limb, other) in self.0.as_chunks_mut().0.iter_mut().zip(term.0.as_chunks().0) {
            let total;
            (total, carry) = u64::from_le_bytes(*limb).carrying_add(u64::from_le_bytes(*other), carry);
            *limb = total.to_le_bytes();
        }
    }

    /// One row less.
    pub fn subtract(&mut self, term: &Self) {
        let mut borrow = false;
        for (limb, other) in self.0.as_chunks_mut().0.iter_mut().zip(term.0.as_chunks().0) {
            let difference;
            (difference, borrow) = u64::from_le_bytes(*limb).borrowing_sub(u64::from_le_bytes(*other), borrow);
            *limb = difference.to_le_bytes();
        }
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, bytes);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// As hexadecimal in JSON and in texts.
macro_rules! hexadecimal {
    ($($type:ident)*) => { $(
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                let mut bytes = [0; 32];
                hex::decode_to_slice(text.as_bytes(), &mut bytes)
                    .map_err(|_| serde::de::Error::custom("no 64 hexadecimal digits"))?;
                Ok(Self(bytes))
            }
        }
    )* };
}

hexadecimal! { Sum Hash }

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Settings;

    fn key() -> CatalogKey {
        CatalogKey::new(Uuid::from_u128(1), &[7; 32]).unwrap()
    }

    #[test]
    fn a_row_opens_only_in_its_own_place() {
        let (key, id) = (key(), Uuid::new_v4());
        let row = key.seal_row(Kind::Settings, id, 5, &Settings::default()).unwrap();
        assert_eq!(key.open_row::<Settings>(&row), Ok(Settings::default()));
        let moved = [
            SealedRow { kind: "key".into(), ..row.clone() },
            SealedRow { id: Uuid::new_v4(), ..row.clone() },
            SealedRow { revision: 6, ..row.clone() },
            SealedRow { body: row.body[1..].to_vec(), ..row.clone() },
        ];
        for moved in moved {
            assert!(key.open_row::<Settings>(&moved).unwrap_err().contains("MAC"));
            assert_ne!(key.term(&moved), key.term(&row));
        }
        let other = CatalogKey::new(Uuid::from_u128(2), &[7; 32]).unwrap();
        assert!(other.open_row::<Settings>(&row).is_err(), "another catalog under the same key");
    }

    #[test]
    fn an_error_text_does_not_repeat_the_row() {
        let key = key();
        let row = key.seal_row(Kind::Settings, Uuid::nil(), 1, &serde_json::json!({"destroy_grace_days": "SECRET"}));
        assert!(!key.open_row::<Settings>(&row.unwrap()).unwrap_err().contains("SECRET"));
    }

    #[test]
    fn a_sum_carries_from_byte_to_byte_and_forgets_what_overflows() {
        let number = |bytes: &[(usize, u8)]| {
            let mut number = [0; 32];
            bytes.iter().for_each(|(place, byte)| number[*place] = *byte);
            Sum(number)
        };
        let one = number(&[(0, 1)]);
        let sums = [
            (number(&[(0, 255)]), number(&[(1, 1)])),
            (Sum(std::array::from_fn(|place| if place < 8 { 255 } else { 0 })), number(&[(8, 1)])),
            (Sum([255; 32]), Sum::default()),
        ];
        for (before, after) in sums {
            let mut sum = before;
            sum.add(&one);
            assert_eq!(sum, after);
            sum.subtract(&one);
            assert_eq!(sum, before);
        }
    }

    proptest! {
        #[test]
        fn the_sum_does_not_depend_on_the_order_and_can_be_taken_back(terms in prop::collection::vec(any::<[u8; 32]>(), 0..20)) {
            let terms: Vec<_> = terms.into_iter().map(Sum).collect();
            let (mut forward, mut backward) = (Sum::default(), Sum::default());
            terms.iter().for_each(|term| forward.add(term));
            terms.iter().rev().for_each(|term| backward.add(term));
            prop_assert_eq!(forward, backward);
            terms.iter().for_each(|term| forward.subtract(term));
            prop_assert_eq!(forward, Sum::default());
        }

        #[test]
        fn a_flipped_bit_is_found(bit in 0usize..400) {
            let key = key();
            let mut row = key.seal_row(Kind::Settings, Uuid::nil(), 1, &Settings::default()).unwrap();
            let bit = bit % (row.body.len() * 8);
            row.body[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(key.open_row::<Settings>(&row).is_err());
        }
    }
}
