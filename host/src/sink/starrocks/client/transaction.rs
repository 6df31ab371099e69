//! The steps of a load in two phases (reference/starrocks-load-protocol.md §4): one attempt each.
//!
//! A step that was not answered may have been taken. A body is never sent twice under one label: inside one
//! transaction it would be appended twice (delivery.md §3 rule 2). Steps without a body may be asked of the next FE
//! when one does not answer; they change nothing the second time.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::super::outcome::{Fields, Seen, classify, clipped};
use super::super::request::{add_load_headers, name_transaction, transaction_path};
use super::super::transport::Answer;
use super::{Client, FE_PATIENCE, Flight, LOAD_GRACE};
use crate::fault::Fault;
use crate::sink::{Destination, Load, Outcome, Receipt};

/// How long a commit may wait until its rows are visible: it is committed long before.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(20);

impl Client {
    /// Begins the transaction of `load`. [`Outcome::Durable`] says that it has begun; anything else leaves it
    /// unknown, or says what has to be mended.
    pub async fn begin(&self, load: &Load) -> Outcome {
        let limit = load.destination.cluster.load_timeout;
        let extra = [("timeout", limit)];
        self.step("begin", load, &extra, FE_PATIENCE, false).await
    }

    /// Sends the rows of `load` into its transaction, once. [`Outcome::Durable`] says that StarRocks has them;
    /// they count only when they are prepared and committed.
    pub async fn load_once(&self, load: &mut Load) -> Outcome {
        let mut headers = self.0.load_headers.clone();
        let named = add_load_headers(&mut headers, load)
            .and_then(|()| name_transaction(&mut headers, &load.destination, &load.label));
        if let Err(fault) = named {
            return Outcome::Refused(fault);
        }
        let mut flight = Flight::new(load);
        let (outcome, error_url) = self.0.send_body(&mut flight, &transaction_path("load"), &headers).await;
        self.with_error_log(outcome, error_url).await
    }

    /// The first phase: StarRocks keeps the rows for `timeout`, invisible, whatever happens to us. The receipt
    /// has the number of rows.
    pub async fn prepare(&self, load: &Load, timeout: Duration) -> Outcome {
        let patience = load.destination.cluster.load_timeout + LOAD_GRACE;
        self.step("prepare", load, &[("prepared_timeout", timeout)], patience, true).await
    }

    /// Asks for the second phase. What came of it is the state of the label: the answer may be a time-out of a
    /// commit that was made. Returns its words.
    ///
    /// # Errors
    /// Retry, if nobody answers.
    pub async fn commit(&self, destination: &Destination, label: &str) -> Result<String, Fault> {
        let extra = [("timeout", PUBLISH_PATIENCE)];
        let answer = self.ask(destination, label, "commit", &extra, PUBLISH_PATIENCE + LOAD_GRACE).await?;
        let told = told(&answer);
        tracing::debug!(label, "commit: {told}");
        Ok(told)
    }

    /// Asks for a transaction that is not committed to be given up. What came of it is the state of the label.
    ///
    /// # Errors
    /// Retry, if nobody answers.
    pub async fn rollback(&self, destination: &Destination, label: &str) -> Result<(), Fault> {
        let answer = self.ask(destination, label, "rollback", &[], FE_PATIENCE).await?;
        tracing::debug!(label, "rollback: {}", told(&answer));
        Ok(())
    }

    async fn ask(
        &self,
        destination: &Destination,
        label: &str,
        step: &str,
        extra: &[(&'static str, Duration)],
        patience: Duration,
    ) -> Result<Answer, Fault> {
        let mut headers = self.0.credentials.clone();
        name_transaction(&mut headers, destination, label)?;
        for (name, limit) in extra {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(limit.as_secs().max(1)));
        }
        self.0.ask_frontends(Method::POST, &transaction_path(step), &headers, patience).await
    }

    /// A step without a body. `decides` = a step that fails may have been taken all the same.
    async fn step(
        &self,
        step: &str,
        load: &Load,
        extra: &[(&'static str, Duration)],
        patience: Duration,
        decides: bool,
    ) -> Outcome {
        let answer = match self.ask(&load.destination, &load.label, step, extra, patience).await {
            Ok(answer) => answer,
            Err(fault) => return Outcome::Unsure(fault),
        };
        if let Some(receipt) = taken(&answer) {
            return Outcome::Durable(receipt);
        }
        let classified = classify(&Seen {
            status: answer.status.as_u16(),
            body: &answer.body,
            body_left: decides,
            sent_before: false,
            load,
        });
        let url = classified.error_url;
        let from = self.0.cluster_addresses().into_iter().next();
        self.with_error_log(classified.outcome, from.zip(url)).await
    }
}

/// The receipt of a step that was taken; none of one that was not.
fn taken(answer: &Answer) -> Option<Receipt> {
    let fields = Fields::parse(&answer.body)?;
    let done = fields.text("status").is_some_and(|status| status.eq_ignore_ascii_case("ok"));
    let rows = fields.number("numbertotalrows").and_then(|rows| u64::try_from(rows).ok());
    done.then(|| Receipt {
        txn: fields.number("txnid").filter(|id| *id > 0),
        loaded_rows: rows,
        visible: false,
    })
}

fn told(answer: &Answer) -> String {
    let fields = Fields::parse(&answer.body);
    let status = fields.as_ref().and_then(|fields| fields.text("status")).unwrap_or("no status");
    let message = fields.as_ref().map(Fields::message).unwrap_or_default();
    clipped(&format!("{status}: {message}"))
}
