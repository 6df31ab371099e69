//! Metrics of plugins, read off their own counters.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::family;
use crate::plugin::Stats;

/// Labels of a plugin's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    /// `[pipeline] name`.
    pipeline: String,
    /// File stem of the component.
    plugin: String,
}

/// Counters of a plugin that are shown.
const PLUGIN_COUNTERS: usize = 5;

/// A plugin's own counters, and how much of each the metrics have already. Two plugins of the same name
/// add up.
#[derive(Debug)]
struct WatchedPlugin {
    labels: PluginLabels,
    stats: Arc<Stats>,
    shown: [u64; PLUGIN_COUNTERS],
}

impl WatchedPlugin {
    /// Calls, nanoseconds, failed calls, replaced instances, dropped log lines.
    fn counted(&self) -> [u64; PLUGIN_COUNTERS] {
        let stats = &self.stats;
        let failed = [&stats.traps, &stats.timeouts, &stats.out_of_memory, &stats.invalid_outputs];
        [
            stats.calls.get(),
            stats.guest_ns.get(),
            failed.iter().map(|counter| counter.get()).sum(),
            stats.instances_replaced.get(),
            stats.log_lines_dropped.get(),
        ]
    }
}

/// All of them, by pipeline and plugin.
#[derive(Debug)]
pub(super) struct PluginFamilies {
    /// In the order of [`WatchedPlugin::counted`].
    shown: [Family<PluginLabels, Counter>; PLUGIN_COUNTERS],
    watched: Mutex<Vec<WatchedPlugin>>,
}

impl PluginFamilies {
    pub(super) fn register(registry: &mut Registry) -> PluginFamilies {
        let shown = [
            family(registry, "plugin_calls", "Calls of process"),
            family(registry, "plugin_nanoseconds", "Time in the guest"),
            family(
                registry,
                "plugin_traps",
                "Calls that trapped, timed out, wanted too much memory or broke the contract",
            ),
            family(registry, "plugin_replacements", "Instances replaced"),
            family(registry, "plugin_log_lines_dropped", "Log lines over the limit"),
        ];
        PluginFamilies { shown, watched: Mutex::default() }
    }

    pub(super) fn watch(&self, pipeline: &str, plugin: &str, stats: &Arc<Stats>) {
        let labels = PluginLabels { pipeline: pipeline.to_owned(), plugin: plugin.to_owned() };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(WatchedPlugin { labels, stats: Arc::clone(stats), shown: [0; PLUGIN_COUNTERS] });
    }

    /// Adds what the plugins have counted since the last time.
    pub(super) fn read(&self) {
        for plugin in self.watched.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let counted = plugin.counted();
            let shown = std::mem::replace(&mut plugin.shown, counted);
            for ((family, now), before) in self.shown.iter().zip(counted).zip(shown) {
                family.get_or_create(&plugin.labels).inc_by(now.saturating_sub(before));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;

    #[test]
    fn plugins_are_counted_once_however_often_they_are_scraped() {
        let meter = Meter::new();
        let (one, other) = (Arc::<Stats>::default(), Arc::<Stats>::default());
        meter.watch_plugin("orders", "route", &one);
        meter.watch_plugin("orders", "route", &other);
        one.calls.add(3);
        one.timeouts.add(1);
        other.calls.add(4);
        other.traps.add(1);
        for further in [0, 5] {
            one.calls.add(further);
            meter.read_plugins();
            meter.read_plugins();
            let text = meter.text().unwrap();
            let labels = "{pipeline=\"orders\",plugin=\"route\"}";
            assert!(
                text.contains(&format!("tidemill_plugin_calls_total{labels} {}\n", 7 + further)),
                "{text}"
            );
            assert!(text.contains(&format!("tidemill_plugin_traps_total{labels} 2\n")), "{text}");
        }
    }
}
