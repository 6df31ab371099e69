//! Addresses to listen on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::de::DeValue;

use super::Kind;
use crate::config::node::Node;

/// Where the admin endpoint listens; `false` = nowhere.
#[derive(Debug)]
pub(in crate::config) struct Listen;

const LISTEN: &str = "an address such as \"127.0.0.1:9464\", or false for none";

impl Kind for Listen {
    type Value = Option<SocketAddr>;

    fn expected(&self) -> String {
        LISTEN.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<Option<SocketAddr>> {
        if let DeValue::Boolean(false) = node.value {
            return Some(None);
        }
        let words = node.words(LISTEN)?;
        if words.text.trim() == "false" {
            return Some(None);
        }
        parse(node, LISTEN, &words.text, &words.shown).map(Some)
    }
}

/// An address to listen on.
#[derive(Debug)]
pub(in crate::config) struct Address {
    pub(in crate::config) expected: &'static str,
}

impl Kind for Address {
    type Value = SocketAddr;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<SocketAddr> {
        let words = node.words(self.expected)?;
        parse(node, self.expected, &words.text, &words.shown)
    }
}

fn parse(node: &Node<'_>, expected: &str, text: &str, shown: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let local = local.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    local
        .or_else(|| text.parse().ok())
        .or_else(|| node.wrong(|problem| problem.expected(expected), format!("`{}` is {shown}", node.name)))
}
