//! What is done with a key that is there: each operation, and the calls that it is made of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::calling::Route;
use super::cloud_kms::{CloudKms, Failure};
use super::envelope::{self, Envelope, decode, encode};
use super::error_domain::{Api, ErrorDomain, KmsError};
use super::state::{Version, VersionState};
use crate::remote::signature::verify;

/// What Cloud KMS encrypts at once.
const MAX_AAD_BYTES: usize = 64 * 1024;

impl CloudKms {
    /// Encrypts data with a new data key, and that with the key's primary version.
    pub(crate) async fn encrypt(&mut self, name: &str, data: &[u8], aad: &[u8]) -> Result<Envelope, Failure> {
        if aad.len() > MAX_AAD_BYTES {
            return Err(KmsError::own("INVALID_ARGUMENT", "the additional authenticated data is over 64 KiB").into());
        }
        let (version, number) = self.take(name, None, true)?;
        let data_key = envelope::new_key()?;
        let inner = envelope::seal(&decode(&version.inner_key, "the inner key")?, data_key.as_slice(), aad)?;
        let resource = self.state.resource_name(name, number);
        let wrapped = self.wrap(&version, &resource, &inner, aad, false).await;
        let wrapped = self.note_denial(name, number, wrapped)?;
        let ciphertext = envelope::seal(data_key.as_slice(), data, aad)?;
        let (wrapped_data_key, ciphertext) = (encode(&wrapped), encode(&ciphertext));
        Ok(Envelope { key: name.into(), version: number, wrapped_data_key, ciphertext })
    }

    /// Opens what [`Self::encrypt`] made, with the version that made it.
    pub(crate) async fn decrypt(&mut self, envelope: &Envelope, aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let (name, number) = (envelope.key.as_str(), envelope.version);
        let (version, _) = self.take(name, Some(number), true)?;
        let blob = decode(&envelope.wrapped_data_key, "the wrapped data key")?;
        let resource = self.state.resource_name(name, number);
        let inner = self.unwrap(&version, &resource, &blob, aad, false).await;
        let inner = self.note_denial(name, number, inner)?;
        let data_key = envelope::open(&decode(&version.inner_key, "the inner key")?, &inner, aad)?;
        let data_key = data_key.ok_or_else(|| KmsError::external(ErrorDomain::UnexpectedResponse, Api::Decrypt))?;
        let data = envelope::open(&data_key, &decode(&envelope.ciphertext, "the ciphertext")?, aad)?;
        Ok(data.ok_or_else(|| "the data in the envelope was changed".to_owned())?)
    }

    /// Google's probe of the primary version: the whole way there and back.
    pub(crate) async fn health_check(&mut self, name: &str) -> Result<(), Failure> {
        let (version, number) = self.take(name, None, true)?;
        let resource = self.state.resource_name(name, number);
        let probe = envelope::new_key()?;
        let wrapped = self.wrap(&version, &resource, probe.as_slice(), b"", true).await;
        let wrapped = self.note_denial(name, number, wrapped)?;
        let unwrapped = self.unwrap(&version, &resource, &wrapped, b"", true).await;
        let unwrapped = self.note_denial(name, number, unwrapped)?;
        if unwrapped.as_slice() != probe.as_slice() {
            return Err(KmsError::external(ErrorDomain::UnexpectedResponse, Api::Decrypt).into());
        }
        Ok(())
    }

    /// Has data signed, and checks the signature with the public key.
    pub(crate) async fn sign(&mut self, name: &str, version: Option<u32>, data: &[u8]) -> Result<Vec<u8>, Failure> {
        let (version, number) = self.take(name, version, false)?;
        let resource = self.state.resource_name(name, number);
        let mut body = self.context(&resource);
        body["data"] = json!(STANDARD.encode(data));
        let signature = |answer: &Value| STANDARD.decode(answer["signature"].as_str()?).ok();
        let signature = self.call_key(Api::AsymmetricSign, &version, &body, signature).await;
        let signature = self.note_denial(name, number, signature)?;
        let public_key = self.fetch_public_key(&version, &resource).await;
        let public_key = self.note_denial(name, number, public_key)?;
        let algorithm = &self.key(name)?.algorithm;
        verify(algorithm, &public_key, data, &signature).map_err(|problem| KmsError {
            message: problem,
            ..KmsError::external(ErrorDomain::UnexpectedResponse, Api::AsymmetricSign)
        })?;
        Ok(signature)
    }

    /// The public key, PEM.
    pub(crate) async fn public_key(&mut self, name: &str, version: Option<u32>) -> Result<String, Failure> {
        let (version, number) = self.take(name, version, false)?;
        let public_key = self.fetch_public_key(&version, &self.state.resource_name(name, number)).await;
        self.note_denial(name, number, public_key)
    }

    pub(super) async fn wrap(
        &mut self,
        version: &Version,
        resource: &str,
        plaintext: &[u8],
        aad: &[u8],
        is_health_check: bool,
    ) -> Result<Vec<u8>, Failure> {
        let body = self.crypto_body(resource, "plaintext", plaintext, aad, is_health_check);
        let blob = |answer: &Value| STANDARD.decode(answer["wrappedBlob"].as_str()?).ok();
        self.call_key(Api::Encrypt, version, &body, blob).await
    }

    async fn unwrap(
        &mut self,
        version: &Version,
        resource: &str,
        blob: &[u8],
        aad: &[u8],
        is_health_check: bool,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let body = self.crypto_body(resource, "wrappedBlob", blob, aad, is_health_check);
        let plaintext = |answer: &Value| {
            // proto3 JSON leaves out what is empty.
            let text = answer.get("plaintext").map_or(Some(""), Value::as_str)?;
            STANDARD.decode(text).ok().map(Zeroizing::new)
        };
        self.call_key(Api::Decrypt, version, &body, plaintext).await
    }

    pub(super) async fn fetch_public_key(&mut self, version: &Version, resource: &str) -> Result<String, Failure> {
        let body = self.context(resource);
        let pem = |answer: &Value| {
            answer["publicKey"].as_str().filter(|pem| pem.starts_with("-----BEGIN ")).map(str::to_owned)
        };
        self.call_key(Api::GetPublicKey, version, &body, pem).await
    }

    pub(super) async fn call_key<T>(
        &mut self,
        api: Api,
        version: &Version,
        body: &Value,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, Failure> {
        let route = Route::to(&version.place, self.state.connection.as_ref())??;
        Ok(self.caller.call(api, &route, &self.state.service_agent(), body, read).await??)
    }

    fn crypto_body(&self, resource: &str, field: &str, value: &[u8], aad: &[u8], is_health_check: bool) -> Value {
        let mut body = self.context(resource);
        body[field] = json!(STANDARD.encode(value));
        if !aad.is_empty() {
            body["additionalAuthenticatedData"] = json!(STANDARD.encode(aad));
        }
        if is_health_check {
            body["additionalContext"]["isKeyHealthCheck"] = json!(true);
        }
        body
    }

    pub(super) fn context(&self, resource: &str) -> Value {
        let mut context = json!({"relativeResourceName": resource});
        match self.reason.as_deref() {
            None => {}
            // proto3 JSON leaves out an enum's zero.
            Some("REASON_UNSPECIFIED") => context["accessReasonContext"] = json!({}),
            Some(reason) => context["accessReasonContext"] = json!({"reason": reason}),
        }
        json!({"additionalContext": context})
    }

    /// A denial makes Cloud KMS disable the key version.
    fn note_denial<T>(&mut self, name: &str, number: u32, outcome: Result<T, Failure>) -> Result<T, Failure> {
        outcome.map_err(|failure| match failure {
            Failure::Kms(mut error) if error.domain == Some(ErrorDomain::ExternalPermissionDenied) => {
                let version = self.version_mut(name, number);
                version.state = VersionState::Disabled;
                version.disabled_because = Some(ErrorDomain::ExternalPermissionDenied.name().into());
                error.effect = Some(format!("version {number} of key '{name}' is disabled now"));
                Failure::Kms(error)
            }
            other => other,
        })
    }
}
