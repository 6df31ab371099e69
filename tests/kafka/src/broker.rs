use crate::{Distribution, Fault, patience::wait_until, probe};
use socket2::{Domain, Socket, Type};
use std::{
    collections::{BTreeSet, hash_map::RandomState},
    fmt::Write as _,
    fs,
    hash::{BuildHasher, Hasher},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// A JVM starts in ten seconds of a processor that it does not have for itself.
const READY_WITHIN: Duration = Duration::from_secs(180);
const GONE_WITHIN: Duration = Duration::from_secs(10);
const HEAP_MAX: &str = "-Xmx1g";
const LOG_LEVEL: &str = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn";
/// Ports can be taken between the choice and the bind.
const START_ATTEMPTS: u32 = 3;
/// Below the range from which Linux gives ports to outgoing connections: a client that reconnects to a broker
/// that is down would otherwise now and then be given the broker's own port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Any base64url of 16 bytes; brokers of different runs never meet.
const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";

/// Runs the broker as its child and ends it when standard input closes, which happens however this process dies.
const GUARD: &str = r#"
exec 3<&0
"$@" >>"$KAFKA_LOG" 2>&1 3<&- &
broker=$!
echo "$broker"
(read -r _ <&3; kill -9 "$broker") 2>/dev/null &
watcher=$!
wait "$broker"; code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"#;

/// One Kafka broker that is also its own controller, with its data in a folder of its own.
///
/// Dropping it, or the death of this process, kills the broker; dropping it removes the data too.
#[derive(Debug)]
pub struct Broker {
    distribution: Distribution,
    home: PathBuf,
    address: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    pid: u32,
}

impl Broker {
    /// Formats and starts a broker with its data under `target/kafka/run-<pid>-<n>`, and waits until it answers.
    /// `settings` are added to `server.properties` and win over what stands there; `{port}` and `{controller_port}` in them
    /// are the broker's own.
    ///
    /// # Errors
    /// When Java is missing, the broker exits, or it does not answer within a minute; the end of its log is included.
    pub fn start(
        distribution: &Distribution,
        target: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self, Fault> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = target.join("kafka");
        remove_what_the_dead_left(&root);
        let mut attempts_left = START_ATTEMPTS;
        loop {
            attempts_left -= 1;
            let home = root.join(format!("run-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match Self::start_in(distribution, home, settings) {
                Err(_) if attempts_left > 0 => {}
                outcome => return outcome,
            }
        }
    }

    fn start_in(
        distribution: &Distribution,
        home: PathBuf,
        settings: &[(&str, &str)],
    ) -> Result<Self, Fault> {
        fs::create_dir_all(&home).map_err(Fault::io(format!("create {}", home.display())))?;
        let (port, controller_port) = (free_port()?, free_port()?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // From here on dropping it removes the folder.
        let mut broker = Self { distribution: distribution.clone(), home, address, running: None };
        let file = broker.properties();
        fs::write(&file, properties_text(&broker.home, port, controller_port, settings))
            .map_err(Fault::io(format!("write {}", file.display())))?;
        broker.format()?;
        broker.launch()?;
        Ok(broker)
    }

    /// Where clients connect, as `127.0.0.1:port`; the same after [`start_again`](Self::start_again).
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends the broker as a power cut would (SIGKILL). Its data stays for [`start_again`](Self::start_again).
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.end();
        }
    }

    /// Starts the killed broker on the same port, with the same data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(&mut self) -> Result<(), Fault> {
        self.kill();
        self.launch()
    }

    /// Stops the process in its tracks (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn freeze(&self) -> Result<(), Fault> {
        self.signal("STOP")
    }

    /// Lets a frozen broker go on (SIGCONT).
    ///
    /// # Errors
    /// When the broker is not running.
    pub fn thaw(&self) -> Result<(), Fault> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<(), Fault> {
        let attempt = format!("send SIG{name} to the broker at {}", self.address);
        let Some(running) = &self.running else { return Err(Fault::said(attempt, "it is not running")) };
        // The shell's own `kill`: the program of that name is not on every machine.
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &running.pid.to_string()])
            .status()
            .map_err(Fault::io(attempt.clone()))?;
        if status.success() { Ok(()) } else { Err(Fault::said(attempt, status.to_string())) }
    }

    fn properties(&self) -> PathBuf {
        self.home.join("server.properties")
    }

    fn log(&self) -> PathBuf {
        self.home.join("kafka.log")
    }

    fn format(&self) -> Result<(), Fault> {
        let attempt = "format the storage of a Kafka broker";
        let output = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", LOG_LEVEL, "-cp"])
            .arg(self.distribution.class_path())
            .args(["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c"])
            .arg(self.properties())
            .output()
            .map_err(Fault::io(format!("{attempt} (is Java installed? `cargo xtask test` installs it)")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Fault::said(attempt, last_lines(&String::from_utf8_lossy(&output.stderr))))
    }

    fn launch(&mut self) -> Result<(), Fault> {
        let attempt = format!("start a Kafka broker at {}", self.address);
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "kafka-guard", "java", HEAP_MAX, "-XX:+UseSerialGC"])
            .args([LOG_LEVEL, "-cp"])
            .arg(self.distribution.class_path())
            .arg("kafka.Kafka")
            .arg(self.properties())
            .env("KAFKA_LOG", self.log())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in a terminal ends us, and the guard then ends the broker.
            .process_group(0)
            .spawn()
            .map_err(Fault::io(attempt.clone()))?;
        let pid = first_line(&mut guard).and_then(|line| line.trim().parse().ok());
        let Some(pid) = pid else {
            return Err(Fault::said(attempt, "the shell that guards it did not name the process"));
        };
        let running = self.running.insert(Running { guard, pid });
        let ready = wait_until(READY_WITHIN, || match running.guard.try_wait() {
            Ok(None) => probe::serves(self.address).then_some(true),
            Ok(Some(_)) | Err(_) => Some(false),
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => Err(Fault::said(attempt, format!("it exited\n{}", self.end_of_log()))),
            Err(late) => Err(Fault::said(attempt, format!("{late}\n{}", self.end_of_log()))),
        }
    }

    fn end_of_log(&self) -> String {
        fs::read_to_string(self.log())
            .map_or_else(|cause| format!("its log cannot be read: {cause}"), |log| last_lines(&log))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        // Scratch under target/: what cannot be removed now is removed by the next run.
        drop(fs::remove_dir_all(&self.home));
    }
}

impl Running {
    fn end(&mut self) {
        drop(self.guard.stdin.take());
        let gone = wait_until(GONE_WITHIN, || self.guard.try_wait().ok().flatten());
        if gone.is_err() {
            eprintln!("the Kafka broker with process id {} did not end", self.pid);
        }
    }
}

fn first_line(guard: &mut Child) -> Option<String> {
    let mut line = String::new();
    BufReader::new(guard.stdout.take()?).read_line(&mut line).ok()?;
    Some(line)
}

fn last_lines(text: &str) -> String {
    const LINES_MAX: usize = 20;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

fn properties_text(home: &Path, port: u16, controller_port: u16, settings: &[(&str, &str)]) -> String {
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
",
        home.join("data").display()
    );
    for (key, value) in settings {
        // Further listeners have to name these, too.
        let value = value.replace("{port}", &port.to_string());
        let value = value.replace("{controller_port}", &controller_port.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

/// Ports that this process was given: whoever has one may be down for a while, and wants it again.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that nobody listens on now, and that nobody in this process was given before.
///
/// # Errors
/// When all that were tried are taken.
pub fn free_port() -> Result<u16, Fault> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let span = u64::from(PORTS.end - PORTS.start);
    (0..200)
        // `RandomState` is seeded by the system: the only random numbers that std has.
        .filter_map(|_| u16::try_from(RandomState::new().build_hasher().finish() % span).ok())
        .map(|step| PORTS.start + step)
        .find(|port| is_free(*port).is_ok() && given.insert(*port))
        .ok_or_else(|| Fault::said("find a free port", format!("none in {PORTS:?}")))
}

/// Binds to the port and does not listen: a process that is just being started has a copy of the socket until it executes its
/// program, and nobody could listen there for as long if the copy did.
fn is_free(port: u16) -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // As servers do: two that only are bound are in nobody's way.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())
}

/// Removes the folders of runs whose process is gone: a killed run cannot clean up after itself.
fn remove_what_the_dead_left(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
