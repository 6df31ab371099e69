//! Where a redirect may lead. Credentials go to the FEs of the file and to what this lets through.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::address::Address;
use crate::fault::Fault;

/// FE → leader FE → BE, and one to spare.
pub(super) const REDIRECTS_MAX: usize = 3;

/// The rules of one cluster.
#[derive(Debug)]
pub(super) struct Redirects {
    frontends: Vec<Address>,
    /// `host` or `host:port`; empty = any.
    strict: Vec<String>,
    /// Hosts accepted so far, as named and as rewritten: printed once, and where error logs may be read.
    accepted: Mutex<HashSet<String>>,
}

impl Redirects {
    /// `strict` is `redirect_hosts` of the file.
    pub(super) fn new(frontends: &[Address], strict: &[String]) -> Self {
        Self {
            frontends: frontends.to_vec(),
            strict: strict.iter().map(|host| host.trim().to_ascii_lowercase()).collect(),
            accepted: Mutex::new(HashSet::new()),
        }
    }

    /// Where `location`, given by `from`, leads: end point and path with query.
    pub(super) fn follow(&self, from: &Address, location: Option<&str>) -> Result<(Address, String), Fault> {
        let Some(location) = location else {
            return Err(Fault::retry(format!("{from} redirected without saying where to")));
        };
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok((from.clone(), location.to_owned()));
        }
        let absolute = match location.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", if from.https { "https" } else { "http" }),
            None => location.to_owned(),
        };
        let Some((named, path)) = Address::split(&absolute) else {
            return Err(Fault::retry(format!("{from} redirected to what is no http address")));
        };
        if from.https && !named.https {
            return Err(Fault::halt(
                format!("{from} redirected to {named}, which would send the password in the clear"),
                "put a TLS proxy in front of the BEs, or use http:// for `fe` if the network is trusted",
            ));
        }
        let target = rewritten(from, &named);
        self.admit(from, &named, &target)?;
        Ok((target, path))
    }

    /// Where an error log named by StarRocks may be read; none if its host is not one of the cluster's.
    pub(super) fn error_log(&self, from: &Address, url: &str) -> Option<(Address, String)> {
        let (named, path) = Address::split(url)?;
        let target = rewritten(from, &named);
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            accepted.contains(&target.host) || self.is_frontend_host(&target) || self.is_listed(&target);
        drop(accepted);
        (known && (named.https || !from.https)).then_some((target, path))
    }

    /// Whether the end point is one of the file's FEs.
    pub(super) fn is_frontend(&self, address: &Address) -> bool {
        self.frontends.contains(address)
    }

    fn admit(&self, from: &Address, named: &Address, target: &Address) -> Result<(), Fault> {
        if !self.strict.is_empty()
            && !self.is_frontend(target)
            && !self.is_listed(named)
            && !self.is_listed(target)
        {
            return Err(Fault::halt(
                format!("{from} redirected to {named}, which is not in `redirect_hosts`"),
                format!("add \"{}\" to `redirect_hosts` if it is one of the cluster's nodes", named.host),
            ));
        }
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.insert(named.host.clone());
        if accepted.insert(target.authority()) && !self.is_frontend(target) {
            tracing::info!(from = %from, named = %named, target = %target, "StarRocks node accepted as redirect target");
        }
        accepted.insert(target.host.clone());
        Ok(())
    }

    fn is_frontend_host(&self, address: &Address) -> bool {
        self.frontends.iter().any(|frontend| frontend.host == address.host)
    }

    fn is_listed(&self, address: &Address) -> bool {
        let authority = address.authority();
        self.strict.iter().any(|listed| *listed == address.host || *listed == authority)
    }
}

/// A node registered as 127.0.0.1 (the all-in-one image) is on the FE's host; the port stays its own.
fn rewritten(from: &Address, named: &Address) -> Address {
    if named.is_local() && !from.is_local() {
        Address { host: from.host.clone(), ..named.clone() }
    } else {
        named.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;

    fn address(url: &str) -> Address {
        Address::split(url).expect(url).0
    }

    fn rules(strict: &[&str]) -> Redirects {
        let strict: Vec<String> = strict.iter().map(|host| (*host).to_owned()).collect();
        Redirects::new(&[address("http://fe1:8030"), address("http://fe2:8030")], &strict)
    }

    #[test]
    fn a_redirect_keeps_host_port_and_path() {
        let check = |from: &str, location: &str, target: &str, path: &str| {
            let found = rules(&[]).follow(&address(from), Some(location)).expect(location);
            assert_eq!((found.0.to_string().as_str(), found.1.as_str()), (target, path), "{location}");
        };
        check(
            "http://fe1:8030",
            "http://be1:8040/api/d/t/_stream_load",
            "http://be1:8040",
            "/api/d/t/_stream_load",
        );
        check("http://fe1:8030", "http://root:pw@be1:8040/x?y=1", "http://be1:8040", "/x?y=1");
        check("http://fe1:8030", "/other", "http://fe1:8030", "/other");
        check("http://fe1:8030", "//be2:8040/x", "http://be2:8040", "/x");
        check("http://fe1:8030", "http://127.0.0.1:8040/x", "http://fe1:8040", "/x");
        check("http://fe1:8030", "http://localhost:8040/x", "http://fe1:8040", "/x");
        check("http://127.0.0.1:8030", "http://127.0.0.1:8040/x", "http://127.0.0.1:8040", "/x");
        check("http://fe1:8030", "https://be1:8443/x", "https://be1:8443", "/x");
    }

    #[test]
    fn a_strict_list_lets_only_its_hosts_and_the_fes_through() {
        let rules = rules(&["be1", "be2:8040"]);
        let from = address("http://fe1:8030");
        for allowed in ["http://be1:9999/x", "http://be2:8040/x", "http://fe2:8030/x"] {
            assert!(rules.follow(&from, Some(allowed)).is_ok(), "{allowed}");
        }
        for refused in ["http://be2:8041/x", "http://evil:8040/x", "http://127.0.0.1:8040/x"] {
            let fault = rules.follow(&from, Some(refused)).expect_err(refused);
            assert_eq!(fault.kind, FaultKind::Halt, "{refused}");
            assert!(fault.hint.is_some_and(|hint| hint.contains("redirect_hosts")));
        }
    }

    #[test]
    fn credentials_never_leave_tls() {
        let fault = rules(&[])
            .follow(&address("https://fe1:8030"), Some("http://be1:8040/x"))
            .expect_err("downgrade");
        assert_eq!(fault.kind, FaultKind::Halt);
    }

    #[test]
    fn a_useless_location_is_a_passing_failure() {
        let from = address("http://fe1:8030");
        for useless in [None, Some(""), Some("ftp://be1/x"), Some("be1:8040/x")] {
            let fault = rules(&[]).follow(&from, useless).expect_err("useless");
            assert_eq!(fault.kind, FaultKind::Retry, "{useless:?}");
        }
    }

    #[test]
    fn error_logs_are_read_from_known_hosts_only() {
        let rules = rules(&[]);
        let from = address("http://fe1:8030");
        assert_eq!(rules.error_log(&from, "http://be1:8040/api/_load_error_log?file=a"), None);
        rules.follow(&from, Some("http://be1:8040/x")).expect("accepted");
        assert!(rules.error_log(&from, "http://be1:8040/api/_load_error_log?file=a").is_some());
        assert!(rules.error_log(&from, "http://fe2:8040/log").is_some(), "an FE's host");
        assert_eq!(rules.error_log(&from, "http://evil:8040/log"), None);
    }
}
