//! `tidemill check --online`: rights that a pipeline can do without are told as warnings.

use tidemill_sandbox::Options;
use tidemill_tests::{
    acl::{self, Operation, Resource},
    kafka::Kafka,
    limit::within,
    pipeline::Pipeline,
    process::tidemill_output,
    stand::{Model, Stand},
};

/// How the warning begins, behind the file's name.
const WARNING: &str = ": warning: Primary Key tables would be guarded by plain commits: ";

/// What `check --online` says of a file that is well.
fn told_of(stand: &Stand, pipeline: &Pipeline) -> String {
    let file = stand.write(pipeline);
    let output = tidemill_output(&["check", "--online", file.to_str().expect("a path of text")]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    told
}

#[test]
fn a_primary_key_table_without_the_right_to_transactions_is_warned_of() {
    within(150, || {
        let broker = acl::broker();
        let admin = Kafka::with_plain_login(&broker, "broker", acl::BROKER_PASSWORD);
        let mill = Kafka::with_plain_login(&broker, "mill", acl::MILL_PASSWORD);
        let stand = Stand::on(mill, "check_primary", 2, Model::Primary, Options::default());
        stand.warehouse.duplicate_table("check_duplicate");
        let primary = Pipeline { source_more: acl::mill_login(), ..stand.pipeline() };
        let duplicate = Pipeline { table: "check_duplicate".to_owned(), ..primary.clone() };
        // Nobody is granted anything yet, so everybody may.
        assert!(!told_of(&stand, &primary).contains("warning"));
        let own = Resource::TransactionalIds(&stand.name);
        acl::grant(&admin, "broker", own, Operation::RD_KAFKA_ACL_OPERATION_ALL);
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
