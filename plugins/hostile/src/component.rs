//! The misdeeds, as a component.

use crate::{Config, Misdeed, marked};
use sdk::exports::tidemill::transform::plugin::{Batch, BatchError, Descriptor, Guest, Output};
use sdk::tidemill::transform::log::{Level, log};
use sdk::tidemill::transform::types::{BytesColumn, Columns, HeaderColumn, RecordError};
use std::cell::{Cell, RefCell};
use std::hint::black_box;
use tidemill_sdk::component::bindings as sdk;

const MIB: usize = 1 << 20;
const FLOOD_LINES: usize = 1_000_000;
const MANY_ROWS: usize = 1_000_000;
const HUGE_BYTES: usize = 48 * MIB;
const SMALL_PIECES: usize = 1_000_000;
const DEEP: usize = 100_000;

thread_local! {
    static CONFIG: RefCell<Config> = RefCell::default();
    static LEAKED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Hostile;

#[allow(unsafe_code, reason = "the exported functions take addresses, as the canonical ABI says")]
mod export {
    use super::{Hostile, sdk};
    sdk::export_component!(Hostile with_types_in sdk);
}

impl Guest for Hostile {
    fn configure(config: String) -> Result<Descriptor, String> {
        let config: Config = serde_json::from_str(&config).map_err(|error| format!("config: {error}"))?;
        if let Some(misdeed) = config.configure {
            if misdeed == Misdeed::Fatal {
                return Err(
                    "config key `configure`: this plugin was told to refuse its configuration".to_owned()
                );
            }
            misbehave(misdeed);
        }
        let descriptor = Descriptor { wants: Columns::empty(), tables: config.tables.clone() };
        CONFIG.set(config);
        Ok(descriptor)
    }

    fn process(records: Batch) -> Result<Output, BatchError> {
        CALLS.set(CALLS.get() + 1);
        let always = CONFIG.with_borrow(|config| config.always);
        match always.or_else(|| first_marked(&records.values)) {
            Some(Misdeed::Retry) => Err(BatchError::Retry("asked to fail for now".to_owned())),
            Some(Misdeed::Fatal) => Err(BatchError::Fatal("asked to fail for ever".to_owned())),
            Some(misdeed) => {
                misbehave(misdeed);
                Ok(garbage(misdeed, &records))
            }
            None => Ok(keep(records.marks.len())),
        }
    }
}

fn first_marked(values: &BytesColumn) -> Option<Misdeed> {
    let mut start = 0;
    values.ends.iter().find_map(|end| {
        let value = &values.data[start..*end as usize];
        start = *end as usize;
        marked(value)
    })
}

/// The misdeeds that are something done; those that are something returned do nothing here.
fn misbehave(misdeed: Misdeed) {
    match misdeed {
        Misdeed::Trap => core::arch::wasm32::unreachable(),
        Misdeed::Panic => panic!("asked to panic"),
        Misdeed::OutOfBounds => read_beyond(),
        Misdeed::StackOverflow => {
            black_box(recurse(0));
        }
        Misdeed::Spin => loop {
            black_box(());
        },
        Misdeed::Grow => hoard(MIB),
        Misdeed::GrowSmall => hoard(40),
        Misdeed::Small => {
            let pieces: Vec<Box<usize>> = (0..SMALL_PIECES).map(Box::new).collect();
            black_box(&pieces);
        }
        Misdeed::Leak => LEAKED.with_borrow_mut(|leaked| leaked.push(vec![1; MIB])),
        Misdeed::Flood => {
            for line in 0..FLOOD_LINES {
                log(Level::Error, &format!("line {line} of a flood"));
            }
        }
        Misdeed::LongLine => log(Level::Error, &"\u{1b}[31mlong\r\n".repeat(8 * MIB / 11)),
        Misdeed::Fetch => fetch(),
        _ => {}
    }
}

fn hoard(bytes: usize) {
    let mut hoard = Vec::new();
    loop {
        hoard.push(vec![1_u8; bytes]);
        black_box(&hoard);
    }
}

#[expect(unconditional_recursion, reason = "the misdeed is to exhaust the stack")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[0]
}

#[allow(unsafe_code, reason = "the misdeed is to read what is not there")]
fn read_beyond() {
    // SAFETY: none; the sandbox has to catch it.
    black_box(unsafe { std::ptr::read_volatile(black_box(usize::MAX - 64) as *const u8) });
}

#[cfg(feature = "extra-import")]
#[allow(unsafe_code, clippy::all, unreachable_pub, missing_docs, reason = "generated")]
mod net {
    wit_bindgen::generate!({
        inline: "
            package acme:net@1.0.0;
            interface fetch { fetch: func(url: string) -> list<u8>; }
            world fetching { import fetch; }
        ",
        world: "fetching",
    });
}

#[cfg(feature = "extra-import")]
fn fetch() {
    black_box(net::acme::net::fetch::fetch("http://127.0.0.1/"));
}

#[cfg(not(feature = "extra-import"))]
fn fetch() {}

/// What there is of the world outside.
#[cfg(target_os = "wasi")]
fn snoop() -> Option<String> {
    use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
    let variables = std::env::vars_os().count();
    let arguments = std::env::args_os().count();
    let files = std::fs::read_dir("/").is_ok()
        || std::fs::File::open("/etc/passwd").is_ok()
        || std::fs::File::create("snooped").is_ok();
    let networks = TcpListener::bind("127.0.0.1:0").is_ok()
        || UdpSocket::bind("127.0.0.1:0").is_ok()
        || TcpStream::connect("127.0.0.1:9").is_ok()
        || ("localhost", 9).to_socket_addrs().is_ok();
    Some(format!(
        "{{\"variables\":{variables},\"arguments\":{arguments},\"files\":{files},\"networks\":{networks}}}\n"
    ))
}

#[cfg(not(target_os = "wasi"))]
fn snoop() -> Option<String> {
    None
}

/// Every record as it came.
fn keep(records: usize) -> Output {
    Output {
        inputs: (0..records as u32).collect(),
        tables: None,
        values: None,
        marks: None,
        keys: None,
        timestamps: None,
        headers: None,
        errors: Vec::new(),
    }
}

/// Every record as it came, but for the misdeed.
fn garbage(misdeed: Misdeed, records: &Batch) -> Output {
    let rows = records.marks.len();
    let output = keep(rows);
    match misdeed {
        Misdeed::InputsDescending => Output { inputs: (0..rows as u32).rev().collect(), ..output },
        Misdeed::InputBeyond => Output { inputs: (1..=rows as u32).collect(), ..output },
        Misdeed::ManyRows => Output { inputs: vec![0; MANY_ROWS], ..output },
        Misdeed::TableBeyond => {
            let declared = CONFIG.with_borrow(|config| config.tables.len());
            Output { tables: Some(vec![declared as u16; rows]), ..output }
        }
        Misdeed::TablesShort => Output { tables: Some(vec![0; rows - 1]), ..output },
        Misdeed::MarksShort => Output { marks: Some(vec![4; rows - 1]), ..output },
        Misdeed::MarksReserved => Output { marks: Some(vec![0b1000_0100; rows]), ..output },
        Misdeed::MarksNoValue => {
            Output { marks: Some(vec![0; rows]), values: Some(same(rows, b"{}")), ..output }
        }
        Misdeed::KeysDenied => Output { marks: Some(vec![4; rows]), keys: Some(same(rows, b"k")), ..output },
        Misdeed::KeysShort => Output { keys: Some(same(rows - 1, b"k")), ..output },
        Misdeed::TimestampsShort => Output { timestamps: Some(vec![0; rows - 1]), ..output },
        Misdeed::Remember => {
            let value = format!("{{\"calls\":{}}}\n", CALLS.get());
            Output { values: Some(same(rows, value.as_bytes())), ..output }
        }
        Misdeed::Snoop => Output { values: snoop().map(|found| same(rows, found.as_bytes())), ..output },
        _ => Output { values: values(misdeed, rows), ..headers_and_errors(misdeed, output) },
    }
}

fn values(misdeed: Misdeed, rows: usize) -> Option<BytesColumn> {
    let good = same(rows, b"{}\n");
    match misdeed {
        Misdeed::ValuesShort => Some(same(rows - 1, b"{}\n")),
        Misdeed::ValuesDescending => {
            // The last end is right, so that only the order is wrong, even with one row: an end more is one row more.
            let mut ends = good.ends;
            let last = ends.len() - 1;
            ends.insert(last, u32::MAX);
            ends.truncate(rows.max(2));
            Some(BytesColumn { data: good.data, ends })
        }
        Misdeed::ValuesBeyond => {
            Some(BytesColumn { ends: good.ends.iter().map(|end| end + 1).collect(), ..good })
        }
        Misdeed::ValuesRest => {
            let data = [good.data.as_slice(), b"rest"].concat();
            Some(BytesColumn { data, ..good })
        }
        Misdeed::ValuesHuge => Some(same(rows, &vec![b' '; HUGE_BYTES / rows])),
        Misdeed::ValuesBytes => Some(same(rows, b"{\"a\":\"\xff\xfe\0\"}\n")),
        Misdeed::ValuesText => Some(same(rows, b"{\"a\":\n")),
        Misdeed::ValuesDeep => {
            let deep = format!("{{\"a\":{}{}}}\n", "[".repeat(DEEP), "]".repeat(DEEP));
            Some(same(rows, deep.as_bytes()))
        }
        _ => None,
    }
}

fn headers_and_errors(misdeed: Misdeed, output: Output) -> Output {
    let rows = output.inputs.len();
    let headers = |ends: Vec<u32>, names: BytesColumn, contents: BytesColumn| {
        Some(HeaderColumn { ends, names, contents })
    };
    let one_each: Vec<u32> = (1..=rows as u32).collect();
    let error = |input: u32, code: &str| RecordError {
        input,
        code: code.to_owned(),
        message: "asked to fail".to_owned(),
    };
    match misdeed {
        Misdeed::HeadersShort => {
            let short = one_each[1..].to_vec();
            Output { headers: headers(short, same(rows, b"n"), same(rows, b"c")), ..output }
        }
        Misdeed::HeadersBeyond => {
            Output { headers: headers(one_each, same(rows - 1, b"n"), same(rows - 1, b"c")), ..output }
        }
        Misdeed::HeadersUneven => {
            Output { headers: headers(one_each, same(rows, b"n"), same(rows - 1, b"c")), ..output }
        }
        Misdeed::HeadersBytes => {
            Output { headers: headers(one_each, same(rows, b"\xff"), same(rows, b"c")), ..output }
        }
        Misdeed::ErrorBeyond => Output { errors: vec![error(rows as u32, "parse")], ..output },
        Misdeed::ErrorTwice => {
            let errors = vec![error(0, "parse"), error(0, "parse")];
            Output { inputs: (1..rows as u32).collect(), errors, ..output }
        }
        Misdeed::ErrorAndRow => Output { errors: vec![error(0, "parse")], ..output },
        Misdeed::ErrorCode => {
            Output { inputs: (1..rows as u32).collect(), errors: vec![error(0, "Bad Code!")], ..output }
        }
        Misdeed::ErrorMessage => {
            let errors = vec![RecordError { message: "long ".repeat(MIB / 5), ..error(0, "parse") }];
            Output { inputs: (1..rows as u32).collect(), errors, ..output }
        }
        _ => output,
    }
}

fn same(rows: usize, value: &[u8]) -> BytesColumn {
    BytesColumn { data: value.repeat(rows), ends: (1..=rows).map(|row| (row * value.len()) as u32).collect() }
}
