//! Compiled plugins on disk: compiling costs 65 ms for a Rust plugin and 6 s for JavaScript, mapping a file next to nothing.
//!
//! A file is `<sha256 of the plugin>-<what the engine's code depends on>.cwasm`: the native code, followed by the
//! SHA-256 of it. It is written aside and renamed, never changed in place: running processes have it mapped.

#![allow(
    unsafe_code,
    reason = "wasmtime runs what is in a .cwasm file without checking it, and asking for our user id is a C call"
)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::fault::Fault;

/// Only the owner may write to the directory and to its files.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Only owners may remove what is theirs: the mark of a directory that is shared.
const STICKY: u32 = 0o1000;
/// Bytes of the checksum at the end of a file.
const CHECKSUM_BYTES: usize = 32;

/// A directory of compiled plugins, or nothing where none can be made.
#[derive(Debug)]
pub(super) struct Cache {
    directory: Option<PathBuf>,
    /// What compiled code depends on besides the plugin: wasmtime's version, its settings, the processor.
    engine: u64,
}

impl Cache {
    /// Makes the directory if it is missing.
    ///
    /// Whoever can write to it can run code as us: such a directory is an error. One that cannot be made (a read-only
    /// file system) only costs the time to compile.
    pub(super) fn open(directory: &Path, engine: &wasmtime::Engine) -> Result<Self, Fault> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = hasher.finish();
        if let Err(error) = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory) {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "cannot make the plugin cache: plugins are compiled at every start");
            return Ok(Self { directory: None, engine });
        }
        refuse_foreign(directory)?;
        Ok(Self { directory: Some(directory.to_owned()), engine })
    }

    /// Where the compiled code of a plugin is or would be.
    fn path(&self, sha256: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{sha256}-{:016x}.cwasm", self.engine)))
    }

    /// The compiled plugin, if it is there and as it was written.
    pub(super) fn get(&self, engine: &wasmtime::Engine, sha256: &str) -> Option<Component> {
        let path = self.path(sha256)?;
        match self.checked(&path) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(file = %path.display(), "compiled plugin is damaged or not ours: compiling it again");
                return None;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read compiled plugin: compiling it again");
                return None;
            }
        }
        // SAFETY: wasmtime wrote this code for an engine with this compatibility hash, its checksum is right, and
        // nobody but us could have written it: the directory and the file are ours and closed to others' writing. It
        // does not change while it is mapped, because files here are only ever renamed into place.
        match unsafe { Component::deserialize_file(engine, &path) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "compiled plugin is unusable: compiling it again");
                None
            }
        }
    }

    /// Keeps a compiled plugin, and tells whether it could. Failing to only costs time at the next start, so it is said
    /// and forgotten.
    pub(super) fn put(&self, component: &Component, sha256: &str) -> bool {
        let Some(path) = self.path(sha256) else { return false };
        let written =
            component.serialize().map_err(io::Error::other).and_then(|code| write_aside(&path, &code));
        if let Err(error) = &written {
            tracing::warn!(file = %path.display(), %error, "cannot keep compiled plugin");
        }
        written.is_ok()
    }

    /// Whether the file is ours, closed to others' writing, and ends in the checksum of what comes before.
    fn checked(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || !is_ours(&metadata) {
            return Ok(false);
        }
        let Some(code_bytes) = metadata.len().checked_sub(CHECKSUM_BYTES as u64) else { return Ok(false) };
        let mut hasher = Sha256::new();
        let mut code = (&mut file).take(code_bytes);
        let mut piece = vec![0; 64 << 10];
        loop {
            match code.read(&mut piece)? {
                0 => break,
                read => hasher.update(piece.get(..read).unwrap_or_default()),
            }
        }
        let mut checksum = [0; CHECKSUM_BYTES];
        file.seek(SeekFrom::Start(code_bytes))?;
        file.read_exact(&mut checksum)?;
        Ok(hasher.finalize().as_slice() == checksum)
    }
}

/// Refuses a directory that somebody else owns or may write to.
fn refuse_foreign(directory: &Path) -> Result<(), Fault> {
    let shown = directory.display();
    let metadata = std::fs::metadata(directory).map_err(|error| {
        Fault::halt(format!("cannot look at cache_dir {shown}"), "check its permissions").caused_by(error)
    })?;
    if is_ours(&metadata) {
        return Ok(());
    }
    Err(Fault::halt(
        format!(
            "cache_dir {shown} belongs to user {} with mode {:03o}: others could place code there that tidemill runs",
            metadata.uid(),
            metadata.mode() & 0o777
        ),
        if is_cache(directory, &metadata) {
            format!("`chmod 700 {shown}`, or name a directory of your own as `cache_dir`")
        } else {
            "name a directory of your own as `cache_dir`".to_owned()
        },
    ))
}

/// Whether nothing but compiled plugins is there, in a directory of ours: closing one that is shared, as
/// `/tmp` is, would do harm.
fn is_cache(directory: &Path, metadata: &std::fs::Metadata) -> bool {
    if metadata.uid() != ourselves() || metadata.mode() & STICKY != 0 {
        return false;
    }
    let compiled = |entry: io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "cwasm"))
    };
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.all(compiled))
}

fn is_ours(metadata: &std::fs::Metadata) -> bool {
    metadata.uid() == ourselves() && metadata.mode() & WRITABLE_BY_OTHERS == 0
}

fn ourselves() -> libc::uid_t {
    // SAFETY: geteuid has no arguments, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

/// Writes a file beside its place, makes it durable and renames it: readers see all of it or nothing.
fn write_aside(path: &Path, code: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let unique = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_extension(format!("{}-{unique}.tmp", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&aside)?;
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().inspect_err(|_| {
        // Best effort: the error that matters is on its way to the caller.
        let _ = std::fs::remove_file(&aside);
    })
}
