//! The page of all metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Meter;

/// What stands above the table.
const HEAD: &str = "\
# Metrics

Generated from `host/src/meter` by `cargo xtask docs`; do not edit.

`GET /metrics` on the admin address answers in the OpenMetrics text format, which Prometheus reads.
At rest, and up to the chunks that are being counted at the moment of the scrape,
`records_read = records_loaded + records_dropped + records_dead_lettered + records_refused + records_given_up + records_in_flight`.

`GET /health` answers 200 while the process lives. `GET /ready` answers 503 with one line for each pipeline
that is starting, halted, waiting for something outside for 5 s or more, or stalled. One that stands by is ready.

| metric | kind | labels | meaning |
|---|---|---|---|
";

/// `docs/metrics.md`: every metric with its kind, labels and meaning, read off the registry itself.
pub fn reference_markdown() -> String {
    let meter = Meter::new();
    // A family without a member is not shown.
    let pipeline = meter.pipeline("orders");
    pipeline.cut(crate::batch::Cut::Rows);
    pipeline.http().answered(200, Duration::ZERO);
    let _made = pipeline.postgres();
    meter.table("orders", "shop.orders");
    meter.watch_plugin("orders", "orders", &Arc::default());
    meter.read_plugins();
    let text = meter.text().unwrap_or_default();
    let mut page = HEAD.to_owned();
    let mut help = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(says)) => {
                help.insert(name, says.trim_end_matches('.'));
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
                let sample = text.lines().find(|sample| !sample.starts_with('#') && sample.starts_with(name));
                let labels = sample.and_then(|sample| Some(sample.split_once('{')?.1.split_once('}')?.0));
                let names =
                    labels.unwrap_or_default().split(',').filter_map(|pair| Some(pair.split_once('=')?.0));
                let labels: Vec<&str> = names.filter(|label| *label != "le").collect();
                let says = help.get(name).copied().unwrap_or_default();
                page.push_str(&format!("| `{shown}` | {kind} | {} | {says} |\n", labels.join(", ")));
            }
            _ => {}
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_metrics_of_every_source() {
        let page = reference_markdown();
        for name in ["rebalances_total", "postgres_slot_wal_status", "http_requests_total"] {
            assert!(page.contains(&format!("| `tidemill_{name}` |")), "{name}");
        }
    }
}
