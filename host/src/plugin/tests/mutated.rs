//! Components that are nearly right, and modules of the contract's shape that do anything: each is refused with a hint, or
//! loaded and called within its limits. A crash ends the test's process, and so does a mutant that does not end.
//!
//! `TIDEMILL_MUTANTS=20000 TIDEMILL_MUTANTS_SEED=7` tries more of them, and others.

use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use arbitrary::Unstructured;

use super::wat::{Wat, encoded};
use super::*;
use crate::plugin::process_isolated;

const MUTANTS: u64 = 1_000;
const MUTANTS_VARIABLE: &str = "TIDEMILL_MUTANTS";
const SEED_VARIABLE: &str = "TIDEMILL_MUTANTS_SEED";
/// A mutant that is not done with after this long hangs: a hundred times what the slowest one needs.
const MUTANT_TIME_MAX: Duration = Duration::from_secs(60);
/// What a generated module is made of.
const SEED_BYTES: usize = 2_048;
/// In front of the sections of modules and components.
const HEADER_BYTES: usize = 8;
/// The section of a component that holds a core module.
const CORE_MODULE_SECTION: u8 = 1;
/// Every core import and export of a component of the contract.
const SHAPE: &str = r#"(module
    (import "tidemill:transform/log@0.1.0" "log" (func (param i32 i32 i32)))
    (memory (export "memory") 1 64)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "tidemill:transform/plugin@0.1.0#configure") (param i32 i32) (result i32) unreachable)
    (func (export "tidemill:transform/plugin@0.1.0#process") (param i32) (result i32) unreachable))"#;

#[test]
fn mutants_are_refused_or_held_to_their_limits() {
    let count = number(MUTANTS_VARIABLE).unwrap_or(MUTANTS);
    let mut dice = Dice(number(SEED_VARIABLE).unwrap_or(0x7116_0001));
    let directory = tempfile::tempdir().unwrap();
    let small = std::fs::read(Wat::default().build(directory.path())).unwrap();
    let real = std::fs::read(built("passthrough.wasm")).unwrap();
    // Nothing is kept of them: below a file no directory can be made.
    let engine = Engine::new(4, MEMORY_BYTES, &directory.path().join("test.wasm/cache")).unwrap();
    let file = directory.path().join("mutant.wasm");
    let watch = Watch::start();
    let mut ran = [0; KINDS.len()];
    for mutant in 0..count {
        let kind = (mutant % KINDS.len() as u64) as usize;
        let original = if mutant % 8 < 6 { &small } else { &real };
        let bytes = match KINDS[kind] {
            "bytes" => with_other_bytes(original, &mut dice),
            "sections" => with_other_sections(original, &mut dice),
            "code" => with_other_code(original, &mut dice),
            _generated => generated(&mut dice),
        };
        std::fs::write(&file, &bytes).unwrap();
        watch.begins(format!("{} mutant {mutant}", KINDS[kind]));
        ran[kind] += u64::from(survives(&engine, &file));
    }
    watch.ends();
    println!("of {count} mutants these ran: {ran:?} of {KINDS:?}");
    for (kind, ran) in KINDS.iter().zip(ran) {
        // Of the generated ones few run (3 of 250 with the default seed); what refuses the others was not looked into yet.
        let least = if *kind == "generated" { 1 } else { count / 100 };
        assert!(ran >= least, "only {ran} mutants of {kind} ran at all: this shows nothing");
        // What is generated is valid: all of it may run, if only to trap in its configuration.
        let all = *kind == "generated" || ran < count / KINDS.len() as u64;
        assert!(all, "no mutant of {kind} was refused: this shows nothing");
    }
}

const KINDS: [&str; 4] = ["bytes", "sections", "code", "generated"];

/// Loads and calls a mutant; tells whether any of its code ran.
fn survives(engine: &Engine, file: &Path) -> bool {
    let limited = Transform { timeout: Duration::from_millis(20), ..transform(file, "{}") };
    let plugin = match engine.load(&limited) {
        Ok(plugin) => plugin,
        Err(fault) => {
            assert!(fault.hint.is_some(), "{}", fault.what);
            return fault.what.contains("failed while it was started and configured");
        }
    };
    let mut guest = match Guest::new(plugin) {
        Ok(guest) => guest,
        Err(fault) => {
            assert!(fault.hint.is_some(), "{}", fault.what);
            return true;
        }
    };
    let chunk = chunk(["a", "b", "c"]);
    match process_isolated(&mut guest, &chunk, &mut Columns::default()) {
        // The validator has looked at it: what it lets through is safe to use.
        Ok(answer) => {
            assert!(answer.inputs.iter().all(|input| (*input as usize) < chunk.len()));
            assert!(answer.values.is_none_or(|values| values.len() == answer.inputs.len()));
        }
        Err(fault) => assert!(fault.kind == FaultKind::Retry || fault.hint.is_some(), "{}", fault.what),
    }
    true
}

/// Up to three bytes behind the header, which has sentences of its own.
fn with_other_bytes(original: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=dice.below(3) {
        let at = HEADER_BYTES + dice.below(bytes.len() - HEADER_BYTES);
        bytes[at] = dice.byte();
    }
    bytes
}

/// A section less, twice, elsewhere, shorter, longer or with another byte, with lengths that are right: a validator that
/// trusts what it has seen before sees something else.
fn with_other_sections(original: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut sections = sections(original);
    let at = dice.below(sections.len());
    let is_component = original.starts_with(COMPONENT_HEADER);
    if is_component && sections[at].id == CORE_MODULE_SECTION && dice.below(2) == 0 {
        sections[at].content = with_other_sections(&sections[at].content, dice);
        return joined(original, &sections);
    }
    match dice.below(6) {
        0 => drop(sections.remove(at)),
        1 => {
            let again = sections[at].clone();
            sections.insert(dice.below(sections.len()), again);
        }
        2 => {
            let other = dice.below(sections.len());
            sections.swap(at, other);
        }
        3 => {
            let length = dice.below(sections[at].content.len() + 1);
            sections[at].content.truncate(length);
        }
        4 => {
            let place = dice.below(sections[at].content.len() + 1);
            let byte = dice.byte();
            sections[at].content.insert(place, byte);
        }
        _ => {
            let length = sections[at].content.len();
            if length > 0 {
                sections[at].content[dice.below(length)] = dice.byte();
            }
        }
    }
    joined(original, &sections)
}

/// Bytes of the core module's code only: half of them still are valid modules.
fn with_other_code(original: &[u8], dice: &mut Dice) -> Vec<u8> {
    const CODE_SECTION: u8 = 10;
    let mut outer = sections(original);
    let modules: Vec<usize> = (0..outer.len()).filter(|at| outer[*at].id == CORE_MODULE_SECTION).collect();
    let module = &mut outer[modules[dice.below(modules.len())]];
    let mut inner = sections(&module.content);
    if let Some(code) = inner.iter_mut().find(|section| section.id == CODE_SECTION) {
        let at = dice.below(code.content.len());
        // Mostly a neighbour: another local, another operation of the same type, another constant.
        code.content[at] = match dice.below(3) {
            0 => dice.byte(),
            1 => code.content[at] ^ 1,
            _ => code.content[at].wrapping_add(1),
        };
    }
    module.content = joined(&module.content, &inner);
    joined(original, &outer)
}

/// A module of the contract's shape, with code from nowhere.
fn generated(dice: &mut Dice) -> Vec<u8> {
    let seed: Vec<u8> = (0..SEED_BYTES).map(|_| dice.byte()).collect();
    let config = wasm_smith::Config {
        module_shape: Some(::wat::parse_str(SHAPE).unwrap()),
        allow_start_export: true,
        exceptions_enabled: false,
        gc_enabled: false,
        // Without the garbage collector, which is not built in, wasmtime takes no `externref`, and nearly each module of
        // that proposal has one.
        reference_types_enabled: dice.below(4) == 0,
        // What the pool of instances has room for.
        max_table_elements: 10_000,
        memory64_enabled: false,
        custom_page_sizes_enabled: false,
        wide_arithmetic_enabled: false,
        shared_everything_threads_enabled: false,
        threads_enabled: false,
        max_memories: 1,
        ..wasm_smith::Config::default()
    };
    let module = wasm_smith::Module::new(config, &mut Unstructured::new(&seed)).unwrap();
    // One that the encoder does not take is a core module, which nobody takes.
    encoded(module.to_bytes()).unwrap_or(seed)
}

/// Depth costs a byte or two each, and a recursive reader its stack: then the process would be gone, and not the plugin.
#[test]
fn depth_exhausts_no_stack() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    for (name, bytes, expected) in [
        ("types", deep_types(100_000), "type nesting is too deep"),
        ("blocks", deep_blocks(500_000), "is a component of another world"),
        ("components", deep_components(100), "is a component of another world"),
        // The compiler takes a time that grows with the square of it.
        (
            "more-components",
            deep_components(100_000),
            "components within each other, at most 100 are accepted",
        ),
    ] {
        let file = directory.path().join(format!("{name}.wasm"));
        std::fs::write(&file, bytes).unwrap();
        let story = halts(bench.load(&transform(&file, "{}")));
        assert!(story.contains(expected), "{story}");
    }
}

const COMPONENT_HEADER: &[u8; HEADER_BYTES] = b"\0asm\x0d\0\x01\0";
const MODULE_HEADER: &[u8; HEADER_BYTES] = b"\0asm\x01\0\0\0";

/// A component in a component in a component.
fn deep_components(depth: usize) -> Vec<u8> {
    const COMPONENT_SECTION: u8 = 4;
    let mut lengths = vec![HEADER_BYTES];
    for level in 0..depth {
        let inner = lengths[level];
        lengths.push(HEADER_BYTES + 1 + leb128(inner).len() + inner);
    }
    let levels = lengths[..depth]
        .iter()
        .rev()
        .flat_map(|inner| [COMPONENT_HEADER.as_slice(), &[COMPONENT_SECTION], &leb128(*inner)].concat());
    levels.chain(*COMPONENT_HEADER).collect()
}

/// A list of lists of lists.
fn deep_types(depth: usize) -> Vec<u8> {
    const TYPE_SECTION: u8 = 7;
    const LIST: u8 = 0x70;
    const U8: u8 = 0x7d;
    let mut types = leb128(depth + 1);
    types.push(U8);
    for index in 0..depth {
        types.push(LIST);
        // Signed: a zero bit has to stand above the number.
        let mut number = leb128(index);
        if number.last().is_some_and(|last| last & 0x40 != 0) {
            *number.last_mut().unwrap() |= 0x80;
            number.push(0);
        }
        types.extend(number);
    }
    joined(COMPONENT_HEADER, &[Section { id: TYPE_SECTION, content: types }])
}

/// A block in a block in a block.
fn deep_blocks(depth: usize) -> Vec<u8> {
    const BLOCK: u8 = 0x02;
    const EMPTY: u8 = 0x40;
    const END: u8 = 0x0b;
    let mut body = vec![0];
    body.extend([BLOCK, EMPTY].repeat(depth));
    body.extend([END].repeat(depth + 1));
    let code = [leb128(1), leb128(body.len()), body].concat();
    let sections = [(1, vec![1, 0x60, 0, 0]), (3, vec![1, 0]), (10, code)];
    let sections = sections.map(|(id, content)| Section { id, content });
    let module = joined(MODULE_HEADER, &sections);
    joined(COMPONENT_HEADER, &[Section { id: CORE_MODULE_SECTION, content: module }])
}

#[derive(Clone)]
struct Section {
    id: u8,
    content: Vec<u8>,
}

/// The sections of a valid module or component (spec: binary format, modules).
fn sections(bytes: &[u8]) -> Vec<Section> {
    let mut rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let mut sections = Vec::new();
    while let [id, behind @ ..] = rest {
        let mut length = 0;
        let mut digits = 0;
        for byte in behind {
            length |= usize::from(byte & 0x7f) << (7 * digits);
            digits += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let content: Range<usize> = digits..digits + length;
        sections.push(Section { id: *id, content: behind[content.clone()].to_vec() });
        rest = &behind[content.end..];
    }
    sections
}

fn joined(original: &[u8], sections: &[Section]) -> Vec<u8> {
    let mut bytes = original[..HEADER_BYTES].to_vec();
    for section in sections {
        bytes.push(section.id);
        bytes.extend(leb128(section.content.len()));
        bytes.extend(&section.content);
    }
    bytes
}

fn leb128(mut number: usize) -> Vec<u8> {
    let mut digits = Vec::new();
    while number >= 0x80 {
        digits.push(number as u8 | 0x80);
        number >>= 7;
    }
    digits.push(number as u8);
    digits
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text}, not a number")))
}

/// A fixed sequence (SplitMix64): a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// Ends the process, and says why, when a mutant hangs: nothing else could.
struct Watch {
    news: mpsc::Sender<Option<String>>,
}

impl Watch {
    fn start() -> Watch {
        let (news, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut running = String::from("nothing");
            loop {
                let began = Instant::now();
                match heard.recv_timeout(MUTANT_TIME_MAX) {
                    Ok(Some(name)) => running = name,
                    Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("{running} hangs: it is not done with after {:?}", began.elapsed());
                        std::process::abort();
                    }
                }
            }
        });
        Watch { news }
    }

    fn begins(&self, name: String) {
        self.news.send(Some(name)).unwrap();
    }

    fn ends(&self) {
        // It may have ended already.
        let _ = self.news.send(None);
    }
}
