use crate::Fault;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

/// The version of Apache Kafka that tests and benchmarks run against.
pub const KAFKA_VERSION: &str = "4.1.1";

/// Pinned, so that a run today and a run next year resolve the same way.
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// The logging binding that Kafka's own distribution adds; without one the broker would fail in silence.
const SLF4J_VERSION: &str = "1.7.36";

/// Kafka's jars in a folder.
#[derive(Clone, Debug)]
pub struct Distribution {
    lib: PathBuf,
}

impl Distribution {
    /// Takes the folder named by [`LIB_VARIABLE`](crate::LIB_VARIABLE), else resolves from Maven under `target`.
    ///
    /// # Errors
    /// When Maven cannot be run or cannot resolve the artefacts.
    pub fn find(target: &Path) -> Result<Self, Fault> {
        match env::var_os(crate::LIB_VARIABLE) {
            Some(lib) => Ok(Self { lib: lib.into() }),
            None => Self::resolve(target),
        }
    }

    /// Resolves Kafka from Maven into `target/kafka/<version>/lib`, or finds it there from an earlier run.
    ///
    /// # Errors
    /// When Maven cannot be run or cannot resolve the artefacts.
    pub fn resolve(target: &Path) -> Result<Self, Fault> {
        let home = target.join("kafka").join(KAFKA_VERSION);
        let lib = home.join("lib");
        if lib.is_dir() {
            return Ok(Self { lib });
        }
        // Aside and renamed: two runs at once, or one that was interrupted, never leave half a folder behind.
        let aside = home.join(format!("resolving-{}", process::id()));
        let attempt = || format!("create {}", aside.display());
        fs::create_dir_all(&aside).map_err(Fault::io(attempt()))?;
        let resolved = copy_dependencies(&aside).and_then(|()| match fs::rename(aside.join("lib"), &lib) {
            Err(_) if lib.is_dir() => Ok(()),
            done => done.map_err(Fault::io(format!("move Kafka's jars to {}", lib.display()))),
        });
        // What is left in there is scratch; the outcome is already known.
        drop(fs::remove_dir_all(&aside));
        resolved.map(|()| Self { lib })
    }

    /// The folder of jars.
    #[must_use]
    pub fn lib(&self) -> &Path {
        &self.lib
    }

    /// A `java` command with Kafka on its class path.
    pub(crate) fn class_path(&self) -> PathBuf {
        self.lib.join("*")
    }
}

fn copy_dependencies(into: &Path) -> Result<(), Fault> {
    let pom = into.join("pom.xml");
    fs::write(&pom, pom_text()).map_err(Fault::io(format!("write {}", pom.display())))?;
    let attempt = format!("resolve Apache Kafka {KAFKA_VERSION} with Maven");
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "-Dstyle.color=never", "--file"])
        .arg(&pom)
        .arg(DEPENDENCY_PLUGIN)
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", into.join("lib").display()))
        .output()
        .map_err(Fault::io(format!("{attempt} (is Maven installed? `cargo xtask test` installs it)")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Fault::said(attempt, String::from_utf8_lossy(&output.stdout).trim()))
}

fn pom_text() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        )
    };
    format!(
        r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>tidemill</groupId><artifactId>test-kafka</artifactId><version>1</version>
<packaging>pom</packaging>
<dependencies>
{}
{}
</dependencies>
</project>
"#,
        dependency("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
        dependency("org.slf4j", "slf4j-simple", SLF4J_VERSION),
    )
}
