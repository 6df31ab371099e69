//! `tidemill docs`: writes the generated pages, or tells whether they have drifted.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{EXIT_FAILED, EXIT_OK};
use crate::{config, meter};

#[derive(Debug, Args)]
pub(super) struct Docs {
    /// The repository's root
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Change nothing; fail if a page is not up to date
    #[arg(long)]
    check: bool,
}

/// The generated pages: path below the root, and text.
pub(crate) fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("pipelines/reference.toml", config::reference_toml()),
        ("docs/configuration.md", config::reference_markdown()),
        ("docs/metrics.md", meter::reference_markdown()),
    ]
}

impl Docs {
    pub(super) fn execute(self) -> u8 {
        let mut code = EXIT_OK;
        for (path, text) in pages() {
            if let Err(why) = self.page(&self.root.join(path), &text) {
                eprintln!("error: {path}: {why}");
                code = EXIT_FAILED;
            }
        }
        code
    }

    fn page(&self, path: &Path, text: &str) -> Result<(), String> {
        if !self.check {
            return std::fs::write(path, text).map_err(|error| error.to_string());
        }
        let found = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        if found == text { Ok(()) } else { Err("not up to date: run `cargo xtask docs`".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_generated_pages_are_up_to_date() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (path, text) in super::pages() {
            let found = std::fs::read_to_string(root.join(path)).unwrap_or_default();
            assert!(found == text, "{path} is not up to date: run `cargo xtask docs`");
        }
    }
}
