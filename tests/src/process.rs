//! The binary under test as a child process: started, watched, signalled, and never left behind.

use crate::{machine, metrics::Metrics, wait_until};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};
use tidemill_test_kafka::free_port;

const SCRAPE_WITHIN: Duration = Duration::from_secs(5);
/// What a test that fails shows of the log.
const LOG_LINES_SHOWN: usize = 60;

/// A running `tidemill run`.
#[derive(Debug)]
pub struct Tidemill {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Everything that it wrote to standard error.
    pub log: String,
}

impl Tidemill {
    /// Starts `tidemill run` on these files, with its admin endpoint on a free port. The log is kept beside the first.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(files: &[&Path]) -> Self {
        Self::run_with(files, &[])
    }

    /// As [`run`](Self::run), with further arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run_with(files: &[&Path], arguments: &[&str]) -> Self {
        Self::spawn(files, arguments, tidemill())
    }

    /// As [`run`](Self::run), with no more than this many open files.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run_with_open_files(files: &[&Path], open_files_max: u64) -> Self {
        let mut command = tidemill();
        limit_open_files(&mut command, open_files_max);
        Self::spawn(files, &[], command)
    }

    /// As [`run`](Self::run), with these variables in its environment.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run_in(files: &[&Path], environment: &[(&str, &OsStr)]) -> Self {
        let mut command = tidemill();
        command.envs(environment.iter().copied());
        Self::spawn(files, &[], command)
    }

    fn spawn(files: &[&Path], arguments: &[&str], mut command: Command) -> Self {
        let port = free_port().expect("there is a free port");
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = files[0].with_extension(format!("{port}.log"));
        let output = File::create(&log).expect("the log can be created");
        command.arg("run").args(files).args(["--admin", &admin.to_string()]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().expect("tidemill can be started");
        Self { child, admin, log }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// When the child cannot be asked.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be asked").is_none()
    }

    /// Processor time that it has used so far, user and system, in milliseconds.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    #[must_use]
    pub fn processor_ms(&self) -> u64 {
        // Linux counts in hundredths of a second for every program, whatever its own clock.
        const TICK_MS: u64 = 10;
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("Linux tells about processes");
        // The name in brackets may hold anything; user and system time are the 12th and 13th field behind it.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().skip(11).take(2));
        let ticks: u64 = fields.into_iter().flatten().filter_map(|field| field.parse::<u64>().ok()).sum();
        ticks * TICK_MS
    }

    /// How often its threads went to sleep so far, and so were woken: unlike processor time no matter of the machine. A thread
    /// that has ended takes its count along.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("Linux tells about threads");
        // One may end meanwhile.
        let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
        let texts = threads.filter_map(Result::ok).filter_map(of);
        let count = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        };
        texts.filter_map(count).sum()
    }

    /// The most memory that it has had resident so far, in bytes.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    #[must_use]
    pub fn resident_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// The memory that it has resident now, in bytes.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("Linux tells about processes");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells of memory");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kibibytes * 1024
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The current `/metrics`, if the endpoint answers.
    #[must_use]
    pub fn metrics(&self) -> Option<Metrics> {
        let (status, body) = self.get("/metrics")?;
        (status == 200).then(|| Metrics::parse(&body))
    }

    /// Status and body of a path of the admin endpoint, if it answers.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, SCRAPE_WITHIN).ok()?;
        stream.set_read_timeout(Some(SCRAPE_WITHIN)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    /// Waits until the metrics fulfil a condition.
    ///
    /// # Panics
    /// When they do not within `seconds`, or when the process ends before.
    pub fn until(&mut self, seconds: u64, what: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        let mut last = None;
        let mut ended = None;
        let outcome = wait_until(Duration::from_secs(seconds), || {
            ended = self.child.try_wait().expect("the child can be asked");
            if let Some(metrics) = self.metrics() {
                last = Some(metrics);
            }
            (ended.is_some() || last.as_ref().is_some_and(&holds)).then_some(())
        });
        match (outcome, ended) {
            (_, Some(status)) => panic!("{what}: tidemill ended with {status}"),
            (Err(late), None) => panic!("{what}: {late}; the last metrics were {last:?}"),
            (Ok(()), None) => last.expect("it holds of metrics that were read"),
        }
    }

    /// Waits until this many records have left the pipelines: loaded, dropped or dead-lettered.
    ///
    /// # Panics
    /// As [`until`](Self::until).
    pub fn until_settled(&mut self, seconds: u64, records: u64) -> Metrics {
        self.until(seconds, &format!("{records} records settled"), |metrics| settled(metrics) >= records)
    }

    /// Waits until `/ready` is green.
    ///
    /// # Panics
    /// When it is not within `seconds`.
    pub fn until_ready(&mut self, seconds: u64) {
        self.until_answer(seconds, "/ready", 200);
    }

    /// Waits until a path of the admin endpoint answers with this status; returns the body.
    ///
    /// # Panics
    /// When it does not within `seconds`.
    pub fn until_answer(&mut self, seconds: u64, path: &str, status: u16) -> String {
        let mut last = None;
        let outcome = wait_until(Duration::from_secs(seconds), || {
            last = self.get(path);
            last.as_ref().filter(|(found, _)| *found == status).map(|(_, body)| body.clone())
        });
        outcome.unwrap_or_else(|late| panic!("{path} with {status}: {late}; the last answer was {last:?}"))
    }

    /// Waits until the log has a line with this text.
    ///
    /// # Panics
    /// When it has not within `seconds`.
    pub fn until_logged(&mut self, seconds: u64, text: &str) {
        let outcome = wait_until(Duration::from_secs(seconds), || self.log().contains(text).then_some(()));
        outcome.unwrap_or_else(|late| panic!("{text:?} in the log: {late}"));
    }

    /// Asks it to drain and end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ends it as a power cut would (SIGKILL), and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// Stops it in its tracks (SIGSTOP).
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("process ids fit");
        #[expect(unsafe_code, reason = "std cannot send a signal other than SIGKILL")]
        // SAFETY: `kill` touches no memory; the id is that of a child that was not waited for, so it cannot be reused.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "send signal {signal} to {pid}");
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not within `seconds`.
    pub fn until_ended(&mut self, seconds: u64) -> Ended {
        let status = wait_until(Duration::from_secs(seconds), || self.child.try_wait().ok().flatten());
        let status: ExitStatus = status.unwrap_or_else(|late| panic!("tidemill is to end: {late}"));
        Ended { code: status.code(), log: self.log() }
    }

    /// Asks it to drain and waits for a clean end.
    ///
    /// # Panics
    /// When it does not end with 0 within `seconds`.
    pub fn drain(&mut self, seconds: u64) {
        self.terminate();
        let ended = self.until_ended(seconds);
        assert_eq!(ended.code, Some(0), "a drained process ends well");
    }
}

impl Drop for Tidemill {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            println!("--- end of the log of process {}\n{}\n---", self.pid(), shown.join("\n"));
        }
    }
}

/// Runs `tidemill` with these arguments to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn tidemill_output(arguments: &[&str]) -> Output {
    tidemill().args(arguments).stdin(Stdio::null()).output().expect("tidemill can be run")
}

/// Records that have left the pipelines, by the metrics.
#[must_use]
pub fn settled(metrics: &Metrics) -> u64 {
    [
        "tidemill_records_loaded_total",
        "tidemill_records_dropped_total",
        "tidemill_records_dead_lettered_total",
    ]
    .iter()
    .map(|name| metrics.count(name, &[]))
    .sum()
}

/// No more open files than this for the command, and no way to get more.
fn limit_open_files(command: &mut Command, open_files_max: u64) {
    use std::os::unix::process::CommandExt;
    let limit = libc::rlimit { rlim_cur: open_files_max, rlim_max: open_files_max };
    #[expect(unsafe_code, reason = "std has no word for RLIMIT_NOFILE")]
    // SAFETY: `setrlimit` is async-signal-safe and only reads the struct.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// The binary under test, that a test run which is killed leaves nothing behind.
fn tidemill() -> Command {
    let mut command = Command::new(machine::tidemill());
    command.current_dir(machine::root());
    dies_with_us(&mut command);
    command
}

/// Has what the command starts die with the thread that starts it.
pub fn dies_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        #[expect(unsafe_code, reason = "std has no word for PR_SET_PDEATHSIG")]
        // SAFETY: `prctl` is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}
