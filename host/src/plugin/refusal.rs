//! Files that are no transform, and the sentence that each of them gets.
//!
//! Everything here looks at bytes or at the component's type; nothing runs.

use std::path::Path;

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::fault::Fault;

/// Bytes of a plugin's file. Interpreters of dynamic languages bring up to 20 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Components within each other. Composing tools need three or four; the compiler's time grows with the square.
const NESTING_MAX: usize = 100;

/// The interfaces of the contract, with the version that this host speaks.
const PLUGIN_INTERFACE: &str = "tidemill:transform/plugin@0.1.0";
const LOG_INTERFACE: &str = "tidemill:transform/log@0.1.0";
const TYPES_INTERFACE: &str = "tidemill:transform/types@0.1.0";

/// Beginnings of files.
const WASM_MAGIC: &[u8] = b"\0asm";
const MODULE_VERSION: &[u8] = &[1, 0, 0, 0];
const COMPONENT_VERSION: &[u8] = &[0x0d, 0, 1, 0];
/// The section of a component that holds another one.
const COMPONENT_SECTION: u8 = 4;
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Reads a plugin's file, if its size and first bytes are those of a component.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing(path),
        _other => Fault::halt(format!("cannot read plugin {shown}"), "check the permissions of the file")
            .caused_by(error),
    })?;
    if !metadata.is_file() {
        return Err(Fault::halt(
            format!("plugin {shown} is not a file"),
            "`plugin` names the component itself, a file that ends in .wasm",
        ));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(Fault::halt(
            format!("plugin {shown} has {} bytes, at most {FILE_BYTES_MAX} are accepted", metadata.len()),
            "build it optimised and stripped of debug information",
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| {
        Fault::halt(format!("cannot read plugin {shown}"), "check the permissions of the file")
            .caused_by(error)
    })?;
    refuse_by_first_bytes(path, &bytes)?;
    refuse_by_nesting(path, &bytes)?;
    Ok(bytes)
}

/// The fault for a path behind which there is nothing.
fn missing(path: &Path) -> Fault {
    let folder = path.parent().unwrap_or(Path::new(""));
    let ours = folder.ends_with("target/plugins");
    let hint = if ours {
        "build the examples with `cargo xtask plugins`"
    } else {
        "check the path: in a pipeline file it is relative to that file"
    };
    Fault::halt(format!("plugin {} is not there", path.display()), hint)
}

fn refuse_by_first_bytes(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let shown = path.display();
    if bytes.is_empty() {
        return Err(Fault::halt(format!("plugin {shown} is empty"), "build it again"));
    }
    if bytes.starts_with(ELF_MAGIC) {
        return Err(Fault::halt(
            format!("plugin {shown} is native code, not WebAssembly"),
            "give the .wasm component; compiled code is taken from `cache_dir` only",
        ));
    }
    let Some(version) = bytes.strip_prefix(WASM_MAGIC) else {
        return Err(Fault::halt(
            format!("plugin {shown} is not WebAssembly: it does not begin with the bytes 00 61 73 6d"),
            "give the .wasm component that the plugin's build has written",
        ));
    };
    if version.starts_with(MODULE_VERSION) {
        return Err(Fault::halt(
            format!("plugin {shown} is a core module, not a component"),
            "turn it into one with `wasm-tools component new`, or build Rust with `--target wasm32-wasip2`",
        ));
    }
    if !version.starts_with(COMPONENT_VERSION) {
        return Err(Fault::halt(
            format!("plugin {shown} has an unknown WebAssembly version"),
            "build it as a component with current tools; or the file is damaged",
        ));
    }
    Ok(())
}

fn refuse_by_nesting(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let depth = nesting(bytes);
    if depth <= NESTING_MAX {
        return Ok(());
    }
    Err(Fault::halt(
        format!(
            "plugin {} has {depth} components within each other, at most {NESTING_MAX} are accepted",
            path.display()
        ),
        "build it with other tools: no composition needs as many",
    ))
}

/// How many components stand within each other. What is no section ends the count: the validator has its own words for it.
fn nesting(bytes: &[u8]) -> usize {
    let header_bytes = WASM_MAGIC.len() + COMPONENT_VERSION.len();
    let (mut at, mut deepest) = (header_bytes, 0);
    // Where each of the components ends that `at` is within, without the outermost.
    let mut ends: Vec<usize> = Vec::new();
    while let Some((id, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) {
        while ends.pop_if(|end| *end <= at).is_some() {}
        let Some((length, digits)) = leb128(rest) else { break };
        at += 1 + digits;
        let Some(end) = at.checked_add(length) else { break };
        if *id == COMPONENT_SECTION {
            ends.push(end);
            deepest = deepest.max(ends.len());
            at += header_bytes;
        } else {
            at = end;
        }
    }
    deepest
}

/// An unsigned number of at most 32 bits and how many bytes it takes (WebAssembly's binary format, 5.2.2).
fn leb128(bytes: &[u8]) -> Option<(usize, usize)> {
    const DIGITS_MAX: usize = 5;
    let last = bytes.iter().take(DIGITS_MAX).position(|byte| byte & 0x80 == 0)?;
    let digits = bytes.get(..=last)?;
    let number = digits.iter().rev().fold(0_u64, |number, digit| number << 7 | u64::from(digit & 0x7f));
    Some((usize::try_from(number).ok()?, digits.len()))
}

/// The fault for bytes that begin like a component and do not compile.
pub(super) fn damaged(path: &Path, error: &wasmtime::Error) -> Fault {
    let cause = error.root_cause().to_string();
    let shown = path.display();
    // wasmparser's words for sections that the file is too short for.
    if cause.contains("unexpected end") || cause.contains("is out of bounds (bound =") {
        return Fault::halt(
            format!("plugin {shown} is cut short: {cause}"),
            "the file was not copied or written to its end: build or copy it again",
        );
    }
    // wasmtime's words for memories and tables that no slot of the pool has room for.
    if cause.contains("which exceeds the limit of") {
        return Fault::halt(
            format!("plugin {shown} wants more than it may have from its start: {cause}"),
            "raise `memory` of its [[transform]]",
        );
    }
    Fault::halt(
        format!("plugin {shown} is not a valid component: {cause}"),
        "build it with current tools, without experimental WebAssembly features",
    )
}

/// Refuses a component that imports what no transform may have, or that does not export the contract.
pub(super) fn refuse_by_type(path: &Path, component: &Component) -> Result<(), Fault> {
    let shown = path.display();
    let engine = component.engine();
    let ty = component.component_type();
    let extra: Vec<&str> = ty.imports(engine).map(|(name, _)| name).filter(|name| !tolerated(name)).collect();
    if let Some(other) = extra.iter().find(|name| name.starts_with("tidemill:transform/")) {
        return Err(other_version(path, other));
    }
    if !extra.is_empty() {
        return Err(Fault::halt(
            format!("plugin {shown} imports {}, which no plugin may have", extra.join(", ")),
            "a transform may import tidemill:transform/log and nothing else: it has no network, no files and no other \
             services",
        ));
    }
    match ty.get_export(engine, PLUGIN_INTERFACE).map(|export| export.ty) {
        Some(ComponentItem::ComponentInstance(_)) => Ok(()),
        Some(_) | None => Err(other_world(path, ty.exports(engine).map(|(name, _)| name))),
    }
}

/// Whether an import is ours, or one that language run-times bring along (it traps unless it was granted).
pub(super) fn tolerated(import: &str) -> bool {
    import == LOG_INTERFACE || import == TYPES_INTERFACE || import.starts_with("wasi:")
}

fn other_world<'a>(path: &Path, exports: impl Iterator<Item = &'a str>) -> Fault {
    let exports: Vec<&str> = exports.collect();
    if let Some(other) = exports.iter().find(|name| name.starts_with("tidemill:transform/")) {
        return other_version(path, other);
    }
    let shown = path.display();
    let found = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
    Fault::halt(
        format!("plugin {shown} is a component of another world: it exports {found}, not {PLUGIN_INTERFACE}"),
        "a plugin implements the world `transform` of wit/transform.wit",
    )
}

fn other_version(path: &Path, interface: &str) -> Fault {
    Fault::halt(
        format!("plugin {} speaks {interface}, this tidemill speaks {PLUGIN_INTERFACE}", path.display()),
        "build the plugin with the SDK of this version",
    )
}

/// The fault for a component that has the contract's names and other types behind them.
pub(super) fn other_types(path: &Path, error: &wasmtime::Error) -> Fault {
    Fault::halt(
        format!("plugin {} has other types than {PLUGIN_INTERFACE}: {error:#}", path.display()),
        "build it against wit/transform.wit of this version, unchanged",
    )
}

/// The fault for a component that was granted WASI and wants more of it, or other imports' types.
pub(super) fn not_granted(path: &Path, error: &wasmtime::Error) -> Fault {
    Fault::halt(
        format!("plugin {} imports what wasi = \"minimal\" does not grant: {error:#}", path.display()),
        "clocks, random numbers and stdio of WASI 0.2 are granted; build the plugin without the rest, or leave \
         `wasi` out: then each such import traps if it is called",
    )
}
