//! Bad JSON (classes 47 to 56): refused without a word of what was in it, and unknown things are passed over.

use ekm_tests::{Ekm, base64};
use serde_json::json;

use crate::table::Expect::{Good, Refused};
use crate::table::{Expect, PLAINTEXT, Table, WRAP, good_body, post_json};

const NO_JSON: Expect = Refused(400, "body: is not JSON (line ");
const NO_UTF8: Expect = Refused(400, "body: is not JSON: it is not UTF-8");
const TOO_SHORT: Expect = Refused(400, "body: ends too early (line ");
const WRONG_TYPE: Expect = Refused(400, "body: has a field twice, or of the wrong type (line ");
const MISSING: Expect = Refused(400, "plaintext: is missing");
const TOO_LONG: Expect = Refused(400, "body: is longer than 262144 bytes");

/// Class, name, body, what has to come back. `PT` stands for a plaintext in base64.
const BODIES: &[(u8, &str, &str, Expect)] = &[
    (47, "no body", "", TOO_SHORT),
    (47, "white space", " \t\r\n ", TOO_SHORT),
    (47, "a byte order mark", "\u{feff}{\"plaintext\":\"PT\"}", NO_JSON),
    (47, "NUL", "\0", NO_JSON),
    (47, "NUL behind the document", "{\"plaintext\":\"PT\"}\0", NO_JSON),
    (47, "a white space of another script", "\u{a0}{\"plaintext\":\"PT\"}", NO_JSON),
    (47, "white space around", " \r\n\t{ \"plaintext\" : \"PT\" } \n", Good),
    (47, "a lone surrogate", r#"{"plaintext":"\ud800"}"#, NO_JSON),
    (47, "a lone second surrogate", r#"{"plaintext":"\udc00PT"}"#, NO_JSON),
    (47, "a lone surrogate in a name", r#"{"\ud800":1,"plaintext":"PT"}"#, NO_JSON),
    (47, "an unknown escape", r#"{"plaintext":"\xAA"}"#, NO_JSON),
    (47, "a tab in a string", "{\"plaintext\":\"PT\t\"}", NO_JSON),
    (47, "a line end in a string", "{\"plaintext\":\"PT\n\"}", NO_JSON),
    (48, "cut after the brace", "{", TOO_SHORT),
    (48, "cut in a name", "{\"plain", TOO_SHORT),
    (48, "cut in a value", "{\"plaintext\":\"PT", TOO_SHORT),
    (48, "cut before the last brace", "{\"plaintext\":\"PT\"", TOO_SHORT),
    (48, "a brace too many", "{\"plaintext\":\"PT\"}}", NO_JSON),
    (48, "two documents", "{\"plaintext\":\"PT\"}{\"plaintext\":\"PT\"}", NO_JSON),
    (48, "two documents, each in its line", "{\"plaintext\":\"PT\"}\n{}", NO_JSON),
    (48, "a comma at the end", "{\"plaintext\":\"PT\",}", NO_JSON),
    (48, "a comment behind", "{\"plaintext\":\"PT\"} // x", NO_JSON),
    (48, "a comment inside", "{/* x */\"plaintext\":\"PT\"}", NO_JSON),
    (48, "single quotes", "{'plaintext':'PT'}", NO_JSON),
    (48, "a name without quotes", "{plaintext:\"PT\"}", NO_JSON),
    (48, "NaN", "{\"x\":NaN,\"plaintext\":\"PT\"}", NO_JSON),
    (48, "Infinity", "{\"x\":-Infinity,\"plaintext\":\"PT\"}", NO_JSON),
    (48, "True", "{\"x\":True,\"plaintext\":\"PT\"}", NO_JSON),
    (48, "a form", "plaintext=PT", NO_JSON),
    (48, "XML", "<plaintext>PT</plaintext>", NO_JSON),
    (48, "a protobuf", "\n\u{4}\u{1}\u{2}\u{3}\u{4}", NO_JSON),
    (51, "plaintext twice", r#"{"plaintext":"PT","plaintext":"AA=="}"#, WRONG_TYPE),
    (51, "plaintext twice, the same", r#"{"plaintext":"PT","plaintext":"PT"}"#, WRONG_TYPE),
    (51, "plaintext twice, first null", r#"{"plaintext":null,"plaintext":"PT"}"#, WRONG_TYPE),
    (51, "plaintext twice, once escaped", r#"{"plaintext":"PT","pl\u0061intext":"AA=="}"#, WRONG_TYPE),
    (
        51,
        "both spellings",
        r#"{"plaintext":"PT","additionalAuthenticatedData":"AA==","additional_authenticated_data":"AAA="}"#,
        WRONG_TYPE,
    ),
    (
        51,
        "both spellings of a context",
        r#"{"plaintext":"PT","additionalContext":{},"additional_context":{}}"#,
        WRONG_TYPE,
    ),
    (
        51,
        "both spellings of a name",
        r#"{"plaintext":"PT","additionalContext":{"relativeResourceName":"a","RelativeResourceName":"b"}}"#,
        WRONG_TYPE,
    ),
    (
        51,
        "a reason twice",
        r#"{"plaintext":"PT","additionalContext":{"accessReasonContext":{"reason":5,"reason":1}}}"#,
        WRONG_TYPE,
    ),
    (51, "one spelling of each", r#"{"plaintext":"PT","additional_authenticated_data":"AAA="}"#, Good),
    (52, "null", "null", WRONG_TYPE),
    (52, "a number", "5", WRONG_TYPE),
    (52, "text", "\"PT\"", WRONG_TYPE),
    (52, "true", "true", WRONG_TYPE),
    (52, "an empty list", "[]", WRONG_TYPE),
    (52, "the document in a list", r#"[{"plaintext":"PT"}]"#, WRONG_TYPE),
    (52, "a list of the fields", r#"[null,"PT",null,null,null]"#, WRONG_TYPE),
    (52, "a context that is a list", r#"{"plaintext":"PT","additionalContext":["name",null,true]}"#, WRONG_TYPE),
    (
        52,
        "a reason context that is a list",
        r#"{"plaintext":"PT","additionalContext":{"accessReasonContext":[5]}}"#,
        WRONG_TYPE,
    ),
    (52, "plaintext a number", r#"{"plaintext":5}"#, WRONG_TYPE),
    (52, "plaintext a list of bytes", r#"{"plaintext":[1,2,3]}"#, WRONG_TYPE),
    (52, "plaintext an object", r#"{"plaintext":{"value":"PT"}}"#, WRONG_TYPE),
    (52, "plaintext true", r#"{"plaintext":true}"#, WRONG_TYPE),
    (52, "plaintext null, which is absent", r#"{"plaintext":null}"#, MISSING),
    (52, "aad a number", r#"{"plaintext":"PT","additionalAuthenticatedData":0}"#, WRONG_TYPE),
    (52, "aad null, which is absent", r#"{"plaintext":"PT","additionalAuthenticatedData":null}"#, Good),
    (52, "a context that is text", r#"{"plaintext":"PT","additionalContext":"x"}"#, WRONG_TYPE),
    (52, "a context that is null", r#"{"plaintext":"PT","additionalContext":null}"#, Good),
    (52, "a name that is a number", r#"{"plaintext":"PT","additionalContext":{"relativeResourceName":1}}"#, WRONG_TYPE),
    (52, "a probe that is text", r#"{"plaintext":"PT","additionalContext":{"isKeyHealthCheck":"true"}}"#, WRONG_TYPE),
    (52, "a probe that is 1", r#"{"plaintext":"PT","additionalContext":{"isKeyHealthCheck":1}}"#, WRONG_TYPE),
    (52, "a probe that is null", r#"{"plaintext":"PT","additionalContext":{"isKeyHealthCheck":null}}"#, Good),
    (52, "a key path that is a list", r#"{"plaintext":"PT","keyPath":["v0/keys/demo"]}"#, WRONG_TYPE),
    (53, "an empty object", "{}", MISSING),
    (53, "unknown fields", r#"{"plaintext":"PT","new":1,"newer":{"a":[null,{"b":"c"}]},"":""}"#, Good),
    (53, "unknown fields in a context", r#"{"plaintext":"PT","additionalContext":{"new":{"a":[1]}}}"#, Good),
    (53, "a name in other letters", r#"{"Plaintext":"PT"}"#, MISSING),
    (53, "a name of another spelling", r#"{"plain_text":"PT"}"#, MISSING),
    (53, "__proto__", r#"{"plaintext":"PT","__proto__":{"wrappedBlob":"AA=="},"constructor":null}"#, Good),
    (53, "an unknown field twice", r#"{"plaintext":"PT","new":1,"new":2}"#, Good),
    (54, "numbers in unknown fields", r#"{"plaintext":"PT","a":-0,"b":12345678901234567890123,"c":1e308}"#, Good),
    (54, "a number with a leading zero", r#"{"plaintext":"PT","a":01}"#, NO_JSON),
    (54, "a number with a plus", r#"{"plaintext":"PT","a":+1}"#, NO_JSON),
    (54, "a hexadecimal number", r#"{"plaintext":"PT","a":0x1}"#, NO_JSON),
    (54, "a number that ends with a point", r#"{"plaintext":"PT","a":1.}"#, NO_JSON),
];

/// Class, the value of `reason`, and what it means to a policy; `None` if it is no enum of proto3 JSON.
const REASONS: &[(u8, &str, Option<&str>)] = &[
    (55, "\"CUSTOMER_INITIATED_ACCESS\"", Some("CUSTOMER_INITIATED_ACCESS")),
    (55, "5", Some("CUSTOMER_INITIATED_ACCESS")),
    (55, "0", Some("REASON_UNSPECIFIED")),
    (55, "null", Some("REASON_UNSPECIFIED")),
    (55, "\"REASON_UNSPECIFIED\"", Some("REASON_UNSPECIFIED")),
    (55, "9999", Some("UNKNOWN")),
    (55, "-1", Some("UNKNOWN")),
    (55, "18446744073709551615", Some("UNKNOWN")),
    (55, "\"FOO\"", Some("UNKNOWN")),
    (55, "\"\"", Some("UNKNOWN")),
    (55, "\"customer_initiated_access\"", Some("UNKNOWN")),
    (55, "\"5\"", Some("UNKNOWN")),
    (55, "\"CUSTOMER_INITIATED_ACCESS\\n\"", Some("UNKNOWN")),
    (54, "5.0", None),
    (54, "5.5", None),
    (54, "1e999", None),
    (54, "-0", None),
    (54, "123456789012345678901234567890", None),
    (54, "true", None),
    (54, "[5]", None),
    (54, "{\"reason\":5}", None),
];

#[test]
fn what_is_not_one_json_object_with_fields_of_the_right_types_is_refused() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let plaintext = base64(PLAINTEXT);
    for &(class, name, body, expect) in BODIES {
        table.row(class, name, post_json(WRAP, &token, body.replace("PT", &plaintext)), expect);
    }
    for &(class, reason, meaning) in REASONS {
        let context = format!("{{\"accessReasonContext\":{{\"reason\":{reason}}}}}");
        let body = format!("{{\"plaintext\":\"{plaintext}\",\"additionalContext\":{context}}}");
        let expect = if meaning.is_some() { Good } else { Refused(400, "body: ") };
        table.row(class, &format!("reason {reason}"), post_json(WRAP, &token, body), expect);
        if let Some(meaning) = meaning {
            let ekm = &table.ekm;
            let last = || ekm.audit().pop().unwrap();
            ekm.eventually("audited", || last()["justification"] == meaning);
        }
    }

    let utf16 = |bytes: fn(u16) -> [u8; 2]| good_body().encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let mut bytes =
        |class: u8, name: &str, body: Vec<u8>, expect| table.row(class, name, post_json(WRAP, &token, body), expect);
    bytes(47, "UTF-16, little end first", utf16(u16::to_le_bytes), NO_JSON);
    bytes(47, "UTF-16, big end first", utf16(u16::to_be_bytes), NO_JSON);
    let with = |prefix: &str, raw: &[u8]| {
        let end = format!("\",\"plaintext\":\"{plaintext}\"}}");
        [prefix.as_bytes(), raw, end.as_bytes()].concat()
    };
    for (name, raw) in
        [("Latin-1", &b"\xe9"[..]), ("cut", b"\xe2\x82"), ("overlong", b"\xc0\xaf"), ("CESU", b"\xed\xa0\x80")]
    {
        bytes(47, &format!("{name} in a field"), with("{\"keyPath\":\"", raw), NO_UTF8);
        bytes(47, &format!("{name} in a name"), with("{\"", &[raw, b"\":\""].concat()), NO_UTF8);
        bytes(47, &format!("{name} in an unknown field"), with("{\"new\":\"", raw), NO_UTF8);
    }

    let limit = 256 * 1024;
    let filled = |open: &str, middle: &str, close: &str| {
        let count = (limit - open.len() - close.len()) / middle.len();
        format!("{open}{}{close}", middle.repeat(count)).into_bytes()
    };
    let end = format!("\"plaintext\":\"{plaintext}\"}}");
    bytes(49, "100 000 lists", "[".repeat(100_000).into(), WRONG_TYPE);
    bytes(49, "lists that close", [vec![b'['; 50_000], vec![b']'; 50_000]].concat(), WRONG_TYPE);
    bytes(49, "10 000 contexts in each other", "{\"additionalContext\":".repeat(10_000).into(), TOO_SHORT);
    bytes(49, "lists as plaintext", format!("{{\"plaintext\":{}", "[".repeat(100_000)).into(), WRONG_TYPE);
    // What is passed over is passed over without a stack, so depth costs nothing there.
    let deep = format!("{{\"new\":{}{},{end}", "[".repeat(100_000), "]".repeat(100_000));
    bytes(49, "100 000 lists in an unknown field", deep.into(), Good);
    let deep = format!("{{\"new\":{}1{},{end}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    bytes(49, "20 000 objects in an unknown field", deep.into(), Good);
    let endless = format!("{{\"new\":{}", "[".repeat(100_000));
    bytes(49, "lists that do not end", endless.into(), TOO_SHORT);
    let many: String = (0..20_000).map(|number| format!("\"k{number}\":1,")).collect();
    bytes(50, "20 000 names", format!("{{{many}{end}").into(), Good);
    bytes(50, "one name very often", filled("{", "\"a\":1,", &end), Good);
    bytes(50, "a name of 256 KiB less a bit", filled("{\"", "a", &format!("\":1,{end}")), Good);
    let mut longest = filled(&format!("{{{end}"), " ", "");
    assert_eq!(longest.len(), limit);
    bytes(50, "as long as a body may be", longest.clone(), Good);
    longest.push(b' ');
    bytes(50, "a byte more", longest, TOO_LONG);
    let million: String = (0..1_000_000).map(|number| format!("\"k{number}\":1,")).collect();
    bytes(50, "1 000 000 names", format!("{{{million}{end}").into(), TOO_LONG);
    table.finish(&[&plaintext[..20]]);
}

#[test]
fn text_of_a_caller_stays_in_its_field_of_the_audit_line() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let names = [
        "a\0b",
        "a\n{\"code\":\"ok\",\"forged\":true}\n",
        "a\r\nb",
        "\",\"code\":\"forged\",\"x\":\"",
        "a\u{202e}gpj.b",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{2028}\u{2029}\u{85}",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "",
    ];
    for name in names {
        let body = json!({"plaintext": base64(PLAINTEXT), "additionalContext": {"relativeResourceName": name}});
        table.row(56, &format!("{name:?}"), post_json(WRAP, &token, body.to_string()), Good);
    }
    let long = "ä".repeat(50_000);
    let body = json!({"plaintext": base64(PLAINTEXT), "additionalContext": {"relativeResourceName": long}});
    table.row(56, "a name of 100 KB", post_json(WRAP, &token, body.to_string()), Good);
    let body =
        json!({"plaintext": base64(PLAINTEXT), "additionalContext": {"relativeResourceName": "ä".repeat(500_000)}});
    table.row(56, "a name of 1 MB", post_json(WRAP, &token, body.to_string()), TOO_LONG);

    let ekm = &table.ekm;
    ekm.eventually("audited", || ekm.audit().len() == names.len() + 2);
    let audit = ekm.audit();
    for (line, name) in audit.iter().zip(names) {
        assert_eq!(line["relative_resource_name"], name, "{line}");
        assert!(line["code"] == "ok" && line["forged"].is_null(), "{line}");
    }
    assert_eq!(audit[names.len()]["relative_resource_name"], "ä".repeat(512), "cut at 1024 bytes");
    let text = std::fs::read_to_string(ekm.directory.path().join("audit.jsonl")).unwrap();
    assert!(!text.contains('\u{1b}') && !text.contains('\0') && !text.contains('\r'), "control characters in the file");
    table.finish(&[]);
}
