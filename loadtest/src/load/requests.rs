//! Everything that is sent, made before the start: nothing but copies of counted references is left to do for a request.

use bytes::Bytes;
use ekm_tests::base64;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use serde_json::json;

use crate::choice::Weights;
use crate::scenario::{Mix, Protocol, Scenario, Verb};
use crate::target::{Target, Tokens, email};

/// As in Cloud KMS's requests, of the key.
const RESOURCE: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

/// What can be asked for, and who asks.
pub struct Requests {
    protocol: Protocol,
    authority: http::uri::Authority,
    asks: Vec<Ask>,
    /// Of a kind of request (in the order of the mix) with a set of keys: where its asks begin.
    first: Vec<Vec<Option<usize>>>,
    mix: Weights,
    groups: Vec<Group>,
    keys: Vec<Weights>,
    /// All callers' addresses, group by group.
    pub emails: Vec<String>,
}

struct Group {
    first_caller: usize,
    callers: Weights,
    /// By the kind of request.
    keys: Vec<usize>,
}

/// One request, but for who sends it.
pub struct Ask {
    uri: Uri,
    body: Bytes,
    right: Right,
}

/// How a right answer is known.
enum Right {
    /// It is this one.
    Is(Bytes),
    /// It begins so.
    Begins(&'static str),
}

impl Ask {
    /// Whether the body of a 200 is right.
    pub fn is_right(&self, answer: &[u8]) -> bool {
        match &self.right {
            Right::Is(expected) => answer == expected,
            Right::Begins(expected) => answer.starts_with(expected.as_bytes()) && answer.len() > expected.len() + 2,
        }
    }
}

/// A blob for an unwrap has to be made by a wrap, by this. The key's path, the caller's number, the body.
pub trait Wrapping: FnMut(&str, usize, &str) -> Result<String, String> {}
impl<F: FnMut(&str, usize, &str) -> Result<String, String>> Wrapping for F {}

impl Requests {
    /// Of a scenario.
    pub fn new(scenario: &Scenario, target: &Target, mut wrap: impl Wrapping) -> Result<Self, String> {
        let mut requests = Self {
            protocol: scenario.client.protocol,
            authority: target.authority.clone(),
            asks: Vec::new(),
            first: Vec::new(),
            mix: Weights::new(scenario.mix.iter().map(|mix| mix.get_ref().share)),
            groups: Vec::new(),
            keys: scenario.keys.iter().map(|keys| Weights::zipf(keys.get_ref().count, keys.get_ref().zipf)).collect(),
            emails: Vec::new(),
        };
        for callers in &scenario.callers {
            let (callers, first_caller) = (callers.get_ref(), requests.emails.len());
            let keys = scenario.mix.iter().map(|mix| scenario.keys_for(callers, mix.get_ref().verb).unwrap_or(0));
            let (keys, weights) = (keys.collect(), Weights::zipf(callers.count, callers.zipf));
            requests.groups.push(Group { first_caller, callers: weights, keys });
            requests.emails.extend((0..callers.count).map(|index| email(callers, first_caller, index)));
        }
        for (kind, mix) in scenario.mix.iter().enumerate() {
            let mut first = vec![None; scenario.keys.len()];
            for group in 0..requests.groups.len() {
                let (set, caller) = (requests.groups[group].keys[kind], requests.groups[group].first_caller);
                if first[set].is_none() {
                    first[set] = Some(requests.asks.len());
                    for key in 0..scenario.keys[set].get_ref().count {
                        let path = scenario.keys[set].get_ref().path(key);
                        let ask = requests.ask(mix.get_ref(), &path, caller, &mut wrap)?;
                        requests.asks.push(ask);
                    }
                }
            }
            requests.first.push(first);
        }
        Ok(requests)
    }

    fn ask(&self, mix: &Mix, path: &str, caller: usize, wrap: &mut impl Wrapping) -> Result<Ask, String> {
        let plaintext = base64(vec![b'p'; mix.payload_bytes]);
        let blob = Right::Begins("{\"wrappedBlob\":\"");
        let wrap_body = body("plaintext", &plaintext, false);
        let (verb, body, right) = match mix.verb {
            Verb::Wrap => ("wrap", wrap_body, blob),
            Verb::HealthCheck => ("wrap", body("plaintext", &plaintext, true), blob),
            Verb::Unwrap => {
                let blob = wrap(path, caller, &wrap_body)?;
                let right = Right::Is(json!({"plaintext": plaintext}).to_string().into());
                ("unwrap", body("wrappedBlob", &blob, false), right)
            }
            Verb::Sign => ("asymmetricSign", body("data", &plaintext, false), Right::Begins("{\"signature\":\"")),
            Verb::PublicKey => ("getPublicKey", "{}".into(), Right::Begins("{\"")),
        };
        let target = format!("/{path}:{verb}");
        let target: PathAndQuery = target.parse().map_err(|_| format!("'{path}' is no path of a key"))?;
        Ok(Ask { uri: self.uri(target), body: body.into(), right })
    }

    /// HTTP/2 wants the whole URI, HTTP/1.1 the path.
    fn uri(&self, target: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(target);
        if self.protocol == Protocol::Http2 {
            (parts.scheme, parts.authority) = (Some(Scheme::HTTPS), Some(self.authority.clone()));
        }
        Uri::from_parts(parts).expect("these parts belong together")
    }

    /// The headers of each caller's requests.
    pub fn headers(&self, tokens: &Tokens) -> Vec<HeaderMap> {
        let headers = self.emails.iter().map(|email| {
            let mut headers = HeaderMap::with_capacity(4);
            let token = HeaderValue::from_str(&format!("Bearer {}", tokens.token(email)));
            let mut token = token.unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
            token.set_sensitive(true);
            headers.insert(AUTHORIZATION, token);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if self.protocol == Protocol::Http1 {
                let host = HeaderValue::from_str(self.authority.as_str());
                headers.insert(HOST, host.expect("an authority is a header's value"));
            }
            headers
        });
        headers.collect()
    }

    /// Chooses for a group of callers: the kind of request, the caller, and what is asked for.
    pub fn choose(&self, group: usize, random: &mut fastrand::Rng) -> (u16, u32, u32) {
        let (kind, group) = (self.mix.choose(random), &self.groups[group]);
        let caller = group.first_caller + group.callers.choose(random);
        let set = group.keys[kind];
        let ask = self.first[kind][set].unwrap_or(0) + self.keys[set].choose(random);
        (kind as u16, caller as u32, ask as u32)
    }

    /// One that can be asked for.
    pub fn get(&self, ask: u32) -> &Ask {
        &self.asks[ask as usize]
    }

    /// To be sent with these headers.
    pub fn request(&self, ask: u32, headers: &HeaderMap) -> Request<Full<Bytes>> {
        let ask = self.get(ask);
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = ask.uri.clone();
        *request.headers_mut() = headers.clone();
        request
    }
}

/// As Cloud KMS sends it.
fn body(field: &str, value: &str, is_health_check: bool) -> String {
    let mut body = json!({
        field: value,
        "additionalAuthenticatedData": base64(RESOURCE),
        "additionalContext": {
            "relativeResourceName": format!("{RESOURCE}/cryptoKeyVersions/1"),
            "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"},
        },
    });
    if field == "data" {
        body.as_object_mut().expect("it is one").remove("additionalAuthenticatedData");
    }
    if is_health_check {
        body["additionalContext"]["isKeyHealthCheck"] = true.into();
    }
    body.to_string()
}
