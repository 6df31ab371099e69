//! What becomes of rows: filters, keys, columns, deletes.

use crate::target::Target;
use crate::wire::{self, Head};

async fn error_log(target: &Target, url: &str) -> String {
    let head = Head::new("GET", wire::path(url)).user("root", &target.password);
    wire::exchange(&wire::authority(url), &head, b"").await.expect("an answer").body
}

#[tokio::test]
async fn rows_with_bad_data_fail_the_load_and_are_named() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "bad").with("strict_mode", "true");
    let body = "{\"id\":1,\"qty\":7}\n{\"id\":null}\n{\"id\":3,\"name\":\"123456789012345678901\"}\n\
                {\"id\":4,\"qty\":3000000000}\n{\"id\":5,\"qty\":\"many\"}\n";
    let answer = target.send(&head, body).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Fail");
    assert_eq!(answer.text("Message"), "too many filtered rows");
    let counts = ["NumberTotalRows", "NumberFilteredRows"].map(|field| answer.number(field));
    assert_eq!(counts, [5, 4]);
    let log = error_log(&target, &answer.text("ErrorURL")).await;
    assert!(log.contains("NULL value in non-nullable column 'id'"), "{log}");
    assert!(log.contains("123456789012345678901"), "{log}");
    assert!(log.contains("3000000000") && log.contains("many"), "{log}");
    assert_eq!(log.lines().count(), 4, "{log}");
    assert_eq!(target.count("t").await, 0);
}

#[tokio::test]
async fn a_filter_ratio_lets_the_good_rows_in() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let body = "{\"id\":1}\n{\"id\":null}\n";
    let head = target.load_head("t", "half").with("max_filter_ratio", "0.5");
    let answer = target.send(&head, body).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success");
    assert_eq!((answer.number("NumberLoadedRows"), answer.number("NumberFilteredRows")), (1, 1));
    assert!(answer.text("ErrorURL").contains("_load_error_log?file="), "{answer:?}");
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn without_strict_mode_what_does_not_convert_becomes_null() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let answer = target.load("t", "lax", "{\"id\":1,\"qty\":\"many\"}").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id, qty FROM t").await, ["1,NULL"]);
}

#[tokio::test]
async fn keys_are_matched_by_case_and_absent_ones_are_null() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let answer = target.load("t", "a", "{\"qty\":1,\"extra\":[1,{\"x\":2}],\"id\":1,\"NAME\":\"x\"}").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    // The default of `name` is not used: the load brings all columns, and this row lacks the key.
    assert_eq!(target.rows("SELECT id, name, qty FROM t").await, ["1,NULL,1"]);
}

#[tokio::test]
async fn types_are_converted() {
    let target = Target::any().await;
    target
        .sql(
            "CREATE TABLE types (id INT NOT NULL, big LARGEINT, amount DECIMAL(12,2), wide DECIMAL(38,3), ok BOOLEAN, \
             day DATE, at DATETIME, doc JSON, real_number DOUBLE) DUPLICATE KEY(id) \
             DISTRIBUTED BY HASH(id) BUCKETS 1 PROPERTIES ('replication_num' = '1')",
        )
        .await;
    let body = "{\"id\":1,\"big\":170141183460469231731687303715884105727,\"amount\":12.5,\
                \"wide\":12345678901234567890.123,\"ok\":true,\"day\":\"2026-11-20\",\
                \"at\":\"2026-11-20 01:02:03.5\",\"doc\":{\"a\": [1, 2]},\"real_number\":\"1.25\"}";
    let head = target.load_head("types", "a").with("strict_mode", "true");
    let answer = target.send(&head, body).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let row = target.rows("SELECT big, amount, wide, ok, day, at, real_number FROM types").await;
    let expected = "170141183460469231731687303715884105727,12.50,12345678901234567890.123,1,2026-11-20,\
                    2026-11-20 01:02:03.500000,1.25";
    assert_eq!(row, [expected]);
}

#[tokio::test]
async fn a_primary_key_keeps_the_last_row_and_deletes() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    let body = "{\"id\":1,\"name\":\"a\"}\n{\"id\":2,\"name\":\"b\"}\n{\"id\":1,\"name\":\"c\"}\n";
    assert_eq!(target.load("t", "a", body).await.text("Status"), "Success");
    assert_eq!(target.rows("SELECT id, name FROM t ORDER BY id").await, ["1,c", "2,b"]);
    let body = "{\"id\":1,\"__op\":1}\n{\"id\":2,\"name\":\"d\",\"__op\":0}\n{\"id\":3,\"__op\":\"0\"}\n";
    assert_eq!(target.load("t", "b", body).await.text("Status"), "Success");
    assert_eq!(target.rows("SELECT id, name FROM t ORDER BY id").await, ["2,d", "3,NULL"]);
    let body = "{\"id\":3,\"__op\":1}\n{\"id\":3,\"name\":\"again\"}\n{\"id\":2,\"name\":\"x\"}\n{\"id\":2,\"__op\":1}\n";
    assert_eq!(target.load("t", "c", body).await.text("Status"), "Success");
    assert_eq!(target.rows("SELECT id, name FROM t ORDER BY id").await, ["3,again"]);
    let all = target.load_head("t", "d").with("columns", "id,__op='delete'");
    assert_eq!(target.send(&all, "{\"id\":3}").await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.count("t").await, 0);
}

#[tokio::test]
async fn a_text_key_replaces_and_deletes_too() {
    let target = Target::any().await;
    target
        .sql(
            "CREATE TABLE t (a VARCHAR(10) NOT NULL, b INT NOT NULL, v INT) PRIMARY KEY(a, b) \
             DISTRIBUTED BY HASH(a) BUCKETS 1 PROPERTIES ('replication_num' = '1')",
        )
        .await;
    let body = "{\"a\":\"x\",\"b\":1,\"v\":1}\n{\"a\":\"x\",\"b\":2,\"v\":2}\n{\"a\":\"x\",\"b\":1,\"v\":3}";
    assert_eq!(target.load("t", "a", body).await.text("Status"), "Success");
    let body = "{\"a\":\"x\",\"b\":2,\"__op\":1}";
    assert_eq!(target.load("t", "b", body).await.text("Status"), "Success");
    assert_eq!(target.rows("SELECT a, b, v FROM t").await, ["x,1,3"]);
}

#[tokio::test]
async fn a_unique_key_replaces_and_a_duplicate_key_does_not() {
    let target = Target::any().await;
    target.table("u", "UNIQUE KEY").await;
    target.table("d", "DUPLICATE KEY").await;
    let body = "{\"id\":1,\"name\":\"a\"}\n{\"id\":1,\"name\":\"b\"}\n";
    for (table, label) in [("u", "u1"), ("d", "d1")] {
        assert_eq!(target.load(table, label, body).await.text("Status"), "Success");
    }
    assert_eq!(target.rows("SELECT name FROM u").await, ["b"]);
    assert_eq!(target.count("d").await, 2);
}

#[tokio::test]
async fn columns_and_paths_choose_values() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let some = target.load_head("t", "some").with("columns", "id, qty");
    let answer = target.send(&some, "{\"id\":1,\"qty\":5,\"name\":\"left out\"}").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let paths = target
        .load_head("t", "paths")
        .with("columns", "id, name")
        .with("jsonpaths", "[\"$.key\", \"$.user.names[1]\"]");
    let body = "{\"key\":2,\"user\":{\"names\":[\"a\",\"b\"]}}\n{\"key\":3}";
    let answer = target.send(&paths, body).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let rows = target.rows("SELECT id, name, qty FROM t ORDER BY id").await;
    assert_eq!(rows, ["1,none,5", "2,b,NULL", "3,NULL,NULL"], "an unlisted column takes its default");
    let lacking = target.load_head("t", "lacking").with("columns", "name");
    let answer = target.send(&lacking, "{\"name\":\"x\"}").await.expect("an answer");
    assert!(answer.text("Message").contains("Column has no default value. column: id"), "{answer:?}");
}

#[tokio::test]
async fn a_root_names_where_the_rows_are() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head =
        target.load_head("t", "root").with("json_root", "$.data.rows").with("strip_outer_array", "true");
    let body = "{\"data\":{\"rows\":[{\"id\":1},{\"id\":2}]}}";
    assert_eq!(target.send(&head, body).await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.count("t").await, 2);
}

#[tokio::test]
async fn partial_and_conditional_updates() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":5}").await;
    let partial = target.load_head("t", "b").with("partial_update", "true").with("columns", "id,qty");
    let answer =
        target.send(&partial, "{\"id\":1,\"qty\":6}\n{\"id\":2,\"qty\":1}").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id, name, qty FROM t ORDER BY id").await, ["1,a,6", "2,none,1"]);
    let keyless = target.load_head("t", "c").with("partial_update", "true").with("columns", "qty");
    let answer = target.send(&keyless, "{\"qty\":6}").await.expect("an answer");
    assert!(answer.text("Message").contains("key column id not in partial update columns"), "{answer:?}");
    let merge = target.load_head("t", "d").with("merge_condition", "qty");
    let body = "{\"id\":1,\"name\":\"old\",\"qty\":5}\n{\"id\":2,\"name\":\"new\",\"qty\":2}";
    assert_eq!(target.send(&merge, body).await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.rows("SELECT id, name, qty FROM t ORDER BY id").await, ["1,a,6", "2,new,2"]);
}

#[tokio::test]
async fn csv_is_read() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    let head = target.load_head("t", "csv").without("format").with("column_separator", ",");
    let answer = target.send(&head, "1,a,5\n2,,\\N\n").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id, name, qty FROM t ORDER BY id").await, ["1,a,5", "2,,NULL"]);
    let delete = target.load_head("t", "gone").without("format").with("columns", "id,name,qty,__op");
    let answer = target.send(&delete, "1\ta\t5\t1\n").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.count("t").await, 1);
}
