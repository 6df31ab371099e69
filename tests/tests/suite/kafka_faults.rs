//! What Kafka can do: be unreachable, lack the topic, refuse the user, restart under us.

use tidemill_sandbox::Options;
use tidemill_tests::{
    kafka::{self, Kafka},
    limit::within,
    oracle::Promise,
    stand::{Model, Stand},
};

#[test]
fn an_unreachable_broker_is_clear_within_ten_seconds() {
    within(60, || {
        let stand = Stand::new("no_broker", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.brokers = format!("127.0.0.1:{}", tidemill_test_kafka::free_port().expect("a port"));
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(12);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains(&pipeline.brokers), "it names the address: {}", ended.log);
    });
}

#[test]
fn a_missing_topic_is_clear_within_ten_seconds() {
    within(60, || {
        let stand = Stand::new("no_topic", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.topics = vec!["nobody-made-this-topic".to_owned()];
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(12);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("nobody-made-this-topic"), "{}", ended.log);
    });
}

#[test]
fn a_broker_that_restarts_is_waited_for() {
    within(180, || {
        let mut broker = kafka::own_broker(&[]);
        let stand = Stand::on(Kafka::of(&broker), "broker_restart", 2, Model::Duplicate, Options::default());
        stand.produce(0..5_000);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(60, 5_000);
        broker.kill();
        broker.start_again().expect("the broker starts again");
        stand.produce(5_000..10_000);
        stand.until_released(90, 10_000);
        stand.judge(10_000).must_keep(Promise::AtLeastOnce);
        tidemill.until_ready(30);
        tidemill.drain(30);
    });
}

#[test]
fn a_broker_that_is_down_turns_ready_red_and_does_not_end_the_process() {
    within(180, || {
        let mut broker = kafka::own_broker(&[]);
        let stand = Stand::on(Kafka::of(&broker), "broker_down", 1, Model::Duplicate, Options::default());
        stand.produce(0..100);
        let mut pipeline = stand.pipeline();
        pipeline.process = "stall_after = \"2s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(60, 100);
        tidemill.until_ready(30);
        broker.kill();
        tidemill.until_answer(60, "/ready", 503);
        broker.start_again().expect("the broker starts again");
        tidemill.until_ready(90);
        stand.produce(100..200);
        stand.until_released(60, 200);
        stand.judge(200).must_keep(Promise::AtLeastOnce);
    });
}

#[test]
fn sasl_lets_the_right_user_in_and_names_the_wrong_one() {
    within(150, || {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"broker\" \
                    password=\"broker-secret\" user_broker=\"broker-secret\" user_mill=\"mill-secret\";";
        let broker = kafka::own_broker(&[
            ("listener.security.protocol.map", "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"),
            ("sasl.enabled.mechanisms", "PLAIN"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("sasl.mechanism.inter.broker.protocol", "PLAIN"),
            ("listener.name.plaintext.plain.sasl.jaas.config", jaas),
        ]);
        let kafka = Kafka::with_plain_login(&broker, "mill", "mill-secret");
        let stand = Stand::on(kafka, "sasl", 1, Model::Duplicate, Options::default());
        stand.produce(0..100);
        let login = |password: &str| {
            format!(
                "[source.kafka.sasl]\nmechanism = \"PLAIN\"\nusername = \"mill\"\npassword = {password:?}\n"
            )
        };
        let mut pipeline = stand.pipeline();
        pipeline.source_more = login("a-wrong-canary");
        let mut refused = stand.run(&pipeline);
        let ended = refused.until_ended(15);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.to_lowercase().contains("authentication"), "{}", ended.log);
        assert!(!ended.log.contains("a-wrong-canary"), "secrets are not logged");

        pipeline.source_more = login("mill-secret");
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 100);
        stand.judge(100).must_keep(Promise::Once);
    });
}
