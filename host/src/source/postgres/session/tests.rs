use proptest::prelude::*;
use tokio::net::UnixStream;
use tokio::runtime::Builder;

use super::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// A session of which the server says this, in pieces of so many bytes, and closes.
fn session(said: &[Vec<u8>], piece_bytes: usize) -> Session {
    session_of_pieces(said, vec![piece_bytes])
}

/// The same in pieces of these lengths, again and again.
fn session_of_pieces(said: &[Vec<u8>], pieces: Vec<usize>) -> Session {
    let (link, mut server) = UnixStream::pair().expect("a pair");
    let said = said.concat();
    tokio::spawn(async move {
        let (mut rest, mut lengths) = (&said[..], pieces.into_iter().cycle());
        while let Some(length) = lengths.next().filter(|_| !rest.is_empty()) {
            let (piece, behind) = rest.split_at(length.min(rest.len()));
            rest = behind;
            if server.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // What the client asks is read, or its writing would fail.
        let mut asked = Vec::new();
        let _ = server.shutdown().await;
        let _ = server.read_to_end(&mut asked).await;
    });
    Session { link: Link::Unix(link), received: BytesMut::new(), came_bytes: 0, pid: 0 }
}

fn copy_of_three_rows() -> Vec<Vec<u8>> {
    let long = [&[b'x'; 300][..], b"\n"].concat();
    vec![
        message(b'H', &[0, 0, 1, 0, 0]),
        message(b'd', b"1\tone\n"),
        message(b'N', b"SNOTICE\0Mby the way\0\0"),
        message(b'd', &long),
        message(b'd', b"\n"),
        message(b'c', b""),
        message(b'C', b"COPY 3\0"),
        message(b'Z', b"I"),
    ]
}

#[tokio::test]
async fn rows_are_whole_however_the_bytes_arrive() {
    for piece_bytes in [1, 2, 3, 7, 100, 10_000] {
        let mut session = session(&copy_of_three_rows(), piece_bytes);
        session.copy_out("COPY t TO STDOUT").await.expect("it begins");
        let arrived = session.copied(usize::MAX).await.expect("rows");
        assert!(arrived.ended);
        let rows: Vec<&[u8]> = arrived.data.lines().map(|line| line.expect("it is whole")).collect();
        assert_eq!(rows, [&b"1\tone"[..], &[b'x'; 300], b""], "in pieces of {piece_bytes} bytes");
        assert_eq!(arrived.data.rows(), 3);
    }
}

/// The lengths of the rows of each piece of a running COPY.
async fn pieces(session: &mut Session, enough_bytes: usize) -> Vec<Vec<usize>> {
    let mut pieces = Vec::new();
    loop {
        let arrived = session.copied(enough_bytes).await.expect("rows");
        let lengths: Vec<usize> = arrived.data.lines().map(|line| line.expect("it is whole").len()).collect();
        assert_eq!(lengths.len() as u64, arrived.data.rows());
        pieces.push(lengths);
        if arrived.ended {
            return pieces;
        }
    }
}

/// A session in the middle of a COPY, with all that is left of it there to be read.
async fn copying(said: &[Vec<u8>]) -> (Session, UnixStream) {
    let (link, mut server) = UnixStream::pair().expect("a pair");
    server.write_all(&said.concat()).await.expect("there is room for it");
    (Session { link: Link::Unix(link), received: BytesMut::new(), came_bytes: 0, pid: 0 }, server)
}

#[tokio::test]
async fn enough_is_enough_but_a_row_is_never_cut() {
    // Each row is more than enough; the notice is a message like others.
    let (mut session, _server) = copying(&copy_of_three_rows()[1..]).await;
    assert_eq!(pieces(&mut session, 7).await, [vec![5], vec![], vec![300], vec![0], vec![]]);
}

#[tokio::test]
async fn a_piece_has_as_many_rows_as_are_enough() {
    const ENOUGH_BYTES: usize = 40 << 10;
    let row = message(b'd', &[&[b'x'; 1000][..], b"\n"].concat());
    let fit = ENOUGH_BYTES / row.len();
    let mut said = vec![row; fit + 20];
    said.extend([message(b'c', b""), message(b'C', b"COPY 60\0"), message(b'Z', b"I")]);
    let (mut session, _server) = copying(&said).await;
    assert_eq!(pieces(&mut session, ENOUGH_BYTES).await, [vec![1000; fit], vec![1000; 20]]);
}

proptest! {
    #[test]
    fn rows_come_as_they_went_wherever_they_are_cut(
        rows in prop::collection::vec("[a-c\t\\\\é]{0,40}|x{300,700}", 0..20),
        notices in prop::collection::vec(0_usize..20, 0..4),
        cuts in prop::collection::vec(1_usize..400, 1..6),
        enough_bytes in 0_usize..2_000,
    ) {
        let mut said: Vec<Vec<u8>> = rows.iter().map(|row| message(b'd', format!("{row}\n").as_bytes())).collect();
        for at in notices {
            said.insert(at.min(said.len()), message(b'N', b"SNOTICE\0Mby the way\0\0"));
        }
        said.insert(0, message(b'H', &[0, 0, 1, 0, 0]));
        said.extend([message(b'c', b""), message(b'C', b"COPY\0"), message(b'Z', b"I")]);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read: Vec<String> = runtime.block_on(async {
            let mut session = session_of_pieces(&said, cuts);
            session.copy_out("COPY t TO STDOUT").await.expect("it begins");
            let mut read = Vec::new();
            loop {
                let arrived = session.copied(enough_bytes).await.expect("rows");
                let line = |line: Result<&[u8], _>| String::from_utf8(line.expect("it is whole").to_vec());
                read.extend(arrived.data.lines().map(|it| line(it).expect("UTF-8")));
                if arrived.ended {
                    return read;
                }
            }
        });
        prop_assert_eq!(read, rows);
    }
}

#[tokio::test]
async fn a_refusal_is_told_even_if_the_server_closes_after_it() {
    let refused = message(b'E', b"SFATAL\0C57P01\0Mterminating connection\0\0");
    let expected = Failure::server("57P01", "terminating connection");
    let failed = session(std::slice::from_ref(&refused), 3).run("SELECT 1").await;
    assert_eq!(failed, Err(expected.clone()));
    let mut during = session(&[message(b'H', &[0, 0, 0]), message(b'd', b"1\n"), refused], 3);
    during.copy_out("COPY t TO STDOUT").await.expect("it begins");
    assert_eq!(during.copied(usize::MAX).await.expect_err("refused"), expected);
}

#[tokio::test]
async fn a_session_goes_on_after_a_refusal() {
    let said = [
        message(b'E', b"SERROR\0C42P01\0Mno such table\0Dit is gone\0\0"),
        message(b'Z', b"I"),
        message(b'T', &[0, 2]),
        message(b'D', &[0, 2, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff]),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ];
    let mut session = session(&said, 5);
    assert_eq!(session.run("SELECT").await, Err(Failure::server("42P01", "no such table: it is gone")));
    assert_eq!(session.run("SELECT").await, Ok(vec![vec![Some("a".to_owned()), None]]));
}

#[tokio::test]
async fn what_is_no_protocol_is_refused_and_does_not_hang() {
    for (said, why) in [
        (vec![message(b'H', b""), vec![b'd', 0, 0, 0, 3]], "a message of the length 3"),
        (vec![message(b'H', b""), vec![b'd', 0xff, 0xff, 0xff, 0xff]], "exceeds the limit"),
        (vec![message(b'H', b""), message(b'd', b"1\n")[..6].to_vec()], "closed the connection"),
        (vec![message(b'H', b""), message(b'W', b"")], "unexpected message 'W' during COPY"),
        (vec![message(b'D', &[0, 1, 0, 0, 0, 9, b'x'])], "unexpected message 'D'"),
    ] {
        let mut session = session(&said, 4);
        let failed = match session.copy_out("COPY t TO STDOUT").await {
            Ok(()) => session.copied(usize::MAX).await.map(|_| ()),
            Err(failure) => Err(failure),
        };
        let failure = failed.expect_err(why);
        assert!(failure.to_string().contains(why), "{failure}");
    }
    let cut = session(&[message(b'D', &[0, 1, 0, 0, 0, 9, b'x'])], 4).run("SELECT 1").await;
    assert_eq!(cut, Err(Failure::Protocol("a row is cut off".to_owned())));
}
