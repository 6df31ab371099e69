//! `tidemill sandbox`: the stand-in for StarRocks as a process of its own.

use std::time::Duration;

use clap::Args;
use tidemill_sandbox::{Keep, Options, Sandbox, SandboxError};
use tokio::signal::unix::{SignalKind, signal};

use super::{EXIT_FAILED, EXIT_OK};

#[derive(Debug, Args)]
pub(super) struct SandboxCommand {
    /// Port of the FE's HTTP interface; 0 takes any free one
    #[arg(long, default_value_t = 8030)]
    fe_port: u16,
    /// Port of the BE's HTTP interface; 0 takes any free one
    #[arg(long, default_value_t = 8040)]
    be_port: u16,
    /// Port of the MySQL protocol; 0 takes any free one
    #[arg(long, default_value_t = 9030)]
    query_port: u16,
    /// What becomes of rows: `rows` keeps them for SELECT, `none` counts them and throws them away
    #[arg(long, default_value = "rows", value_parser = ["rows", "none"])]
    keep: String,
    /// Password of root; none by default, as in a fresh StarRocks
    #[arg(long, env = "SANDBOX_PASSWORD")]
    password: Option<String>,
    /// Versions of a table past which loads are refused
    #[arg(long, default_value_t = 1000)]
    max_versions: u32,
    /// Statements to run at the start, such as CREATE TABLE; may be repeated
    #[arg(long, value_name = "SQL")]
    execute: Vec<String>,
    /// Never compact, so that every load stays a version
    #[arg(long)]
    no_compaction: bool,
}

impl SandboxCommand {
    pub(super) fn execute(self) -> u8 {
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("error: cannot start the runtime: {error}");
                return EXIT_FAILED;
            }
        };
        let ended = runtime.block_on(self.serve());
        runtime.shutdown_timeout(Duration::from_millis(100));
        match ended {
            Ok(()) => EXIT_OK,
            Err(why) => {
                eprintln!("error: {why}");
                EXIT_FAILED
            }
        }
    }

    async fn serve(self) -> Result<(), String> {
        let mut options = Options {
            fe_http_port: self.fe_port,
            be_http_port: self.be_port,
            query_port: self.query_port,
            keep: if self.keep == "none" { Keep::None } else { Keep::Rows },
            password: self.password,
            tablet_max_versions: self.max_versions,
            ..Options::default()
        };
        if self.no_compaction {
            options.compaction = None;
        }
        let stop = stop_asked().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let ports =
            [("--fe-port", self.fe_port), ("--be-port", self.be_port), ("--query-port", self.query_port)];
        let sandbox = Sandbox::start(options).await.map_err(|error| cannot_start(&error, &ports))?;
        for statement in &self.execute {
            sandbox.execute(statement).map_err(|error| format!("{statement}: {error}"))?;
        }
        use std::io::Write as _;
        // Whoever reads the first line only and goes away does not end the sandbox.
        let _ = writeln!(std::io::stdout(), "{}", sandbox.banner());
        stop.await;
        sandbox.stop().await;
        Ok(())
    }
}

/// Done at the first SIGTERM or SIGINT from now on.
fn stop_asked() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Why the sandbox did not start, and which flag helps; `ports` are the flags and what they say.
fn cannot_start(error: &SandboxError, ports: &[(&str, u16)]) -> String {
    if let SandboxError::Listen { port, source } = error {
        let address = format!("127.0.0.1:{port}");
        if source.kind() != std::io::ErrorKind::AddrInUse {
            return format!("cannot listen on {address}: {source}");
        }
        let flag = ports.iter().find(|(_, asked)| asked == port).map_or("--fe-port", |(flag, _)| *flag);
        return format!(
            "cannot listen on {address}: the port is in use; is another sandbox or a StarRocks running? \
             {flag} 0 takes any free one"
        );
    }
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_told_with_the_flag_that_helps() {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let options = Options { be_http_port: port, ..Options::default() };
        let Err(error) = Sandbox::start(options).await else { panic!("the port is taken") };
        assert_eq!(
            cannot_start(&error, &[("--fe-port", 0), ("--be-port", port), ("--query-port", 9030)]),
            format!(
                "cannot listen on 127.0.0.1:{port}: the port is in use; is another sandbox or a StarRocks running? \
                 --be-port 0 takes any free one"
            )
        );
    }
}
