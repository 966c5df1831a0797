//! getInfo. That Cloud KMS has such a call is documented; how it looks is not.

use http::Method;

use super::Confidence::Choice;
use super::{Check, check};
use crate::remote::Call;

pub(super) const CHECKS: &[Check] =
    &[check("get-info.answers", Choice, "request", "GET v0/info", "200, a JSON object", |t| {
        let token = Some(&t.options.tokens.good);
        let call = Call { method: Method::GET, path: "v0/info", token, content_type: None, body: String::new() };
        t.send(&call).implemented()?.json().map(|_| "200".into())
    })];
