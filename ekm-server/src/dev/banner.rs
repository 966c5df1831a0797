//! What `ekm dev` prints on a terminal: what runs where, and commands to paste.

use ekm_core::catalog::Custody;

use super::setup::Setup;
use super::{KEY_PATH, Ready, SPACE_PATH};
use crate::config::Config;

pub(super) fn banner(ready: &Ready, setup: &Setup, data_was_named: bool, config: &Config) -> String {
    let custody = match (ready.custody, config.shards.first()) {
        (Custody::Hsm, Some(shard)) => {
            format!("hsm: every operation runs in the token behind {}", shard.get_ref().modules())
        }
        _ => "software: keys live in this process, for trying things out only; --softhsm keeps them in an HSM".into(),
    };
    let program = std::env::current_exe().map_or("ekm".into(), |file| quoted(&file.display().to_string()));
    let directory = quoted(&setup.directory.display().to_string());
    let data = if data_was_named { format!(" --data {directory}") } else { String::new() };
    let call = format!(
        "curl --silent --show-error --cacert {} -H \"Authorization: Bearer $({program} dev{data} token)\" -H 'Content-Type: application/json'",
        quoted(&ready.ca_file.display().to_string())
    );
    let admin = match &ready.admin_socket {
        Some(socket) => format!("{}   keys, crypto spaces, policies, approvals", quoted(&socket.display().to_string())),
        None => "none: ekm.toml has no [admin]".into(),
    };
    let url = format!("{}/{KEY_PATH}", ready.base_url());
    format!(
        "ekm {version}, development mode\n\
         \n\
         EKM      {base}   what Cloud KMS calls\n\
         Ops      {ops}   /livez /readyz?verbose /healthz /metrics\n\
         Admin    {admin}\n\
         Custody  {custody}\n\
         Key      {KEY_PATH}, in crypto space {SPACE_PATH}\n\
         Data     {directory}; the next start goes on with the same keys\n\
         \n\
         Wrap a data key:\n\
         \n\
         BLOB=$({call} -d '{{\"plaintext\":\"bXkgZGF0YSBrZXk=\"}}' {url}:wrap | cut -d'\"' -f4); echo \"$BLOB\"\n\
         \n\
         Unwrap it:\n\
         \n\
         {call} -d '{{\"wrappedBlob\":\"'\"$BLOB\"'\"}}' {url}:unwrap\n\
         \n\
         Ctrl-C stops.",
        version = env!("CARGO_PKG_VERSION"),
        base = ready.base_url(),
        ops = ready.ops_url(),
    )
}

/// For a shell, only if it needs to be.
fn quoted(text: &str) -> String {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
