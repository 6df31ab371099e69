//! Wires a pipeline, in the order in which data flows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::batch::stage::{EpochOutlet, PipelineId, Registration, StageHandle};
use crate::budget::{Budget, Share};
use crate::buffers::Buffers;
use crate::chain::Chain;
use crate::config::model::{self, Delivery, Pipeline, Process, Source, TableModel};
use crate::dead_letter::{DeadLetterBox, Rejects, Tolerance};
use crate::delivery::carriers::Carriers;
use crate::delivery::carry::Carrier;
use crate::delivery::decision::Terms;
use crate::delivery::epoch::Epochs;
use crate::delivery::epoch_carrier::EpochCarrier;
use crate::delivery::owner::Owner;
use crate::delivery::{Alarm, Stop};
use crate::fault::{Fault, FaultKind};
use crate::lane::{Lane, LaneParts};
use crate::ledger::Ledger;
use crate::meter::{Meter, PipelineMeter, TableMeter};
use crate::plugin::{Engine, Plugin, Wants};
use crate::sink::Destination;
use crate::sink::late::{LateTables, Model};
use crate::sink::starrocks::query;
use crate::source::postgres::{Ended, Round};
use crate::source::{Feed, Gathering, Parts, kafka};

mod destinations;
mod origin;
mod replay;
mod versions;

pub(crate) use destinations::Destinations;
use origin::Origin;
pub(crate) use replay::replay;
use versions::{VersionWatch, Watching};

/// Beyond its batches a pipeline's share has room for chunks on their way there, in bytes.
const SHARE_CHUNK_BYTES: u64 = 6 << 20;
/// Tables that an epoch may load: each is an open transaction in StarRocks, which has a limit for them.
const EPOCH_TABLES_MAX: usize = 50;
/// How often the status line is logged.
pub const STATUS_EVERY: Duration = Duration::from_secs(5);
/// More lanes than this do not help one consumer.
const LANES_MAX: usize = 12;

/// What the pipelines of a process share.
#[derive(Clone)]
pub struct Shared {
    /// `[process]`.
    pub process: Process,
    /// Where sending and HTTP live.
    pub runtime: Handle,
    /// All open batches.
    pub stage: StageHandle,
    /// Who carries them away, a cluster each.
    pub carriers: Arc<Carriers>,
    /// Bytes in flight.
    pub budget: Budget,
    /// All metrics.
    pub meter: Arc<Meter>,
    /// Runs plugins.
    pub engine: Engine,
}

/// Lanes of a pipeline unless the file says otherwise: as many as cores. A source with fewer
/// partitions starts fewer.
pub fn lane_count(process: &Process) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    process.lanes.unwrap_or(cores).clamp(1, LANES_MAX)
}

/// Most instances of plugins that the pipelines need at a time: a lane that verifies starts one beside its own.
pub fn plugin_instances(process: &Process, pipelines: &[Arc<Pipeline>]) -> usize {
    let each = |pipeline: &Pipeline| pipeline.transforms.len() + usize::from(pipeline.verify);
    pipelines.iter().map(|pipeline| each(pipeline) * lane_count(process)).sum()
}

/// Asks StarRocks for the model of each table, unless the file says it. That of a table that is not there is not known.
async fn table_models(sink: &model::StarRocks, names: &[String]) -> Result<Vec<Model>, Fault> {
    let mut models = Vec::with_capacity(names.len());
    for name in names {
        let model = match sink.table_model {
            Some(model) => model.into(),
            None => match query::table_model(sink, name).await {
                Ok(Some(model)) => model.into(),
                Ok(None) => {
                    // The first load is refused with the statement that would make it.
                    tracing::warn!(table = %name, "the table is not there yet");
                    Model::default()
                }
                Err(fault) if fault.kind == FaultKind::Retry => {
                    return Err(Fault::halt(
                        format!("cannot read the model of table `{name}`: {}", fault.story()),
                        "mend [sink.starrocks] query, or set table_model = \"duplicate\", \"unique\" or \"primary\"",
                    ));
                }
                Err(fault) => return Err(fault),
            },
        };
        models.push(model);
    }
    Ok(models)
}

/// Runs a pipeline until it is asked to stop or something halts it. Blocks; from a thread of its own.
///
/// # Errors
/// Whatever halted it. Nothing that was not durable was committed.
pub fn run(pipeline: &Arc<Pipeline>, id: PipelineId, shared: &Shared, stop: &Stop) -> Result<(), Fault> {
    let meter = shared.meter.pipeline(&pipeline.name);
    let ended = wire(pipeline, id, shared, stop, &meter);
    meter.health.ended(ended.as_ref().err().map(Fault::story));
    ended
}

fn wire(
    pipeline: &Arc<Pipeline>,
    id: PipelineId,
    shared: &Shared,
    stop: &Stop,
    meter: &Arc<PipelineMeter>,
) -> Result<(), Fault> {
    let sink = Arc::new(pipeline.sink.clone());

    // Plugins: compiled, or from the cache; each lane starts its own instances.
    let plugins = load_plugins(pipeline, &shared.engine)?;
    for plugin in &plugins {
        shared.meter.watch_plugin(&pipeline.name, &plugin.name, &plugin.stats);
    }

    // StarRocks: reachable, credentials right.
    let carrier = shared.carriers.carrier(&sink, &shared.runtime)?;
    shared.runtime.block_on(carrier.client().ping()).map_err(Fault::halting)?;

    // Rejects: their place is open before the first record is read.
    let alarm = Alarm::default();
    let rejects = rejects_of(pipeline, &shared.runtime, meter, &alarm)?;

    let share = share_of(pipeline, &shared.budget);
    let wiring = Wiring { pipeline, id, shared, stop, meter, sink, plugins, carrier, alarm, rejects, share };
    let mut ended = Ended::Again(Round::default());
    while let Ended::Again(round) = ended {
        // All that follows from the tables is made anew whenever they are others.
        let Some(origin) = Origin::prepare(pipeline, shared, meter, stop, round)? else { break };
        ended = wiring.run(origin)?;
    }
    Ok(())
}

/// What a pipeline has for as long as it runs, however often its source goes round.
struct Wiring<'a> {
    pipeline: &'a Arc<Pipeline>,
    id: PipelineId,
    shared: &'a Shared,
    stop: &'a Stop,
    meter: &'a Arc<PipelineMeter>,
    sink: Arc<model::StarRocks>,
    plugins: Vec<Arc<Plugin>>,
    carrier: Carrier,
    alarm: Alarm,
    rejects: Rejects,
    share: Share,
}

impl Wiring<'_> {
    /// Runs one round. Records that are on their way are known to its own ledger only.
    fn run(&self, origin: Origin) -> Result<Ended, Fault> {
        let Wiring { pipeline, id, shared, meter, sink, carrier, .. } = self;

        // Destinations: those of a source of tables were looked at already.
        let followed = origin.followed();
        let destinations = Arc::new(Destinations::of(pipeline, &self.plugins, &followed)?);
        let others = destinations.names().get(followed.len()..).unwrap_or_default();
        let mut models: Vec<Model> = followed.iter().map(|_| TableModel::Primary.into()).collect();
        models.extend(shared.runtime.block_on(table_models(sink, others))?);

        // Promises: what loads have to ask for, and what decides them.
        let shapes = destinations.shapes(sink, &models);
        let exactly = exactly_once(pipeline, &shapes, carrier, &self.rejects)?;
        let fencing = origin.is_kafka().then(|| fencing_of(pipeline, &shapes, meter, carrier)).flatten();

        // What a load has to know of the pipeline whose rows it carries.
        let gathering = gathering_of(&self.plugins, matches!(self.rejects, Rejects::Keep(..)));
        let tables = table_meters(pipeline, &destinations, &shared.meter);
        // There is one of each name.
        let meters: Vec<TableMeter> =
            destinations.names().iter().filter_map(|name| tables.get(name).cloned()).collect();
        let owner = Arc::new(Owner {
            pipeline: *id,
            meter: Arc::clone(meter),
            tables,
            giving_up: Arc::default(),
            alarm: self.alarm.clone(),
            rejects: self.rejects.clone(),
            share: self.share.clone(),
            buffers: Buffers::default(),
            fence: origin.fence().or_else(|| fencing.as_ref().map(kafka::Fencing::fence)),
            late: late_tables(pipeline, sink, destinations.names(), &models),
        });

        // The shared stage, and what carries its batches away.
        let epochs = exactly.as_ref().map(|exactly| -> Arc<dyn EpochOutlet> {
            Arc::new(EpochCarrier::new(carrier.clone(), exactly.epochs.clone(), Arc::clone(&owner)))
        });
        let registration = Registration {
            destinations: shapes,
            meters: meters.clone(),
            limits: pipeline.batch,
            in_flight: sink.in_flight,
            share: self.share.clone(),
            outlet: Arc::new(carrier.clone()),
            epochs,
        };
        shared.stage.register(*id, registration)?;

        // How many versions the tables have: seldom read, and nothing waits for it.
        let _watching = self.watch_versions(&destinations, meters);

        // Lanes: read → plugins → rows → stage.
        let parts = LaneParts {
            stage: shared.stage.clone(),
            ledger: Ledger::new(),
            owner,
            targets: destinations.targets(&models, pipeline),
            line_feeds: gathering.line_feeds,
        };
        let lanes = Lanes { parts, plugins: self.plugins.clone(), destinations, verify: pipeline.verify };

        // The source: this thread is its control.
        let parts = lanes.source_parts(gathering, shared, self.stop, carrier.stem(&pipeline.name));
        origin.run(parts, Arc::clone(sink), carrier.clone(), exactly, fencing, &lanes)
    }

    fn watch_versions(&self, destinations: &Arc<Destinations>, meters: Vec<TableMeter>) -> Watching {
        let watch = VersionWatch {
            sink: Arc::clone(&self.sink),
            pipeline: self.id,
            destinations: Arc::clone(destinations),
            meters,
            stage: self.shared.stage.clone(),
        };
        watch.start(&self.shared.runtime)
    }
}

/// What exactly_once needs; none for a pipeline that does not promise it.
fn exactly_once(
    pipeline: &Pipeline,
    destinations: &[Arc<Destination>],
    carrier: &Carrier,
    rejects: &Rejects,
) -> Result<Option<kafka::Exactly>, Fault> {
    let (Delivery::ExactlyOnce, Some(first)) = (pipeline.delivery, destinations.first()) else {
        return Ok(None);
    };
    if destinations.len() > EPOCH_TABLES_MAX {
        return Err(Fault::halt(
            format!("an exactly_once pipeline loads {} tables at a time", destinations.len()),
            format!("let its plugins route to {EPOCH_TABLES_MAX} at most, or split it"),
        ));
    }
    let epochs = Epochs::new(Terms {
        tables_max: u32::try_from(destinations.len()).unwrap_or(u32::MAX),
        prepared_timeout: pipeline.sink.prepared_timeout,
        database: pipeline.sink.database.clone(),
    });
    let letters = match rejects {
        Rejects::Keep(letters, _) => letters.outbox().cloned(),
        Rejects::Halt | Rejects::Answer => None,
    };
    Ok(Some(kafka::Exactly { epochs, carrier: carrier.clone(), destination: Arc::clone(first), letters }))
}

/// What keeps Primary Key tables that are loaded from Kafka from going back in time; none for a pipeline that needs no
/// such guard, or has another.
fn fencing_of(
    pipeline: &Pipeline,
    destinations: &[Arc<Destination>],
    meter: &Arc<PipelineMeter>,
    carrier: &Carrier,
) -> Option<kafka::Fencing> {
    let guarded = destinations.iter().find(|destination| destination.model == TableModel::Primary)?;
    match pipeline.delivery {
        Delivery::AtLeastOnce => Some(kafka::Fencing::new(&pipeline.name, meter, carrier, guarded)),
        // Its loads are prepared, and a process of before cannot decide them.
        Delivery::ExactlyOnce => None,
    }
}

/// Tables whose model has to be known before they are loaded.
fn late_tables(
    pipeline: &Pipeline,
    sink: &Arc<model::StarRocks>,
    names: &[String],
    models: &[Model],
) -> LateTables {
    match pipeline.source {
        Source::Kafka(_) | Source::Postgres(_) => LateTables::of(sink, names.iter().zip(models)),
        // It has no fence to set up, and is not halted by what it is sent.
        Source::Http(_) => LateTables::default(),
    }
}

/// Where a pipeline's rejects go.
fn rejects_of(
    pipeline: &Pipeline,
    runtime: &Handle,
    meter: &Arc<PipelineMeter>,
    alarm: &Alarm,
) -> Result<Rejects, Fault> {
    // A refused row of a request concerns nobody but the request.
    let answers = matches!(pipeline.source, Source::Http(_));
    let Some(settings) = &pipeline.dead_letters else {
        return Ok(if answers { Rejects::Answer } else { Rejects::Halt });
    };
    let kafka = match &pipeline.source {
        Source::Kafka(kafka) => Some(kafka),
        Source::Postgres(_) | Source::Http(_) => None,
    };
    let tolerance = pipeline.max_rejects.filter(|_| !answers);
    let decided = match pipeline.delivery {
        Delivery::ExactlyOnce => DeadLetterBox::decided(settings, kafka, meter),
        Delivery::AtLeastOnce => None,
    };
    let letters = match decided {
        Some(decided) => decided,
        None => DeadLetterBox::open(settings, kafka, runtime, meter, alarm)?,
    };
    Ok(Rejects::Keep(letters, tolerance.map(|max| Arc::new(Tolerance::new(max)))))
}

/// What lanes copy out of messages: what a plugin asks for, and what dead letters keep.
fn gathering_of(plugins: &[Arc<Plugin>], dead_letters: bool) -> Gathering {
    let wants = |of: fn(&Wants) -> bool| plugins.iter().any(|plugin| of(&plugin.descriptor.wants));
    Gathering {
        keys: dead_letters || wants(|wants| wants.key),
        headers: dead_letters || wants(|wants| wants.headers),
        timestamps: dead_letters || wants(|wants| wants.timestamp),
        partitions: wants(|wants| wants.position),
        line_feeds: plugins.is_empty(),
    }
}

/// Loads the plugins of a pipeline, in order.
pub(crate) fn load_plugins(pipeline: &Pipeline, engine: &Engine) -> Result<Vec<Arc<Plugin>>, Fault> {
    pipeline.transforms.iter().map(|transform| engine.load(transform)).collect()
}

fn share_of(pipeline: &Pipeline, budget: &Budget) -> Share {
    let batch = pipeline.batch.max_bytes;
    // One batch open and half of one ready, besides those in flight.
    let batches = (pipeline.sink.in_flight as u64).saturating_add(1);
    let cap = batch.saturating_mul(batches).saturating_add(batch / 2).saturating_add(SHARE_CHUNK_BYTES);
    let cap = cap.min(budget.limit());
    let floor = batch.min(budget.limit() / 2).saturating_add(1 << 20);
    budget.share(cap, floor)
}

fn table_meters(
    pipeline: &Pipeline,
    destinations: &Destinations,
    meter: &Meter,
) -> BTreeMap<String, TableMeter> {
    let database = &pipeline.sink.database;
    let meters = destinations
        .names()
        .iter()
        .map(|table| (table.clone(), meter.table(&pipeline.name, &format!("{database}.{table}"))));
    meters.collect()
}

/// Starts a pipeline's lanes.
struct Lanes {
    parts: LaneParts,
    plugins: Vec<Arc<Plugin>>,
    destinations: Arc<Destinations>,
    verify: bool,
}

impl Lanes {
    /// What the source that feeds them has to know.
    fn source_parts(&self, gathering: Gathering, shared: &Shared, stop: &Stop, label_stem: String) -> Parts {
        let LaneParts { stage, ledger, owner, .. } = &self.parts;
        Parts {
            lanes: lane_count(&shared.process),
            gathering,
            ledger: ledger.clone(),
            meter: Arc::clone(&owner.meter),
            stage: stage.clone(),
            pipeline: owner.pipeline,
            share: owner.share.clone(),
            runtime: shared.runtime.clone(),
            giving_up: Arc::clone(&owner.giving_up),
            alarm: owner.alarm.clone(),
            stop: stop.clone(),
            shutdown_timeout: shared.process.shutdown_timeout,
            stall_after: shared.process.stall_after,
            label_stem,
        }
    }

    /// The same lanes without the plugins, for rows that have been through them.
    fn past_plugins(&self) -> Lanes {
        let destinations = Arc::clone(&self.destinations);
        Lanes { parts: self.parts.clone(), plugins: Vec::new(), destinations, verify: false }
    }

    fn spawn<F: Feed + Send + 'static>(
        &self,
        number: usize,
        feed: F,
    ) -> std::io::Result<JoinHandle<Result<(), Fault>>> {
        let (parts, verify) = (self.parts.clone(), self.verify);
        let (plugins, destinations) = (self.plugins.clone(), Arc::clone(&self.destinations));
        // Whatever the lane logs says whose it is, also below this crate's own lines.
        let whose = tracing::error_span!("lane", pipeline = %parts.owner.meter.name, number);
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
            let _whose = whose.enter();
            let chain = Chain::start(&plugins, &|plugin| destinations.of_plugin(plugin))?;
            Lane::new(parts, feed, chain).verifying(verify).run()
        })
    }
}
