//! The OpenAPI document: made from the handlers and the types that they read and write.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};

use super::routes;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "External key manager: admin API",
        description = "Keys, crypto spaces, policies and approvals. Log in with a client certificate, with a token, or over the \
                       Unix socket. Every error has a code with an entry in the error reference.",
    ),
    paths(
        routes::change, routes::changes, routes::keys, routes::key, routes::spaces, routes::space, routes::policies,
        routes::policy, routes::explain, routes::lint, routes::approvals, routes::approval, routes::approve,
        routes::reject, routes::export, routes::catalog, routes::hsm, routes::verify_hsm, routes::frontends, routes::whoami, routes::openapi_json,
    ),
    modifiers(&EveryPath),
    security(("token" = []), ()),
)]
struct Document;

/// The OpenAPI document, as `GET /v1/openapi.json` answers it.
pub fn document() -> OpenApi {
    Document::openapi()
}

/// What can happen everywhere.
struct EveryPath;

impl Modify for EveryPath {
    fn modify(&self, document: &mut OpenApi) {
        let error = |description: &str| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorView"))).build();
            RefOr::T(ResponseBuilder::new().description(description).content("application/json", content).build())
        };
        for item in document.paths.paths.values_mut() {
            let posts = item.post.as_mut();
            for operation in posts.into_iter().chain(item.get.as_mut()) {
                let reads_a_body = operation.request_body.is_some();
                let mut common = vec![
                    ("400", "The request is wrong; the message says where"),
                    ("401", "Nobody has logged in"),
                    ("403", "Not one of the people, or without the role"),
                    ("500", "The catalog is not to be believed, or a bug"),
                    ("503", "The catalog, or the token's issuer, cannot be reached, or too much is going on"),
                ];
                if reads_a_body {
                    common.push(("415", "The body is not declared as JSON"));
                }
                for (status, description) in common {
                    let responses = &mut operation.responses.responses;
                    responses.entry(status.into()).or_insert_with(|| error(description));
                }
            }
        }
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let routes: BTreeSet<_> = routes::table().iter().map(|(path, _)| path.replace("{*", "{")).collect();
        let documented: BTreeSet<_> = document().paths.paths.keys().cloned().collect();
        assert_eq!(routes, documented);
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let text = document().to_json().unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let references: BTreeSet<_> =
            text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(references.len() > 15, "{references:?}");
        for name in references {
            assert!(document["components"]["schemas"][name].is_object(), "{name} is missing");
        }
    }
}
