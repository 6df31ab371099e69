//! A pipeline's source, from its first look at what it reads.

use std::sync::Arc;

use super::{Lanes, Shared};
use crate::config::model::{Http, Kafka, Pipeline, Source, StarRocks};
use crate::delivery::Stop;
use crate::delivery::carry::Carrier;
use crate::delivery::marker::Marker;
use crate::fault::Fault;
use crate::meter::PipelineMeter;
use crate::sink::Fence;
use crate::source::postgres::{Ended, Round};
use crate::source::replay::chunks::Way;
use crate::source::{Parts, http, kafka, postgres, replay};

/// A source that is ready to be wired.
pub(super) enum Origin {
    Kafka(Kafka),
    Postgres(Box<postgres::Prepared>),
    Http(Http),
    /// Dead letters, instead of what the file names.
    Replay(Box<replay::Order>),
}

impl Origin {
    /// Looks at what is to be read, where the tables to load follow from it; none if the pipeline is asked to stop
    /// meanwhile.
    pub(super) fn prepare(
        pipeline: &Pipeline,
        shared: &Shared,
        meter: &Arc<PipelineMeter>,
        stop: &Stop,
        round: Round,
    ) -> Result<Option<Origin>, Fault> {
        match &pipeline.source {
            Source::Kafka(kafka) => Ok(Some(Origin::Kafka(kafka.clone()))),
            Source::Http(http) => Ok(Some(Origin::Http(http.clone()))),
            Source::Postgres(source) => {
                let preparing = postgres::prepare(source, pipeline, meter, stop, round);
                let prepared = shared.runtime.block_on(preparing)?;
                Ok(prepared.map(|prepared| Origin::Postgres(Box::new(prepared))))
            }
        }
    }

    /// The tables that it wants loaded, with their keys; none where its rows go where the file says.
    pub(super) fn followed(&self) -> Vec<(String, Vec<String>)> {
        match self {
            Origin::Postgres(prepared) => prepared.destinations(),
            // Their rows do not say their keys: none is folded with another.
            Origin::Replay(order) => order.followed.iter().map(|table| (table.clone(), Vec::new())).collect(),
            Origin::Kafka(_) | Origin::Http(_) => Vec::new(),
        }
    }

    /// Whether it is a consumer group.
    pub(super) fn is_kafka(&self) -> bool {
        matches!(self, Origin::Kafka(_))
    }

    /// What guards its rows against loads that come too late, where it has such a guard of its own. Kafka's hangs on
    /// the tables.
    pub(super) fn fence(&self) -> Option<Arc<dyn Fence>> {
        match self {
            Origin::Postgres(prepared) => Some(prepared.fence()),
            Origin::Kafka(_) | Origin::Http(_) | Origin::Replay(_) => None,
        }
    }

    /// Reads until it is asked to stop, something halts it, or it has to be looked at anew.
    pub(super) fn run(
        self,
        parts: Parts,
        sink: Arc<StarRocks>,
        carrier: Carrier,
        exactly: Option<kafka::Exactly>,
        fencing: Option<kafka::Fencing>,
        lanes: &Lanes,
    ) -> Result<Ended, Fault> {
        match self {
            Origin::Kafka(kafka) => {
                let marker = Marker::new(parts.runtime.clone(), sink, &parts.meter.name, &kafka.group);
                let wiring = kafka::Wiring { kafka, marker, parts, exactly, fencing };
                kafka::run(wiring, |number, feed| lanes.spawn(number, feed)).map(|()| Ended::Stopped)
            }
            Origin::Postgres(prepared) => {
                let wiring = postgres::Wiring { prepared: *prepared, sink, carrier, parts };
                postgres::run(wiring, &|number, feed| lanes.spawn(number, feed))
            }
            Origin::Http(settings) => {
                let spawn = |number, feed| lanes.spawn(number, feed);
                http::run(settings, parts, spawn).map(|()| Ended::Stopped)
            }
            Origin::Replay(order) => {
                let spawn = |way, feed| match way {
                    Way::ThroughPlugins => lanes.spawn(way as usize, feed),
                    Way::PastPlugins => lanes.past_plugins().spawn(way as usize, feed),
                };
                replay::run(*order, parts, lanes.destinations.names(), spawn).map(|()| Ended::Stopped)
            }
        }
    }
}
