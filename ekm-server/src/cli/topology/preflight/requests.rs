//! The token, some wraps and unwraps, and how much of the time they take.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::{Line, PreflightArgs, Verdict, line, ms};
use crate::remote::{Call, NoAnswer, RemoteEkm};

/// Of the time that Cloud KMS waits. What is left is for the day on which an HSM is slow.
const COMFORTABLE_SHARE: f64 = 0.5;

/// Adds what there is to say.
pub(super) async fn lines(lines: &mut Vec<Line>, args: &PreflightArgs, ekm: &RemoteEkm, token: &SecretString) {
    lines.push(audience(token, args.url.host_str().unwrap_or_default()));
    let caller = Caller { args, ekm, token };
    let mut times = Vec::new();
    match caller.round_trips(&mut times).await {
        Ok(()) => {
            lines.push(line("request.wrap-unwrap", Verdict::Pass, format!("{} of each, all equal", args.requests), ""))
        }
        Err((found, advice)) => lines.push(line("request.wrap-unwrap", Verdict::Fail, found, advice)),
    }
    // The first one pays for the connection.
    if times.len() > 1 {
        lines.push(budget("latency.new-connection", &times[..1], args.deadline_ms));
        lines.push(budget("latency.kept-connection", &times[1..], args.deadline_ms));
    }
}

struct Caller<'a> {
    args: &'a PreflightArgs,
    ekm: &'a RemoteEkm,
    token: &'a SecretString,
}

/// What was found, and what to do.
type Failure = (String, String);

impl Caller<'_> {
    async fn round_trips(&self, times: &mut Vec<f64>) -> Result<(), Failure> {
        for _ in 0..self.args.requests {
            let mut data_key = [0u8; 32];
            let filled = aws_lc_rs::rand::fill(&mut data_key);
            filled.map_err(|_| ("no random numbers".to_owned(), "look at this machine".to_owned()))?;
            let (plaintext, aad) = (STANDARD.encode(data_key), STANDARD.encode("ekm topology preflight"));
            let body = json!({"plaintext": plaintext, "additionalAuthenticatedData": aad});
            let wrapped = self.post("wrap", &body, times).await?;
            let body = json!({"wrappedBlob": wrapped["wrappedBlob"], "additionalAuthenticatedData": aad});
            if self.post("unwrap", &body, times).await?["plaintext"] != plaintext {
                let advice =
                    "data that is encrypted with this key would be lost: do not connect it; look at the EKM's log";
                return Err(("unwrap did not give back what was wrapped".into(), advice.into()));
            }
        }
        Ok(())
    }

    async fn post(&self, verb: &str, body: &Value, times: &mut Vec<f64>) -> Result<Value, Failure> {
        let path = format!("{}:{verb}", self.args.key.trim_matches('/'));
        let content_type = Some("application/json");
        let call =
            Call { method: Method::POST, path: &path, token: Some(self.token), content_type, body: body.to_string() };
        let begun = Instant::now();
        let answer = self.ekm.call(&call, Duration::from_millis(self.args.timeout_ms)).await;
        let took = ms(begun.elapsed());
        let answer = answer.map_err(|error| (format!("{verb}: {error}"), advice_without_answer(&error).to_owned()))?;
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status == 200 && json.is_object() {
            times.push(took);
            return Ok(json);
        }
        let message = json["message"].as_str().or(json["error"]["message"].as_str()).unwrap_or_default();
        let found = format!("{verb}: {} {}", answer.status, crate::wire::truncated(message, 200));
        Err((found, advice_on(answer.status).to_owned()))
    }
}

fn advice_without_answer(error: &NoAnswer) -> &'static str {
    match error {
        NoAnswer::Timeout => {
            "a replica that accepts connections and does not answer, or a balancer without any: ask each replica by --address"
        }
        NoAnswer::Dns(_) => "make the record, or give the address with --address",
        NoAnswer::Tls(_) => {
            "the certificate is not of an authority that is trusted here: name it with --ca-file, or pin it with --pin-cert"
        }
        NoAnswer::Network(_) => "the connection was cut: look at the balancer's log, and at the EKM's",
    }
}

fn advice_on(status: u16) -> &'static str {
    match status {
        400 => "the request is not understood: is there an EKM at this URL?",
        401 => {
            "the token is not believed: is it fresh, of an issuer in [[auth.issuers]], and for an audience in auth.audiences?"
        }
        403 => "the token's owner may not use this key; for Google's own agent that would disable the key version",
        404 => "there is no such key here: look at --key, and whether this is the EKM that you mean",
        421 => "this EKM has another name: server.hosts has to have the connection's hostname",
        429 => "the EKM has too much to do: try again, and look at its load",
        503 => "the EKM cannot at the moment: its /readyz?verbose says why",
        _ => "look at the EKM's log; if something stands before it, at that one's too",
    }
}

/// Whether the token is for this host. The claims are not verified: that is the EKM's part.
fn audience(token: &SecretString, host: &str) -> Line {
    const CHECK: &str = "token.audience";
    let expected = format!("https://{host}");
    let claims = token.expose_secret().split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default();
    match claims["aud"].as_str() {
        Some(audience) if audience == expected => line(CHECK, Verdict::Pass, audience, ""),
        Some(audience) => {
            let advice = format!(
                "Cloud KMS writes {expected}: the EKM's auth.audiences has to have that, and so far this token proves nothing of it"
            );
            line(CHECK, Verdict::Warn, audience, advice)
        }
        None => line(CHECK, Verdict::Warn, "no ID token with one audience", "take an ID token as Cloud KMS sends it"),
    }
}

fn budget(check: &'static str, times: &[f64], deadline_ms: u64) -> Line {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (middle, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    let deadline = deadline_ms as f64;
    let share = 100.0 * worst / deadline;
    let verdict = match worst {
        late if late > deadline => Verdict::Fail,
        much if much > COMFORTABLE_SHARE * deadline => Verdict::Warn,
        _ => Verdict::Pass,
    };
    let found = match times.len() {
        1 => format!("{worst:.1} ms, {share:.0} % of {deadline_ms} ms"),
        count => format!("{middle:.1} ms, at worst {worst:.1} ms of {count}, {share:.0} % of {deadline_ms} ms"),
    };
    let advice = "compare with tcp.connect: the way there and back is the network's part, the rest is the balancer's, the EKM's and the \
                  HSM's (ekm_request_seconds, ekm_hsm_operation_seconds)";
    line(check, verdict, found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_is_comfortable_and_all_of_it_is_too_much() {
        assert_eq!(budget("latency.new-connection", &[75.0], 150).verdict, Verdict::Pass);
        assert_eq!(budget("latency.new-connection", &[76.0], 150).verdict, Verdict::Warn);
        let late = budget("latency.kept-connection", &[1.0, 2.0, 151.0], 150);
        assert_eq!((late.verdict, &*late.found), (Verdict::Fail, "2.0 ms, at worst 151.0 ms of 3, 101 % of 150 ms"));
    }

    #[test]
    fn a_token_for_another_host_proves_nothing_of_this_one() {
        let token = |claims: &str| SecretString::from(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)));
        let host = "ekm.example.com";
        assert_eq!(audience(&token(r#"{"aud":"https://ekm.example.com"}"#), host).verdict, Verdict::Pass);
        assert_eq!(audience(&token(r#"{"aud":"https://other.example.com"}"#), host).verdict, Verdict::Warn);
        assert_eq!(audience(&token("{}"), host).verdict, Verdict::Warn);
    }
}
