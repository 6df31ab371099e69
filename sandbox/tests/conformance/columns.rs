//! Loads of some columns only, and changes of a table's columns.

use crate::target::{Target, until};
use tidemill_sandbox::{Fault, FaultKind, Options};

#[tokio::test]
async fn a_partial_load_updates_inserts_and_deletes() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}\n{\"id\":2,\"name\":\"b\",\"qty\":6}").await;
    let head = target
        .load_head("t", "b")
        .with("partial_update", "true")
        .with("partial_update_mode", "row")
        .with("columns", "`id`,`qty`,__op");
    let body = "{\"id\":1,\"qty\":7,\"name\":\"not listed\"}\n{\"id\":2,\"__op\":1}\n{\"id\":3,\"qty\":8,\"__op\":0}\n\
                {\"id\":4}\n";
    let answer = target.send(&head, body).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let rows = target.rows("SELECT id, name, qty FROM t ORDER BY id").await;
    // A listed column without a value is NULL, one that is not listed keeps its value or gets its default.
    assert_eq!(rows, ["1,a,7", "3,none,8", "4,none,NULL"]);
    target.table("d", "DUPLICATE KEY").await;
    let head = target.load_head("d", "c").with("partial_update", "true").with("columns", "id");
    let answer = target.send(&head, "{\"id\":1}").await.expect("an answer");
    assert!(answer.text("Message").contains("Only primary key table support partial update"), "{answer:?}");
}

#[tokio::test]
async fn a_partial_load_as_csv() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}\n{\"id\":2,\"name\":\"b\",\"qty\":6}").await;
    let head = target
        .load_head("t", "b")
        .with("format", "csv")
        .with("partial_update", "true")
        .with("columns", "id,qty,__op");
    let answer = target.send(&head, "1\t7\t0\n2\t\\N\t1\n").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id, name, qty FROM t").await, ["1,a,7"]);
}

#[tokio::test]
async fn a_merge_condition_holds_old_rows_back_but_no_deletes() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}\n{\"id\":2,\"name\":\"b\",\"qty\":5}").await;
    let merge = |label: &str| target.load_head("t", label).with("merge_condition", "qty");
    let body = "{\"id\":1,\"name\":\"older\",\"qty\":4}\n{\"id\":2,\"name\":\"equal\",\"qty\":5}";
    assert_eq!(target.send(&merge("b"), body).await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.rows("SELECT name, qty FROM t ORDER BY id").await, ["a,5", "equal,5"]);
    let body = "{\"id\":1,\"qty\":1,\"__op\":1}";
    assert_eq!(target.send(&merge("c"), body).await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.count("t").await, 1, "a delete asks for no condition");
}

#[tokio::test]
async fn columns_are_added_changed_and_dropped() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}").await;
    let done = async |sql: &str| {
        target.sql(sql).await;
        let asked = format!(
            "SHOW ALTER TABLE COLUMN FROM {} WHERE TableName = 't' ORDER BY JobId DESC LIMIT 1",
            target.db
        );
        until(&format!("{sql} is done"), || async {
            target.rows(&asked).await.first().is_none_or(|job| job.contains("FINISHED"))
        })
        .await;
    };
    done("ALTER TABLE t ADD COLUMN doc JSON NULL, ADD COLUMN raw VARBINARY AFTER name PROPERTIES ('timeout' = '60')").await;
    done("ALTER TABLE t MODIFY COLUMN qty BIGINT NULL").await;
    done("ALTER TABLE t DROP COLUMN raw").await;
    target.load("t", "b", "{\"id\":2,\"qty\":3000000000,\"doc\":{\"a\":[1]}}").await;
    assert_eq!(target.rows("SELECT id, qty FROM t ORDER BY id").await, ["1,5", "2,3000000000"]);
    let columns = target.rows("DESC t").await;
    let names: Vec<&str> = columns.iter().filter_map(|row| row.split(',').next()).collect();
    assert_eq!(names, ["id", "name", "qty", "doc"], "{columns:?}");
    let error = target.error("ALTER TABLE t ADD COLUMN qty INT").await;
    assert!(error.message.contains("qty"), "{error}");
    let error = target.error("ALTER TABLE t DROP COLUMN missing").await;
    assert!(error.message.contains("missing"), "{error}");
    let error = target.error("ALTER TABLE missing ADD COLUMN x INT").await;
    assert!(error.message.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_column_is_renamed() {
    let Some(target) = Target::since([3, 3, 2]).await else { return };
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}").await;
    target.sql("ALTER TABLE t RENAME COLUMN qty TO amount").await;
    until("the column has its new name", || async {
        target.rows("DESC t").await.iter().any(|column| column.starts_with("amount,"))
    })
    .await;
    assert_eq!(target.rows("SELECT amount FROM t WHERE id = 1").await, ["5"]);
    assert_eq!(target.load("t", "b", "{\"id\":2,\"amount\":6}").await.text("Status"), "Success");
    assert_eq!(target.rows("SELECT id, amount FROM t ORDER BY id").await, ["1,5", "2,6"]);
}

#[tokio::test]
async fn a_change_of_columns_takes_its_time_and_one_comes_after_the_other() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "PRIMARY KEY").await;
    target.own().set_fault(Fault::times(FaultKind::SlowSchemaChange { delay_ms: 1000 }, 1));
    target.sql("ALTER TABLE t ADD COLUMN extra INT").await;
    let job = target.rows("SHOW ALTER TABLE COLUMN").await;
    assert!(job[0].contains("RUNNING"), "{job:?}");
    let error = target.error("ALTER TABLE t ADD COLUMN more INT").await;
    assert!(error.message.contains("not NORMAL"), "{error}");
    assert_eq!(target.rows("DESC t").await.len(), 3);
    until("the column is there", || async { target.rows("DESC t").await.len() == 4 }).await;
    let job = target.rows("SHOW ALTER TABLE COLUMN").await;
    assert!(job[0].contains("FINISHED"), "{job:?}");
    target.sql("ALTER TABLE t ADD COLUMN more INT").await;
}

#[tokio::test]
async fn rows_come_and_go_by_sql() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.sql("INSERT INTO t (id, name, qty) VALUES (1, 'a', 5), (2, 'b', NULL), (3, 'c', 7)").await;
    target.sql("INSERT INTO t VALUES (1, 'again', 6)").await;
    target.sql("DELETE FROM t WHERE id = 3").await;
    assert_eq!(target.rows("SELECT name, qty FROM t WHERE id = 1").await, ["again,6"]);
    assert_eq!(target.rows("SELECT id FROM t ORDER BY id DESC").await, ["2", "1"]);
    target.sql("TRUNCATE TABLE t").await;
    assert_eq!(target.rows("SELECT count(*) FROM t").await, ["0"]);
    for (sql, name) in [
        ("SELECT id FROM missing", "missing"),
        ("SELECT missing FROM t", "missing"),
        ("DELETE FROM missing WHERE id = 1", "missing"),
        ("TRUNCATE TABLE missing", "missing"),
        ("DESC missing", "missing"),
    ] {
        let error = target.error(sql).await;
        assert!(error.message.contains(name), "{sql}: {error}");
    }
}
