//! The admin plane: the API over which operators change the catalog.

#[expect(missing_docs, reason = "a path is a path: where a field's name says it, the schema needs no more")]
pub mod api;
