//! What is behind an error of the HTTP client.

use std::error::Error;
use std::io;

/// An error and what caused it, and so on.
pub(crate) fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |cause: &&'a (dyn Error + 'static)| (*cause).source())
}

/// An io::Error does not name what it holds as its cause.
pub(crate) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let held = || error.downcast_ref::<io::Error>()?.get_ref();
    error.downcast_ref().or_else(|| tls_error(held()?))
}

/// The cause behind all others: the rest is about how requests are made.
pub(crate) fn root_cause(error: &reqwest::Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}
