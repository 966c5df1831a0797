//! The service behind the admin API: reads here, changes in [`super::change`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_core::KeyPath;
use ekm_core::caller::Caller;
use ekm_core::catalog::{
    self, ApprovalRecord, ApprovalState, CatalogKey, KeyRecord, Kind, Mirror, PolicyRecord, SealedRow, Settings,
    SpaceRecord,
};
use ekm_core::hsm::Shard;
use ekm_core::justification::Justification;
use ekm_core::policy::{self, Policy, Verb};
use ekm_storage::{CatalogStore, SnapshotFile, StorageError};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::actor::Actor;
use super::api::{
    ApprovalView, CatalogView, ChangeView, Command, ExplainRequest, FrontendView, HsmVerified, HsmVerify, HsmView,
    KeyView, LintWarning, Page, PolicyView, SpaceView,
};
use super::commands::hsms::shard_with;
use super::error::AdminError;
use super::query::{KeyQuery, PageQuery};
use super::views;
use crate::catalog::{CatalogError, Gate};
use crate::hsm_audit;
use crate::process::host_name;
use crate::router::DataPlane;

/// How long one answer about the HSM's keys takes at most, but for the last key's time.
const VERIFY_PAGE: Duration = Duration::from_secs(2);

/// How long a frontend counts as alive after its last word.
const ALIVE: time::Duration = time::Duration::seconds(30);
/// How long an approved export can be fetched.
const EXPORT_TTL: time::Duration = time::Duration::HOUR;

/// The service behind the admin API.
pub struct Admin {
    pub(super) store: Arc<CatalogStore>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) gate: Arc<Gate>,
}

impl Admin {
    /// Beside the data plane of the same process.
    pub fn new(store: Arc<CatalogStore>, plane: Arc<DataPlane>, gate: Arc<Gate>) -> Self {
        Self { store, plane, gate }
    }

    /// What this frontend knows for certain, if the catalog is open: what changes are built on.
    pub(super) fn mirror(&self) -> Result<Arc<Mirror>, AdminError> {
        Ok(self.gate.known()?)
    }

    /// The key of the catalog, if it is open.
    pub(super) fn catalog_key(&self) -> Result<Arc<CatalogKey>, AdminError> {
        Ok(Arc::clone(self.mirror()?.key()))
    }

    fn open<T: DeserializeOwned>(&self, row: &SealedRow) -> Result<T, AdminError> {
        let refused =
            |problem| StorageError::Row { table: "records", row: format!("{} {}", row.kind, row.id), problem };
        Ok(self.catalog_key()?.open_row(row).map_err(refused)?)
    }

    pub(super) async fn record<T: DeserializeOwned>(
        &self,
        kind: Kind,
        id: Uuid,
    ) -> Result<Option<(T, u64)>, AdminError> {
        let Some(row) = self.store.row(kind.name(), id).await? else { return Ok(None) };
        if self.gate.mirror().is_some_and(|mirror| mirror.is_outdated(kind, &row)) {
            let (row, problem) = (format!("{} {id}", kind.name()), "it was taken back to an earlier state".into());
            return Err(StorageError::Row { table: "records", row, problem }.into());
        }
        Ok(Some((self.open(&row)?, row.revision)))
    }

    pub(super) async fn named<T: Named>(&self, kind: Kind, name: &str) -> Result<(T, u64), AdminError> {
        let missing = || not_found(kind, name);
        let id = self.store.id_of(kind.name(), name).await?.ok_or_else(missing)?;
        let (record, revision): (T, u64) = self.record(kind, id).await?.ok_or_else(missing)?;
        record.must_have(name)?;
        Ok((record, revision))
    }

    /// A key by one of its paths.
    pub async fn key(&self, path: &KeyPath) -> Result<KeyView, AdminError> {
        let (record, revision) = self.named::<KeyRecord>(Kind::Key, path.as_str()).await?;
        self.key_view(record, revision, &mut HashMap::new()).await
    }

    /// Adds the names of what a key refers to.
    pub(super) async fn key_view(
        &self,
        record: KeyRecord,
        revision: u64,
        names: &mut HashMap<Uuid, String>,
    ) -> Result<KeyView, AdminError> {
        let space = match names.get(&record.space) {
            Some(name) => name.clone(),
            None => {
                let space = self.record::<SpaceRecord>(Kind::Space, record.space).await?;
                space.map_or_else(String::new, |(space, _)| space.path.to_string())
            }
        };
        let policy = match names.get(&record.policy) {
            Some(name) => name.clone(),
            None => {
                let policy = self.record::<PolicyRecord>(Kind::Policy, record.policy).await?;
                policy.map_or_else(String::new, |(policy, _)| policy.name)
            }
        };
        names.insert(record.space, space.clone());
        names.insert(record.policy, policy.clone());
        Ok(views::key(record, space, policy, revision))
    }

    /// Keys in the order of their paths; one with several paths stands where its first one does.
    pub async fn keys(&self, query: KeyQuery) -> Result<Page<KeyView>, AdminError> {
        let prefix = query.prefix.unwrap_or_default();
        let (mut items, mut names) = (Vec::new(), HashMap::new());
        let mut after = query.page_token.unwrap_or_default();
        if after.is_empty() && !prefix.is_empty() {
            // Names after the prefix leave out one that equals it.
            if let Some(id) = self.store.id_of(Kind::Key.name(), &prefix).await? {
                self.add_if_wanted(&prefix, id, &query.space, query.state, &query.label, &mut names, &mut items)
                    .await?;
            }
            after.clone_from(&prefix);
        }
        loop {
            let page = self.store.names(Kind::Key.name(), &after, query.page_size).await?;
            let full = page.len() as u64 == query.page_size;
            for (path, id) in page {
                if !path.starts_with(&prefix) {
                    return Ok(Page { items, next_page_token: None });
                }
                self.add_if_wanted(&path, id, &query.space, query.state, &query.label, &mut names, &mut items).await?;
                after = path;
                if items.len() as u64 >= query.page_size {
                    return Ok(Page { items, next_page_token: Some(after) });
                }
            }
            if !full {
                return Ok(Page { items, next_page_token: None });
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the three filters, and where what fits them goes")]
    async fn add_if_wanted(
        &self,
        path: &str,
        id: Uuid,
        space: &Option<KeyPath>,
        state: Option<catalog::KeyState>,
        label: &Option<(String, String)>,
        names: &mut HashMap<Uuid, String>,
        items: &mut Vec<KeyView>,
    ) -> Result<(), AdminError> {
        let Some((record, revision)) = self.record::<KeyRecord>(Kind::Key, id).await? else { return Ok(()) };
        let first = record.paths.first().is_some_and(|first| first.as_str() == path);
        let labelled = label.as_ref().is_none_or(|(name, value)| record.labels.get(name) == Some(value));
        if !first || !labelled || state.is_some_and(|state| record.state != state) {
            return Ok(());
        }
        let view = self.key_view(record, revision, names).await?;
        if space.as_ref().is_none_or(|space| view.space == space.as_str()) {
            items.push(view);
        }
        Ok(())
    }

    /// A crypto space by its path.
    pub async fn space(&self, path: &KeyPath) -> Result<SpaceView, AdminError> {
        let (record, revision) = self.named(Kind::Space, path.as_str()).await?;
        let mut view = views::space(record, None, revision);
        self.name_creation_policy(&mut view).await?;
        Ok(view)
    }

    /// Puts a policy's name where its id is.
    async fn name_creation_policy(&self, view: &mut SpaceView) -> Result<(), AdminError> {
        if let Some(creation) = &mut view.creation
            && let Ok(id) = creation.policy.parse()
            && let Some((policy, _)) = self.record::<PolicyRecord>(Kind::Policy, id).await?
        {
            creation.policy = policy.name;
        }
        Ok(())
    }

    /// Crypto spaces.
    pub async fn spaces(&self, query: PageQuery) -> Result<Page<SpaceView>, AdminError> {
        let mut page: Page<SpaceView> = self
            .page(Kind::Space, &query.page_token, query.page_size, |record, revision| {
                Ok(Some(views::space(record, None, revision)))
            })
            .await?;
        for view in &mut page.items {
            self.name_creation_policy(view).await?;
        }
        Ok(page)
    }

    /// A policy by its name.
    pub async fn policy(&self, name: &str) -> Result<PolicyView, AdminError> {
        let (record, revision) = self.named(Kind::Policy, name).await?;
        Ok(views::policy(record, revision))
    }

    /// Policies.
    pub async fn policies(&self, query: PageQuery) -> Result<Page<PolicyView>, AdminError> {
        self.page(Kind::Policy, &query.page_token, query.page_size, |record, revision| {
            Ok(Some(views::policy(record, revision)))
        })
        .await
    }

    /// An approval.
    pub async fn approval(&self, id: Uuid) -> Result<ApprovalView, AdminError> {
        views::approval(self.approval_record(id).await?)
    }

    pub(super) async fn approval_record(&self, id: Uuid) -> Result<ApprovalRecord, AdminError> {
        let found = self.record(Kind::Approval, id).await?;
        Ok(found.ok_or_else(|| not_found(Kind::Approval, &id.to_string()))?.0)
    }

    /// Approvals.
    pub async fn approvals(
        &self,
        state: Option<ApprovalState>,
        query: PageQuery,
    ) -> Result<Page<ApprovalView>, AdminError> {
        self.page(Kind::Approval, &query.page_token, query.page_size, |record: ApprovalRecord, _| {
            let wanted = state.is_none_or(|state| record.state == state);
            wanted.then(|| views::approval(record)).transpose()
        })
        .await
    }

    /// A page of the rows of a kind that `view` wants, in the order of their ids.
    async fn page<R: DeserializeOwned, V>(
        &self,
        kind: Kind,
        token: &Option<String>,
        size: u64,
        view: impl Fn(R, u64) -> Result<Option<V>, AdminError>,
    ) -> Result<Page<V>, AdminError> {
        let parse =
            |token: &String| token.parse::<Uuid>().map_err(|_| AdminError::invalid("page_token", "it is none of ours"));
        let mut after = token.as_ref().map(parse).transpose()?;
        let mut items = Vec::new();
        loop {
            let rows = self.store.rows(kind.name(), after, size).await?;
            let full = rows.len() as u64 == size;
            for row in rows {
                items.extend(view(self.open(&row)?, row.revision)?);
                after = Some(row.id);
                if items.len() as u64 >= size {
                    return Ok(Page { items, next_page_token: Some(row.id.to_string()) });
                }
            }
            if !full {
                return Ok(Page { items, next_page_token: None });
            }
        }
    }

    /// The log of changes, newest first.
    pub async fn changes(&self, before: Option<u64>, limit: u64) -> Result<Page<ChangeView>, AdminError> {
        let before = before.unwrap_or(i64::MAX.cast_unsigned());
        let sealed = self.store.changes_before(before, limit).await?;
        let key = self.catalog_key()?;
        let opened = sealed.iter().map(|sealed| {
            let refused = |problem| StorageError::Row { table: "changes", row: sealed.revision.to_string(), problem };
            Ok(views::change(key.open_change(sealed).map_err(refused)?))
        });
        let items = opened.collect::<Result<Vec<_>, AdminError>>()?;
        let next_page_token = items.last().filter(|last| last.revision > 1).map(|last| last.revision.to_string());
        Ok(Page { items, next_page_token })
    }

    /// Every frontend that was there within the last day.
    pub async fn frontends(&self) -> Result<Page<FrontendView>, AdminError> {
        let now = OffsetDateTime::now_utc();
        let views = self.store.frontends().await?.into_iter().map(|frontend| FrontendView {
            alive: now - frontend.seen_at < ALIVE,
            name: frontend.name,
            instance: frontend.instance,
            version: frontend.version,
            revision: frontend.revision,
            seen_at: frontend.seen_at,
        });
        Ok(Page { items: views.collect(), next_page_token: None })
    }

    /// The HSM as this frontend sees it.
    pub fn hsm(&self) -> HsmView {
        let shards = self.plane.ekm.custodian().shards();
        let replicas = shards
            .iter()
            .flat_map(|shard| shard.replicas().iter().map(|replica| views::replica(shard.name(), replica.status())));
        HsmView {
            frontend: host_name(),
            instance: self.plane.instance.clone(),
            replicas: replicas.collect(),
            hedges: shards.iter().map(|shard| shard.counts().hedges).sum(),
            retries: shards.iter().map(|shard| shard.counts().retries).sum(),
        }
    }

    /// Looks at some keys on every replica of the HSM, for no longer than a client waits.
    pub async fn verify_hsm(&self, request: HsmVerify) -> Result<HsmVerified, AdminError> {
        let (snapshot, began) = (self.plane.ekm.snapshot(), Instant::now());
        let custodian = self.plane.ekm.custodian();
        let names =
            |shard: &Shard| shard.replicas().iter().map(|replica| replica.name().to_owned()).collect::<Vec<_>>();
        let wanted: Vec<_> = match (request.only, request.without) {
            (Some(only), _) => {
                shard_with(custodian, &only)?;
                vec![only]
            }
            (None, Some(without)) => {
                let others = names(shard_with(custodian, &without)?).into_iter();
                others.filter(|name| *name != without).collect()
            }
            (None, None) => custodian.shards().iter().flat_map(names).collect(),
        };
        let is_wanted = |name: &str| wanted.iter().any(|wanted| wanted == name);
        let keys = hsm_audit::objects(&snapshot);
        let from = request.after.map_or(0, |after| keys.partition_point(|key| *key <= after));
        let (mut checked, mut findings, mut next) = (0, Vec::new(), None);
        for key in &keys[from..] {
            if began.elapsed() > VERIFY_PAGE {
                break;
            }
            findings.extend(hsm_audit::look_at(&self.plane, &snapshot, *key, request.repair, is_wanted).await);
            (checked, next) = (checked + 1, Some(*key));
        }
        let next = next.filter(|_| from + checked < keys.len());
        let replicas = custodian.shards().iter().flat_map(Shard::replicas);
        let away = replicas.map(|replica| replica.status());
        let away = away.filter(|replica| replica.token.is_none() && is_wanted(&replica.name));
        let away = away.map(|replica| replica.name).collect();
        Ok(HsmVerified { keys: keys.len() as u64, checked: checked as u64, next, findings, away })
    }

    /// What holds for the whole catalog.
    pub async fn catalog(&self) -> Result<CatalogView, AdminError> {
        let key = self.catalog_key()?;
        let sealed = self.store.newest_head().await?.ok_or(StorageError::Empty)?;
        let head = key.open_head(&sealed).map_err(|problem| CatalogError::from(catalog::Tampered::Head(problem)))?;
        let schema = self.store.schema().await?;
        let settings = self.record::<Settings>(Kind::Settings, Uuid::nil()).await?;
        let (settings, settings_revision) = settings.unwrap_or_default();
        Ok(CatalogView {
            id: sealed.catalog,
            location: self.store.location(),
            revision: head.revision,
            epoch: head.epoch,
            schema_version: schema.version.unwrap_or_default(),
            supported_schema_versions: format!("{} to {}", schema.supported_from, schema.supported_to),
            rows: head.rows,
            destroy_grace_days: settings.destroy_grace_days,
            denial_delay_minutes: settings.denial_delay_minutes,
            settings_revision,
            refused_rows: self.plane.ekm.snapshot().refused().take(100).collect(),
            unserved_keys: self.plane.unserved.list().iter().take(100).cloned().collect(),
            frontends: self.frontends().await?.items,
        })
    }

    /// What a policy says to a request, rule by rule.
    pub async fn explain(&self, request: ExplainRequest) -> Result<serde_json::Value, AdminError> {
        let (document, replaced) = match (&request.key, &request.policy_name, &request.policy) {
            (Some(path), None, None) => {
                let (key, _) = self.named::<KeyRecord>(Kind::Key, path.as_str()).await?;
                let policy = self.record::<PolicyRecord>(Kind::Policy, key.policy).await?;
                let (policy, _) = policy.ok_or(AdminError::Internal("a key's policy is missing"))?;
                (policy.document, [policy.replaced, key.replaced_policies].concat())
            }
            (None, Some(name), None) => {
                let (policy, _) = self.named::<PolicyRecord>(Kind::Policy, name).await?;
                (policy.document, policy.replaced)
            }
            (None, None, Some(policy)) => (policy.to_string(), Vec::new()),
            _ => return Err(AdminError::invalid("key", "name exactly one of key, policy_name and policy")),
        };
        let policy = Policy::parse(&document).map_err(|error| AdminError::invalid("policy", error.to_string()))?;
        let verb = Verb::from_name(&request.verb).ok_or_else(|| {
            let names: Vec<_> = Verb::ALL.iter().map(|verb| verb.name()).collect();
            AdminError::invalid("verb", format!("write one of {}", names.join(", ")))
        })?;
        let justification = request.justification.as_deref().map_or(Justification::Missing, Justification::from_name);
        let (email, issuer) = (request.caller.clone(), String::new());
        let caller = Caller { email, email_verified: true, subject: String::new(), issuer };
        let question = policy::Request {
            caller: &caller,
            verb,
            justification: &justification,
            resource: request.resource.as_deref(),
            now: request.at.unwrap_or_else(OffsetDateTime::now_utc),
        };
        let explanation = policy::explain(&policy, &question);
        let final_at = catalog::denial_final_at(&replaced, &question).filter(|_| !explanation.allowed);
        let mut explanation = serde_json::to_value(explanation).expect("an explanation has only text as map keys");
        if let Some(final_at) = final_at.and_then(|at| at.format(&Rfc3339).ok()) {
            explanation["final_at"] = final_at.into();
        }
        Ok(explanation)
    }

    /// What the linter says about a policy that is nowhere yet.
    pub async fn lint(&self, policy: serde_json::Value) -> Result<Vec<LintWarning>, AdminError> {
        let policy =
            Policy::parse(&policy.to_string()).map_err(|error| AdminError::invalid("policy", error.to_string()))?;
        let warnings = policy::lint(&policy, OffsetDateTime::now_utc()).into_iter().map(|warning| LintWarning {
            code: warning.code.to_owned(),
            rule: warning.rule as u64,
            text: warning.text,
        });
        Ok(warnings.collect())
    }

    /// The whole catalog, sealed as it is, for the one who was allowed to fetch it.
    pub async fn export(&self, actor: &Actor, approval: Uuid) -> Result<Vec<u8>, AdminError> {
        let view = self.approval(approval).await?;
        let now = OffsetDateTime::now_utc();
        let fresh = view.decided_at.is_some_and(|at| now - at < EXPORT_TTL);
        if view.command != (Command::CatalogExport {}) || view.state != ApprovalState::Approved || !fresh {
            return Err(AdminError::ApprovalRefused(
                "this is no export that was approved within the last hour; ask again".into(),
            ));
        }
        if view.requested_by != actor.name {
            return Err(AdminError::ApprovalRefused(format!(
                "only {}, who asked for it, can fetch it",
                view.requested_by
            )));
        }
        let file = std::env::temp_dir().join(format!("ekm-export-{}.db", Uuid::new_v4()));
        let note = serde_json::json!({"exported_at": now.to_string()});
        let note = self.catalog_key()?.seal_note("export", &note).map_err(CatalogError::from)?;
        let (store, target, runtime) = (Arc::clone(&self.store), file.clone(), tokio::runtime::Handle::current());
        // A thread of its own: this copies the whole catalog.
        let written = tokio::task::spawn_blocking(move || runtime.block_on(write_export(&store, &target, &note))).await;
        let bytes = tokio::fs::read(&file).await;
        for suffix in ["", "-wal", "-shm"] {
            let _ = tokio::fs::remove_file(format!("{}{suffix}", file.display())).await;
        }
        written.map_err(|_| AdminError::Internal("the export panicked"))??;
        bytes.map_err(|error| {
            tracing::error!(%error, "cannot read the export back");
            AdminError::Internal("the export could not be written")
        })
    }
}

/// What is found by a name. The table of names is in clear, so that the database can keep them unique; it is believed only where it
/// agrees with the row.
pub(super) trait Named: DeserializeOwned {
    /// Whether this is its name, or one of them.
    fn has_name(&self, name: &str) -> bool;

    /// Refuses a row that a name was made to lead to.
    fn must_have(&self, name: &str) -> Result<(), StorageError> {
        if self.has_name(name) {
            return Ok(());
        }
        let problem = "it leads to a row that does not have this name: it was changed by somebody else than ekm";
        Err(StorageError::Row { table: "names", row: name.into(), problem: problem.into() })
    }
}

impl Named for KeyRecord {
    fn has_name(&self, name: &str) -> bool {
        self.paths.iter().any(|path| path.as_str() == name)
    }
}

impl Named for SpaceRecord {
    fn has_name(&self, name: &str) -> bool {
        self.path.as_str() == name
    }
}

impl Named for PolicyRecord {
    fn has_name(&self, name: &str) -> bool {
        self.name == name
    }
}

async fn write_export(store: &CatalogStore, file: &std::path::Path, note: &[u8]) -> Result<(), StorageError> {
    let copy = SnapshotFile::open(file).await?;
    let mut saving = copy.replace().await?;
    let head = store.read_all(async |rows| saving.rows(&rows).await).await?;
    saving.finish(&head, &store.catalog_keys().await?, note).await?;
    copy.close().await
}

pub(super) fn not_found(kind: Kind, name: &str) -> AdminError {
    let (what, list) = match kind {
        Kind::Key => ("key", "ekm key list"),
        Kind::Space => ("crypto space", "ekm space list"),
        Kind::Policy => ("policy", "ekm policy list"),
        Kind::Approval => ("approval", "ekm approval list"),
        Kind::Settings => ("settings", "ekm catalog status"),
    };
    AdminError::NotFound(format!("there is no {what} {name}; '{list}' shows what there is"))
}
