//! The admin API as its OpenAPI document has it.

use std::collections::{BTreeMap, BTreeSet};

use ekm_tests::{Answer, Connection, Ekm};
use serde_json::{Value, json};

/// The document, with objects closed: an answer must have no field that is not documented.
struct Document(Value);

impl Document {
    fn of(ekm: &Ekm) -> Self {
        let mut document = ekm.admin().admin("GET", "/v1/openapi.json", None, None).json();
        close(&mut document["components"]["schemas"]);
        Self(document)
    }

    /// Method, in capital letters, and path of every operation.
    fn operations(&self) -> BTreeSet<(String, String)> {
        let paths = self.0["paths"].as_object().unwrap();
        let each =
            paths.iter().flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (method, path)));
        each.map(|(method, path)| (method.to_uppercase(), path.clone())).collect()
    }

    /// Fails unless the status is documented for the operation, and the body is as its schema says.
    fn check(&self, method: &str, template: &str, answer: &Answer) {
        let name = format!("{method} {template} answered {}", answer.status);
        let response = &self.0["paths"][template][method.to_lowercase()]["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{name}, which is not documented: {}", answer.text());
        let media_type = answer.header("content-type").unwrap_or_else(|| panic!("{name} without a media type"));
        let schema = &response["content"][media_type]["schema"];
        assert!(schema.is_object(), "{name} with {media_type}, which is not documented");
        if media_type != "application/json" {
            return;
        }
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap();
        let errors: Vec<_> =
            validator.iter_errors(&answer.json()).map(|e| format!("{} at {}", e, e.instance_path())).collect();
        assert!(errors.is_empty(), "{name} with {}: {errors:?}", answer.text());
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if members.get("properties").is_some_and(Value::is_object) && members.contains_key("type") {
                members.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[test]
fn every_documented_operation_is_there_and_no_other_method() {
    let ekm = Ekm::dev(&[]);
    let document = Document::of(&ekm);
    let mut connection = ekm.admin();
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (method, path) in document.operations() {
        methods.entry(path).or_default().insert(method);
    }
    assert!(methods.len() > 15);
    for (path, documented) in methods {
        let target = path.replace("{id}", "00000000-0000-0000-0000-000000000000").replace('{', "v0/").replace('}', "");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            if documented.contains(method) {
                let stranger = connection.admin(method, &target, Some("a.b.c"), Some("{}"));
                assert_eq!(stranger.status, 401);
                document.check(method, &path, &stranger);
                // What neither reads a body nor a query refuses one; so nothing is done yet.
                let wrong = connection.admin(method, &format!("{target}?x"), None, Some("["));
                assert_eq!(wrong.status, 400, "{method} {path}: {wrong:?}");
                document.check(method, &path, &wrong);
            } else {
                assert_eq!(connection.admin(method, &target, None, None).status, 405, "{method} {path}");
            }
        }
    }
}

/// Calls, checks every answer against the document, and remembers what has succeeded.
struct Walk {
    document: Document,
    connection: Connection,
    succeeded: BTreeSet<(String, String)>,
}

impl Walk {
    #[track_caller]
    fn call(&mut self, operation: &str, target: &str, token: Option<&str>, body: Option<Value>, status: u16) -> Answer {
        let (method, template) = operation.split_once(' ').unwrap();
        let body = body.map(|body| body.to_string());
        let answer = self.connection.admin(method, target, token, body.as_deref());
        self.document.check(method, template, &answer);
        assert_eq!(answer.status, status, "{method} {target} {body:?}: {}", answer.text());
        if status < 300 {
            self.succeeded.insert((method.into(), template.into()));
        }
        answer
    }

    #[track_caller]
    fn get(&mut self, template: &str, target: &str, status: u16) -> Answer {
        self.call(&format!("GET {template}"), target, None, None, status)
    }

    #[track_caller]
    fn change(&mut self, command: Value, more: Value, status: u16) -> Answer {
        let mut request = json!({"command": command, "reason": "a walk"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.call("POST /v1/changes", "/v1/changes", None, Some(request), status)
    }
}

#[test]
fn every_answer_is_as_the_document_says() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let (document, second) = (Document::of(&ekm), ekm.second_person());
    let mut walk = Walk { document, connection: ekm.admin(), succeeded: BTreeSet::new() };

    // Reading what `ekm dev` has made.
    let all = "keys spaces policies approvals changes catalog hsm frontends whoami openapi.json";
    for path in all.split(' ') {
        let path = format!("/v1/{path}");
        walk.get(&path, &path, 200);
    }
    walk.get("/v1/keys", "/v1/keys?space=v0/cryptospaces/demo&state=enabled&prefix=v0/&page_size=1", 200);
    let key = walk.get("/v1/keys/{path}", "/v1/keys/v0/keys/demo", 200).json();
    walk.get("/v1/keys/{path}", "/v1/keys/v0/keys/none", 404);
    walk.get("/v1/spaces/{path}", "/v1/spaces/v0/cryptospaces/demo", 200);
    walk.get("/v1/spaces/{path}", "/v1/spaces/v0/cryptospaces/none", 404);
    let policy = format!("/v1/policies/{}", key["policy"].as_str().unwrap());
    let policy = walk.get("/v1/policies/{name}", &policy, 200).json()["policy"].clone();
    walk.get("/v1/policies/{name}", "/v1/policies/none", 404);
    walk.get("/v1/approvals/{id}", "/v1/approvals/00000000-0000-0000-0000-000000000000", 404);
    let question = json!({"key": "v0/keys/demo", "caller": "a@example.com", "verb": "wrap"});
    walk.call("POST /v1/explain", "/v1/explain", None, Some(question), 200);
    walk.call("POST /v1/lint", "/v1/lint", None, Some(policy.clone()), 200);

    // Changes, and what speaks against them.
    let demo = json!({"type": "key-disable", "path": "v0/keys/demo"});
    assert_eq!(walk.change(demo.clone(), json!({"dry_run": true}), 200).json()["outcome"], "would-change");
    assert_eq!(walk.change(demo.clone(), json!({}), 200).json()["outcome"], "done");
    assert_eq!(walk.change(demo, json!({}), 200).json()["outcome"], "unchanged");
    let space = json!({"type": "space-create", "path": "v0/cryptospaces/walk"});
    walk.change(space.clone(), json!({}), 200);
    walk.change(space, json!({}), 409);
    let key = json!({"type": "key-create", "path": "v0/keys/walk", "space": "v0/cryptospaces/walk", "policy": {"own": policy}});
    walk.change(key, json!({}), 200);
    walk.change(json!({"type": "key-enable", "path": "v0/keys/none"}), json!({}), 404);
    let update = json!({"type": "key-update", "path": "v0/keys/walk", "labels": {"a": "b"}, "description": ""});
    walk.change(update.clone(), json!({}), 428);
    walk.change(update.clone(), json!({"if_revision": 1}), 412);
    let revision = walk.get("/v1/keys/{path}", "/v1/keys/v0/keys/walk", 200).json()["revision"].clone();
    walk.change(update, json!({"if_revision": revision}), 200);
    let labelled = walk.get("/v1/keys", "/v1/keys?label=a=b", 200).json();
    assert_eq!(labelled["items"].as_array().unwrap().len(), 1);

    // What takes two.
    let decide = |walk: &mut Walk, approval: &Value, word: &str, token: Option<&str>, status: u16| {
        let target = format!("/v1/approvals/{}/{word}", approval["id"].as_str().unwrap());
        let decision = json!({"payload_sha256": approval["payload_sha256"], "reason": "seen"});
        walk.call(&format!("POST /v1/approvals/{{id}}/{word}"), &target, token, Some(decision), status)
    };
    let destroy =
        walk.change(json!({"type": "key-destroy", "path": "v0/keys/walk"}), json!({}), 202).json()["approval"].clone();
    let shown = format!("/v1/approvals/{}", destroy["id"].as_str().unwrap());
    assert_eq!(walk.get("/v1/approvals/{id}", &shown, 200).json()["state"], "requested");
    decide(&mut walk, &destroy, "approve", None, 409);
    decide(&mut walk, &destroy, "approve", Some(&second), 200);
    decide(&mut walk, &destroy, "approve", Some(&second), 409);
    let settings = walk.get("/v1/catalog", "/v1/catalog", 200).json()["settings_revision"].clone();
    let settings =
        walk.change(json!({"type": "settings-set", "destroy_grace_days": 8}), json!({"if_revision": settings}), 202);
    decide(&mut walk, &settings.json()["approval"], "reject", Some(&second), 200);
    let export = walk.change(json!({"type": "catalog-export"}), json!({}), 202).json()["approval"].clone();
    let fetch = format!("/v1/approvals/{}/export", export["id"].as_str().unwrap());
    walk.get("/v1/approvals/{id}/export", &fetch, 409);
    decide(&mut walk, &export, "approve", Some(&second), 200);
    assert!(!walk.get("/v1/approvals/{id}/export", &fetch, 200).body.is_empty());
    assert_eq!(
        walk.get("/v1/approvals", "/v1/approvals?state=approved", 200).json()["items"].as_array().unwrap().len(),
        2
    );

    // Every key is on the HSM.
    let verified = walk.call("POST /v1/hsm/verify", "/v1/hsm/verify", None, Some(json!({"repair": true})), 200).json();
    assert_eq!((&verified["findings"], verified["next"].is_null()), (&json!([]), true), "{verified}");

    // The only HSM, out of use and back.
    walk.change(json!({"type": "hsm-drain", "name": "ekm-dev"}), json!({}), 409);
    walk.change(json!({"type": "hsm-drain", "name": "ekm-dev", "force": true}), json!({}), 200);
    walk.change(json!({"type": "hsm-resume", "name": "ekm-dev"}), json!({}), 200);

    // The same again, now that there is something in every list.
    for path in ["keys", "spaces", "policies", "approvals", "changes", "catalog", "frontends"] {
        let path = format!("/v1/{path}");
        walk.get(&path, &path, 200);
    }
    assert_eq!(walk.succeeded, walk.document.operations(), "an operation has never succeeded here");
    assert_eq!(ekm.metric("ekm_panics_total"), 0.0);
}
