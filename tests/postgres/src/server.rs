use crate::{
    Client, Fault, Programs, Row, Settings, account::Account, cluster::Cluster, free_port, processes,
    wait_until,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

/// Also for the recovery after a kill.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A fast stop waits for its clients' streams to take what is written.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Ports can be taken between the choice and the bind.
const START_ATTEMPTS: u32 = 3;
const LOG_LINES_SHOWN: usize = 20;

/// Runs the postmaster as its child and ends it when standard input closes, which happens however this process dies. By
/// SIGQUIT, an immediate stop: the postmaster then ends its children and removes its shared memory.
///
/// `PR_SET_PDEATHSIG` would not do: it fires when the thread ends that started the server, and tests share one.
const GUARD: &str = r#"
exec 3<&0
"$@" >>"$POSTGRES_LOG" 2>&1 3<&- &
postmaster=$!
echo "$postmaster"
(read -r _ <&3; kill -QUIT "$postmaster") 2>/dev/null &
watcher=$!
wait "$postmaster"; code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"#;

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Open transactions are aborted and a checkpoint is written, after replication has taken everything.
    Fast,
    /// At once, with recovery at the next start.
    Immediate,
}

/// One PostgreSQL server with a cluster of its own.
///
/// Dropping it, or the death of this process, stops it at once; dropping it removes the data too.
#[derive(Debug)]
pub struct Server {
    // Fields drop in this order, but `Drop` has stopped the server before the folder goes.
    running: Option<Running>,
    cluster: Cluster,
    programs: Programs,
    account: Account,
    port: u16,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    postmaster: u32,
}

impl Server {
    /// Makes a cluster under `root/run-<pid>-<n>`, or under the system's temporary folder where `root` cannot hold one,
    /// starts a server on it, and waits until it answers.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, exits, or does not answer within a minute; the end of its log is included.
    pub fn start(root: &Path, settings: &Settings) -> Result<Self, Fault> {
        let programs = Programs::find()?;
        let account = Account::choose()?;
        let mut attempts_left = START_ATTEMPTS;
        loop {
            attempts_left -= 1;
            let port = free_port()?;
            let cluster = Cluster::create(&programs, &account, root, settings, port)?;
            let mut server = Self { running: None, cluster, programs: programs.clone(), account, port };
            match server.launch() {
                Err(_) if attempts_left > 0 => {}
                outcome => return outcome.map(|()| server),
            }
        }
    }

    /// A server on data that lie there already.
    pub(crate) fn on(
        cluster: Cluster,
        programs: Programs,
        account: Account,
        port: u16,
    ) -> Result<Self, Fault> {
        let mut server = Self { running: None, cluster, programs, account, port };
        server.launch()?;
        Ok(server)
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Where clients connect over TCP, as `127.0.0.1:port`; the same for the life of this value.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port, of TCP and of the socket's name.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket, over which everybody is let in.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.cluster.home
    }

    /// The cluster's data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.cluster.data()
    }

    /// The programs that belong to this server.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Everything that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.cluster.log()).map_or_else(
            |cause| format!("its log cannot be read: {cause}"),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    /// A client as the superuser `postgres`, in the database of the same name, over the Unix socket.
    #[must_use]
    pub fn client(&self) -> Client {
        Client {
            psql: self.programs.path("psql"),
            host: self.cluster.home.display().to_string(),
            port: self.port,
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: None,
        }
    }

    /// Runs statements by [`client`](Self::client).
    ///
    /// # Errors
    /// As [`Client::run`].
    pub fn psql(&self, sql: &str) -> Result<String, Fault> {
        self.client().run(sql)
    }

    /// Runs statements as another role.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub fn psql_as(&self, user: &str, sql: &str) -> Result<String, Fault> {
        self.client().user(user).run(sql)
    }

    /// The rows of one query by [`client`](Self::client).
    ///
    /// # Errors
    /// As [`Client::query`].
    pub fn query(&self, sql: &str) -> Result<Vec<Row>, Fault> {
        self.client().query(sql)
    }

    /// Whether it was started and was neither stopped nor killed by us.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Stops it, and waits until it is gone. Its data stay for [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// When it is still there after a minute; it then goes on to stop, and may be [killed](Self::kill).
    pub fn stop(&mut self, how: Stop) -> Result<(), Fault> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let attempt = format!("stop the PostgreSQL server at 127.0.0.1:{}", self.port);
        let signal = match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        };
        // It may have ended already, by itself or at an earlier call.
        let sent = processes::signal(signal, &[running.postmaster]);
        let ended = wait_until(STOPPED_WITHIN, || running.guard.try_wait().ok().flatten());
        match (ended, sent) {
            (Ok(_), _) => {
                self.running = None;
                Ok(())
            }
            (Err(late), Ok(())) => Err(Fault::said(attempt, format!("{late}\n{}", self.end_of_log()))),
            (Err(_), Err(fault)) => Err(fault),
        }
    }

    /// Ends all its processes as a power cut would (SIGKILL), and waits until they are gone. Its data stay for
    /// [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// When they cannot be killed.
    pub fn kill(&mut self) -> Result<(), Fault> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        if matches!(running.guard.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        processes::kill_all(running.postmaster, GONE_WITHIN)?;
        running.guard.wait().map_err(Fault::io("wait for the shell that guards PostgreSQL"))?;
        Ok(())
    }

    /// Starts the stopped or killed server on the same port, with the same data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(&mut self) -> Result<(), Fault> {
        match self.running {
            Some(_) => Err(Fault::said("start a PostgreSQL server again", "it is running")),
            None => self.launch(),
        }
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&mut self, how: Stop) -> Result<(), Fault> {
        self.stop(how)?;
        self.launch()
    }

    fn launch(&mut self) -> Result<(), Fault> {
        let attempt = format!("start a PostgreSQL server at 127.0.0.1:{}", self.port);
        let mut guard = self.account.command("sh", &self.cluster.home);
        guard
            .args(["-c", GUARD, "postgres-guard"])
            .arg(self.programs.path("postgres"))
            .arg("-D")
            .arg(self.cluster.data())
            .env("POSTGRES_LOG", self.cluster.log())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in a terminal ends us, and the guard then ends the server.
            .process_group(0);
        let mut guard = guard.spawn().map_err(Fault::io(attempt.clone()))?;
        let Some(postmaster) = first_line(&mut guard).and_then(|line| line.trim().parse().ok()) else {
            return Err(Fault::said(attempt, "the shell that guards it did not name the process"));
        };
        self.running = Some(Running { guard, postmaster });
        let ready = wait_until(READY_WITHIN, || {
            if self.has_ended() { Some(false) } else { self.answers().then_some(true) }
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.running = None;
                Err(Fault::said(attempt, format!("it exited\n{}", self.end_of_log())))
            }
            Err(late) => Err(Fault::said(attempt, format!("{late}\n{}", self.end_of_log()))),
        }
    }

    fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_none_or(|running| !matches!(running.guard.try_wait(), Ok(None)))
    }

    /// Whether it lets clients in; not while it recovers.
    fn answers(&self) -> bool {
        let mut ask = self.account.command(self.programs.path("pg_isready"), &self.cluster.home);
        ask.args(["--quiet", "--host"]).arg(&self.cluster.home).args(["--port", &self.port.to_string()]);
        ask.status().is_ok_and(|status| status.success())
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(fault) = self.stop(Stop::Immediate).or_else(|_| self.kill()) {
            eprintln!("{fault}");
        }
    }
}

fn first_line(guard: &mut Child) -> Option<String> {
    let mut line = String::new();
    BufReader::new(guard.stdout.take()?).read_line(&mut line).ok()?;
    Some(line)
}
