//! Small components written by hand, for what no toolchain produces.
//!
//! Memory of the core module: answers stand at [`ANSWER`], everything from 8192 on is handed out and taken back at
//! the beginning of each `process`. Offsets in an answer follow from `wit/transform.wit` and the canonical ABI.

use std::path::{Path, PathBuf};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A component of the contract's world from a core module; `imports` are further ones, as WIT packages and as lines
/// of a world.
pub(super) struct Wat<'a> {
    pub(super) configure: &'a str,
    pub(super) process: &'a str,
    /// Pages of 64 KiB that its memory begins with.
    pub(super) memory_pages: u32,
    /// Further fields of the module.
    pub(super) fields: &'a str,
    pub(super) packages: &'a [&'a str],
    pub(super) imports: &'a str,
}

/// Answers `configure` with a descriptor that wants nothing and has no tables.
pub(super) const CONFIGURED: &str = "
    (i32.store8 (i32.const 4096) (i32.const 0))
    (i32.store8 offset=4 (i32.const 4096) (i32.const 0))
    (i64.store offset=8 (i32.const 4096) (i64.const 0))
    (i32.const 4096)";

/// Answers `process` with all records as they are.
pub(super) const KEEP_ALL: &str = "(call $keep_all (local.get $batch))";

impl Default for Wat<'_> {
    fn default() -> Self {
        Self {
            configure: CONFIGURED,
            process: KEEP_ALL,
            memory_pages: 4,
            fields: "",
            packages: &[],
            imports: "",
        }
    }
}

impl Wat<'_> {
    /// Writes the component to `directory/test.wasm`.
    pub(super) fn build(&self, directory: &Path) -> PathBuf {
        let file = directory.join("test.wasm");
        let component =
            component(::wat::parse_str(self.module()).unwrap(), self.packages, self.imports).unwrap();
        std::fs::write(&file, component).unwrap();
        file
    }

    fn module(&self) -> String {
        let Self { configure, process, memory_pages, fields, .. } = self;
        let imports =
            fields.lines().filter(|line| line.trim_start().starts_with("(import")).collect::<String>();
        let rest = fields
            .lines()
            .filter(|line| !line.trim_start().starts_with("(import"))
            .collect::<Vec<_>>()
            .join("\n");
        format!(
            r#"(module
                (import "tidemill:transform/log@0.1.0" "log" (func $log (param i32 i32 i32)))
                {imports}
                (memory (export "memory") {memory_pages})
                (global $top (mut i32) (i32.const 8192))
                (func $realloc (export "cabi_realloc") (param i32 i32) (param $align i32) (param $len i32) (result i32)
                    (local $at i32)
                    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                    (global.set $top (i32.add (local.get $at) (local.get $len)))
                    (if (i32.gt_u (global.get $top) (i32.mul (memory.size) (i32.const 65536)))
                        (then (drop (memory.grow (i32.add (i32.const 1)
                            (i32.div_u (local.get $len) (i32.const 65536)))))))
                    (local.get $at))
                (func $keep_all (param $batch i32) (result i32)
                    (local $n i32) (local $i i32) (local $list i32)
                    (local.set $n (i32.load offset=28 (local.get $batch)))
                    (local.set $list (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
                        (i32.mul (local.get $n) (i32.const 4))))
                    (block $done (loop $next
                        (br_if $done (i32.eq (local.get $i) (local.get $n)))
                        (i32.store (i32.add (local.get $list) (i32.mul (local.get $i) (i32.const 4))) (local.get $i))
                        (local.set $i (i32.add (local.get $i) (i32.const 1)))
                        (br $next)))
                    (memory.fill (i32.const 4096) (i32.const 0) (i32.const 140))
                    (i32.store offset=4 (i32.const 4096) (local.get $list))
                    (i32.store offset=8 (i32.const 4096) (local.get $n))
                    (i32.const 4096))
                ;; 1 if the values of the batch have this byte
                (func $has (param $batch i32) (param $byte i32) (result i32)
                    (local $at i32) (local $end i32)
                    (local.set $at (i32.load offset=8 (local.get $batch)))
                    (local.set $end (i32.add (local.get $at) (i32.load offset=12 (local.get $batch))))
                    (block $done (loop $next
                        (br_if $done (i32.eq (local.get $at) (local.get $end)))
                        (if (i32.eq (i32.load8_u (local.get $at)) (local.get $byte)) (then (return (i32.const 1))))
                        (local.set $at (i32.add (local.get $at) (i32.const 1)))
                        (br $next)))
                    (i32.const 0))
                (func (export "tidemill:transform/plugin@0.1.0#configure")
                    (param $config i32) (param $len i32) (result i32)
                    {configure})
                (func (export "tidemill:transform/plugin@0.1.0#process") (param $batch i32) (result i32)
                    {process})
                (func (export "cabi_post_tidemill:transform/plugin@0.1.0#process") (param i32)
                    (global.set $top (i32.const 8192)))
                {rest}
            )"#
        )
    }
}

/// A core module of the contract's shape as a component; none if it is not of that shape.
pub(super) fn encoded(module: Vec<u8>) -> Option<Vec<u8>> {
    component(module, &[], "").ok()
}

fn component(mut module: Vec<u8>, packages: &[&str], imports: &str) -> Result<Vec<u8>, String> {
    let mut resolve = Resolve::default();
    resolve.push_str("transform.wit", include_str!("../../../../wit/transform.wit")).unwrap();
    for (index, package) in packages.iter().enumerate() {
        resolve.push_str(format!("extra{index}.wit"), package).unwrap();
    }
    let world =
        format!("package test:test; world test {{ include tidemill:transform/transform@0.1.0; {imports} }}");
    let package = resolve.push_str("world.wit", &world).unwrap();
    let world = resolve.select_world(&[package], Some("test")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let encoded =
        ComponentEncoder::default().validate(true).module(&module).and_then(|encoder| encoder.encode());
    encoded.map_err(|error| format!("{error:#}"))
}
