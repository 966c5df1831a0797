//! Temporary: the signatures of the service, which is written elsewhere.
#![expect(clippy::todo, clippy::unused_async, missing_docs, unused_variables, reason = "temporary")]

use ekm_core::KeyPath;
use ekm_core::catalog::ApprovalState;
use serde_json::Value;
use uuid::Uuid;

use super::actor::Actor;
use super::api::*;
use super::error::AdminError;
use super::query::*;

pub struct Admin;

type Answer<T> = Result<T, AdminError>;

impl Admin {
    pub async fn change(&self, actor: &Actor, request: ChangeRequest) -> Answer<ChangeResult> {
        todo!()
    }
    pub async fn decide(&self, actor: &Actor, id: Uuid, approve: bool, decision: Decision) -> Answer<ChangeResult> {
        todo!()
    }
    pub async fn keys(&self, query: KeyQuery) -> Answer<Page<KeyView>> {
        todo!()
    }
    pub async fn key(&self, path: &KeyPath) -> Answer<KeyView> {
        todo!()
    }
    pub async fn spaces(&self, query: PageQuery) -> Answer<Page<SpaceView>> {
        todo!()
    }
    pub async fn space(&self, path: &KeyPath) -> Answer<SpaceView> {
        todo!()
    }
    pub async fn policies(&self, query: PageQuery) -> Answer<Page<PolicyView>> {
        todo!()
    }
    pub async fn policy(&self, name: &str) -> Answer<PolicyView> {
        todo!()
    }
    pub async fn approvals(&self, state: Option<ApprovalState>, query: PageQuery) -> Answer<Page<ApprovalView>> {
        todo!()
    }
    pub async fn approval(&self, id: Uuid) -> Answer<ApprovalView> {
        todo!()
    }
    pub async fn changes(&self, before: Option<u64>, limit: u64) -> Answer<Page<ChangeView>> {
        todo!()
    }
    pub async fn catalog(&self) -> Answer<CatalogView> {
        todo!()
    }
    pub async fn frontends(&self) -> Answer<Page<FrontendView>> {
        todo!()
    }
    pub async fn explain(&self, request: ExplainRequest) -> Answer<Value> {
        todo!()
    }
    pub async fn lint(&self, policy: Value) -> Answer<Vec<LintWarning>> {
        todo!()
    }
    pub async fn export(&self, actor: &Actor, approval: Uuid) -> Answer<Vec<u8>> {
        todo!()
    }
}
