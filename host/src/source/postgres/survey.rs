//! How a source stands, and what its tables go to, without changing anything: `tidemill check --online`.

use super::begin::decide;
use super::catalog;
use super::connect::Connector;
use super::destination::{self, Looked, Memory, Standing};
use super::facts::Facts;
use super::identity::check_failover;
use super::kind::Types;
use super::position::{self, Known};
use super::preflight::{self, Defect, Mend, Severity};
use super::roster::check_same;
use super::setup::{Identified, identify};
use super::table::{Identity, Table};
use super::warehouse_table::{Added, Refusal};
use crate::config::model::{Pipeline, Postgres, StarRocks};
use crate::fault::Fault;
use crate::sink::starrocks::query::Query;

/// What was found.
pub(crate) struct Survey {
    source: Postgres,
    connector: Connector,
    /// The server, as a replication connection has it; none if there can be no such connection, or need not.
    identified: Option<Identified>,
    facts: Facts,
    types: Types,
    defects: Vec<Defect>,
    /// What `run` would do here, as SQL.
    here: Vec<String>,
    /// What it would do in StarRocks.
    there: Vec<String>,
    destinations: Vec<(String, Vec<String>)>,
}

impl Survey {
    /// Looks at the source.
    ///
    /// # Errors
    /// If it cannot be reached, or does not let the role in.
    pub(crate) async fn of(source: &Postgres, pipeline: &str) -> Result<Survey, Fault> {
        let connector = Connector::new(source, pipeline)?;
        let control = connector.control().await?;
        let facts = catalog::facts(&control, source).await?;
        let defects = preflight::defects(&facts, source);
        let here = preflight::plan(&facts, source).iter().map(preflight::Step::sql).collect();
        let mut types = Types::new();
        facts.types.iter().for_each(|info| types.add(info.clone()));
        let mut survey = Survey {
            source: source.clone(),
            connector,
            identified: None,
            facts,
            types,
            defects,
            here,
            there: Vec::new(),
            destinations: Vec::new(),
        };
        // What the catalogue cannot tell: whether pg_hba.conf and the server's limits let a stream in.
        if !survey.is_blocked() && preflight::follows(source) {
            survey.identified = Some(identify(&survey.connector).await?);
        }
        Ok(survey)
    }

    /// Looks at the destinations, and at what earlier runs left in StarRocks.
    ///
    /// # Errors
    /// If StarRocks cannot be asked.
    pub(crate) async fn look_at_warehouse(&mut self, pipeline: &Pipeline) -> Result<(), Fault> {
        let sink = &pipeline.sink;
        let mut query = Query::connect(sink).await?;
        let tables = self.facts.tables();
        let known = position::known(sink, &pipeline.name, &self.source.slot).await?;
        if known.is_none() {
            self.there.push(position::create_statement(&sink.database));
        }
        let known = known.unwrap_or_default();
        for table in tables.iter().filter_map(mended) {
            let table = &table;
            let name = destination::name_of(table, sink);
            let memory = Memory::of(&table.name, &known, &self.source);
            let Looked { standing, pending } =
                destination::look(&mut query, sink, table, memory, &self.types, &name).await?;
            self.defects.extend(
                pending.into_iter().map(|news| Defect { severity: Severity::Warns, ..blocking(news) }),
            );
            let key = match &standing {
                Standing::Fits(there) | Standing::Narrow { there, .. } => destination::key_of(there),
                Standing::Missing { .. } | Standing::Refused(_) => Vec::new(),
            };
            if !self.destinations.iter().any(|(known, _)| *known == name) {
                self.destinations.push((name.clone(), key));
            }
            self.judge(standing, table, sink, &name);
        }
        if !self.is_blocked() {
            self.check_failover(&known).await;
        }
        if !self.is_blocked() {
            self.check_beginning(&known, &tables);
        }
        Ok(())
    }

    /// Whether a run that begins now would find all the changes that it needs.
    fn check_beginning(&mut self, known: &Known, tables: &[Table]) {
        if let Err(fault) = check_same(known, tables.iter().map(|table| (&table.name, table.oid))) {
            self.blocked_by(fault);
        }
        let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
        let system = self.facts.server.system_identifier;
        if let Err(fault) = decide(&self.source, known, self.facts.slot.as_ref(), system, &names, false) {
            self.blocked_by(fault);
        }
    }

    /// Whether the server has the past that was followed.
    async fn check_failover(&mut self, known: &Known) {
        let Some(identified) = &self.identified else { return };
        let slot = self.facts.slot.as_ref();
        if let Err(fault) = check_failover(&self.connector, identified, known, slot).await {
            self.blocked_by(fault);
        }
    }

    fn blocked_by(&mut self, fault: Fault) {
        let mend = fault.hint.map(Mend::Setting).into_iter().collect();
        self.defects.push(Defect { what: fault.what, mend, severity: Severity::Blocks });
    }

    fn judge(&mut self, standing: Standing, table: &Table, sink: &StarRocks, name: &str) {
        match standing {
            Standing::Fits(_) => {}
            Standing::Refused(refusals) => self.defects.extend(refusals.into_iter().map(blocking)),
            Standing::Missing { create } if sink.create_tables => self.there.push(create),
            Standing::Missing { create } => {
                let what =
                    format!("there is no table {}.{name} for the rows of {}", sink.database, table.name);
                let mend = vec![
                    Mend::Sql(create),
                    Mend::Setting("set create_tables = true in [sink.starrocks]".to_owned()),
                ];
                self.defects.push(Defect { what, mend, severity: Severity::Blocks });
            }
            Standing::Narrow { added, .. } if sink.create_tables => {
                self.there.extend(added.into_iter().map(|added| added.sql));
            }
            Standing::Narrow { added, .. } => self.defects.push(narrow(&added, table, sink, name)),
        }
    }

    /// Names of the destinations, with their key columns as far as they are there.
    pub(crate) fn destinations(&self) -> &[(String, Vec<String>)] {
        &self.destinations
    }

    /// Whether something has to be mended before the pipeline can run.
    pub(crate) fn is_blocked(&self) -> bool {
        self.defects.iter().any(|defect| defect.severity == Severity::Blocks)
    }

    /// Everything that is wrong or may become so, with its mends; empty if nothing is.
    pub(crate) fn defects(&self) -> String {
        preflight::report(&self.defects, &[])
    }

    /// What `tidemill run` would set up; empty if there is nothing left to be.
    pub(crate) fn steps(&self) -> String {
        let listed = |heading: &str, steps: &[String]| {
            let lines: String = steps.iter().map(|step| format!("  {step};\n")).collect();
            if lines.is_empty() { lines } else { format!("{heading}\n{lines}") }
        };
        let here = listed("`tidemill run` will do in PostgreSQL:", &self.here);
        here + &listed("`tidemill run` will do in StarRocks:", &self.there)
    }
}

/// A table as it will be when what preflight says of its identity is mended, so that nothing is told twice; none if
/// nobody knows yet what its key will be.
fn mended(table: &Table) -> Option<Table> {
    let has_key = table.columns.iter().any(|column| column.primary_key.is_some());
    match table.identity {
        Identity::Full | Identity::Index => Some(table.clone()),
        Identity::Default | Identity::Nothing => has_key.then(|| {
            let mut table = table.clone();
            table.identity = Identity::Default;
            for column in &mut table.columns {
                column.in_identity = column.primary_key.is_some();
            }
            table
        }),
    }
}

/// The columns' values would be left out.
fn narrow(added: &[Added], table: &Table, sink: &StarRocks, name: &str) -> Defect {
    let names: Vec<&str> = added.iter().map(|added| added.column.as_str()).collect();
    let statements: Vec<&str> = added.iter().map(|added| added.sql.as_str()).collect();
    Defect {
        what: format!(
            "{}.{name} lacks columns of {}, whose values are left out: {}",
            sink.database,
            table.name,
            names.join(", ")
        ),
        mend: vec![
            Mend::Sql(statements.join("; ")),
            Mend::Setting("set create_tables = true in [sink.starrocks]".to_owned()),
        ],
        severity: Severity::Warns,
    }
}

fn blocking(refusal: Refusal) -> Defect {
    Defect { what: refusal.what, mend: vec![Mend::Setting(refusal.hint)], severity: Severity::Blocks }
}
