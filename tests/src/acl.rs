//! Rights at a broker with an authorizer.

#![expect(unsafe_code, reason = "rdkafka has no word for access control lists, librdkafka has")]

use crate::kafka::{self, Kafka};
use rdkafka::{
    bindings::{self as native, rd_kafka_ResourcePatternType_t, rd_kafka_ResourceType_t},
    producer::{BaseProducer, Producer},
};
use std::{ffi::CString, ptr};
use tidemill_test_kafka::Broker;

const ANSWER_WITHIN_MS: i32 = 20_000;
/// Of the user `broker`, who may do everything.
pub const BROKER_PASSWORD: &str = "broker-secret";
/// Of the user `mill`, as whom a pipeline logs in.
pub const MILL_PASSWORD: &str = "mill-secret";

/// A broker with an authorizer, where everybody may do what nobody was granted yet.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn broker() -> Broker {
    let jaas = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"broker\" \
         password=\"{BROKER_PASSWORD}\" user_broker=\"{BROKER_PASSWORD}\" user_mill=\"{MILL_PASSWORD}\";"
    );
    kafka::own_broker(&[
        ("listener.security.protocol.map", "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("sasl.enabled.mechanisms", "PLAIN"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("sasl.mechanism.inter.broker.protocol", "PLAIN"),
        ("listener.name.plaintext.plain.sasl.jaas.config", &jaas),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:broker;User:ANONYMOUS"),
        ("allow.everyone.if.no.acl.found", "true"),
    ])
}

/// Lines behind those of `[source.kafka]`, with which a pipeline logs in as `mill`.
#[must_use]
pub fn mill_login() -> String {
    format!("[source.kafka.sasl]\nmechanism = \"PLAIN\"\nusername = \"mill\"\npassword = \"{MILL_PASSWORD}\"")
}

/// What a right is to.
#[derive(Clone, Copy, Debug)]
pub enum Resource<'a> {
    /// A consumer group.
    Group(&'a str),
    /// A topic.
    Topic(&'a str),
    /// All transactional ids that begin so.
    TransactionalIds(&'a str),
}

/// What may be done.
pub use rdkafka::bindings::rd_kafka_AclOperation_t as Operation;

/// Grants a user something. With `allow.everyone.if.no.acl.found` that takes it from all who have no such grant.
///
/// # Panics
/// When the broker refuses.
pub fn grant(kafka: &Kafka, user: &str, resource: Resource<'_>, operation: Operation) {
    let client: BaseProducer = kafka.config().create().expect("a client");
    let (kind, name, pattern) = match resource {
        Resource::Group(name) => (
            rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP,
            name,
            rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
        ),
        Resource::Topic(name) => (
            rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
            name,
            rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
        ),
        Resource::TransactionalIds(name) => (
            rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID,
            name,
            rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_PREFIXED,
        ),
    };
    let text = |text: &str| CString::new(text).expect("no NUL in it");
    let (name, principal, host) = (text(name), text(&format!("User:{user}")), text("*"));
    let mut error = [0; 256];
    // SAFETY: the strings live until the calls return, which copy them; what librdkafka makes for us is destroyed once,
    // after its last use; results belong to their event.
    unsafe {
        let mut binding = native::rd_kafka_AclBinding_new(
            kind,
            name.as_ptr(),
            pattern,
            principal.as_ptr(),
            host.as_ptr(),
            operation,
            native::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            error.as_mut_ptr(),
            error.len(),
        );
        assert!(!binding.is_null(), "an access control list for {user}");
        let queue = native::rd_kafka_queue_new(client.client().native_ptr());
        native::rd_kafka_CreateAcls(client.client().native_ptr(), &raw mut binding, 1, ptr::null(), queue);
        let event = native::rd_kafka_queue_poll(queue, ANSWER_WITHIN_MS);
        assert!(!event.is_null(), "the broker answers");
        let result = native::rd_kafka_event_CreateAcls_result(event);
        let mut count = 0;
        let results = native::rd_kafka_CreateAcls_result_acls(result, &raw mut count);
        assert_eq!(count, 1, "one answer");
        let refused = native::rd_kafka_acl_result_error(*results);
        assert!(
            refused.is_null(),
            "the broker takes the grant: {}",
            native::rd_kafka_error_code(refused) as i32
        );
        native::rd_kafka_event_destroy(event);
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AclBinding_destroy(binding);
    }
}
