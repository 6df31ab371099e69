//! `cargo xtask demo --postgres`: Debian's PostgreSQL with a shop that is busy, the sandbox in the place of StarRocks, and the
//! pipeline between them, until Ctrl-C.

use crate::{
    command::{self, Failure},
    setup,
};
use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread::{self, JoinHandle},
    time::Duration,
};
use tidemill_test_postgres::{Client, Fault, Server, Settings};

const DATABASE: &str = "shop";
const ORDERS: &str = "
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text NOT NULL,
    cents bigint NOT NULL,
    status text NOT NULL
);
INSERT INTO orders (customer, cents, status)
SELECT 'customer ' || n % 100, n * 7919 % 100000, 'new' FROM generate_series(1, 5000) n;
";
/// Each in a transaction of its own, every [`PAUSE`].
const BUSINESS: &str = "
INSERT INTO orders (customer, cents, status)
SELECT 'customer ' || floor(random() * 100), floor(random() * 100000), 'new' FROM generate_series(1, 20);
UPDATE orders SET status = CASE status WHEN 'new' THEN 'paid' ELSE 'sent' END
WHERE id > (SELECT max(id) - 2000 FROM orders) AND id % 50 = floor(extract(epoch FROM now()))::bigint % 50;
DELETE FROM orders WHERE id < (SELECT max(id) - 10000 FROM orders);
";
const PAUSE: Duration = Duration::from_millis(200);
const QUESTION: &str = "SELECT status, count(*), sum(cents) FROM orders GROUP BY status ORDER BY status";

/// Builds, starts all parts, becomes the audience of `tidemill run`, and leaves nothing running.
pub(crate) fn postgres(arguments: &[OsString]) -> Result<(), Failure> {
    setup::for_postgres()?;
    command::run(&mut command::cargo(&["build", "--release", "--package", "tidemill"]))?;
    let folder = command::target().join("demo-postgres");
    // A limit, as everybody should set one, and above `max_slot_wal`: otherwise `tidemill run` warns.
    let settings = Settings { max_slot_wal_keep_size: Some("16GB".to_owned()), ..Settings::default() };
    let server = Server::start(&folder, &settings)?;
    server.psql(&format!("CREATE DATABASE {DATABASE}"))?;
    let shop = server.client().database(DATABASE);
    shop.run(ORDERS)?;
    let sandbox = Sandbox::start()?;
    let file = folder.join("orders.toml");
    fs::write(&file, pipeline(&server, &sandbox))
        .map_err(|cause| Failure::new(format!("write {}: {cause}", file.display())))?;
    show(&server, &sandbox, &file);

    // From here on Ctrl-C means `tidemill run`, which drains and ends; then it is our turn to end the rest.
    outlive_interrupts();
    let writer = Writer::start(shop);
    let mut run = Command::new(command::built("tidemill"));
    run.arg("run").arg(&file).args(arguments).current_dir(command::root());
    let ran = command::run(&mut run);
    let wrote = writer.stop();
    drop(sandbox);
    drop(server);
    ran?;
    wrote
}

fn pipeline(server: &Server, sandbox: &Sandbox) -> String {
    format!(
        r#"# Written by `cargo xtask demo --postgres`.
[pipeline]
name = "orders"

[source.postgres]
host = "127.0.0.1"
port = {port}
database = "{DATABASE}"
user = "postgres"
tables = ["public.orders"]

[batch]
linger = "1s"

[sink.starrocks]
fe = ["{fe}"]
query = "127.0.0.1:{query}"
database = "{DATABASE}"
create_tables = true
user = "root"
"#,
        port = server.port(),
        fe = sandbox.fe,
        query = sandbox.query_port,
    )
}

fn show(server: &Server, sandbox: &Sandbox, file: &Path) {
    let psql = server.programs().path("psql");
    println!(
        "\nPostgreSQL   {} -h {} -p {} -U postgres {DATABASE}\n\
         StarRocks    mysql -h 127.0.0.1 -P {} -u root {DATABASE}\n\
         pipeline     {}\n\n\
         Orders come, change and go all the while. Ask both the same, and they answer the same, a second apart:\n    \
         {QUESTION};\n\n\
         Ctrl-C ends it all.",
        psql.display(),
        server.socket_dir().display(),
        server.port(),
        sandbox.query_port,
        file.display(),
    );
}

/// `tidemill sandbox` on free ports, with an empty database; ended when it is dropped, or when we die.
struct Sandbox {
    child: Child,
    fe: String,
    query_port: String,
}

/// Runs a program until our end of its standard input closes; then SIGTERM, so that the sandbox removes its rows.
const LEASH: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
leashed=$!
(read -r _ <&3; kill -s TERM "$leashed" 2>&-) >&- &
wait "$leashed"
"#;

impl Sandbox {
    fn start() -> Result<Self, Failure> {
        let child = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .arg(command::built("tidemill"))
            .args(["sandbox", "--fe-port", "0", "--be-port", "0", "--query-port", "0"])
            .args(["--execute", &format!("CREATE DATABASE {DATABASE}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is not for it: `tidemill run` loads what it has read before it ends.
            .process_group(0)
            .spawn()
            .map_err(|cause| Failure::new(format!("run `tidemill sandbox`: {cause}")))?;
        // From here on dropping it ends the process.
        let mut sandbox = Self { child, fe: String::new(), query_port: String::new() };
        let banner =
            sandbox.child.stdout.take().into_iter().flat_map(|banner| BufReader::new(banner).lines());
        for line in banner.map_while(Result::ok) {
            let word_after =
                |mark: &str| Some(line.split_once(mark)?.1.split_whitespace().next()?.to_owned());
            if line.starts_with("FE ") {
                sandbox.fe = word_after("here)").unwrap_or_default();
            } else if let Some(port) = word_after(" -P ") {
                sandbox.query_port = port;
                return Ok(sandbox);
            }
        }
        Err(Failure::new("`tidemill sandbox` did not say where it listens"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(cause) = self.child.wait() {
            eprintln!("`tidemill sandbox` may still run: {cause}");
        }
    }
}

/// Keeps the shop busy.
struct Writer {
    /// Never sent to: its end is the sign.
    stop: SyncSender<()>,
    thread: JoinHandle<Result<(), Fault>>,
}

impl Writer {
    fn start(shop: Client) -> Self {
        let (stop, stopped) = mpsc::sync_channel(1);
        Self { stop, thread: thread::spawn(move || write(&shop, &stopped)) }
    }

    fn stop(self) -> Result<(), Failure> {
        drop(self.stop);
        match self.thread.join() {
            Ok(wrote) => Ok(wrote?),
            Err(_) => Err(Failure::new("the demo's writer panicked")),
        }
    }
}

fn write(shop: &Client, stopped: &Receiver<()>) -> Result<(), Fault> {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PAUSE) {
        shop.run(BUSINESS)?;
    }
    Ok(())
}

/// The terminal sends Ctrl-C to us, too. By a handler, since what we start would inherit that a signal is ignored.
fn outlive_interrupts() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    #[expect(unsafe_code, reason = "std has no word for signals")]
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe {
        libc::signal(libc::SIGINT, nothing as *const () as libc::sighandler_t);
    }
}
