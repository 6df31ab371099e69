//! `tidemill run`: one thread a pipeline, signals, the status line.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::{EXIT_FAILED, EXIT_OK};
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
/// How often ended pipelines are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Pipeline files; each runs on its own, and one that halts leaves the others running
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the rows of the first N records as they would be loaded, and end; commits nothing
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10")]
    dry_run: Option<usize>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Run {
    pub(super) fn execute(self) -> u8 {
        let plan = match super::load(&self.files, &self.overrides) {
            Ok(plan) => plan,
            Err(code) => return code,
        };
        let ended = match self.dry_run {
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
    // Nothing is left to send; what hangs on the network must not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(if failed { EXIT_FAILED } else { EXIT_OK })
}

/// The first SIGTERM or SIGINT drains; a second one ends the process at once.
fn watch_signals(runtime: &Runtime, stop: &Stop) -> Result<(), Fault> {
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

/// The status line of each pipeline, every few seconds.
struct Status<'a> {
    meters: &'a [Arc<PipelineMeter>],
    last: Vec<(u64, u64)>,
    at: Instant,
}

impl<'a> Status<'a> {
    fn new(meters: &'a [Arc<PipelineMeter>]) -> Self {
        Status { meters, last: vec![(0, 0); meters.len()], at: Instant::now() }
    }

    fn log_when_due(&mut self) {
        let elapsed = self.at.elapsed();
        if elapsed < pipeline::STATUS_EVERY {
            return;
        }
        self.at = Instant::now();
        for (meter, (rows_before, loads_before)) in self.meters.iter().zip(&mut self.last) {
            let (rows, loads) = (meter.rows_loaded(), meter.loads());
            let per_second = (rows - *rows_before) as f64 / elapsed.as_secs_f64();
            let waiting = meter.health.waiting_for();
            if rows == *rows_before && meter.records_in_flight.get() == 0 && waiting.is_none() {
                continue;
            }
            tracing::info!(
                pipeline = %meter.name,
                rows_per_s = per_second.round() as u64,
                rows,
                loads = loads - *loads_before,
                loads_total = loads,
                lag = meter.lag.get(),
                in_flight = meter.records_in_flight.get(),
                versions = meter.versions(),
                waiting_for = waiting.map(|(what, since)| format!("{what} ({} s)", since.as_secs())),
                "loading"
            );
            (*rows_before, *loads_before) = (rows, loads);
        }
    }
}
