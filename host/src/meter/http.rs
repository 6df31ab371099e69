//! Metrics of HTTP sources.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{PipelineLabels, SecondsFamily, family, family_gauge, family_seconds};

/// Labels of `tidemill_http_requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    pipeline: String,
    status: u16,
}

/// Upper bounds of the answer time's buckets, in seconds: from what is answered at once to what waits for a load.
const ANSWER_SECONDS_BUCKETS: [f64; 9] = [0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0];

fn answer_seconds_histogram() -> Histogram {
    Histogram::new(ANSWER_SECONDS_BUCKETS)
}

/// All of them, by pipeline.
#[derive(Debug, Clone)]
pub(super) struct HttpFamilies {
    requests: Family<StatusLabels, Counter>,
    request_bytes: Family<PipelineLabels, Counter>,
    connections: Family<PipelineLabels, Gauge>,
    in_flight: Family<PipelineLabels, Gauge>,
    answer_seconds: SecondsFamily<PipelineLabels>,
}

impl HttpFamilies {
    pub(super) fn register(registry: &mut Registry) -> HttpFamilies {
        HttpFamilies {
            requests: family(registry, "http_requests", "Requests answered, by status"),
            request_bytes: family(registry, "http_request_bytes", "Bytes of their bodies, as they were sent"),
            connections: family_gauge(registry, "http_connections", "Open connections"),
            in_flight: family_gauge(
                registry,
                "http_requests_in_flight",
                "Requests taken whose records are not durable yet",
            ),
            answer_seconds: family_seconds(
                registry,
                "http_answer",
                "Time from a request's head to its answer",
                answer_seconds_histogram,
            ),
        }
    }

    pub(super) fn of(&self, pipeline: &str) -> HttpMeter {
        let labels = PipelineLabels { pipeline: pipeline.to_owned() };
        HttpMeter {
            request_bytes: self.request_bytes.get_or_create(&labels).clone(),
            connections: self.connections.get_or_create(&labels).clone(),
            in_flight: self.in_flight.get_or_create(&labels).clone(),
            answer_seconds: self.answer_seconds.get_or_create(&labels).clone(),
            usual: USUAL.map(|status| {
                let labels = StatusLabels { pipeline: pipeline.to_owned(), status };
                (status, self.requests.get_or_create(&labels).clone())
            }),
            requests: self.requests.clone(),
            pipeline: pipeline.to_owned(),
        }
    }
}

/// Statuses that are counted without looking for their counter.
const USUAL: [u16; 2] = [200, 202];

/// The counters of one HTTP source.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the metric of its name; HttpFamilies::register has the help texts"
)]
pub struct HttpMeter {
    pub request_bytes: Counter,
    pub connections: Gauge,
    pub in_flight: Gauge,
    answer_seconds: Histogram,
    usual: [(u16, Counter); 2],
    requests: Family<StatusLabels, Counter>,
    pipeline: String,
}

impl HttpMeter {
    /// Counts a request that was answered with `status` after `taken`.
    pub fn answered(&self, status: u16, taken: Duration) {
        match self.usual.iter().find(|(usual, _)| *usual == status) {
            Some((_, counter)) => counter.inc(),
            None => {
                let labels = StatusLabels { pipeline: self.pipeline.clone(), status };
                self.requests.get_or_create(&labels).inc()
            }
        };
        self.answer_seconds.observe(taken.as_secs_f64());
    }

    /// Requests answered with `status` so far.
    pub fn answered_with(&self, status: u16) -> u64 {
        let labels = StatusLabels { pipeline: self.pipeline.clone(), status };
        self.requests.get_or_create(&labels).get()
    }
}
