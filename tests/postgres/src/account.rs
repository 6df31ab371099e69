//! Who the server runs as: PostgreSQL refuses root.

use crate::Fault;
use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

/// In order of preference: Debian's package makes the first, every system has the second.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The user that the server's processes and files belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// Whom to become; none = we are nobody special and stay who we are.
    become_ids: Option<Ids>,
    own_id: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Ids {
    user: u32,
    group: u32,
}

impl Account {
    /// Ourselves, or an unprivileged user when we are root.
    pub(crate) fn choose() -> Result<Self, Fault> {
        let attempt = "choose the user that PostgreSQL runs as";
        // A process's folder belongs to its effective user.
        let own_id = fs::metadata("/proc/self").map_err(Fault::io(attempt))?.uid();
        if own_id != 0 {
            return Ok(Self { become_ids: None, own_id });
        }
        let users = fs::read_to_string("/etc/passwd").map_err(Fault::io(attempt))?;
        let found = UNPRIVILEGED.iter().find_map(|name| ids(&users, name));
        let ids = found.ok_or_else(|| {
            Fault::said(attempt, format!("we are root, and there is no user {}", UNPRIVILEGED.join(" or ")))
        })?;
        Ok(Self { become_ids: Some(ids), own_id })
    }

    /// Names the user in paths that two users must not share.
    pub(crate) fn id(&self) -> u32 {
        self.become_ids.map_or(self.own_id, |ids| ids.user)
    }

    /// A command that runs as this user, in a folder that it may enter. std drops root's other groups, too.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null());
        if let Some(Ids { user, group }) = self.become_ids {
            command.uid(user).gid(group);
        }
        command
    }

    /// Gives a file or an empty folder to this user.
    pub(crate) fn give(&self, path: &Path) -> Result<(), Fault> {
        let Some(Ids { user, group }) = self.become_ids else { return Ok(()) };
        chown(path, Some(user), Some(group)).map_err(Fault::io(format!("give {} away", path.display())))
    }

    /// Whether this user reaches a folder: root's own are often closed to others.
    pub(crate) fn may_enter(&self, folder: &Path) -> bool {
        let status = self
            .command("sh", Path::new("/"))
            .args(["-c", "cd \"$1\"", "sh"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    }
}

/// The ids of a user in the text of `/etc/passwd`: `name:password:user:group:…`.
fn ids(users: &str, name: &str) -> Option<Ids> {
    let line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut fields = line.split(':').skip(1);
    Some(Ids { user: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::{Ids, ids};

    #[test]
    fn ids_are_those_of_the_user_of_that_very_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgresql:x:7:8::/:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\n";
        assert_eq!(ids(users, "postgres"), Some(Ids { user: 101, group: 104 }));
        assert_eq!(ids(users, "nobody"), None);
    }
}
