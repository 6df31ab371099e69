//! Secrets stay where they are (I10): each has a canary, everything is provoked that could tell of it, and whatever a process
//! writes, serves or keeps is searched.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::Duration,
};

use tidemill_sandbox::{FaultKind, Options};
use tidemill_test_postgres::{Auth, Settings, certificates};
use tidemill_tests::{
    kafka::{self, Record},
    limit::within,
    listener::Listener,
    machine,
    pipeline::{Pipeline, Postgres, Source, transform},
    process::{Tidemill, tidemill_output},
    replica::Replica,
    stand::{Model, Stand},
    wait_until,
    warehouse::row,
};

/// As much as there is: whoever turns this on sends the result to somebody else.
const LOUD: [&[&str]; 2] = [&["--log-level", "trace"], &["--log-level", "trace", "--log", "json"]];
/// A PEM file's line is a secret, too, if the file is that of a key.
const KEY_LINE_BYTES_MIN: usize = 40;

/// Texts that may be nowhere, and all that is to be searched for them.
#[derive(Default)]
struct Search {
    canaries: Vec<String>,
    heard: Vec<(String, String)>,
}

impl Search {
    /// A secret of this kind, unlike any other text.
    fn canary(&mut self, kind: &str) -> String {
        let canary = format!("canary-{kind}-{:016x}", rand::random::<u64>());
        self.canaries.push(canary.clone());
        canary
    }

    /// A user's password also goes out as `user:password` in base64.
    fn password(&mut self, kind: &str, user: &str) -> String {
        let password = self.canary(kind);
        self.canaries.push(base64(format!("{user}:{password}").as_bytes()));
        password
    }

    /// The lines of a key's file.
    fn key(&mut self, file: &Path) {
        let text = fs::read_to_string(file).expect("PEM");
        let lines = text.lines().filter(|line| line.len() >= KEY_LINE_BYTES_MIN && !line.contains(' '));
        let before = self.canaries.len();
        self.canaries.extend(lines.map(str::to_owned));
        assert!(self.canaries.len() > before, "{} has no line to search for", file.display());
    }

    fn hear(&mut self, whence: &str, text: impl Into<String>) {
        self.heard.push((whence.to_owned(), text.into()));
    }

    fn output(&mut self, whence: &str, output: &Output) -> String {
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.hear(whence, text.clone());
        text
    }

    /// What the process serves now.
    fn console(&mut self, tidemill: &Tidemill) {
        for path in ["/metrics", "/ready", "/health", "/nothing"] {
            // One that has just ended serves nothing.
            if let Some((_, body)) = tidemill.get(path) {
                self.hear(path, body);
            }
        }
    }

    /// `check`, with and without looking at what it talks to.
    fn check(&mut self, file: &Path) -> String {
        let file = file.to_str().expect("text");
        let offline = tidemill_output(&["--log-level", "trace", "check", file]);
        let online = tidemill_output(&["--log-level", "trace", "check", "--online", file]);
        self.output("check", &offline) + &self.output("check --online", &online)
    }

    /// Every file in a folder: dead letters.
    fn folder(&mut self, folder: &Path) {
        let before = self.heard.len();
        for file in fs::read_dir(folder).expect("a folder") {
            let path = file.expect("an entry").path();
            self.hear(&path.display().to_string(), fs::read_to_string(&path).expect("text"));
        }
        assert!(self.heard.len() > before, "nothing is kept in {}: this shows nothing", folder.display());
    }

    /// Nothing that was heard tells a canary; `expected` are texts that show that the error was provoked at all.
    fn end(self, expected: &[&str]) {
        let all: String = self.heard.iter().map(|(_, text)| text.as_str()).collect();
        for text in expected {
            assert!(all.contains(text), "{text:?} is nowhere: this shows nothing; heard were\n{all}");
        }
        for (whence, text) in &self.heard {
            for canary in &self.canaries {
                let line = text.lines().find(|line| line.contains(canary.as_str()));
                assert!(line.is_none(), "{canary} is told by {whence}: {}", line.unwrap_or_default());
            }
        }
    }
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = |group: &[u8]| {
        let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits: Vec<char> = (0..=group.len())
            .map(|place| ALPHABET[(bits >> (18 - 6 * place) & 63) as usize].into())
            .collect();
        digits
    };
    let digits: Vec<char> = bytes.chunks(3).flat_map(sextets).collect();
    let padding = (4 - digits.len() % 4) % 4;
    digits.into_iter().chain(std::iter::repeat_n('=', padding)).collect()
}

/// A file that only its owner may read.
fn secret_file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, text).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode is set");
    file
}

fn guarded(password: &str) -> Options {
    Options { password: Some(password.to_owned()), ..Options::default() }
}

#[test]
fn the_password_of_starrocks_is_never_told_however_a_load_fails() {
    within(240, || {
        let mut search = Search::default();
        let password = search.password("starrocks", "root");
        for (round, loud) in LOUD.into_iter().enumerate() {
            let name = format!("secret_load_{round}");
            let stand = Stand::on(kafka::shared(), &name, 1, Model::Duplicate, guarded(&password));
            let letters = stand.folder.path().join("letters");
            let mut pipeline = stand.pipeline();
            pipeline.sink_more = format!(
                "password = {{ file = {:?} }}",
                secret_file(stand.folder.path(), "password", &password)
            );
            pipeline.dead_letters = format!("directory = {letters:?}");
            let file = stand.write(&pipeline);
            // Each once: lost answers, refusals, a dead BE, a redirect to nobody, rows that do not fit.
            for fault in [
                FaultKind::TooManyVersions,
                FaultKind::NoBackend,
                FaultKind::RedirectLoop,
                FaultKind::BackendResets,
                FaultKind::ShuttingDown,
                FaultKind::CommitUnknown { committed: false },
                FaultKind::RedirectTo { authority: "127.0.0.1:1".to_owned() },
                FaultKind::ErrorLogLost,
            ] {
                stand.warehouse.fault_times(fault, 1);
            }
            stand.produce(0..10);
            stand.kafka.produce(
                &stand.name,
                [Record::of(r#"{"id":null,"amount":1}"#), Record::of("{"), Record::of(row(10))],
            );
            let mut tidemill = Tidemill::run_with(&[&file], loud);
            tidemill.until_settled(90, 13);
            search.console(&tidemill);
            tidemill.drain(30);
            assert!(stand.warehouse.faults_fired() >= 5, "the faults did not fire: this shows nothing");
            search.hear("the log", tidemill.log());
            search.check(&file);
            search.folder(&letters);
            for command in
                [&["dlq", "list"][..], &["dlq", "show"], &["--log-level", "trace", "dlq", "replay"]]
            {
                let output = tidemill_output(&[command, &[file.to_str().expect("text")]].concat());
                search.output("dlq", &output);
            }
        }
        search.end(&["waiting for StarRocks", "set aside as dead letters", "accepted as redirect target"]);
    });
}

#[test]
fn a_password_that_starrocks_refuses_is_never_told() {
    within(120, || {
        let mut search = Search::default();
        let right = search.password("right", "root");
        let wrong = search.password("wrong", "root");
        for (round, loud) in LOUD.into_iter().enumerate() {
            let name = format!("secret_refused_{round}");
            let stand = Stand::on(kafka::shared(), &name, 1, Model::Duplicate, guarded(&right));
            let mut pipeline = stand.pipeline();
            pipeline.sink_more = format!("password = {wrong:?}");
            stand.produce(0..10);
            let file = stand.write(&pipeline);
            let mut tidemill = Tidemill::run_with(&[&file], loud);
            let ended = tidemill.until_ended(60);
            assert_eq!(ended.code, Some(1), "{}", ended.log);
            search.hear("the log", ended.log);
            search.check(&file);
            // Nobody listens, and somebody who is no StarRocks does.
            for fe in ["http://127.0.0.1:1".to_owned(), format!("http://{}", kafka::shared().address)] {
                pipeline.fe = vec![fe];
                search.check(&stand.write(&pipeline));
            }
        }
        search.end(&["check `user` and `password`", "no FE can be used"]);
    });
}

/// Somebody in the way answers in the FE's place and sends loads elsewhere.
#[test]
fn a_host_that_is_not_on_the_list_never_sees_a_password() {
    within(120, || {
        let mut search = Search::default();
        let password = search.password("redirect", "root");
        let stand = Stand::on(kafka::shared(), "secret_redirect", 1, Model::Duplicate, guarded(&password));
        let foreign = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = foreign.local_addr().expect("bound");
        foreign.set_nonblocking(true).expect("it can be asked");
        let mut pipeline = stand.pipeline();
        // 127.0.0.1 is the FE's host, too: the port tells them apart.
        pipeline.sink_more = format!("password = {password:?}\nredirect_hosts = [\"127.0.0.1:1\"]");
        stand.warehouse.fault(FaultKind::RedirectTo { authority: address.to_string() });
        stand.produce(0..10);
        let mut tidemill = Tidemill::run_with(&[&stand.write(&pipeline)], LOUD[0]);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(foreign.accept().is_err(), "the foreign host was asked");
        assert!(stand.warehouse.faults_fired() > 0, "nobody was sent elsewhere: this shows nothing");
        assert_eq!(stand.committed(), 0);
        search.hear("the log", ended.log);
        search.end(&["which is not in `redirect_hosts`"]);
    });
}

#[test]
fn the_password_of_kafka_is_never_told() {
    within(300, || {
        let mut search = Search::default();
        let stand = Stand::new("secret_kafka", 1, Model::Duplicate);
        let password = search.canary("kafka");
        for (mechanism, tls) in [("PLAIN", ""), ("SCRAM-SHA-512", ""), ("PLAIN", "[source.kafka.tls]\n")] {
            let mut pipeline = stand.pipeline();
            pipeline.source_more = format!(
                "[source.kafka.sasl]\nmechanism = {mechanism:?}\nusername = \"tidemill\"\npassword = {password:?}\n{tls}"
            );
            // librdkafka tells all that it knows; the broker takes neither SASL nor TLS on this port.
            let text = pipeline.toml().replace("properties = {", "properties = { debug = \"all\",");
            let file = stand.folder.path().join("kafka.toml");
            fs::write(&file, text).expect("written");
            for loud in LOUD {
                let mut tidemill = Tidemill::run_with(&[&file], loud);
                let failed = wait_until(Duration::from_secs(60), || {
                    let log = tidemill.log();
                    (!tidemill.is_running() || ["SASL", "SSL"].iter().any(|word| log.contains(word)))
                        .then_some(())
                });
                failed.expect("it does not get on with the broker");
                if tidemill.is_running() {
                    search.console(&tidemill);
                }
                tidemill.kill();
                search.hear("the log", tidemill.log());
            }
            search.check(&file);
        }
        search.end(&["SASL"]);
    });
}

#[test]
fn the_password_of_postgres_and_the_key_of_its_client_are_never_told() {
    within(180, || {
        let mut search = Search::default();
        let settings =
            Settings { auth: Auth::Scram, tls: tidemill_test_postgres::Tls::Offered, ..Settings::default() };
        let replica = Replica::own("secret_postgres", &settings);
        let (right, wrong) = (search.canary("postgres"), search.canary("wrong"));
        replica.postgres.run(&format!("CREATE ROLE tidemill LOGIN REPLICATION SUPERUSER PASSWORD '{right}'"));
        replica.postgres.run("CREATE TABLE orders (id bigint PRIMARY KEY, note text)");
        search.key(&certificates::client_key());
        let of = |password: &str| {
            let mut pipeline = replica.pipeline();
            let Source::Postgres(source) = pipeline.source else { panic!("it is one of Postgres") };
            pipeline.source = Source::Postgres(Postgres {
                user: "tidemill".to_owned(),
                password: password.to_owned(),
                ..source
            });
            pipeline.source_more = format!(
                "[source.postgres.tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
                certificates::authority(),
                certificates::client(),
                certificates::client_key()
            );
            pipeline
        };
        for loud in LOUD {
            // It runs, then the server refuses what it let in before.
            let file = replica.write(&of(&right));
            let mut tidemill = Tidemill::run_with(&[&file], loud);
            tidemill.until_logged(60, "following the slot");
            replica.postgres.run("INSERT INTO orders SELECT coalesce(max(id), 0) + 1, 'new' FROM orders");
            search.console(&tidemill);
            search.check(&file);
            tidemill.drain(30);
            search.hear("the log", tidemill.log());
            let file = replica.write(&of(&wrong));
            search.check(&file);
            let mut tidemill = Tidemill::run_with(&[&file], loud);
            let refused = wait_until(Duration::from_secs(30), || {
                tidemill.log().contains("password authentication failed").then_some(())
            });
            refused.expect("the log-in is refused");
            tidemill.kill();
            search.hear("the log", tidemill.log());
        }
        search.end(&["password authentication failed", "following the slot"]);
    });
}

#[test]
fn tokens_and_the_key_of_the_listener_are_never_told() {
    within(120, || {
        let mut search = Search::default();
        let tokens: Vec<String> = (0..2).map(|_| search.canary("token")).collect();
        let stolen = search.canary("stolen");
        for loud in LOUD {
            let stand = Listener::new();
            let letters = stand.folder.path().join("letters");
            let mut pipeline = stand.pipeline("100ms");
            let Source::Http(http) = &mut pipeline.source else { panic!("it is one of HTTP") };
            http.tokens.clone_from(&tokens);
            // Plugins and dead letters see the headers of requests.
            pipeline.transforms = transform(&machine::test_plugin(), "{}");
            pipeline.dead_letters = format!("directory = {letters:?}");
            let file = stand.write(&pipeline);
            let mut tidemill = Tidemill::run_with(&[&file], loud);
            tidemill.until_ready(30);
            let post = |path: &str, token: &str, body: &str| {
                let headers =
                    format!("authorization: Bearer {token}\r\ncookie: session={stolen}\r\nx-trace: t1\r\n");
                let answer = stand.connect().post(path, &headers, body.as_bytes()).expect("an answer");
                (answer.status, format!("{}{}", answer.head, answer.body))
            };
            for (path, token, body, status) in [
                ("/events", &tokens[0], row(1), 200),
                ("/events", &tokens[1], r#"{"id":2,"do":"reject"}"#.to_owned(), 200),
                ("/events", &tokens[1], r#"{"id":"three"}"#.to_owned(), 200),
                ("/events", &tokens[0], "{".to_owned(), 400),
                ("/events", &stolen, row(4), 401),
                (&*format!("/events?access_token={}", tokens[0]), &stolen, row(5), 401),
                ("/", &tokens[0], row(6), 404),
            ] {
                let (found, answer) = post(path, token, &body);
                assert_eq!(found, status, "{answer}");
                search.hear("an answer", answer);
            }
            search.console(&tidemill);
            search.check(&file);
            tidemill.drain(30);
            search.hear("the log", tidemill.log());
            search.folder(&letters);
        }
        search.end(&["x-trace", "the token is not known"]);
    });
}

/// A key that cannot be used is a mistake that is told, without a line of it.
#[test]
fn a_key_that_cannot_be_used_is_not_shown() {
    within(60, || {
        let mut search = Search::default();
        let stand = Listener::new();
        let canary = search.canary("key");
        let broken = format!("-----BEGIN PRIVATE KEY-----\n{canary}\n-----END PRIVATE KEY-----\n");
        let key = secret_file(stand.folder.path(), "broken.key", &broken);
        search.key(&certificates::client_key());
        for key in [key, certificates::client_key()] {
            let mut pipeline = stand.pipeline("100ms");
            // The second key is one, but of another certificate.
            pipeline.source_more =
                format!("[source.http.tls]\ncertificate = {:?}\nkey = {key:?}", certificates::authority());
            let file = stand.write(&pipeline);
            search.check(&file);
            let mut tidemill = Tidemill::run_with(&[&file], LOUD[0]);
            let ended = tidemill.until_ended(30);
            assert_eq!(ended.code, Some(1), "{}", ended.log);
            search.hear("the log", ended.log);
        }
        search.end(&["cannot use `key` of [source.http.tls]"]);
    });
}

/// Mistakes in a file are shown with their lines, but not these.
#[test]
fn check_never_shows_a_line_with_a_secret() {
    within(60, || {
        let mut search = Search::default();
        let stand = Listener::new();
        let write = |more: &str| {
            let mut pipeline = stand.pipeline("100ms");
            pipeline.sink_more = more.to_owned();
            stand.write(&pipeline)
        };
        let mut said = String::new();
        let canary = search.canary("file");
        let held = secret_file(stand.folder.path(), "held", &format!("{canary}\n"));
        for more in [
            format!("password = \"{canary}"),
            format!("password = [\"{canary}\"]"),
            format!("passwort = \"{canary}\""),
            format!("password = {{ text = \"{canary}\" }}"),
            format!("password = \"x\"\npassword = \"{canary}\""),
            format!("properties = {{ authorization = \"Basic {canary}\" }}"),
            // A value that is no secret by its key, and one by where it comes from.
            format!("in_flight = {{ file = {held:?} }}"),
            format!("table_model = {{ file = {held:?} }}"),
        ] {
            let file = write(&more);
            let output = tidemill_output(&["check", file.to_str().expect("text")]);
            assert_eq!(output.status.code(), Some(2), "{more}");
            said += &search.output("check", &output);
        }
        assert!(said.contains("passwort") && said.contains("did you mean `password`?"), "{said}");
        search.end(&["not valid TOML"]);
    });
}

#[test]
fn a_secret_that_everybody_can_read_is_warned_of() {
    within(60, || {
        let stand = Listener::new();
        let file = secret_file(stand.folder.path(), "password", "canary\n");
        let mut pipeline = stand.pipeline("100ms");
        pipeline.sink_more = format!("password = {{ file = {file:?} }}");
        let pipeline = stand.write(&pipeline);
        for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("its mode is set");
            let output = tidemill_output(&["check", pipeline.to_str().expect("text")]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert_eq!(
                said.contains("everybody on this machine can read this secret"),
                warned,
                "{mode:o}: {said}"
            );
            assert!(!said.contains("canary"), "{said}");
        }
    });
}

/// Somebody else answers on the query port and at the FE, and says whatever was sent to him back to us.
#[test]
fn a_server_that_echoes_its_requests_is_not_quoted() {
    within(120, || {
        let mut search = Search::default();
        let password = search.password("echo", "root");
        let echo = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = echo.local_addr().expect("bound");
        // Ends with the process: nobody connects any more.
        thread::spawn(move || {
            for stream in echo.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut head = [0; 4096];
                let Ok(read) = stream.read(&mut head) else { continue };
                let said = String::from_utf8_lossy(&head[..read]).into_owned();
                let message =
                    serde_json::json!({ "Status": "Fail", "Message": said, "msg": said }).to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{message}",
                    message.len()
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let stand = Stand::new("secret_echo", 1, Model::Duplicate);
        let mut pipeline: Pipeline = stand.pipeline();
        pipeline.fe = vec![format!("http://{address}")];
        pipeline.sink_more = format!("password = {password:?}");
        let said = search.check(&stand.write(&pipeline));
        assert!(said.contains("cannot ask for the state of label"), "{said}");
        search.end(&["authorization"]);
    });
}
