//! Settings of librdkafka and headers of Stream Load that are not passed on, each with its reason.

/// Why a librdkafka setting is not taken.
pub(super) fn kafka(name: &str, _value: &str) -> Option<&'static str> {
    KAFKA.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

const OFFSETS: &str = "offsets are committed only after their rows are durable, or records would be lost";
const OWN_TLS: &str = "use [source.kafka.tls]";
const OWN_SASL: &str = "use [source.kafka.sasl]";
const STATIC: &str = "a static member may be put out of its group and let in again without being told, and would go on with \
                      partitions that another process has had meanwhile";
const QUEUE: &str = "memory for fetched records is set by `fetch_queue`";
const PROTOCOL: &str = "only classic groups with cooperative rebalancing are supported, or partitions would change \
                        hands before their rows are durable";

/// Refused settings of librdkafka and why.
pub(super) const KAFKA: [(&str, &str); 40] = [
    ("bootstrap.servers", "use `brokers`"),
    ("metadata.broker.list", "use `brokers`"),
    ("group.id", "use `group`"),
    ("auto.offset.reset", "use `start`; a lost offset must halt the pipeline and not skip records"),
    ("isolation.level", "use `isolation`"),
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", "use `commit_interval`"),
    ("enable.auto.offset.store", OFFSETS),
    ("offset.store.method", OFFSETS),
    ("offset.store.path", OFFSETS),
    ("offset.store.sync.interval.ms", OFFSETS),
    ("group.protocol", PROTOCOL),
    ("group.protocol.type", PROTOCOL),
    ("group.remote.assignor", PROTOCOL),
    ("partition.assignment.strategy", PROTOCOL),
    ("group.instance.id", STATIC),
    (
        "enable.partition.eof",
        "the end of a partition is found by positions; these events would only be errors in the queue",
    ),
    ("topic.blacklist", "topics are chosen by `topics`"),
    ("statistics.interval.ms", "nobody reads librdkafka's statistics; /metrics has what matters"),
    ("queued.min.messages", QUEUE),
    ("queued.max.messages.kbytes", QUEUE),
    ("fetch.max.bytes", QUEUE),
    ("fetch.message.max.bytes", QUEUE),
    ("max.partition.fetch.bytes", QUEUE),
    ("receive.message.max.bytes", QUEUE),
    ("consume.callback.max.messages", "records are not read by callbacks"),
    ("log.queue", "nobody reads that queue, so librdkafka's log would be lost"),
    ("security.protocol", "it follows from [source.kafka.tls] and [source.kafka.sasl]"),
    ("ssl.ca.location", OWN_TLS),
    ("ssl.ca.pem", OWN_TLS),
    ("ssl.certificate.location", OWN_TLS),
    ("ssl.certificate.pem", OWN_TLS),
    ("ssl.key.location", OWN_TLS),
    ("ssl.key.pem", OWN_TLS),
    ("sasl.mechanism", OWN_SASL),
    ("sasl.mechanisms", OWN_SASL),
    ("sasl.username", OWN_SASL),
    ("sasl.password", OWN_SASL),
    ("transactional.id", "it belongs to a producer"),
];

/// Why a Stream Load header is not taken. Names are in lower case.
pub(super) fn starrocks(name: &str, value: &str) -> Option<&'static str> {
    let as_before =
        STARROCKS_UNCHANGED.iter().any(|(header, kept)| *header == name && kept.eq_ignore_ascii_case(value));
    if as_before {
        return None;
    }
    STARROCKS.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

/// What is always sent anyway, so that saying it again does no harm.
const STARROCKS_UNCHANGED: [(&str, &str); 6] = [
    ("max_filter_ratio", "0"),
    ("max_filter_ratio", "0.0"),
    ("strict_mode", "true"),
    ("strip_outer_array", "false"),
    ("enable_merge_commit", "false"),
    ("format", "json"),
];

const HTTP: &str = "HTTP needs it as it is";
const MERGE_COMMIT: &str =
    "merge commit has no labels, so nothing would stop duplicates; batches are made here";
const TRANSACTIONS: &str = "transactions are driven by tidemill itself";
const COMPRESSION: &str = "use `compression`";
const CSV: &str = "how CSV is written is not to be chosen: no value needs another separator";

/// Refused headers of Stream Load and why.
pub(super) const STARROCKS: [(&str, &str); 43] = [
    ("label", "every batch has a label of its own, which is what stops duplicates"),
    ("format", "use `format`"),
    ("timeout", "use `load_timeout`"),
    ("strip_outer_array", "a batch is one object a line, not an array"),
    ("envelope", "StarRocks would drop or turn rows by itself; unwrap events in a plugin"),
    ("where", "StarRocks would leave rows out; filter in a plugin, where it is counted"),
    ("max_filter_ratio", "StarRocks would drop refused rows and say nothing; [dead_letters] keeps them"),
    ("strict_mode", "values that do not fit their column would silently become NULL"),
    ("negative", "rows would be taken away instead of added"),
    ("enable_merge_commit", MERGE_COMMIT),
    ("merge_commit_async", MERGE_COMMIT),
    ("merge_commit_interval_ms", MERGE_COMMIT),
    ("merge_commit_parallel", MERGE_COMMIT),
    ("db", "use `database`"),
    ("table", "use `table`"),
    ("user", "use `user`"),
    ("password", "use `password`"),
    ("idle_transaction_timeout", TRANSACTIONS),
    ("prepared_timeout", TRANSACTIONS),
    ("transaction_type", TRANSACTIONS),
    ("channel_num", TRANSACTIONS),
    ("channel_id", TRANSACTIONS),
    ("source_type", TRANSACTIONS),
    ("two_phase_commit", TRANSACTIONS),
    ("compression", COMPRESSION),
    ("content-encoding", COMPRESSION),
    ("partial_update", "use `partial_update`"),
    ("partial_update_mode", "use `partial_update_mode`"),
    ("column_separator", CSV),
    ("row_delimiter", CSV),
    ("enclose", CSV),
    ("escape", CSV),
    ("skip_header", CSV),
    ("trim_space", CSV),
    ("authorization", "use `user` and `password`"),
    ("expect", HTTP),
    ("content-length", HTTP),
    ("content-type", HTTP),
    ("transfer-encoding", HTTP),
    ("connection", HTTP),
    ("host", HTTP),
    ("te", HTTP),
    ("upgrade", HTTP),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_is_listed_twice() {
        for list in [&KAFKA[..], &STARROCKS[..]] {
            let mut names: Vec<_> = list.iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), list.len());
        }
    }

    #[test]
    fn a_header_with_its_usual_value_does_no_harm() {
        assert_eq!(starrocks("max_filter_ratio", "0"), None);
        assert!(starrocks("max_filter_ratio", "0.1").is_some());
        assert_eq!(starrocks("strict_mode", "TRUE"), None);
        assert!(starrocks("label", "x").is_some());
        assert_eq!(starrocks("columns", "a,b"), None);
        assert_eq!(kafka("session.timeout.ms", "1"), None);
    }
}
