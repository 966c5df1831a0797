//! Who acts, and what he may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::Command;
use super::error::AdminError;

/// A person who has logged in: one name, whichever way he came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    /// From the configuration; stands in the log of changes.
    pub name: String,
    /// From the configuration.
    pub roles: Vec<Role>,
}

/// What a person may do. Everyone with a role may read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads.
    #[serde(alias = "auditor")]
    Viewer,
    /// Pauses and resumes keys and crypto spaces, rotates, takes a destruction back; takes HSMs out of use, and back.
    Operator,
    /// As an operator; and makes and changes keys, crypto spaces and policies, and asks for destruction.
    KeyAdmin,
    /// Decides what needs a second person; changes settings, exports the catalog.
    SecurityOfficer,
}

impl Role {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::KeyAdmin => "key-admin",
            Self::SecurityOfficer => "security-officer",
        }
    }
}

impl Actor {
    /// Whether he may ask for this change; some also wait for a second person.
    pub fn may_ask_for(&self, command: &Command) -> Result<(), AdminError> {
        match command {
            Command::SpaceBlock { .. }
            | Command::SpaceUnblock { .. }
            | Command::KeyEnable { .. }
            | Command::KeyDisable { .. }
            | Command::KeyRotate { .. }
            | Command::KeyUndelete { .. }
            | Command::HsmDrain { .. }
            | Command::HsmResume { .. } => self.has_one_of(&[Role::Operator, Role::KeyAdmin]),
            Command::SpaceCreate { .. }
            | Command::SpaceUpdate { .. }
            | Command::SpaceMove { .. }
            | Command::SpaceSetCreation { .. }
            | Command::KeyMove { .. }
            | Command::PolicyCreate { .. }
            | Command::PolicySet { .. }
            | Command::PolicyConfirm { .. }
            | Command::KeyCreate { .. }
            | Command::KeyUpdate { .. }
            | Command::KeyAddPath { .. }
            | Command::KeySetPolicy { .. }
            | Command::KeyConfirmPolicy { .. }
            | Command::KeySetRotation { .. }
            | Command::KeyDestroy { .. } => self.has_one_of(&[Role::KeyAdmin]),
            Command::SettingsSet { .. } | Command::CatalogExport {} => self.has_one_of(&[Role::SecurityOfficer]),
        }
    }

    /// Whether he may decide what others ask for.
    pub fn may_decide(&self) -> Result<(), AdminError> {
        self.has_one_of(&[Role::SecurityOfficer])
    }

    /// Whether he may have keys looked at, and repaired, on the HSM.
    pub fn may_verify_hsm(&self) -> Result<(), AdminError> {
        self.has_one_of(&[Role::Operator, Role::KeyAdmin])
    }

    fn has_one_of(&self, roles: &[Role]) -> Result<(), AdminError> {
        if roles.iter().any(|role| self.roles.contains(role)) {
            return Ok(());
        }
        Err(AdminError::Forbidden { name: self.name.clone(), role: roles[0] })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_role_allows_what_it_is_for_and_nothing_else() {
        let (path, labels) = ("v0/keys/a", json!({}));
        let operators = ["key-enable", "key-disable", "key-rotate", "key-undelete", "space-block", "space-unblock"];
        let operators = operators.map(|word| json!({"type": word, "path": path}));
        let replicas = ["hsm-drain", "hsm-resume"].map(|word| json!({"type": word, "name": "hsm-a"}));
        let admins = [
            json!({"type": "space-create", "path": path}),
            json!({"type": "space-update", "path": path, "labels": labels, "description": ""}),
            json!({"type": "policy-create", "name": "p", "policy": {}}),
            json!({"type": "policy-set", "name": "p", "policy": {}}),
            json!({"type": "policy-confirm", "name": "p"}),
            json!({"type": "key-confirm-policy", "path": path}),
            json!({"type": "key-create", "path": path, "space": path, "policy": {"named": "p"}}),
            json!({"type": "key-update", "path": path, "labels": labels, "description": ""}),
            json!({"type": "key-add-path", "path": path, "new": path}),
            json!({"type": "key-set-policy", "path": path, "policy": {"named": "p"}}),
            json!({"type": "key-set-rotation", "path": path}),
            json!({"type": "key-destroy", "path": path}),
        ];
        let officers = [json!({"type": "settings-set", "destroy_grace_days": 7}), json!({"type": "catalog-export"})];
        let may = |role, command: &serde_json::Value| {
            let command: Command = serde_json::from_value(command.clone()).unwrap_or_else(|e| panic!("{command}: {e}"));
            Actor { name: "a".into(), roles: vec![role] }.may_ask_for(&command).is_ok()
        };
        for (commands, allowed) in [
            (&operators[..], &[Role::Operator, Role::KeyAdmin][..]),
            (&replicas[..], &[Role::Operator, Role::KeyAdmin][..]),
            (&admins[..], &[Role::KeyAdmin][..]),
            (&officers[..], &[Role::SecurityOfficer][..]),
        ] {
            for command in commands {
                for role in [Role::Viewer, Role::Operator, Role::KeyAdmin, Role::SecurityOfficer] {
                    assert_eq!(may(role, command), allowed.contains(&role), "{} {command}", role.name());
                }
            }
        }
    }

    #[test]
    fn an_auditor_is_a_viewer() {
        assert_eq!(serde_json::from_value::<Role>(json!("auditor")).unwrap(), Role::Viewer);
        for role in [Role::Viewer, Role::Operator, Role::KeyAdmin, Role::SecurityOfficer] {
            assert_eq!(serde_json::to_value(role).unwrap(), json!(role.name()));
        }
    }
}
