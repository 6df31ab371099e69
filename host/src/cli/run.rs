//! `tidemill run`: one thread a pipeline, signals, the status line.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::admin;
use crate::batch::stage::StageHandle;
use crate::budget::Budget;
use crate::config::Overrides;
use crate::config::model::{Pipeline, Plan};
use crate::delivery::Stop;
use crate::fault::Fault;
use crate::meter::{Meter, PipelineMeter};
use crate::pipeline::{self, Shared};
use crate::plugin::Engine;

/// Largest memory of a plugin instance when no pipeline has one, in bytes.
const NO_PLUGIN_MEMORY_BYTES: u64 = 64 << 20;
/// Records of a dry run that names no number.
const DRY_RUN_RECORDS: &str = "10";
/// How long the end waits for the stage, which has nothing left to do.
const STAGE_PATIENCE: Duration = Duration::from_secs(1);
/// How often ended pipelines are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Pipeline files; each runs on its own, and one that halts leaves the others running
    #[arg(required_unless_present = "dry_run", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the rows of the first N records (10 without N) as they would be loaded, and end; commits nothing
    // Text, because clap takes the word behind the flag for its value: it may be the first file.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = DRY_RUN_RECORDS)]
    dry_run: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Run {
    pub(super) fn execute(mut self) -> u8 {
        let records = self.take_dry_run();
        if self.files.is_empty() {
            eprintln!("error: --dry-run needs a pipeline file: tidemill run --dry-run orders.toml");
            return EXIT_USAGE;
        }
        let plan = match super::load(&self.files, &self.overrides) {
            Ok(plan) => plan,
            Err(code) => return code,
        };
        let ended = match records {
            Some(records) => super::dry_run::print(&plan, records),
            None => run(&plan),
        };
        match ended {
            Ok(code) => code,
            Err(fault) => {
                super::say(&fault);
                EXIT_FAILED
            }
        }
    }

    /// Records of the dry run that was asked for. What stands behind the flag and is no number is the
    /// first file.
    fn take_dry_run(&mut self) -> Option<usize> {
        let written = self.dry_run.take()?;
        let number = written.parse().ok();
        if number.is_none() {
            self.files.insert(0, written.into());
        }
        number.or_else(|| DRY_RUN_RECORDS.parse().ok())
    }
}

/// Runtime and shared stages of a process.
pub(super) fn start(plan: &Plan) -> Result<(Runtime, Shared), Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::retry("cannot start the runtime").caused_by(error))?;
    let memories = plan.pipelines.iter().flat_map(|pipeline| &pipeline.transforms);
    let memory = memories.map(|transform| transform.memory_bytes).max().unwrap_or(NO_PLUGIN_MEMORY_BYTES);
    let instances = pipeline::plugin_instances(&plan.process, &plan.pipelines);
    let shared = Shared {
        process: plan.process.clone(),
        runtime: runtime.handle().clone(),
        stage: StageHandle::start(runtime.handle().clone())?,
        carriers: Arc::default(),
        budget: Budget::new(plan.process.budget_bytes),
        meter: Arc::new(Meter::new()),
        engine: Engine::new(instances, memory, &plan.process.cache_dir)?,
    };
    Ok((runtime, shared))
}

/// One pipeline's thread.
struct Running {
    pipeline: Arc<Pipeline>,
    thread: Option<JoinHandle<Result<(), Fault>>>,
}

fn run(plan: &Plan) -> Result<u8, Fault> {
    let (runtime, shared) = start(plan)?;
    let meters: Vec<_> =
        plan.pipelines.iter().map(|pipeline| shared.meter.pipeline(&pipeline.name)).collect();
    if let Some(address) = plan.process.admin {
        let pipelines = Arc::new(meters.clone());
        let console =
            admin::Console { meter: Arc::clone(&shared.meter), budget: shared.budget.clone(), pipelines };
        let bound = runtime.block_on(admin::serve(address, console))?;
        tracing::info!(address = %bound, "serving /health, /ready and /metrics");
    }
    let stop = Stop::default();
    watch_signals(&runtime, &stop)?;
    let mut running = Vec::new();
    for (id, pipeline) in (0..).zip(&plan.pipelines) {
        let (own, shared, stop) = (Arc::clone(pipeline), shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(format!("control-{id}"))
            .spawn(move || pipeline::run(&own, id, &shared, &stop))
            .map_err(|error| Fault::retry("cannot start a pipeline's thread").caused_by(error))?;
        running.push(Running { pipeline: Arc::clone(pipeline), thread: Some(thread) });
    }
    let failed = watch(&mut running, &meters);
    close(runtime, &shared);
    Ok(if failed { EXIT_FAILED } else { EXIT_OK })
}

/// Ends what no pipeline uses any more.
pub(super) fn close(runtime: Runtime, shared: &Shared) {
    // At a stage that does not answer the end of the process does not hang.
    let _ = runtime.block_on(async { tokio::time::timeout(STAGE_PATIENCE, shared.stage.end()).await });
    // Nothing is left to send; what hangs on the network must not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(100));
}

/// The first SIGTERM or SIGINT drains; a second one ends the process at once.
pub(super) fn watch_signals(runtime: &Runtime, stop: &Stop) -> Result<(), Fault> {
    let _inside = runtime.enter();
    let cannot = |error| Fault::retry("cannot listen for signals").caused_by(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let stop = stop.clone();
    runtime.spawn(async move {
        let mut asked = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked += 1;
            if asked > 1 {
                eprintln!("ended at once: what was not committed is read again at the next start");
                std::process::exit(i32::from(EXIT_FAILED));
            }
            tracing::info!("asked to stop: draining; a second signal ends at once");
            stop.request();
        }
    });
    Ok(())
}

/// Waits for all pipelines; says how each ended. True if one failed.
fn watch(running: &mut [Running], meters: &[Arc<PipelineMeter>]) -> bool {
    let mut failed = false;
    let mut status = Status::new(meters);
    while running.iter().any(|one| one.thread.is_some()) {
        std::thread::sleep(LOOK_EVERY);
        for one in running.iter_mut() {
            if !one.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                continue;
            }
            let Some(thread) = one.thread.take() else { continue };
            let name = &one.pipeline.name;
            match thread.join() {
                Ok(Ok(())) => tracing::info!(pipeline = %name, "ended"),
                Ok(Err(fault)) => {
                    failed = true;
                    tracing::error!(pipeline = %name, "halted: {}", fault.story());
                }
                Err(_panic) => {
                    failed = true;
                    tracing::error!(pipeline = %name, "halted: its control thread panicked; report this defect");
                }
            }
        }
        status.log_when_due();
    }
    failed
}

/// What a pipeline had done by its last status line.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    rows: u64,
    loads: u64,
    dropped: u64,
    dead_lettered: u64,
}

impl Seen {
    fn of(meter: &PipelineMeter) -> Seen {
        Seen {
            rows: meter.rows_loaded(),
            loads: meter.loads(),
            dropped: meter.records_dropped.get(),
            dead_lettered: meter.records_dead_lettered.get(),
        }
    }
}

/// The status line of each pipeline, every few seconds.
struct Status<'a> {
    meters: &'a [Arc<PipelineMeter>],
    last: Vec<Seen>,
    at: Instant,
}

impl<'a> Status<'a> {
    fn new(meters: &'a [Arc<PipelineMeter>]) -> Self {
        Status { meters, last: vec![Seen::default(); meters.len()], at: Instant::now() }
    }

    fn log_when_due(&mut self) {
        let elapsed = self.at.elapsed();
        if elapsed < pipeline::STATUS_EVERY {
            return;
        }
        self.at = Instant::now();
        for (meter, before) in self.meters.iter().zip(&mut self.last) {
            let now = Seen::of(meter);
            let per_second = (now.rows - before.rows) as f64 / elapsed.as_secs_f64();
            let waiting = meter.health.waiting_for();
            if now == *before && meter.records_in_flight.get() == 0 && waiting.is_none() {
                continue;
            }
            tracing::info!(
                pipeline = %meter.name,
                rows_per_s = per_second.round() as u64,
                rows = now.rows,
                loads = now.loads - before.loads,
                loads_total = now.loads,
                dead_lettered = now.dead_lettered,
                lag = meter.lag.get(),
                in_flight = meter.records_in_flight.get(),
                versions = meter.versions(),
                waiting_for = waiting.map(|(what, since)| format!("{what} ({} s)", since.as_secs())),
                "loading"
            );
            *before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Words {
        #[command(flatten)]
        run: Run,
    }

    fn parsed(words: &[&str]) -> (Option<usize>, Vec<PathBuf>) {
        let mut run = Words::try_parse_from([&["run"], words].concat()).unwrap().run;
        (run.take_dry_run(), run.files)
    }

    #[test]
    fn a_dry_run_takes_its_number_or_leaves_the_file_alone() {
        let (one, two) = (PathBuf::from("a.toml"), PathBuf::from("b.toml"));
        let alone = vec![one.clone()];
        assert_eq!(parsed(&["a.toml"]), (None, alone.clone()));
        assert_eq!(parsed(&["a.toml", "--dry-run"]), (Some(10), alone.clone()));
        assert_eq!(parsed(&["a.toml", "--dry-run", "20"]), (Some(20), alone.clone()));
        assert_eq!(parsed(&["--dry-run", "20", "a.toml"]), (Some(20), alone.clone()));
        assert_eq!(parsed(&["--dry-run=20", "a.toml"]), (Some(20), alone.clone()));
        assert_eq!(parsed(&["--dry-run", "a.toml"]), (Some(10), alone));
        assert_eq!(parsed(&["--dry-run", "a.toml", "b.toml"]), (Some(10), vec![one, two]));
    }

    #[test]
    fn a_run_needs_a_file() {
        assert!(Words::try_parse_from(["run"]).is_err());
        assert_eq!(parsed(&["--dry-run", "20"]), (Some(20), Vec::new()));
        let overrides = Overrides::default();
        let run = Run { files: Vec::new(), dry_run: Some("20".into()), overrides };
        assert_eq!(run.execute(), EXIT_USAGE);
    }
}
