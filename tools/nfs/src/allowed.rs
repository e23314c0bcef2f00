// SPDX-License-Identifier: GPL-2.0

//! Who may call this machine's server: in the kernel now, and when the module is loaded again.

use std::{collections::BTreeSet, fmt, fs, path::PathBuf, str::FromStr};

use anyhow::{Context, Result};
use vsock_proto::{cid_entries, CidEntry, CidListError};

use crate::module;

/// Some CIDs, or all guests.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// All guests, whatever else is there.
    pub all: bool,
    /// CIDs of their own.
    pub cids: BTreeSet<u32>,
}

impl FromStr for Allowed {
    type Err = CidListError;

    fn from_str(text: &str) -> Result<Self, CidListError> {
        let mut allowed = Self::default();
        for entry in cid_entries(text.as_bytes()) {
            match entry? {
                CidEntry::All => allowed.all = true,
                CidEntry::Cid(cid) => _ = allowed.cids.insert(cid),
            }
        }
        Ok(allowed)
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.then(|| "all".to_owned());
        let words: Vec<String> = all
            .into_iter()
            .chain(self.cids.iter().map(u32::to_string))
            .collect();
        f.write_str(&words.join(","))
    }
}

impl Allowed {
    /// With these.
    pub fn with(mut self, other: &Allowed) -> Self {
        self.all |= other.all;
        self.cids.extend(&other.cids);
        self
    }

    /// Without these; `None` if one of them would still be allowed, among all guests.
    pub fn without(mut self, other: &Allowed) -> Option<Self> {
        if other.all {
            return Some(Self::default());
        }
        self.cids.retain(|cid| !other.cids.contains(cid));
        let is_included = |cid: &u32| self.all && CidEntry::All.includes(*cid);
        (!other.cids.iter().any(is_included)).then_some(self)
    }
}

/// Where the list is kept.
pub struct Store {
    /// The parameter of the module that is loaded.
    pub parameter: PathBuf,
    /// What modprobe passes to the module when it loads it.
    pub configuration: PathBuf,
}

impl Default for Store {
    fn default() -> Self {
        let name = module::SUNRPC_VSOCK;
        Self {
            parameter: format!("/sys/module/{name}/parameters/allowed_cids").into(),
            configuration: format!("/etc/modprobe.d/{name}.conf").into(),
        }
    }
}

impl Store {
    /// The list in force, if the module is loaded.
    pub fn in_force(&self) -> Result<Option<Allowed>> {
        match fs::read_to_string(&self.parameter) {
            Ok(text) => Ok(Some(
                text.parse().context("the module's list makes no sense")?,
            )),
            Err(_) => Ok(None),
        }
    }

    /// Puts a list in force.
    pub fn enforce(&self, allowed: &Allowed) -> Result<()> {
        fs::write(&self.parameter, format!("{allowed}\n"))
            .with_context(|| format!("cannot write {}", self.parameter.display()))
    }

    /// The list for the next time.
    pub fn kept(&self) -> Result<Allowed> {
        let text = match fs::read_to_string(&self.configuration) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Allowed::default())
            }
            Err(error) => return Err(error).context(self.configuration.display().to_string()),
        };
        let list = text
            .lines()
            .filter_map(option)
            .next_back()
            .unwrap_or_default();
        list.parse()
            .with_context(|| format!("{}: {list}", self.configuration.display()))
    }

    /// Keeps a list for the next time, beside whatever else stands in the file.
    pub fn keep(&self, allowed: &Allowed) -> Result<()> {
        let text = fs::read_to_string(&self.configuration).unwrap_or_default();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| option(line).is_none())
            .map(str::to_owned)
            .collect();
        lines.push(format!(
            "options {} {OPTION}{allowed}\n",
            module::SUNRPC_VSOCK
        ));
        let partial = self.configuration.with_extension("partial");
        fs::write(&partial, lines.join("\n"))
            .and_then(|()| fs::rename(&partial, &self.configuration))
            .with_context(|| format!("cannot write {}", self.configuration.display()))
    }
}

const OPTION: &str = "allowed_cids=";

/// The list, if a line sets it.
fn option(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix("options")?.trim_start();
    let rest = rest.strip_prefix(module::SUNRPC_VSOCK)?;
    rest.trim().strip_prefix(OPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store {
            parameter: directory.path().join("allowed_cids"),
            configuration: directory.path().join("sunrpc_vsock.conf"),
        };
        (directory, store)
    }

    fn list(text: &str) -> Allowed {
        text.parse().unwrap()
    }

    #[test]
    fn lists_are_added_and_taken_away() {
        let five = list("3,4").with(&list("5"));
        assert_eq!(five.to_string(), "3,4,5");
        assert_eq!(five.clone().without(&list("4,7")), Some(list("3,5")));
        let all = five.with(&list("all"));
        assert_eq!(all.to_string(), "all,3,4,5");
        assert_eq!(all.clone().without(&list("4")), None);
        assert_eq!(all.without(&list("all")), Some(Allowed::default()));
    }

    #[test]
    fn a_list_is_kept_beside_other_lines() {
        let (_directory, store) = store();
        fs::write(
            &store.configuration,
            "# mine\noptions sunrpc_vsock allowed_cids=9\nblacklist rpcrdma\n",
        )
        .unwrap();
        assert_eq!(store.kept().unwrap(), list("9"));
        store.keep(&list("3,4")).unwrap();
        let text = fs::read_to_string(&store.configuration).unwrap();
        assert_eq!(
            text,
            "# mine\nblacklist rpcrdma\noptions sunrpc_vsock allowed_cids=3,4\n"
        );
        assert_eq!(store.kept().unwrap(), list("3,4"));
    }

    #[test]
    fn at_first_nobody_is_allowed() {
        let (_directory, store) = store();
        assert_eq!(store.kept().unwrap(), Allowed::default());
        assert_eq!(store.in_force().unwrap(), None);
    }

    #[test]
    fn what_is_enforced_is_in_force() {
        let (_directory, store) = store();
        store.enforce(&list("all,5")).unwrap();
        assert_eq!(store.in_force().unwrap(), Some(list("all,5")));
    }
}
