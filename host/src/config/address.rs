//! Hosts and ports as written in a file → their normal form.

use super::kind::Refusal;

/// The MySQL protocol of an FE, by default.
const QUERY_PORT: u16 = 9030;
/// HTTP of an FE, by default.
const FE_HTTP_PORT: u16 = 8030;
/// The FE's port for backends, by default.
const FE_RPC_PORT: u16 = 9020;

const CREDENTIALS: &str = "the address holds a user name or a password, which have keys of their own";

/// `host:port`; an IPv6 host stands in brackets.
pub(super) fn host_port(text: &str) -> Result<String, Refusal> {
    let (host, port) = split(text)?;
    Ok(format!("{host}:{port}"))
}

/// `http://host:port` or `https://host:port`.
pub(super) fn frontend(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains('@') {
        return Err(Refusal::Hushed(CREDENTIALS.to_owned()));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        split(text)?;
        return Refusal::because("the scheme is missing");
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme.starts_with("jdbc") || scheme == "mysql" {
        return Refusal::because("it is an address of the MySQL protocol, which belongs into `query`");
    }
    if scheme != "http" && scheme != "https" {
        return Refusal::because("the scheme is neither http nor https");
    }
    let (host_port, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.is_empty() {
        return Refusal::because("an address has no path");
    }
    let (host, port) = split(host_port)?;
    match port {
        QUERY_PORT => Refusal::because(format!(
            "{QUERY_PORT} is the port for SQL, which belongs into `query`; HTTP is usually {FE_HTTP_PORT}"
        )),
        FE_RPC_PORT => Refusal::because(format!(
            "{FE_RPC_PORT} is the port for backends; HTTP is usually {FE_HTTP_PORT}"
        )),
        port => Ok(format!("{scheme}://{host}:{port}")),
    }
}

/// `host:port` of the MySQL protocol.
pub(super) fn query(text: &str) -> Result<String, Refusal> {
    if text.contains('@') {
        return Err(Refusal::Hushed(CREDENTIALS.to_owned()));
    }
    if text.contains("://") {
        return Refusal::because("it has no scheme");
    }
    match split(text.trim())? {
        (_, FE_HTTP_PORT) => Refusal::because(format!(
            "{FE_HTTP_PORT} is the port for HTTP, which belongs into `fe`; SQL is usually {QUERY_PORT}"
        )),
        (host, port) => Ok(format!("{host}:{port}")),
    }
}

/// `host` or `host:port`.
pub(super) fn redirect_host(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains("://") {
        return Refusal::because("it has no scheme");
    }
    let bracketed = text.starts_with('[');
    let has_port = if bracketed { text.contains("]:") } else { text.contains(':') };
    if has_port {
        return host_port(text);
    }
    check_host(text)?;
    Ok(text.to_ascii_lowercase())
}

/// A host alone, or the directory of a Unix socket.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains("://") || text.contains('@') {
        // `postgres://user:password@host/database`
        return Err(Refusal::Hushed(
            "it is an address in one piece; its parts are keys of their own".to_owned(),
        ));
    }
    if text.starts_with('/') {
        let bad = text.chars().find(|c| c.is_control());
        return bad.map_or(Ok(text.to_owned()), |bad| {
            Refusal::because(format!("{bad:?} cannot be part of a path"))
        });
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(text.to_owned());
    }
    if text.contains(':') {
        return Refusal::because("the port has a key of its own, `port`");
    }
    check_host(text)?;
    Ok(text.to_ascii_lowercase())
}

fn split(text: &str) -> Result<(String, u16), Refusal> {
    if text.contains('@') {
        return Err(Refusal::Hushed(CREDENTIALS.to_owned()));
    }
    let Some((host, port)) =
        text.rsplit_once(':').filter(|(host, _)| !host.starts_with('[') || host.ends_with(']'))
    else {
        check_host(text)?;
        return Refusal::because("the port is missing");
    };
    check_host(host)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    let Some(port) = port else { return Refusal::because("the port is not a number from 1 to 65535") };
    Ok((host.to_ascii_lowercase(), port))
}

fn check_host(host: &str) -> Result<(), Refusal> {
    if host.is_empty() {
        return Refusal::because("the host is missing");
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match inner.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Refusal::because("what stands in brackets is not an IPv6 address"),
        };
    }
    if host.contains(':') {
        return Refusal::because("an IPv6 address stands in brackets, like [::1]:8030");
    }
    let valid = |c: char| c.is_alphanumeric() || c == '.' || c == '-' || c == '_';
    match host.chars().find(|c| !valid(*c)) {
        Some(bad) => Refusal::because(format!("{bad:?} cannot be part of a host name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: Result<String, Refusal>) -> String {
        match result {
            Ok(address) => address,
            Err(Refusal::Because(why)) => why,
            Err(Refusal::Hushed(why)) => format!("(hushed) {why}"),
        }
    }

    #[test]
    fn frontends_get_a_scheme_and_keep_their_port() {
        assert_eq!(said(frontend("http://FE1.example.com:8030/")), "http://fe1.example.com:8030");
        assert_eq!(said(frontend("127.0.0.1:8030")), "the scheme is missing");
        assert_eq!(said(frontend("https://[::1]:8443")), "https://[::1]:8443");
        assert_eq!(said(frontend("http://localhost")), "the port is missing");
        assert_eq!(said(frontend("ftp://localhost:1")), "the scheme is neither http nor https");
        assert_eq!(said(frontend("http://localhost:8030/api")), "an address has no path");
        assert_eq!(said(frontend("http://localhost:99999")), "the port is not a number from 1 to 65535");
        assert_eq!(said(frontend("http://::1:8030")), "an IPv6 address stands in brackets, like [::1]:8030");
    }

    #[test]
    fn the_ports_of_starrocks_are_told_apart() {
        assert!(said(frontend("http://localhost:9030")).starts_with("9030 is the port for SQL"));
        assert!(said(frontend("http://localhost:9020")).starts_with("9020 is the port for backends"));
        assert!(said(query("localhost:8030")).starts_with("8030 is the port for HTTP"));
        assert_eq!(said(query("localhost:9030")), "localhost:9030");
    }

    #[test]
    fn credentials_in_an_address_are_not_repeated() {
        assert!(said(frontend("http://root:hunter2@localhost:8030")).starts_with("(hushed)"));
        assert!(said(query("root@localhost:9030")).starts_with("(hushed)"));
        assert!(said(host_port("root@localhost:9030")).starts_with("(hushed)"));
    }

    #[test]
    fn a_lone_host_is_a_name_an_address_or_a_directory() {
        assert_eq!(said(host("DB1.example.com")), "db1.example.com");
        assert_eq!(said(host("::1")), "::1");
        assert_eq!(said(host("/run/postgresql")), "/run/postgresql");
        assert_eq!(said(host("db1:5432")), "the port has a key of its own, `port`");
        assert!(said(host("postgres://u:hunter2@db1/shop")).starts_with("(hushed)"));
        assert_eq!(said(host("")), "the host is missing");
    }

    #[test]
    fn a_redirect_host_may_have_a_port() {
        assert_eq!(said(redirect_host("BE1")), "be1");
        assert_eq!(said(redirect_host("be1:8040")), "be1:8040");
        assert_eq!(said(redirect_host("[::1]")), "[::1]");
        assert_eq!(said(redirect_host("http://be1")), "it has no scheme");
    }
}
