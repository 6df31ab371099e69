//! Letters in files, and the file of marks beside them: `<pipeline>.replayed`, a line of JSON a letter.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Visit;
use crate::dead_letter::kept::{self, Place};
use crate::fault::Fault;

/// The letters' files of a pipeline.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
    pipeline: String,
}

/// A line of the file of marks.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    file: String,
    line: i64,
    replayed_us: i64,
}

fn marks_path(directory: &Path, pipeline: &str) -> PathBuf {
    directory.join(format!("{pipeline}.replayed"))
}

fn unreadable(path: &Path, error: std::io::Error) -> Fault {
    Fault::halt(
        format!("cannot read {}", path.display()),
        "run as the user that the pipeline runs as: dead letters are readable by their owner only",
    )
    .caused_by(error)
}

impl Files {
    pub(super) fn new(directory: &Path, pipeline: &str) -> Files {
        Files { directory: directory.to_owned(), pipeline: pipeline.to_owned() }
    }

    pub(super) fn each(&self, visit: &mut Visit<'_>) -> Result<(), Fault> {
        let marks = self.marks()?;
        for (path, name) in self.files()? {
            if self.each_of(&path, &name, &marks, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Oldest first. A file may be another pipeline's whose name begins as ours does: its letters say so.
    fn files(&self) -> Result<Vec<(PathBuf, Arc<str>)>, Fault> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            // It is made when the pipeline first runs.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::warn!(directory = %self.directory.display(), "there is no such directory: the pipeline has not run yet, or `directory` is misspelt");
                return Ok(Vec::new());
            }
            Err(error) => return Err(unreadable(&self.directory, error)),
        };
        let stem = format!("{}-", self.pipeline);
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&self.directory, error))?;
            let name = entry.file_name();
            let Some(name) =
                name.to_str().filter(|name| name.starts_with(&stem) && name.ends_with(".ndjson"))
            else {
                continue;
            };
            let changed = entry.metadata().and_then(|facts| facts.modified());
            let changed = changed.map_err(|error| unreadable(&entry.path(), error))?;
            files.push((changed, entry.path(), Arc::<str>::from(name)));
        }
        // Of one process the number decides: several files may have been filled within one tick of the clock.
        files.sort_by(|one, other| (one.0, &one.2).cmp(&(other.0, &other.2)));
        Ok(files.into_iter().map(|(_, path, name)| (path, name)).collect())
    }

    fn each_of(
        &self,
        path: &Path,
        name: &Arc<str>,
        marks: &HashSet<Place>,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, Fault> {
        let file = File::open(path).map_err(|error| unreadable(path, error))?;
        let (mut lines, mut line) = (BufReader::new(file), Vec::new());
        for at in 1.. {
            line.clear();
            let read = lines.read_until(b'\n', &mut line).map_err(|error| unreadable(path, error))?;
            // A last line without an end was cut by a crash, or is being written: nobody was told that it is kept.
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            let place = Place { within: Arc::clone(name), at };
            let mut kept = kept::from_line(&line, place).map_err(|why| {
                Fault::halt(
                    format!("{} line {at} is no dead letter: {why}", path.display()),
                    "mend the line or take it out; if the file is none of tidemill's, move it elsewhere",
                )
            })?;
            kept.replayed = marks.contains(&kept.place);
            if visit(kept)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn marks(&self) -> Result<HashSet<Place>, Fault> {
        let path = marks_path(&self.directory, &self.pipeline);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashSet::new()),
            Err(error) => return Err(unreadable(&path, error)),
        };
        // A line that a crash has cut is no JSON: its letters count as not replayed.
        let marks = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        Ok(marks.map(|Mark { file, line, .. }| Place { within: file.into(), at: line }).collect())
    }
}

/// The file of marks, open and locked for as long as the replay lasts.
#[derive(Debug)]
pub(super) struct MarksFile {
    file: File,
    path: PathBuf,
}

impl MarksFile {
    pub(super) fn open(directory: &Path, pipeline: &str) -> Result<MarksFile, Fault> {
        let path = marks_path(directory, pipeline);
        let unwritable = |error| {
            Fault::halt(
                format!("cannot write {}", path.display()),
                "free space or mend the rights: nothing was replayed",
            )
            .caused_by(error)
        };
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o600).open(&path).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Fault::halt(
                    format!("another replay is at work: {} is locked", path.display()),
                    "wait until it has ended",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(unwritable(error)),
        }
        // What a crash has cut must not run into the first of our lines; empty lines mean nothing.
        file.write_all(b"\n").map_err(unwritable)?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(unwritable)?;
        Ok(MarksFile { file, path })
    }

    pub(super) fn mark(&mut self, places: &[&Place]) -> Result<(), Fault> {
        let mut lines = Vec::with_capacity(places.len() * 96);
        let replayed_us = kept::now_us();
        for place in places {
            let mark = Mark { file: place.within.to_string(), line: place.at, replayed_us };
            serde_json::to_writer(&mut lines, &mark)
                .map_err(|error| Fault::retry("cannot write a mark as JSON").caused_by(error))?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).and_then(|()| self.file.sync_data()).map_err(|error| {
            Fault::halt(
                format!("cannot mark replayed letters in {}", self.path.display()),
                "free space or mend the rights; letters that were loaded and not marked are loaded again by the next replay",
            )
            .caused_by(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::kept::Kept;
    use crate::dead_letter::{Content, DeadLetter, Stage, directory::Directory};
    use crate::position::Partition;

    fn letter(offset: i64) -> DeadLetter {
        DeadLetter {
            stage: Stage::Transform,
            plugin: None,
            code: "parse".into(),
            message: "no".into(),
            partition: Partition { source: "orders".into(), number: 0 },
            offset,
            timestamp_us: 0,
            key: None,
            value: Some(b"{}".to_vec()),
            headers: Vec::new(),
            content: Content::default(),
        }
    }

    fn all(files: &Files) -> Vec<Kept> {
        let mut found = Vec::new();
        files
            .each(&mut |kept| {
                found.push(kept);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        found
    }

    fn offsets(files: &Files, replayed: bool) -> Vec<i64> {
        let found = all(files).into_iter().filter(|kept| kept.replayed == replayed);
        found.map(|kept| kept.letter.offset).collect()
    }

    #[test]
    fn marked_letters_are_told_from_the_others_also_behind_a_mark_that_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path(), "shop");
        assert!(all(&Files::new(&folder.path().join("none"), "shop")).is_empty());
        Directory::open(folder.path(), "shop").unwrap().keep(&mut [0, 1, 2].map(letter).iter()).unwrap();
        assert_eq!(offsets(&files, false), [0, 1, 2]);
        let places: Vec<Place> = all(&files).into_iter().map(|kept| kept.place).collect();
        let mut marks = MarksFile::open(folder.path(), "shop").unwrap();
        marks.mark(&[&places[1]]).unwrap();
        assert_eq!(offsets(&files, true), [1]);
        // A second replay has to wait; after a crash in the middle of a line the next one goes on.
        assert!(MarksFile::open(folder.path(), "shop").unwrap_err().what.contains("another replay"));
        marks.file.write_all(b"{\"file\":\"shop").unwrap();
        drop(marks);
        MarksFile::open(folder.path(), "shop").unwrap().mark(&[&places[2]]).unwrap();
        assert_eq!(offsets(&files, true), [1, 2]);
        assert_eq!(offsets(&files, false), [0]);
    }

    #[test]
    fn a_cut_last_letter_is_none_and_a_broken_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path(), "shop");
        Directory::open(folder.path(), "shop").unwrap().keep(&mut [0, 1].map(letter).iter()).unwrap();
        let (path, _) = files.files().unwrap().remove(0);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(offsets(&files, false), [0]);
        std::fs::write(&path, text.replacen("\"transform\"", "\"transfer\"", 1)).unwrap();
        let fault = files.each(&mut |_| Ok(ControlFlow::Continue(()))).unwrap_err();
        assert!(fault.what.contains("line 1 is no dead letter: `stage` is \"transfer\""), "{}", fault.what);
    }
}
