//! Bad tokens (classes 23 to 38). 401 is for tokens not valid for us, 403 for valid ones of callers not admitted.

use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use ekm_tests::{CALLER, Ekm, Issuer, WebServer, base64, set_up};
use serde_json::{Value, json};

use crate::table::Expect::{Framing, Good, Refused};
use crate::table::{Expect, Table, WRAP, assert_serves, good_body, post, post_json};

const MALFORMED: Expect = Refused(401, "does not hold one bearer token in JWS compact form");
const HEADER: Expect = Refused(401, "the token's header is not acceptable");
const SIGNATURE: Expect = Refused(401, "the token's signature does not fit");
const CLAIMS: Expect = Refused(401, "the token's claims are incomplete or contradictory");
const ISSUER: Expect = Refused(401, "the token's issuer is not trusted here");
const AUDIENCE: Expect = Refused(401, "the token is for another audience");
const TIME: Expect = Refused(401, "the token is expired, not yet valid, or valid for too long");
const UNKNOWN_KEY: Expect = Refused(401, "signed with a key that its issuer does not publish");
const DENIED: Expect = Refused(403, "this e-mail address is not one that may call this service");

/// Rows that differ in the token only.
struct Tokens {
    table: Table,
    issuer: Issuer,
    used: Vec<String>,
}

impl Tokens {
    fn new() -> Self {
        let ekm = Ekm::dev(&[]);
        Self { issuer: ekm.issuer(), table: Table::over(ekm), used: Vec::new() }
    }

    fn row(&mut self, class: u8, name: &str, token: String, expect: Expect) {
        self.table.row(class, name, post_json(WRAP, &token, good_body()), expect);
        self.used.push(token);
    }

    fn claims(&mut self, class: u8, name: &str, changes: Value, expect: Expect) {
        let token = self.issuer.token_with(changes);
        self.row(class, name, token, expect);
    }

    fn header(&mut self, class: u8, name: &str, changes: Value, expect: Expect) {
        let token = self.issuer.token_with_header(changes);
        self.row(class, name, token, expect);
    }

    fn finish(self) {
        let used: Vec<_> = self.used.iter().map(String::as_str).collect();
        self.table.finish(&used);
    }
}

#[test]
fn an_authorization_header_holds_one_bearer_token() {
    let mut tokens = Tokens::new();
    let token = tokens.issuer.token();
    let mut with_lines = |class: u8, name: &str, lines: &str, expect: Expect| {
        let request = post(WRAP, &format!("{lines}Content-Type: application/json\r\n"), good_body());
        tokens.table.row(class, name, request, expect);
    };
    with_lines(23, "missing", "", Refused(401, "no Authorization header"));
    with_lines(23, "empty", "Authorization:\r\n", MALFORMED);
    with_lines(23, "only the scheme", "Authorization: Bearer\r\n", MALFORMED);
    with_lines(23, "only the scheme and a space", "Authorization: Bearer \r\n", MALFORMED);
    with_lines(23, "Basic", &format!("Authorization: Basic {}\r\n", base64("user:password")), MALFORMED);
    with_lines(23, "no scheme", &format!("Authorization: {token}\r\n"), MALFORMED);
    with_lines(23, "another scheme", &format!("Authorization: Token {token}\r\n"), MALFORMED);
    // RFC 9110 would take it, but Google never writes it so, and one form is easier to reason about.
    with_lines(23, "scheme in small letters", &format!("Authorization: bearer {token}\r\n"), MALFORMED);
    with_lines(23, "two spaces", &format!("Authorization: Bearer  {token}\r\n"), MALFORMED);
    with_lines(23, "a tab", &format!("Authorization: Bearer\t{token}\r\n"), MALFORMED);
    with_lines(23, "two tokens", &format!("Authorization: Bearer {token} {token}\r\n"), MALFORMED);
    with_lines(23, "a list", &format!("Authorization: Bearer {token}, Bearer {token}\r\n"), MALFORMED);
    with_lines(23, "a parameter", &format!("Authorization: Bearer {token};a=b\r\n"), MALFORMED);
    let line = format!("Authorization: Bearer {token}\r\n");
    with_lines(23, "two headers", &line.repeat(2), MALFORMED);
    with_lines(23, "an empty header before", &format!("Authorization:\r\n{line}"), MALFORMED);
    with_lines(23, "in another header", &format!("Proxy-Authorization: Bearer {token}\r\n"), Refused(401, "no Auth"));
    with_lines(23, "bytes above 0x7f", "Authorization: Bearer \u{e4}.b.c\r\n", MALFORMED);
    with_lines(23, "white space at the end, which is none of the value", &line.replace("\r\n", " \t\r\n"), Good);

    let [header, claims, signature] = parts(&token);
    let mut row = |name: &str, token: String, expect: Expect| tokens.row(24, name, token, expect);
    row("one part", header.clone(), MALFORMED);
    row("two parts", format!("{header}.{claims}"), MALFORMED);
    row("four parts", format!("{token}.{signature}"), MALFORMED);
    row("three empty parts", "..".into(), HEADER);
    row("an empty header", format!(".{claims}.{signature}"), HEADER);
    row("an empty payload", format!("{header}..{signature}"), CLAIMS);
    row("a dot at the end", format!("{token}."), MALFORMED);
    row("8193 bytes", format!("{header}.{claims}.{}", "A".repeat(8191 - header.len() - claims.len())), MALFORMED);
    row("a space inside", format!("{header}. {claims}.{signature}"), MALFORMED);
    row("a plus sign in the header", format!("+{}.{claims}.{signature}", &header[1..]), MALFORMED);
    let padded = |text: &str| URL_SAFE.encode(URL_SAFE_NO_PAD.decode(text).unwrap());
    let signature_padded = padded(&signature);
    assert!(signature_padded.ends_with("=="), "256 bytes have padding");
    row("padding in the signature", format!("{header}.{claims}.{signature_padded}"), MALFORMED);
    row("padding in the header", format!("{header}=.{claims}.{signature}"), MALFORMED);
    row("padding in the payload", format!("{header}.{claims}=.{signature}"), MALFORMED);
    let standard = STANDARD.encode(URL_SAFE_NO_PAD.decode(&signature).unwrap());
    row("the signature in standard base64", format!("{header}.{claims}.{standard}"), MALFORMED);
    let body = good_body();
    // Stopped by the bound of the whole head before anybody looks for a token.
    tokens.table.row(24, "a token of 1 MiB", post_json(WRAP, &"a".repeat(1 << 20), &body), Framing(431));
    tokens.table.row(24, "a token of 12 KiB", post_json(WRAP, &"a".repeat(12 << 10), &body), MALFORMED);
    tokens.finish();
}

fn parts(token: &str) -> [String; 3] {
    token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn only_rs256_with_a_key_of_the_issuer_counts() {
    let mut tokens = Tokens::new();
    let good = tokens.issuer.token();
    let [_, claims, signature] = parts(&good);
    let claims_json = tokens.issuer.claims().to_string();

    for alg in ["none", "None", "nONE", "NONE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": "ekm-dev"}).to_string());
        tokens.row(25, &format!("alg '{alg}' without signature"), format!("{header}.{claims}."), HEADER);
        tokens.row(25, &format!("alg '{alg}' with signature"), format!("{header}.{claims}.{signature}"), HEADER);
    }

    let jwk = tokens.issuer.jwk();
    let der = tokens.issuer.public_key_der();
    let pem = |kind: &str, der: &[u8]| {
        format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der)).into_bytes()
    };
    let keys = [
        ("DER", der.clone()),
        ("PKCS#1 PEM", pem("RSA PUBLIC KEY", &der)),
        ("PEM", pem("PUBLIC KEY", &der)),
        ("modulus", URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap()),
        ("modulus in base64", jwk["n"].as_str().unwrap().into()),
        ("JWK", jwk.to_string().into_bytes()),
        ("an empty secret", Vec::new()),
    ];
    for (name, key) in keys {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": "ekm-dev", "typ": "JWT"}).to_string());
        let signed = format!("{header}.{claims}");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes());
        tokens.row(26, &format!("HS256 by {name}"), format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)), HEADER);
        // The same tag under the right name.
        let [header, ..] = parts(&good);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), format!("{header}.{claims}").as_bytes());
        let token = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(tag));
        tokens.row(26, &format!("HMAC by {name} as RS256"), token, SIGNATURE);
    }

    for alg in ["ES256", "PS256", "RS384", "RS512", "RS1", "EdDSA", "rs256", "RS256 ", "HS512", "RSA-OAEP"] {
        tokens.header(27, &format!("alg {alg}"), json!({"alg": alg}), HEADER);
    }
    for alg in [json!(null), json!(["RS256"]), json!({"RS256": 1}), json!(256), json!(true)] {
        tokens.header(27, &format!("alg {alg}"), json!({"alg": alg}), HEADER);
    }
    let as_rs256 = tokens.issuer.header().to_string();
    for (name, scheme) in [("SHA-384", &RSA_PKCS1_SHA384), ("SHA-512", &RSA_PKCS1_SHA512)] {
        let token = tokens.issuer.sign_as(scheme, &as_rs256, &claims_json);
        tokens.row(27, &format!("RSA with {name} as RS256"), token, SIGNATURE);
    }
    let token = tokens.issuer.sign_as(&RSA_PSS_SHA256, &as_rs256, &claims_json);
    tokens.row(27, "PSS as RS256", token, SIGNATURE);
    let ps256 = json!({"alg": "PS256", "kid": "ekm-dev"}).to_string();
    let token = tokens.issuer.sign_as(&RSA_PSS_SHA256, &ps256, &claims_json);
    tokens.row(27, "a right PS256", token, HEADER);

    for kid in [
        "x",
        "ekm-dev ",
        "EKM-DEV",
        "../../etc/passwd",
        "/dev/null",
        "' OR '1'='1",
        "ekm-dev\0",
        "\0",
        "еkm-dev", // a Cyrillic letter first
        "ekm\u{2010}dev",
        "http://127.0.0.1:1/",
        "\r\nSet-Cookie: a=b",
    ] {
        tokens.header(28, &format!("kid {kid:?}"), json!({"kid": kid}), UNKNOWN_KEY);
    }
    let long = "k".repeat(4096);
    for kid in [json!(null), json!(""), json!(5), json!(["ekm-dev"]), json!(long)] {
        tokens.header(28, &format!("kid {:.20}", kid.to_string()), json!({"kid": kid}), HEADER);
    }

    let [header, claims, signature] = parts(&good);
    tokens.row(30, "no signature", format!("{header}.{claims}."), SIGNATURE);
    let bytes = URL_SAFE_NO_PAD.decode(&signature).unwrap();
    for bit in [0, 7, 1000, 2047] {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let token = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(flipped));
        tokens.row(30, &format!("bit {bit} of the signature"), token, SIGNATURE);
    }
    for (name, changed) in [
        ("a byte less", bytes[..255].to_vec()),
        ("a byte more", [&bytes[..], &[0]].concat()),
        ("a zero before", [&[0], &bytes[..]].concat()),
        ("zeros", vec![0; 256]),
        ("ones", vec![0xff; 256]),
    ] {
        let token = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(changed));
        tokens.row(30, &format!("signature with {name}"), token, SIGNATURE);
    }
    let other = Issuer::new("ekm-dev");
    tokens.row(30, "another key under the same id", other.token(), SIGNATURE);
    let [_, _, foreign] = parts(&tokens.issuer.token_with(json!({"sub": "2"})));
    tokens.row(30, "the signature of another token", format!("{header}.{claims}.{foreign}"), SIGNATURE);
    let changed = URL_SAFE_NO_PAD.encode(claims_json.replace("service-1", "service-2"));
    tokens.row(30, "changed claims", format!("{header}.{changed}.{signature}"), SIGNATURE);
    // The last character of 256 bytes carries 4 bits that mean nothing: its neighbour would be the same signature.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let sibling = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    let token = format!("{header}.{claims}.{}{sibling}", &signature[..signature.len() - 1]);
    tokens.row(30, "stray bits at the end of the signature", token, MALFORMED);
    tokens.finish();
}

#[test]
fn a_header_that_names_or_brings_its_own_key_is_refused_and_nothing_is_fetched() {
    let mut tokens = Tokens::new();
    let attacker = Issuer::new("attacker");
    let server = WebServer::serving(&json!({"keys": [attacker.jwk()]}).to_string());
    let url = format!("http://{}/jwks.json", server.address());
    let mut jwk = attacker.jwk();
    jwk["kid"] = json!("ekm-dev");
    for (name, changes) in [
        ("jku", json!({"jku": url})),
        ("x5u", json!({"x5u": url})),
        ("jwk", json!({"jwk": jwk})),
        ("x5c", json!({"x5c": [base64("certificate")]})),
        ("crit", json!({"crit": ["exp"]})),
        ("an empty crit", json!({"crit": []})),
        ("b64", json!({"crit": ["b64"], "b64": false})),
        ("b64 without crit", json!({"b64": false})),
        ("zip", json!({"zip": "DEF"})),
        ("enc", json!({"enc": "A256GCM"})),
        ("cty", json!({"cty": "JWT"})),
        ("typ of an access token", json!({"typ": "at+jwt"})),
        ("typ that is no text", json!({"typ": ["JWT"]})),
    ] {
        tokens.header(29, name, changes.clone(), HEADER);
        let mut header = tokens.issuer.header();
        header.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        tokens.row(29, &format!("{name}, signed by its sender"), attacker.sign(&header, &attacker.claims()), HEADER);
    }
    tokens.header(29, "members that mean nothing", json!({"x": {"y": [1]}, "x5t": "AA"}), Good);
    let claims = tokens.issuer.claims().to_string();
    for (name, header) in [
        ("no JSON", "RS256"),
        ("no object", "[]"),
        ("two documents", r#"{"alg":"RS256","kid":"ekm-dev"}{}"#),
        ("a member twice", r#"{"alg":"RS256","kid":"ekm-dev","kid":"ekm-dev"}"#),
        ("alg twice", r#"{"alg":"RS256","alg":"none","kid":"ekm-dev"}"#),
        ("alg twice, once escaped", r#"{"alg":"RS256","\u0061lg":"none","kid":"ekm-dev"}"#),
        ("a byte order mark", "\u{feff}{\"alg\":\"RS256\",\"kid\":\"ekm-dev\"}"),
    ] {
        let token = tokens.issuer.sign_text(header, &claims);
        tokens.row(35, name, token, HEADER);
    }
    assert_eq!(server.hits(), 0, "a token made the service fetch something");
    tokens.finish();
}

#[test]
fn a_token_counts_from_its_issuer_for_its_audience_in_its_time() {
    let mut tokens = Tokens::new();
    let now = Issuer::now();
    let hour = 3600;
    let year = 365 * 24 * hour;
    for (name, changes, expect) in [
        ("expired", json!({"iat": now - 2 * hour, "exp": now - hour}), TIME),
        ("expired just beyond the leeway", json!({"iat": now - hour, "exp": now - 61}), TIME),
        ("valid for 10 years", json!({"exp": now + 10 * year}), TIME),
        ("valid for a day", json!({"exp": now + 24 * hour}), TIME),
        ("no exp", json!({"exp": null}), CLAIMS),
        ("no iat", json!({"iat": null}), CLAIMS),
        ("exp before iat", json!({"iat": now, "exp": now - 10}), TIME),
        ("exp of 0", json!({"iat": 0, "exp": 0}), TIME),
        ("exp as text", json!({"exp": (now + hour).to_string()}), CLAIMS),
        ("exp negative", json!({"exp": -1}), Refused(401, "the token")),
        ("exp with a fraction", json!({"exp": now as f64 + 1000.5}), CLAIMS),
        ("exp of 2^64 - 1", json!({"exp": u64::MAX}), CLAIMS),
        ("exp as a list", json!({"exp": [now + hour]}), CLAIMS),
        ("iat in the future", json!({"iat": now + 200, "exp": now + hour}), TIME),
        ("iat as text", json!({"iat": now.to_string()}), CLAIMS),
        ("iat negative", json!({"iat": -5}), CLAIMS),
        ("nbf in the future", json!({"nbf": now + 200}), TIME),
        ("nbf as text", json!({"nbf": "soon"}), Refused(401, "the token")),
        ("nbf negative", json!({"nbf": -1}), Refused(401, "the token")),
        ("nbf in the past", json!({"nbf": now - 10}), Good),
        ("expired within the leeway", json!({"iat": now - hour, "exp": now - 5}), Good),
    ] {
        tokens.claims(31, name, changes, expect);
    }
    let header = tokens.issuer.header().to_string();
    for exp in ["1e400", "1e3", "0x7fffffff", "Infinity", "9999999999999999999999", "4e9"] {
        let claims = tokens.issuer.claims();
        let text = claims.to_string().replace(&format!("\"exp\":{}", claims["exp"]), &format!("\"exp\":{exp}"));
        assert!(text.contains(exp));
        let token = tokens.issuer.sign_text(&header, &text);
        tokens.row(31, &format!("exp of {exp}"), token, Refused(401, "the token"));
    }

    for audience in [
        "https://other.example",
        "https://localhost/",
        "https://localhost:443",
        "https://LOCALHOST",
        "HTTPS://localhost",
        "http://localhost",
        "localhost",
        "//localhost",
        "https://localhost.evil.example",
        "https://evil.example/https://localhost",
        "https://xlocalhost",
        "https://localhos",
        "https://localhost@evil.example",
        "https://user@localhost",
        "https://localhost#",
        "https://localhost?",
        "https://localhost.",
        " https://localhost",
        "https://localhost\0",
        "https://xn--localhost-",
        "https://lоcalhost", // Cyrillic o
        "https://%6cocalhost",
        "*",
        "",
    ] {
        tokens.claims(32, &format!("audience {audience:?}"), json!({"aud": audience}), AUDIENCE);
    }
    for (name, audience, expect) in [
        ("a list of ours", json!(["https://localhost"]), Good),
        ("ours and another", json!(["https://localhost", "https://other.example"]), AUDIENCE),
        ("another and ours", json!(["https://other.example", "https://localhost"]), AUDIENCE),
        ("ours twice", json!(["https://localhost", "https://localhost"]), AUDIENCE),
        ("an empty list", json!([]), AUDIENCE),
        ("a list of lists", json!([["https://localhost"]]), Refused(401, "the token")),
        ("an object", json!({"https://localhost": 1}), Refused(401, "the token")),
        ("a number", json!(1), Refused(401, "the token")),
        ("missing", json!(null), Refused(401, "the token")),
    ] {
        tokens.claims(32, &format!("audience: {name}"), json!({"aud": audience}), expect);
    }

    for issuer in [
        "http://issuer.localhost",
        "https://issuer.localhost/",
        "https://ISSUER.localhost",
        "issuer.localhost",
        "https://accounts.google.com",
        "https://issuer.localhost.evil.example",
        "https://issuer.localhost\0",
        "",
    ] {
        tokens.claims(33, &format!("issuer {issuer:?}"), json!({"iss": issuer}), ISSUER);
    }
    for issuer in [json!(null), json!(1), json!(["https://issuer.localhost"]), json!({})] {
        tokens.claims(33, &format!("issuer {issuer}"), json!({"iss": issuer}), CLAIMS);
    }
    tokens.finish();
}

#[test]
fn a_valid_token_of_a_caller_who_is_not_admitted_gives_403_and_any_other_defect_401() {
    let mut tokens = Tokens::new();
    for email in [
        "service-123456789012@gcp-sa-other.iam.gserviceaccount.com",
        "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com.evil.example",
        "evil@example.com,service-1@gcp-sa-ekms.iam.gserviceaccount.com",
        "xservice-123456789012@gcp-sa-ekms.iam.gserviceaccount.com",
        "SERVICE-123456789012@GCP-SA-EKMS.IAM.GSERVICEACCOUNT.COM",
        "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.cоm", // Cyrillic o
        "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com\0",
        "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com ",
        "service-123456789012@gcp\u{ad}-sa-ekms.iam.gserviceaccount.com",
        "person@gmail.com",
        "*",
    ] {
        tokens.claims(34, &format!("{email:?}"), json!({"email": email}), DENIED);
        tokens.claims(34, "the same, expired", json!({"email": email, "iat": 1000, "exp": 2000}), TIME);
        tokens.claims(34, "the same, for others", json!({"email": email, "aud": "https://other.example"}), AUDIENCE);
    }
    tokens.claims(34, "an address that is not verified", json!({"email_verified": false}), DENIED);
    for (name, changes) in [
        ("email missing", json!({"email": null})),
        ("email empty", json!({"email": ""})),
        ("email a list", json!({"email": [CALLER]})),
        ("email of 4 KiB", json!({"email": format!("service-{}@x", "1".repeat(4096))})),
        ("email_verified missing", json!({"email_verified": null})),
        ("email_verified as text", json!({"email_verified": "true"})),
        ("email_verified as a number", json!({"email_verified": 1})),
        ("sub missing", json!({"sub": null})),
        ("sub empty", json!({"sub": ""})),
        ("sub a number", json!({"sub": 1})),
        ("sub of 4 KiB", json!({"sub": "1".repeat(4096)})),
    ] {
        tokens.claims(34, name, changes, CLAIMS);
    }

    let header = tokens.issuer.header().to_string();
    let claims = tokens.issuer.claims().to_string();
    let with_text = |tokens: &mut Tokens, class: u8, name: &str, claims: &str| {
        let token = tokens.issuer.sign_text(&header, claims);
        tokens.row(class, name, token, CLAIMS);
    };
    for member in ["iss", "aud", "sub", "email", "email_verified", "exp"] {
        let twice = format!("{{\"{member}\":1,{}", &claims[1..]);
        with_text(&mut tokens, 35, &format!("{member} twice"), &twice);
        let twice = format!("{},\"{member}\":1}}", &claims[..claims.len() - 1]);
        with_text(&mut tokens, 35, &format!("{member} twice, the other at the end"), &twice);
    }
    with_text(&mut tokens, 35, "a claim twice, once escaped", &format!("{{\"\\u0065mail\":\"a@b\",{}", &claims[1..]));
    with_text(&mut tokens, 35, "an unknown claim twice", &format!("{{\"x\":1,\"x\":1,{}", &claims[1..]));
    for (name, claims) in [("no JSON", "x"), ("a list", "[]"), ("text", "\"{}\""), ("null", "null"), ("empty", "{}")] {
        with_text(&mut tokens, 35, name, claims);
    }

    for (name, open, close) in [("lists", "[", "]"), ("objects", "{\"a\":", "}")] {
        // As deep as the bound on tokens lets it be.
        let depth = 4000 / (open.len() + close.len());
        let deep = format!("{{\"x\":{}1{},{}", open.repeat(depth), close.repeat(depth), &claims[1..]);
        with_text(&mut tokens, 36, &format!("{depth} nested {name}"), &deep);
        let endless = format!("{{\"x\":{}", open.repeat(4000 / open.len()));
        with_text(&mut tokens, 36, &format!("{name} that do not end"), &endless);
    }
    let beyond = tokens.issuer.sign_text(&header, &format!("{{\"x\":{}", "[".repeat(10_000)));
    tokens.table.row(36, "10 000 nested lists", post_json(WRAP, &beyond, good_body()), MALFORMED);
    let members: String = (0..500).map(|number| format!("\"m{number}\":1,")).collect();
    let token = tokens.issuer.sign_text(&header, &format!("{{{members}{}", &claims[1..]));
    tokens.row(36, "500 members, which is as many as fit", token, Good);

    let encrypted = ["eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ", "a", "b", "c", "d"].join(".");
    tokens.row(37, "JWE", encrypted, MALFORMED);
    let inner = tokens.issuer.token();
    let nested = tokens.issuer.sign_text(&json!({"alg": "RS256", "kid": "ekm-dev", "cty": "JWT"}).to_string(), &inner);
    tokens.row(37, "a nested JWT", nested, HEADER);
    with_text(&mut tokens, 37, "a nested JWT without cty", &inner);
    let person = json!({"email": "person@gmail.com", "azp": "client", "aud": "client.apps.googleusercontent.com"});
    tokens.claims(37, "a person's ID token for another application", person, AUDIENCE);
    tokens.finish();
}

#[test]
fn a_token_in_the_cache_expires_like_any_other() {
    let directory = set_up(&[]);
    let no_leeway = |config: String| config.replace("[auth]", "[auth]\nclock_leeway_s = 0");
    let ekm = Ekm::serve(&directory, no_leeway);
    let now = Issuer::now();
    let token = ekm.issuer().token_with(json!({"iat": now - 100, "exp": now + 4}));
    let mut connection = ekm.connect();
    let status = |answer: &ekm_tests::Answer| (answer.status, answer.text().contains("expired"));
    let mut seen = Vec::new();
    ekm.eventually("expired", || {
        let answer = connection.post(WRAP, &token, &good_body());
        seen.push(status(&answer));
        answer.status == 401
    });
    let last = seen.pop();
    assert_eq!(last, Some((401, true)));
    assert!(seen.iter().all(|answer| *answer == (200, false)), "{seen:?}");
    assert!(ekm.metric("ekm_token_cache_total{result=\"hit\"}") > 0.0, "the cache was never asked");
    assert_serves(&mut connection, &ekm.ready.token);
}

#[test]
fn an_unknown_key_id_is_asked_for_and_while_the_issuer_is_away_nobody_is_refused_for_it() {
    let first = Ekm::dev(&[]);
    let directory = Arc::clone(&first.directory);
    let known = first.issuer();
    drop(first);
    let server = WebServer::serving(&json!({"keys": [known.jwk()]}).to_string());
    let url = format!("jwks_url = \"http://{}/\"", server.address());
    let ekm = Ekm::serve(&directory, |config| config.replace("jwks_file = \"issuer/jwks.json\"", &url));
    let mut table = Table::over(ekm);
    let other = Issuer::new("new-key");

    table.row(28, "a key that the issuer does not publish", post_json(WRAP, &other.token(), good_body()), UNKNOWN_KEY);
    assert!(server.hits() >= 2, "the set was not asked for again");

    // Many at once are one question.
    let before = server.hits();
    std::thread::scope(|scope| {
        for number in 0..10 {
            let ekm = &table.ekm;
            scope.spawn(move || {
                let token = ekm.issuer().token_with_header(json!({"kid": format!("k{number}")}));
                assert_eq!(ekm.connect().post(WRAP, &token, &good_body()).status, 401);
            });
        }
    });
    assert!(server.hits() - before <= 4, "{} fetches for 10 unknown keys", server.hits() - before);

    server.set_answer(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec());
    let unknown = post_json(WRAP, &other.token(), good_body());
    table.row(
        28,
        "the issuer is down",
        &unknown,
        Refused(503, "temporarily unavailable, try again [issuer_unavailable]"),
    );
    table.row(28, "a known key while the issuer is down", post_json(WRAP, &known.token(), good_body()), Good);
    let wrong = Issuer::new("ekm-dev").token();
    table.row(28, "a wrong signature while it is down", post_json(WRAP, &wrong, good_body()), SIGNATURE);

    server.set_document(&json!({"keys": [known.jwk(), other.jwk()]}).to_string());
    table.row(28, "the issuer is back with a new key", &unknown, Good);
    table.finish(&[]);
}
