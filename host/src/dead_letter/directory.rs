//! Dead letters in files: `<pipeline>-<nonce>-<number>.ndjson`, readable by their owner only.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{DeadLetter, text};
use crate::fault::Fault;

/// A file is closed and a new one begun past this size.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Appends to one file at a time and syncs each group of letters.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    pipeline: String,
    /// Random, so that processes that share the directory never share a file.
    nonce: u32,
    number: u32,
    file: Option<(File, u64)>,
    lines: Vec<u8>,
}

impl Directory {
    /// Makes the directory if it is missing, and makes sure that it can be written.
    pub(super) fn open(path: &Path, pipeline: &str) -> Result<Directory, Fault> {
        let mut directory = Directory {
            path: path.to_owned(),
            pipeline: pipeline.to_owned(),
            nonce: rand::random(),
            number: 0,
            file: None,
            lines: Vec::new(),
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| directory.fault("make the directory", error))?;
        let probe = path.join(format!(".probe-{:08x}", directory.nonce));
        let probed = File::create(&probe).and_then(|_| std::fs::remove_file(&probe));
        probed.map_err(|error| directory.fault("write to", error))?;
        directory.lines.reserve(4096);
        Ok(directory)
    }

    fn fault(&self, what: &str, error: std::io::Error) -> Fault {
        Fault::halt(
            format!("cannot keep dead letters: cannot {what} {}", self.path.display()),
            "free space or mend the rights, then restart: nothing was committed past these records",
        )
        .caused_by(error)
    }

    pub(super) fn keep(&mut self, letters: &mut dyn Iterator<Item = &DeadLetter>) -> Result<(), Fault> {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        let kept_us = super::kept::now_us();
        for letter in letters {
            text::append(letter, &self.pipeline, kept_us, None, &mut lines)
                .map_err(|error| Fault::retry("cannot write a dead letter as JSON").caused_by(error))?;
        }
        let written = self.append(&lines);
        self.lines = lines;
        // After a failed write or fsync the state of the file is unknown: it is never tried again.
        written.map_err(|error| self.fault("write to", error))
    }

    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.file.as_ref().is_none_or(|(_, bytes)| *bytes >= FILE_BYTES_MAX) {
            let name = format!("{}-{:08x}-{:04}.ndjson", self.pipeline, self.nonce, self.number);
            self.number += 1;
            let mut options = OpenOptions::new();
            let file = options.append(true).create_new(true).mode(0o600).open(self.path.join(name))?;
            // The file's name must be as durable as its contents.
            File::open(&self.path)?.sync_all()?;
            self.file = Some((file, 0));
        }
        if let Some((file, bytes)) = &mut self.file {
            file.write_all(lines)?;
            crate::failpoint::at("letters.before_fsync");
            file.sync_data()?;
            *bytes += lines.len() as u64;
        }
        Ok(())
    }
}
