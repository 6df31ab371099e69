//! Asks a broker whether it serves requests yet: an open port is not enough, Kafka binds it early.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// An ApiVersions request of version 0 (api key 18), which brokers answer even before authentication.
const API_VERSIONS: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];

/// Whether the broker answered an ApiVersions request without an error.
pub(crate) fn serves(address: SocketAddr) -> bool {
    ask(address).is_ok_and(|error_code| error_code == 0)
}

fn ask(address: SocketAddr) -> io::Result<i16> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(&API_VERSIONS)?;
    // length (4), correlation id (4), error code (2); the list of versions that follows is of no interest
    let mut head = [0u8; 10];
    stream.read_exact(&mut head)?;
    Ok(i16::from_be_bytes([head[8], head[9]]))
}
