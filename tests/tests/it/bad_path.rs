//! Bad paths (classes 39, 41, 44 to 46): one key has one path, and what is not quite that path names nothing.

use ekm_tests::Ekm;

use crate::table::Expect::{Framing, Good, Refused};
use crate::table::{Expect, Table, good_body, post, post_json};

const UNKNOWN: Expect = Refused(404, "no key");
const NO_VERB: Expect = Refused(404, "the URL does not end with a method, such as ':wrap'");
const NO_KEY: Expect = Refused(404, "the URL's path can name no key");
const NOT_YET: Expect = Refused(501, "is not implemented");

/// Class, target of the request, what has to come back.
const TARGETS: &[(u8, &str, Expect)] = &[
    (39, "/v0/keys/unknown:wrap", UNKNOWN),
    (39, "/v0/keys/demo2:wrap", UNKNOWN),
    (39, "/v0/keys/dem:wrap", UNKNOWN),
    (39, "/v0/keys:wrap", UNKNOWN),
    (39, "/v0:wrap", UNKNOWN),
    (39, "/demo:wrap", UNKNOWN),
    (39, "/v0/cryptospaces/demo:wrap", UNKNOWN),
    (39, "/v0/keys/demo/keys/demo:wrap", UNKNOWN),
    (41, "/v0/keys/d%65mo:wrap", Good),
    (41, "/v0/keys/%64%65%6d%6F:wrap", Good),
    (41, "/v0/keys/demo%3Awrap", Good),
    (41, "/v0/keys/demo%3awrap", Good),
    (41, "/v0/keys/x/../demo:wrap", NO_KEY),
    (41, "/v0/keys/./demo:wrap", NO_KEY),
    (41, "/v0/keys/%2e%2e/keys/demo:wrap", NO_KEY),
    (41, "/v0/keys/%2E./keys/demo:wrap", NO_KEY),
    (41, "/v0/keys/..:wrap", NO_KEY),
    (41, "/../../v0/keys/demo:wrap", NO_KEY),
    (41, "/v0%2fkeys%2fdemo:wrap", NO_KEY),
    (41, "/v0/keys%2Fdemo:wrap", NO_KEY),
    (41, "/v0/keys/demo%2f:wrap", NO_KEY),
    (41, "/v0/keys/demo%00:wrap", NO_KEY),
    (41, "/v0/keys/demo%0a:wrap", NO_KEY),
    (41, "/v0/keys/demo%20:wrap", NO_KEY),
    (41, "/v0/keys/d%2565mo:wrap", NO_KEY),
    (41, "/v0/keys/demo%253Awrap", NO_VERB),
    (41, "/v0/keys/d%c1%a5mo:wrap", NO_KEY), // overlong 'e'
    (41, "/v0/keys/%c0%ae%c0%ae/demo:wrap", NO_KEY),
    (41, "/v0/keys/d%e2%80%8bemo:wrap", NO_KEY),
    (41, "/v0/keys/demo%:wrap", NO_KEY),
    (41, "/v0/keys/demo%4:wrap", NO_KEY),
    (41, "/v0/keys/demo%zz:wrap", NO_KEY),
    (41, "/v0/keys/demo%u0065:wrap", NO_KEY),
    (41, "/v0/keys/demo;a=b:wrap", NO_KEY),
    (41, "/v0;a=b/keys/demo:wrap", NO_KEY),
    (41, "/v0/keys/demo,x:wrap", NO_KEY),
    (41, "/v0/keys/demo|x:wrap", NO_KEY),
    (41, "/v0/keys/demo\\:wrap", NO_KEY),
    (41, "/v0/keys/'OR'1'='1:wrap", NO_KEY),
    (41, "/v0/keys/demo:x:wrap", NO_KEY),
    (41, "/v0/keys/demo%3A:wrap", NO_KEY),
    (41, "/v0/keys/demo/:wrap", NO_KEY),
    (41, "/v0/keys/demo:wrap/", NO_VERB),
    (41, "/v0/keys/demo:wrap/demo", NO_VERB),
    (41, "/V0/keys/demo:wrap", UNKNOWN),
    (41, "/v0/KEYS/demo:wrap", UNKNOWN),
    (41, "/v0/keys/Demo:wrap", UNKNOWN),
    (44, "//v0/keys/demo:wrap", NO_KEY),
    (44, "/v0//keys/demo:wrap", NO_KEY),
    (44, "/v0/keys//demo:wrap", NO_KEY),
    (44, "/v0/keys/demo//:wrap", NO_KEY),
    (44, "/:wrap", NO_KEY),
    (44, "//:wrap", NO_KEY),
    (44, "/", NO_VERB),
    (44, "//", NO_VERB),
    (44, "*", NO_VERB),
    // The protocol has no query, so there is nothing that one could change.
    (45, "/v0/keys/demo:wrap?", Good),
    (45, "/v0/keys/demo:wrap?alt=json", Good),
    (45, "/v0/keys/demo:wrap?alt=json&alt=proto&$fields=*", Good),
    (45, "/v0/keys/demo:wrap?path=/v0/keys/other:unwrap", Good),
    (45, "/v0/keys/unknown:wrap?path=/v0/keys/demo:wrap", UNKNOWN),
    (45, "/v0/keys/demo?:wrap", NO_VERB),
    (45, "/v0/keys/demo?x=:wrap", NO_VERB),
    // RFC 9112 §3.2 knows no fragment in a request line; the HTTP library drops it, and nothing depends on it.
    (45, "/v0/keys/demo:wrap#:unwrap", Good),
    (45, "/v0/keys/demo#:wrap", NO_VERB),
    (46, "/v0/keys/demo", NO_VERB),
    (46, "/v0/keys/demo:", NO_VERB),
    (46, "/v0/keys/demowrap", NO_VERB),
    (46, "/v0/keys/demo/wrap", NO_VERB),
    (46, "/v0/keys/demo.wrap", NO_VERB),
    (46, "/v0/keys/demo:wrapp", NO_VERB),
    (46, "/v0/keys/demo:wra", NO_VERB),
    (46, "/v0/keys/demo:WRAP", NO_VERB),
    (46, "/v0/keys/demo:Wrap", NO_VERB),
    (46, "/v0/keys/demo:wrap%20", NO_VERB),
    (46, "/v0/keys/demo:wrap%00", NO_VERB),
    (46, "/v0/keys/demo:%77rap", NO_VERB),
    (46, "/v0/keys/demo:wrap,unwrap", NO_VERB),
    (46, "/v0/keys/demo:wrap:", NO_VERB),
    (46, "/v0/keys/demo::wrap", NO_KEY),
    (46, "/v0/keys/demo:wrap:unwrap", NO_KEY),
    (46, "/v0/keys/demo:encrypt", NO_VERB),
    (46, "/v0/keys/demo:asymmetricsign", NO_VERB),
    (46, "/v0/keys/demo:getpublickey", NO_VERB),
    (46, "/v0/keys/demo:destroyKey", Refused(403, "does not allow this caller to destroyKey")),
    (46, "/v0/cryptospaces/demo:createKey", Refused(400, "algorithm: is missing")),
    (46, "/v0/keys/demo:confidentialwrap", NOT_YET),
    (46, "/v0/keys/demo:confidentialunwrap", NOT_YET),
];

#[test]
fn what_is_not_the_path_of_a_key_names_nothing() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let body = good_body();
    for &(class, target, expect) in TARGETS {
        // The verb decides which field is needed; nothing may be wrong but the path.
        let request = post_json(target, &token, &body);
        table.row(class, target, request, expect);
        if !matches!(expect, Good) {
            // Who the caller is comes first, so that a stranger cannot find out which paths there are.
            let stranger = post(target, "Content-Type: application/json\r\n", &body);
            table.row(class, target, stranger, Refused(401, "no Authorization header"));
        }
    }

    let key = |name: &str| format!("/v0/keys/{name}:wrap");
    let mut row = |class: u8, name: &str, target: String, expect: Expect| {
        table.row(class, name, post_json(&target, &token, &body), expect);
    };
    row(44, "a key name as long as one may be", key(&"a".repeat(504)), UNKNOWN);
    row(44, "a byte more", key(&"a".repeat(505)), NO_KEY);
    row(44, "as long as one may be, encoded", key(&"%61".repeat(504)), UNKNOWN);
    row(44, "8 KiB", key(&"a".repeat(8 << 10)), NO_KEY);
    row(44, "8 KiB, encoded", key(&"%61".repeat(2700)), NO_KEY);
    // The bound on the whole head comes before the library's own one on targets, 64 KiB, which would be 414.
    row(44, "32 KiB", key(&"a".repeat(32 << 10)), Framing(431));
    row(44, "1000 segments", key(&"a/".repeat(1000)), NO_KEY);
    row(44, "1000 empty segments", key(&"/".repeat(1000)), NO_KEY);
    row(44, "1000 colons", key(&":".repeat(1000)), NO_KEY);
    row(44, "1000 percent signs", key(&"%".repeat(1000)), NO_KEY);
    row(45, "a query of 8 KiB", format!("{}?{}", key("demo"), "a".repeat(8 << 10)), Good);
    row(45, "a query of 64 KiB", format!("{}?{}", key("demo"), "a".repeat(64 << 10)), Framing(431));
    row(45, "1000 parameters", format!("{}?{}", key("demo"), "a=b&".repeat(1000)), Good);
    row(41, "UTF-8 as it is", key("démo"), NO_KEY);
    row(41, "a colon of another script", "/v0/keys/demo\u{ff1a}wrap".into(), NO_VERB);
    row(41, "a slash of another script", "/v0\u{2215}keys\u{2215}demo:wrap".into(), NO_KEY);
    let mut latin1 = post_json(&key("d?mo"), &token, &body);
    let at = latin1.iter().position(|&byte| byte == b'?').unwrap();
    latin1[at] = 0xe9;
    table.row(41, "Latin-1 as it is", latin1, Framing(400));

    // A path is cut in the audit log, never left out.
    let audit = table.ekm.audit();
    let longest = audit.iter().map(|line| line["path"].as_str().unwrap().len()).max();
    assert_eq!(longest, Some(512));
    table.finish(&[]);
}
