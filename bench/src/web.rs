//! HTTP: single-row POSTs beside an empty axum handler, and the answer times of durable posts. `wrk` sends.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::proc::used;
use crate::report::median;
use crate::stand::{self, Stand};

/// Heading of the section on the page.
pub(crate) const HEADING: &str = "HTTP";
/// Keep-alive connections of single-row POSTs.
const SINGLE_CONNECTIONS: usize = 256;
/// Keep-alive connections of posts of a thousand rows.
const BULK_CONNECTIONS: usize = 64;
/// Rows of such a post.
const BULK_ROWS: usize = 1_000;
/// Linger of the pipelines, in seconds.
const LINGER_S: f64 = 1.0;
/// What the script says the 99th percentile by, in microseconds: `wrk` itself tells hundredths of a second.
const P99_US: &str = "p99_us";
/// How long a listener may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// How long requests are sent.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sizes {
    /// Seconds of each run of HTTP
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
}

/// An empty handler, as a child process: as many threads as Tidemill's runtime has.
#[derive(Debug, Args)]
pub(crate) struct Empty {
    #[arg(long)]
    listen: SocketAddr,
}

impl Empty {
    /// Serves until it is killed.
    pub(crate) fn run(&self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let listen = self.listen;
        let served = runtime.map_err(|error| error.to_string())?.block_on(async move {
            let empty = axum::routing::post(async || axum::http::StatusCode::ACCEPTED);
            let listener = tokio::net::TcpListener::bind(listen).await?;
            axum::serve(listener, axum::Router::new().route("/{path}", empty)).await
        });
        served.map_err(|error| format!("the empty handler: {error}"))
    }
}

/// What `wrk` tells, and what the server used.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    requests_s: f64,
    p99_s: f64,
    not_taken: u64,
    /// CPU time for each second of sending.
    cpu_s: f64,
    peak_bytes: u64,
    load_s: f64,
}

/// Runs both contests; returns their section of the page.
pub(crate) fn run(sizes: &Sizes, rounds: usize) -> Result<String, String> {
    let table = "CREATE TABLE bench.events (id BIGINT NOT NULL, amount BIGINT, note VARCHAR(256)) \
                 DUPLICATE KEY (id) DISTRIBUTED BY HASH (id) BUCKETS 1";
    let web = Web { stand: Stand::start(&[table.to_owned()])?, seconds: sizes.seconds };
    let (single, bulk) = (web.script("single.lua", 1)?, web.script("bulk.lua", BULK_ROWS)?);
    let (mut empty, mut queued, mut durable) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        empty.push(web.empty(&single)?);
        queued.push(web.tidemill(&single, SINGLE_CONNECTIONS, "/events?ack=queued")?);
        durable.push(web.tidemill(&bulk, BULK_CONNECTIONS, "/events")?);
    }
    Ok(section(&empty, &queued, &durable))
}

struct Web {
    stand: Stand,
    seconds: u64,
}

impl Web {
    /// What `wrk` sends: the request is made once, so that sending costs little.
    fn script(&self, name: &str, rows: usize) -> Result<String, String> {
        let text = format!(
            "wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/x-ndjson'\nlocal rows = {{}}\n\
             for n = 1, {rows} do rows[n] = string.format('{{\"id\":%d,\"amount\":%d,\"note\":\"event %d of the benchmark, \
             as a shop would send it\"}}\\n', n, n * 7, n) end\nwrk.body = table.concat(rows)\n\
             function done(_, latency, _) print('{P99_US} ' .. latency:percentile(99)) end\n"
        );
        let file = self.stand.write(name, &text)?;
        Ok(file.display().to_string())
    }

    fn empty(&self, script: &str) -> Result<Sent, String> {
        let address = address()?;
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(own);
        let mut child = command
            .args(["empty", "--listen", &address.to_string()])
            .spawn()
            .map_err(|error| error.to_string())?;
        let sent = self.send(&mut child, address, script, SINGLE_CONNECTIONS, "/events");
        // Ours, by its handle; it never ends by itself.
        let _ = child.kill();
        let _ = child.wait();
        let sent = sent?;
        eprintln!("empty handler: {:.0} requests/s, {:.2} cores", sent.requests_s, sent.cpu_s);
        Ok(sent)
    }

    fn tidemill(&self, script: &str, connections: usize, path: &str) -> Result<Sent, String> {
        let (address, name) = (address()?, stand::unique("events"));
        let pipeline = format!(
            "[pipeline]\nname = \"{name}\"\n[source.http]\nlisten = \"{address}\"\n[batch]\nlinger = \"{LINGER_S}s\"\n\
             {}table = \"events\"\ntable_model = \"duplicate\"\n",
            self.stand.sink()
        );
        let before = self.stand.stats()?.1;
        let (mut child, admin) = self.stand.run(&name, &pipeline)?;
        let sent = self.send(&mut child, address, script, connections, path);
        let load_s = self.stand.metrics(&admin).map_or(f64::NAN, |text| load_s(&text));
        stand::end(&mut child)?;
        let sent = Sent { load_s, ..sent? };
        let rows = self.stand.stats()?.1 - before;
        eprintln!(
            "{path}: {:.0} requests/s, p99 {:.3} s, {} not taken, {:.2} cores, {} MiB, {rows} rows, a load {:.3} s",
            sent.requests_s,
            sent.p99_s,
            sent.not_taken,
            sent.cpu_s,
            sent.peak_bytes >> 20,
            sent.load_s
        );
        Ok(sent)
    }

    fn send(
        &self,
        child: &mut Child,
        to: SocketAddr,
        script: &str,
        connections: usize,
        path: &str,
    ) -> Result<Sent, String> {
        let began = Instant::now();
        while TcpStream::connect(to).is_err() {
            if began.elapsed() > UP_WITHIN || child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(format!("nobody listens on {to}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let before = used(child.id()).unwrap_or_default();
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", &connections.to_string()])
            .args(["--duration", &format!("{}s", self.seconds), "--timeout", "30s"])
            .args(["--script", script, &format!("http://{to}{path}")])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cannot run `wrk`: {error}"))?;
        let after = used(child.id()).ok_or("the server has ended")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let told = told(&text).ok_or_else(|| format!("wrk said what cannot be read: {text}"))?;
        Ok(Sent {
            cpu_s: (after.cpu_s - before.cpu_s) / self.seconds as f64,
            peak_bytes: after.peak_bytes,
            ..told
        })
    }
}

fn address() -> Result<SocketAddr, String> {
    Ok(SocketAddr::from(([127, 0, 0, 1], stand::free_port()?)))
}

/// Mean time of a load so far, in seconds.
fn load_s(metrics: &str) -> f64 {
    let sum = |metric: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(metric));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    sum("tidemill_load_seconds_sum") / sum("tidemill_load_seconds_count")
}

/// Reads what `wrk` and the script print. Answers that are not a success count for nothing.
fn told(text: &str) -> Option<Sent> {
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let requests_s: f64 = field("Requests/sec:")?.parse().ok()?;
    let all: f64 = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
    let not_taken: u64 = field("Non-2xx or 3xx responses:").map_or(Some(0), |count| count.parse().ok())?;
    let taken = 1.0 - not_taken as f64 / all.max(1.0);
    Some(Sent {
        requests_s: requests_s * taken,
        p99_s: field(P99_US)?.parse::<f64>().ok()? / 1e6,
        not_taken,
        ..Sent::default()
    })
}

fn section(empty: &[Sent], queued: &[Sent], durable: &[Sent]) -> String {
    let of = |sent: &[Sent], what: fn(&Sent) -> f64| median(sent.iter().map(what).collect());
    let ratio =
        median(empty.iter().zip(queued).map(|(empty, ours)| ours.requests_s / empty.requests_s).collect());
    let mib = |sent: &[Sent]| of(sent, |one| one.peak_bytes as f64) / f64::from(1 << 20);
    let not_taken = |sent: &[Sent]| sent.iter().map(|one| one.not_taken).sum::<u64>();
    let per_million = |sent: &[Sent]| of(sent, |one| one.cpu_s / one.requests_s) * 1e6;
    let mut text = format!(
        "`wrk`, one thread; rows of some 80 bytes; linger {LINGER_S} s; {} rounds in turn, medians; the ratio is that \
         of each round. `wrk` and not `oha`: it is a Debian package, and takes less of the cores that it shares with \
         the server.\n\n\
         | single-row POSTs, {SINGLE_CONNECTIONS} connections | requests/s | CPU-s per M requests | not taken | peak RSS |\n|---|---|---|---|---|\n",
        empty.len()
    );
    for (name, sent) in [("empty axum handler", empty), ("tidemill, `?ack=queued`", queued)] {
        let _ = writeln!(
            text,
            "| {name} | {:.0} | {:.2} | {} | {:.0} MiB |",
            of(sent, |one| one.requests_s),
            per_million(sent),
            not_taken(sent),
            mib(sent)
        );
    }
    let _ = writeln!(
        text,
        "\nRatio of requests/s: {ratio:.2} (target: 0.8).\n\n\
         | durable posts of {BULK_ROWS} rows, {BULK_CONNECTIONS} connections | p99 | linger + a load (target) | rows/s | not taken | peak RSS |\n\
         |---|---|---|---|---|---|\n| tidemill | {:.3} s | {LINGER_S} + {:.3} s | {:.0} | {} | {:.0} MiB |",
        of(durable, |one| one.p99_s),
        of(durable, |one| one.load_s),
        of(durable, |one| one.requests_s) * BULK_ROWS as f64,
        not_taken(durable),
        mib(durable)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 2s test @ http://127.0.0.1:1/x\n  1000 requests in 2.00s, 1.00MB read\n  \
                    Non-2xx or 3xx responses: 100\nRequests/sec:   500.00\np99_us 12500.0\n";
        let sent = told(text).expect("readable");
        assert_eq!((sent.requests_s, sent.p99_s, sent.not_taken), (450.0, 0.0125, 100));
    }
}
