//! CPU time and peak memory of a process, from `/proc`.

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Used {
    /// User and system time, in seconds.
    pub(crate) cpu_s: f64,
    /// Peak resident memory, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Reads it; none once the process is gone.
pub(crate) fn used(pid: u32) -> Option<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold blanks, but ends with the last `)`.
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    // Linux shows CPU time in hundredths of a second.
    Some(Used { cpu_s: ticks as f64 / 100.0, peak_bytes: kib * 1024 })
}
