//! `ekm dev --check`: one wrap and one unwrap over TLS, like Cloud KMS would do it.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{KEY_PATH, Ready};
use crate::start_error::StartError;

/// Wraps, unwraps, compares, and returns the report.
pub(super) async fn check(ready: &Ready) -> Result<String, StartError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| StartError::Check(format!("{what}: {error}"));
    let pem = std::fs::read(&ready.ca_file).map_err(|error| failed("reading the certificate", &error))?;
    let root = reqwest::Certificate::from_pem(&pem).map_err(|error| failed("reading the certificate", &error))?;
    let client = reqwest::Client::builder()
        .tls_certs_only([root])
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .resolve("localhost", ready.ekm)
        .build()
        .map_err(|error| failed("setting up the client", &error))?;

    let mut data_key = [0u8; 32];
    aws_lc_rs::rand::fill(&mut data_key).map_err(|_| StartError::Check("no random numbers".into()))?;
    let (plaintext, aad) = (STANDARD.encode(data_key), STANDARD.encode("ekm dev --check"));
    // The first request pays for the TLS handshake and the token's signature; Cloud KMS keeps connections open.
    let body = json!({"plaintext": plaintext, "additionalAuthenticatedData": aad});
    call(&client, ready, "wrap", &body).await?;
    let (answer, wrapping) = call(&client, ready, "wrap", &body).await?;
    let body = json!({"wrappedBlob": answer["wrappedBlob"], "additionalAuthenticatedData": aad});
    let (answer, unwrapping) = call(&client, ready, "unwrap", &body).await?;
    if answer["plaintext"] != json!(plaintext) {
        return Err(StartError::Check("unwrap did not give back what was wrapped".into()));
    }
    Ok(format!(
        "ok: wrapped and unwrapped 32 bytes with {KEY_PATH}, custody {}\nwrap    {:>8.2} ms\nunwrap  {:>8.2} ms",
        ready.custody.name(),
        wrapping.as_secs_f64() * 1000.0,
        unwrapping.as_secs_f64() * 1000.0,
    ))
}

/// One call; like Cloud KMS it tries again after 429 and 503.
async fn call(
    client: &reqwest::Client,
    ready: &Ready,
    verb: &str,
    body: &Value,
) -> Result<(Value, Duration), StartError> {
    let url = format!("{}/{KEY_PATH}:{verb}", ready.base_url());
    let failed = |error: &dyn std::fmt::Display| StartError::Check(format!("{verb}: {error}"));
    let mut attempts = 0;
    loop {
        attempts += 1;
        let started = Instant::now();
        let request = client.post(&url).bearer_auth(&ready.token).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.map_err(|error| failed(&error))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| failed(&error))?;
        if [429, 503].contains(&status.as_u16()) && attempts < 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        if status != 200 {
            return Err(failed(&format!("HTTP {status}: {text}")));
        }
        return Ok((serde_json::from_str(&text).map_err(|error| failed(&error))?, started.elapsed()));
    }
}
