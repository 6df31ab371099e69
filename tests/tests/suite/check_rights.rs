//! A broker with an authorizer: what `tidemill check --online` says of rights, and what a run does without them.

use tidemill_sandbox::Options;
use tidemill_test_kafka::Broker;
use tidemill_tests::{
    acl::{self, Operation, Resource},
    kafka::{Kafka, Record},
    limit::within,
    pipeline::Pipeline,
    process::tidemill_output,
    stand::{Model, Stand},
};

/// How the warning begins, behind the file's name.
const WARNING: &str = ": warning: Primary Key tables would be guarded by plain commits: ";

/// What `check --online` says, and how it ends.
fn checked(stand: &Stand, pipeline: &Pipeline) -> (Option<i32>, String) {
    let file = stand.write(pipeline);
    let output = tidemill_output(&["check", "--online", file.to_str().expect("a path of text")]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What `check --online` says of a file that is well.
fn told_of(stand: &Stand, pipeline: &Pipeline) -> String {
    let (code, told) = checked(stand, pipeline);
    assert_eq!(code, Some(0), "{told}");
    told
}

fn fails_with(stand: &Stand, pipeline: &Pipeline, said: &str) {
    let (code, told) = checked(stand, pipeline);
    assert!(code == Some(1) && told.contains(said), "{told}");
}

/// Once somebody has a right to something, all others need it.
fn close(admin: &Kafka, resource: Resource<'_>) {
    acl::grant(admin, "broker", resource, Operation::RD_KAFKA_ACL_OPERATION_ALL);
}

/// The clients of somebody who may do all, and of the pipeline.
fn clients(broker: &Broker) -> (Kafka, Kafka) {
    let client = |user, password| Kafka::with_plain_login(broker, user, password);
    (client("broker", acl::BROKER_PASSWORD), client("mill", acl::MILL_PASSWORD))
}

#[test]
fn a_primary_key_table_without_the_right_to_transactions_is_warned_of() {
    within(150, || {
        let broker = acl::broker();
        let (admin, mill) = clients(&broker);
        let stand = Stand::on(mill, "check_primary", 2, Model::Primary, Options::default());
        stand.warehouse.duplicate_table("check_duplicate");
        let primary = Pipeline { source_more: acl::mill_login(), ..stand.pipeline() };
        let duplicate = Pipeline { table: "check_duplicate".to_owned(), ..primary.clone() };
        // Nobody is granted anything yet, so everybody may.
        assert!(!told_of(&stand, &primary).contains("warning"));
        let own = Resource::TransactionalIds(&stand.name);
        close(&admin, own);
        let told = told_of(&stand, &primary);
        assert!(told.contains(WARNING), "{told}");
        assert!(told.contains("kafka does not let this user write transactions as"), "{told}");
        assert!(!told_of(&stand, &duplicate).contains("warning"), "its loads need no guard");
        for operation in [Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE, Operation::RD_KAFKA_ACL_OPERATION_WRITE]
        {
            acl::grant(&admin, "mill", own, operation);
        }
        assert!(!told_of(&stand, &primary).contains("warning"));
        let past = Pipeline {
            source_more: format!("isolation = \"read_uncommitted\"\n{}", acl::mill_login()),
            ..primary
        };
        let told = told_of(&stand, &past);
        assert!(told.contains(WARNING) && told.contains("reads past transactions"), "{told}");
        assert_eq!(stand.committed(), 0, "nothing was changed");
    });
}

#[test]
fn the_rights_that_exactly_once_lacks_are_named() {
    within(150, || {
        let broker = acl::broker();
        let (admin, mill) = clients(&broker);
        let stand = Stand::on(mill, "once_rights", 3, Model::Duplicate, Options::default());
        let pipeline = Pipeline {
            delivery: "exactly_once".to_owned(),
            source_more: acl::mill_login(),
            ..stand.pipeline()
        };
        // Nobody is granted anything yet, so everybody may.
        told_of(&stand, &pipeline);
        let own = Resource::TransactionalIds(&stand.name);
        close(&admin, own);
        fails_with(&stand, &pipeline, "kafka does not let this user write transactions");
        acl::grant(&admin, "mill", own, Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE);
        fails_with(&stand, &pipeline, "grant WRITE and DESCRIBE on TransactionalId");
        acl::grant(&admin, "mill", own, Operation::RD_KAFKA_ACL_OPERATION_WRITE);
        told_of(&stand, &pipeline);
        let group = Resource::Group(&stand.name);
        close(&admin, group);
        fails_with(&stand, &pipeline, "grant the user READ on the group");
        acl::grant(&admin, "mill", group, Operation::RD_KAFKA_ACL_OPERATION_READ);
        told_of(&stand, &pipeline);
        assert_eq!(stand.committed(), 0, "nothing was changed");
    });
}

#[test]
fn a_topic_that_may_not_be_read_is_told_apart_from_one_that_is_not_there() {
    within(150, || {
        let broker = acl::broker();
        let (admin, mill) = clients(&broker);
        let stand = Stand::on(mill, "check_topic", 1, Model::Duplicate, Options::default());
        let pipeline = Pipeline { source_more: acl::mill_login(), ..stand.pipeline() };
        let absent = Pipeline { topics: vec!["check_nothing".to_owned()], ..pipeline.clone() };
        fails_with(&stand, &absent, "create it, or mend the name in [source.kafka] topics");
        close(&admin, Resource::Topic(&stand.name));
        fails_with(&stand, &pipeline, "READ and DESCRIBE on the topics");
    });
}

#[test]
fn a_dead_letters_topic_is_looked_for_and_not_made() {
    within(90, || {
        let stand = Stand::new("check_letters", 1, Model::Duplicate);
        let letters = format!("{}-dead", stand.name);
        let kept = Pipeline {
            dead_letters: format!("[dead_letters.kafka]\ntopic = {letters:?}"),
            ..stand.pipeline()
        };
        for _ in 0..2 {
            let told = told_of(&stand, &kept);
            assert!(
                told.contains(&format!("warning: the dead letters' topic `{letters}` is not there")),
                "{told}"
            );
        }
        stand.kafka.create_topic(&letters, 1);
        assert_eq!(told_of(&stand, &kept), "");
    });
}

/// Letters of at_least_once have a producer of their own, those of exactly_once go with the decision.
#[test]
fn letters_that_may_not_be_written_halt_and_nothing_is_released() {
    within(200, || {
        let broker = acl::broker();
        let (admin, _) = clients(&broker);
        for delivery in ["at_least_once", "exactly_once"] {
            let (_, mill) = clients(&broker);
            let stand = Stand::on(mill, "letters_rights", 1, Model::Duplicate, Options::default());
            let letters = format!("{}-dead", stand.name);
            admin.create_topic(&letters, 1);
            let resource = Resource::Topic(&letters);
            close(&admin, resource);
            let pipeline = Pipeline {
                delivery: delivery.to_owned(),
                source_more: acl::mill_login(),
                dead_letters: format!("[dead_letters.kafka]\ntopic = {letters:?}"),
                ..stand.pipeline()
            };
            let told = told_of(&stand, &pipeline);
            assert!(told.contains("grant WRITE and DESCRIBE on it"), "{told}");
            stand.kafka.produce(&stand.name, [Record::of("no JSON".to_owned())]);
            let ended = stand.run(&pipeline).until_ended(60);
            assert_eq!(ended.code, Some(1), "{}", ended.log);
            let said = format!("cannot keep dead letters in topic `{letters}`");
            assert!(ended.log.contains(&said) && ended.log.contains("grant WRITE on it"), "{}", ended.log);
            assert_eq!(stand.committed(), 0);
            for operation in
                [Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE, Operation::RD_KAFKA_ACL_OPERATION_WRITE]
            {
                acl::grant(&admin, "mill", resource, operation);
            }
            let mut tidemill = stand.run(&pipeline);
            stand.until_released(60, 1);
            tidemill.drain(30);
            assert_eq!(admin.read_all(&letters).len(), 1, "{delivery}");
        }
    });
}
