//! Files that look like plugins and are none: what the host must refuse when it checks a pipeline, each for its own
//! reason. They are made here, because no binary is kept in the repository.

use super::{Platform, compile, compiled, encode, failure, place};
use crate::command::Failure;
use std::{fs, path::Path};

/// A component with an export of somebody else's world.
const OTHER_WORLD: &str = r#"
(component
  (core module $m (func (export "run") (result i32) i32.const 42))
  (core instance $i (instantiate $m))
  (func $run (result u32) (canon lift (core func $i "run")))
  (instance $answer (export "run" (func $run)))
  (export "acme:other/answer@1.0.0" (instance $answer)))
"#;

/// A component that exports a version of the contract that does not exist yet.
const FUTURE_VERSION: &str = r#"
(component
  (core module $m (func (export "run") (result i32) i32.const 42))
  (core instance $i (instantiate $m))
  (func $run (result u32) (canon lift (core func $i "run")))
  (instance $plugin (export "process" (func $run)))
  (export "tidemill:transform/plugin@7.0.0" (instance $plugin)))
"#;

/// Makes the broken files in `broken/` below the folder of the plugins:
///
/// | file | what is wrong |
/// |---|---|
/// | `core-module.wasm` | a core module that was not made into a component |
/// | `other-world.wasm` | a component that exports something else |
/// | `future-version.wasm` | the contract in version 7.0.0 |
/// | `wrong-types.wasm` | the right name and version with other functions |
/// | `extra-import.wasm` | a working plugin that also imports `acme:net/fetch@1.0.0` |
/// | `truncated.wasm` | the first half of a working plugin |
/// | `empty.wasm` | no bytes |
/// | `text.wasm` | not WebAssembly at all |
pub(super) fn build(plugins: &Path) -> Result<(), Failure> {
    let folder = plugins.join("broken");
    let write = |name: &str, bytes: &[u8]| place(&folder.join(format!("{name}.wasm")), bytes);

    write("core-module", &compiled(Platform::Unknown, "passthrough")?)?;
    write("other-world", &assemble(OTHER_WORLD)?)?;
    write("future-version", &assemble(FUTURE_VERSION)?)?;
    write("wrong-types", &assemble(&FUTURE_VERSION.replace("@7.0.0", "@0.1.0"))?)?;
    let working = plugins.join("passthrough.wasm");
    let working = fs::read(&working).map_err(|cause| failure("read", &working, &cause))?;
    write("truncated", &working[..working.len() / 2])?;
    write("empty", b"")?;
    write("text", b"#!/bin/sh\necho this is no plugin\n")?;

    // Last, because it leaves another build of `hostile` behind.
    compile(Platform::Unknown, &["hostile"], &["extra-import"])?;
    write("extra-import", &encode("hostile", &compiled(Platform::Unknown, "hostile")?)?)
}

fn assemble(text: &str) -> Result<Vec<u8>, Failure> {
    wat::parse_str(text).map_err(|cause| Failure::new(format!("assemble a component: {cause}")))
}
