//! A database at work, copied and followed by processes that are killed, while its server restarts: each table equals its
//! source in the end.

use rand::RngExt as _;
use std::time::Duration;
use tidemill_test_postgres::{Settings as ServerSettings, Stop};
use tidemill_tests::{
    limit::within,
    process::Tidemill,
    replica::Replica,
    wait_until,
    workload::{self, TABLES, Workload},
};

const KILLS: u32 = 20;
/// Every fourth life of the process the server restarts, in each way in turn.
const LIVES_A_RESTART: u32 = 4;
const ROWS: u64 = 20_000;

fn settings() -> workload::Settings {
    let seed = rand::random();
    println!("seed {seed}");
    workload::Settings { seed, rows: ROWS, keys: 2 * ROWS, ..workload::Settings::default() }
}

fn restart(replica: &mut Replica, number: u32) {
    let server = replica.postgres.server();
    let outcome = match number % 3 {
        0 => server.restart(Stop::Fast),
        1 => server.restart(Stop::Immediate),
        _ => server.kill().and_then(|()| server.start_again()),
    };
    outcome.unwrap_or_else(|fault| panic!("{fault}"));
}

/// Lets it live for a random while; true when it was still there to be killed.
fn live(tidemill: &mut Tidemill) -> bool {
    let life = Duration::from_millis(rand::rng().random_range(500..3_000));
    wait_until(life, || (!tidemill.is_running()).then_some(())).is_err()
}

#[test]
fn twenty_kills_and_five_restarts_leave_each_table_as_the_source_says() {
    within(600, || {
        let mut replica = Replica::own("storm", &ServerSettings::default());
        let settings = settings();
        workload::prepare(&replica.postgres, &settings);
        let pipeline = replica.pipeline();
        let workload = Workload::start(&replica.postgres, &settings);
        let mut running = 0;
        for kill in 0..KILLS {
            let mut tidemill = replica.run(&pipeline);
            let lived = live(&mut tidemill);
            if kill % LIVES_A_RESTART == LIVES_A_RESTART - 1 {
                restart(&mut replica, kill / LIVES_A_RESTART);
            }
            assert!(lived && tidemill.is_running(), "it outlives its server: {}", tidemill.log());
            running += u32::from(lived);
            tidemill.kill();
        }
        assert_eq!(running, KILLS);
        let mut last = replica.run(&pipeline);
        workload.until_committed(60, 200);
        let counts = workload.stop();
        assert!(counts.committed > 1_000 && counts.reconnects > 0, "{counts}");
        assert_eq!(counts.columns, u64::from(settings.added_columns), "{counts}");
        replica.until_equal(180, &TABLES);
        last.drain(30);
    });
}

#[test]
fn a_standby_takes_over_again_and_again() {
    within(600, || {
        let mut replica = Replica::own("standby", &ServerSettings::default());
        let settings = settings();
        workload::prepare(&replica.postgres, &settings);
        let pipeline = replica.pipeline();
        let workload = Workload::start(&replica.postgres, &settings);
        let mut active = replica.run(&pipeline);
        for kill in 0..KILLS {
            let standby = replica.run(&pipeline);
            live(&mut active);
            if kill % LIVES_A_RESTART == LIVES_A_RESTART - 1 {
                restart(&mut replica, kill / LIVES_A_RESTART);
            }
            active.kill();
            active = standby;
        }
        workload.until_committed(60, 200);
        let counts = workload.stop();
        assert!(counts.committed > 1_000 && counts.reconnects > 0, "{counts}");
        replica.until_equal(180, &TABLES);
        active.drain(30);
    });
}
