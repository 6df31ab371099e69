//! Paths and headers of the requests that StarRocks understands
//! (reference/starrocks-load-protocol.md §1.1 and §1.5).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{compress, csv};
use crate::config::model::{RowFormat, StarRocks, TableModel};
use crate::fault::Fault;
use crate::sink::{Destination, Load};

/// Headers of every request: who asks.
pub(super) fn credentials(cluster: &StarRocks) -> Result<HeaderMap, Fault> {
    let token = base64(format!("{}:{}", cluster.user, cluster.password.reveal()).as_bytes());
    let mut value = HeaderValue::try_from(format!("Basic {token}")).map_err(|_| {
        Fault::halt("cannot write the credentials into a header", "check `user` and `password`")
    })?;
    value.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    Ok(headers)
}

/// Headers of every load but those of [`add_load_headers`]. What the load's meaning hangs on is set after `properties`, so
/// that it holds whatever they say; the file's check refuses them first, with the reason.
pub(super) fn load_headers(cluster: &StarRocks) -> Result<HeaderMap, Fault> {
    let mut headers = HeaderMap::new();
    for (name, value) in &cluster.properties {
        let parsed =
            HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_bytes(value.as_bytes()).ok());
        let Some((header, value)) = parsed else {
            return Err(Fault::halt(
                format!("`{name}` under [sink.starrocks.properties] cannot be sent as a header"),
                "use the names of the Stream Load reference, and values without line breaks",
            ));
        };
        headers.insert(header, value);
    }
    headers.extend(credentials(cluster)?);
    let mut set =
        |name: &'static str, value: HeaderValue| headers.insert(HeaderName::from_static(name), value);
    set("expect", HeaderValue::from_static("100-continue"));
    match cluster.format {
        RowFormat::Json => drop(set("format", HeaderValue::from_static("json"))),
        RowFormat::Csv => {
            for (name, value) in csv::HEADERS {
                set(name, HeaderValue::from_static(value));
            }
        }
    }
    if let Some(compression) = compress::header(cluster.compression) {
        set("compression", HeaderValue::from_static(compression));
    }
    // Without them a value that does not fit would become NULL, or vanish, and nobody would know.
    set("strict_mode", HeaderValue::from_static("true"));
    set("max_filter_ratio", HeaderValue::from_static("0"));
    set("timeout", HeaderValue::from(cluster.load_timeout.as_secs().max(1)));
    Ok(headers)
}

/// Adds what this load alone says: its label, and the columns that its rows bring.
pub(super) fn add_load_headers(headers: &mut HeaderMap, load: &Load) -> Result<(), Fault> {
    let Ok(label) = HeaderValue::from_str(&load.label) else {
        let hint = "use letters, digits, - and _ in names";
        return Err(Fault::halt("cannot write the label into a header", hint));
    };
    let mut set = |name: &'static str, value| headers.insert(HeaderName::from_static(name), value);
    set("label", label);
    let cluster = &load.destination.cluster;
    let (columns, partial) = match &load.columns {
        Some(columns) => (&columns[..], true),
        None => (&cluster.columns[..], cluster.partial_update),
    };
    if columns.is_empty() {
        return Ok(());
    }
    let ops = takes_ops(load.destination.model);
    let value = HeaderValue::from_bytes(column_list(columns, ops).as_bytes()).map_err(|_| {
        let hint = "rename the column: a name must fit a single line";
        Fault::halt("cannot write the columns' names into a header", hint)
    })?;
    set("columns", value);
    if partial {
        set("partial_update", HeaderValue::from_static("true"));
        set("partial_update_mode", HeaderValue::from_static(cluster.partial_update_mode.name()));
    }
    if load.columns.is_some() {
        // Paths go with the file's own columns, by position; these columns are the rows' keys.
        headers.remove("jsonpaths");
    }
    Ok(())
}

/// Whether rows of such a table may carry an op. In JSON it may be left out of a row, in CSV each line has one.
pub(super) fn takes_ops(model: TableModel) -> bool {
    match model {
        TableModel::Primary => true,
        TableModel::Duplicate | TableModel::Unique | TableModel::Aggregate => false,
    }
}

/// The header `columns`: in JSON the names are keys, and a key that a row lacks is a NULL, so that no
/// `jsonpaths` are needed (§5.2, §7). Quoted, since a keyword would be a syntax error.
fn column_list(columns: &[String], ops: bool) -> String {
    let mut list: Vec<String> = columns.iter().map(|name| format!("`{}`", name.replace('`', ""))).collect();
    if ops {
        list.push("__op".to_owned());
    }
    list.join(",")
}

/// `PUT` here to load.
pub(super) fn load_path(database: &str, table: &str) -> String {
    format!("/api/{}/{}/_stream_load", percent_encoded(database), percent_encoded(table))
}

/// A step of a transaction goes here: `begin`, `load`, `prepare`, `commit` or `rollback` (§4.1).
pub(super) fn transaction_path(step: &str) -> String {
    format!("/api/transaction/{step}")
}

/// Says in headers which transaction a step is of: the interface takes nothing from the path (§4.1).
pub(super) fn name_transaction(
    headers: &mut HeaderMap,
    destination: &Destination,
    label: &str,
) -> Result<(), Fault> {
    for (name, text) in
        [("db", &*destination.cluster.database), ("table", &destination.table), ("label", label)]
    {
        let Ok(value) = HeaderValue::from_str(text) else {
            let hint = "transactions name database and table in headers: use a name of ASCII characters";
            return Err(Fault::halt(format!("cannot write the {name} `{text}` into a header"), hint));
        };
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(())
}

/// `GET` here for the state of a label.
pub(super) fn state_path(database: &str, label: &str) -> String {
    format!("/api/{}/get_load_state?label={}", percent_encoded(database), percent_encoded(label))
}

/// `POST` here to abort the transaction of a label.
pub(super) fn cancel_path(database: &str, table: &str, label: &str) -> String {
    let (database, table, label) =
        (percent_encoded(database), percent_encoded(table), percent_encoded(label));
    format!("/api/{database}/{table}/_cancel?label={label}")
}

/// RFC 3986: everything but unreserved characters.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// RFC 4648 §4, for one header: not worth a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            if place <= group.len() {
                encoded.push(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63] as char);
            } else {
                encoded.push('=');
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::model::{Compression, PartialUpdate};
    use crate::sink::Destination;
    use crate::sink::starrocks::scripted::{cluster, load};

    #[test]
    fn base64_agrees_with_the_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("root:", "cm9vdDo="),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded, "{plain}");
        }
    }

    #[test]
    fn names_are_quoted_in_paths() {
        assert_eq!(load_path("shop", "orders"), "/api/shop/orders/_stream_load");
        assert_eq!(load_path("a b", "ü/x"), "/api/a%20b/%C3%BC%2Fx/_stream_load");
        assert_eq!(state_path("shop", "p-1"), "/api/shop/get_load_state?label=p-1");
        assert_eq!(cancel_path("shop", "orders", "p-1"), "/api/shop/orders/_cancel?label=p-1");
    }

    #[test]
    fn properties_become_headers_and_never_change_what_a_load_means() {
        let mut file = cluster(&["http://fe:8030"]);
        file.properties.insert("jsonpaths".into(), "[\"$.id\", \"$.ü\"]".into());
        let headers = load_headers(&file).expect("headers");
        assert_eq!(
            headers.get("jsonpaths").map(HeaderValue::as_bytes),
            Some("[\"$.id\", \"$.ü\"]".as_bytes())
        );
        let kept = [
            ("strict_mode", "true"),
            ("max_filter_ratio", "0"),
            ("format", "json"),
            ("timeout", "600"),
            ("Authorization", "Basic cm9vdDpjYW5hcnk="),
            ("Expect", "100-continue"),
        ];
        for (name, value) in kept {
            file.properties.insert(name.into(), "something else".into());
            let headers = load_headers(&file).expect("headers");
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        file.properties.insert("columns".into(), "id\r\nlabel: x".into());
        assert!(load_headers(&file).is_err_and(|fault| fault.hint.is_some()), "no line break gets through");
    }

    #[test]
    fn format_and_compression_are_said() {
        let mut file = cluster(&["http://fe:8030"]);
        file.properties.insert("compression".into(), "bzip2".into());
        file.format = RowFormat::Csv;
        file.compression = Compression::Lz4;
        let headers = load_headers(&file).expect("headers");
        let said = ["format", "column_separator", "row_delimiter", "enclose", "compression"];
        let said = said.map(|name| headers[name].to_str().expect("text"));
        assert_eq!(said, ["csv", "\\x01", "\\n", "\"", "lz4_frame"]);
    }

    #[test]
    fn a_load_says_which_columns_it_brings() {
        let check = |load: &Load, expected: [Option<&str>; 4]| {
            let mut headers = load_headers(&load.destination.cluster).expect("headers");
            add_load_headers(&mut headers, load).expect("headers");
            let names = ["columns", "partial_update", "partial_update_mode", "jsonpaths"];
            let found = names.map(|name| headers.get(name).map(|value| value.to_str().expect("text")));
            assert_eq!(found, expected);
            assert_eq!(headers["label"], load.label.as_str());
        };
        let mut file = cluster(&["http://fe:8030"]);
        check(&load(file.clone()), [None; 4]);
        file.columns = vec!["id".into(), "order".into()];
        check(&load(file.clone()), [Some("`id`,`order`"), None, None, None]);
        file.partial_update = true;
        file.partial_update_mode = PartialUpdate::Column;
        file.properties.insert("jsonpaths".into(), "[\"$.x\"]".into());
        let partial = [Some("`id`,`order`"), Some("true"), Some("column"), Some("[\"$.x\"]")];
        check(&load(file.clone()), partial);
        let mut own = load(file);
        let (cluster, table) = (Arc::clone(&own.destination.cluster), own.destination.table.clone());
        own.destination =
            Arc::new(Destination { cluster, table, model: TableModel::Primary, key: Vec::new() });
        own.columns = Some(["id".to_owned(), "text".to_owned()].into());
        check(&own, [Some("`id`,`text`,__op"), Some("true"), Some("column"), None]);
    }

    #[test]
    fn credentials_do_not_print() {
        let headers = credentials(&cluster(&["http://fe:8030"])).expect("headers");
        assert!(!format!("{headers:?}").contains("cm9vd"), "{headers:?}");
    }
}
