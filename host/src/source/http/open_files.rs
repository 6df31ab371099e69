//! Connections are open files: so many that the rest of the process keeps some for its loads, its dead letters
//! and its metrics, whatever clients do.

use std::io;

/// Open files that are not given to clients.
const RESERVED: u64 = 128;

/// How many connections there can be of the `wanted` ones. Raises the process's own limit of open files as far
/// as the system lets it; shells and service managers often start programs with 1024.
pub(super) fn connections(wanted: usize) -> usize {
    let needed = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(RESERVED);
    let limit = match raised_to(needed) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot ask for the limit of open files");
            return wanted;
        }
    };
    let possible = affordable(wanted, limit);
    if possible < wanted {
        tracing::warn!(
            max_connections = wanted,
            possible,
            open_files_max = limit,
            "fewer connections than max_connections in [source.http] allows: raise `ulimit -Hn` (systemd: \
             LimitNOFILE) to {needed}"
        );
    }
    possible
}

/// Of `limit` open files the rest of the process keeps its own; at least half of them are for clients.
fn affordable(wanted: usize, limit: u64) -> usize {
    let left = limit.saturating_sub(RESERVED).max(limit / 2).max(1);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
}

/// The limit of open files, after raising it towards `needed`.
#[expect(unsafe_code, reason = "std has no word for RLIMIT_NOFILE")]
fn raised_to(needed: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the struct that it is given and nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= needed || limit.rlim_cur >= limit.rlim_max {
        return Ok(limit.rlim_cur);
    }
    let raised = libc::rlimit { rlim_cur: needed.min(limit.rlim_max), ..limit };
    // SAFETY: the call reads the struct that it is given and nothing else.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    // Refused: then there are as many as before.
    Ok(if set == 0 { raised.rlim_cur } else { limit.rlim_cur })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_all_open_files() {
        for (wanted, limit, expected) in [
            (10_000, 524_288, 10_000),
            (10_000, 10_128, 10_000),
            (10_000, 10_127, 9_999),
            (10_000, 1_024, 896),
            (10_000, 200, 100),
            (50, 200, 50),
            (10, 1, 1),
        ] {
            assert_eq!(affordable(wanted, limit), expected, "{wanted} of {limit}");
        }
    }

    #[test]
    fn the_limit_of_this_process_is_known() {
        let limit = raised_to(64).expect("every system tells");
        assert!(limit >= 64, "{limit}");
    }
}
