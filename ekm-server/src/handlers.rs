//! The verbs: hand over to the core, encode what comes back.

use std::time::Instant;

use ekm_core::caller::Caller;
use ekm_core::{Ekm, Error, KeyPath, Request, Trace};

use crate::wire::{self, CryptoRequest};

pub(crate) async fn wrap(
    ekm: &Ekm,
    path: &KeyPath,
    caller: &Caller,
    request: CryptoRequest,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<String, Error> {
    let CryptoRequest { input, aad, justification, .. } = request;
    let request = Request { path, caller, justification: &justification, aad: &aad, deadline };
    ekm.wrap(&request, input, trace).await.map(|blob| wire::encode_wrapped(&blob))
}

pub(crate) async fn unwrap(
    ekm: &Ekm,
    path: &KeyPath,
    caller: &Caller,
    request: CryptoRequest,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<String, Error> {
    let CryptoRequest { input, aad, justification, .. } = request;
    let request = Request { path, caller, justification: &justification, aad: &aad, deadline };
    ekm.unwrap(&request, input.as_bytes(), trace).await.map(|plaintext| wire::encode_unwrapped(&plaintext))
}
