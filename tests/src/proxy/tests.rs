use super::{
    Loss, Proxy, Traffic, close, listen,
    requests::{END_TXN, PRODUCE, request},
};
use crate::wait_until;
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(10);
/// As long as one looks for something that should not happen.
const A_MOMENT: Duration = Duration::from_millis(200);

/// A server that sends back what it gets, and a proxy in front of it.
fn echo() -> Proxy {
    Proxy::to(echo_server())
}

fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut back = stream.try_clone().expect("a second handle");
                drop(std::io::copy(&mut { stream }, &mut back));
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect_timeout(&proxy.address(), SOON).expect("let in");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    stream
}

fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

/// Nothing comes back in a moment, and neither does an end.
fn silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(A_MOMENT)).expect("a socket");
    let outcome = stream.read(&mut [0]);
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn bytes_pass_until_the_line_is_cut() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let mut half = stream.try_clone().expect("a second handle");
    let writer = {
        let bytes = bytes.clone();
        thread::spawn(move || half.write_all(&bytes))
    };
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("all comes back");
    writer.join().expect("no panic").expect("all is sent");
    assert!(back == bytes);
    assert_eq!(proxy.cut(), 1);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it ends");
    assert_eq!(echoed(&mut connect(&proxy), b"again").expect("a new one works"), b"again");
    assert_eq!(proxy.accepted(), 2);
}

#[test]
fn a_closed_port_refuses_and_keeps_what_is_open() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    assert_eq!(echoed(&mut stream, b"before").expect("open"), b"before");
    proxy.refuse();
    let refused = TcpStream::connect_timeout(&proxy.address(), SOON).expect_err("the port is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(echoed(&mut stream, b"still").expect("open"), b"still");
    proxy.accept();
    assert_eq!(echoed(&mut connect(&proxy), b"again").expect("open again"), b"again");
}

#[test]
fn a_closed_port_is_so_for_copies_of_its_listener_too() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let copy = listener.try_clone().expect("a second handle");
    close(&listener);
    drop(listener);
    let refused = TcpStream::connect_timeout(&address, SOON).expect_err("the port is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let again = listen(address).expect("the copy does not keep the port");
    TcpStream::connect_timeout(&address, SOON).expect("let in");
    drop((again, copy));
}

#[test]
fn a_stalled_line_loses_nothing() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    proxy.set(Traffic::Stalled);
    stream.write_all(b"later").expect("taken");
    assert!(silent(&mut stream));
    proxy.set(Traffic::Flowing);
    let mut back = [0; 5];
    stream.read_exact(&mut back).expect("it comes");
    assert_eq!(&back, b"later");
}

#[test]
fn a_swallowed_connection_stays_open_and_dead() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    proxy.set(Traffic::Swallowed);
    stream.write_all(b"gone").expect("taken");
    wait_until(SOON, || (proxy.swallowed_bytes() == 4).then_some(())).expect("swallowed");
    proxy.set(Traffic::Flowing);
    stream.write_all(b"gone, too").expect("taken");
    assert!(silent(&mut stream), "it does not come back to life");
    assert_eq!(proxy.open(), 1);
    assert_eq!(echoed(&mut connect(&proxy), b"new").expect("new ones live"), b"new");
    assert!(proxy.cut() >= 1);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it ends");
}

#[test]
fn the_end_of_a_transaction_with_records_is_lost_and_its_connection_is_dead() {
    for loss in [Loss::Request, Loss::Answer] {
        let proxy = Proxy::to_kafka(echo_server().port());
        let mut stream = connect(&proxy);
        proxy.lose(loss);
        for kind in [END_TXN, PRODUCE, 28] {
            let request = request(kind, 7);
            assert_eq!(echoed(&mut stream, &request).expect("it passes"), request);
        }
        assert_eq!(proxy.losses(), 0);
        stream.write_all(&request(END_TXN, 7)).expect("taken");
        wait_until(SOON, || (proxy.losses() == 1).then_some(())).expect("it is lost");
        assert!(silent(&mut stream), "{loss:?}");
        let mut other = connect(&proxy);
        let end = request(END_TXN, 7);
        assert_eq!(echoed(&mut other, &end).expect("it passes"), end, "one was to be lost");
        assert!(silent(&mut stream));
    }
}

#[test]
fn a_slow_line_takes_its_time() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    proxy.set(Traffic::Slow(100_000));
    let begun = Instant::now();
    assert_eq!(echoed(&mut stream, &[7; 30_000]).expect("all comes back").len(), 30_000);
    assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_is_not_there_ends_connections() {
    let port = tidemill_test_kafka::free_port().expect("a free port");
    let proxy = Proxy::to_port(port);
    let mut stream = connect(&proxy);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it ends");
    assert_eq!(proxy.open(), 0);
}
