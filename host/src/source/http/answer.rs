//! What a request is answered: a status and a line of JSON that says what happened and what to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::auth::Denied;
use super::coding::Undone;
use super::records::{Malformed, Unfit};
use crate::ledger::{Refused, Tally};

/// After how many seconds a client should come back.
const RETRY_AFTER_S: u64 = 1;
/// Refused records that an answer names; the rest is counted.
const REFUSED_NAMED_MAX: usize = 100;

/// An answer; cheap to clone, so that a repeated request can have it, too.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Bytes,
    header: Option<(HeaderName, HeaderValue)>,
    /// The connection ends with it: the rest of the request is not read.
    close: bool,
}

/// The JSON of an answer that is not a success.
#[derive(Debug, Default, Serialize)]
struct Complaint<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    byte: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<RefusedRecord<'a>>,
}

/// What became of the records of a request: each is counted once, also if a plugin made several rows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Counts {
    accepted: u64,
    loaded: u64,
    dead_lettered: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Debug, Serialize)]
struct RefusedRecord<'a> {
    /// Place in the request, from 0.
    record: i64,
    code: &'a str,
    message: &'a str,
}

impl Answer {
    fn json(status: StatusCode, body: &impl Serialize) -> Answer {
        // Plain structs of texts and numbers always have a JSON form.
        let mut body = serde_json::to_vec(body).unwrap_or_default();
        body.push(b'\n');
        Answer { status, body: body.into(), header: None, close: false }
    }

    fn complaint(status: StatusCode, error: &str, hint: &str) -> Answer {
        let hint = Some(hint).filter(|hint| !hint.is_empty());
        Answer::json(status, &Complaint { error, hint, ..Complaint::default() })
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Answer {
        self.header = Some((name, value));
        self
    }

    /// The connection ends with this answer.
    pub(super) fn closing(mut self) -> Answer {
        self.close = true;
        self
    }

    /// 200 of `/health`.
    pub(super) fn healthy() -> Answer {
        Answer::json(StatusCode::OK, &serde_json::json!({ "status": "ok" }))
    }

    /// 202: taken, and nothing promised.
    pub(super) fn queued(accepted: u64) -> Answer {
        Answer::json(StatusCode::ACCEPTED, &serde_json::json!({ "accepted": accepted }))
    }

    /// 400
    pub(super) fn bad_request(error: &str, hint: &str) -> Answer {
        Answer::complaint(StatusCode::BAD_REQUEST, error, hint)
    }

    /// 401
    pub(super) fn unauthorized(denied: Denied) -> Answer {
        let (error, challenge) = match denied {
            Denied::Missing => ("the request names no token", "Bearer realm=\"tidemill\""),
            Denied::Wrong => ("the token is not known", "Bearer realm=\"tidemill\", error=\"invalid_token\""),
        };
        let hint = "send `Authorization: Bearer …` with one of `tokens` in [source.http]";
        Answer::complaint(StatusCode::UNAUTHORIZED, error, hint)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 404
    pub(super) fn not_found(error: &str) -> Answer {
        let hint = "POST /{name}: plugins see the name as the source";
        Answer::complaint(StatusCode::NOT_FOUND, error, hint)
    }

    /// 405
    pub(super) fn method_not_allowed(allowed: &'static str) -> Answer {
        let error = format!("only {allowed} is possible here");
        Answer::complaint(StatusCode::METHOD_NOT_ALLOWED, &error, "records are sent by POST /{name}")
            .with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// 408
    pub(super) fn too_slow(waited: Duration, what: &str) -> Answer {
        let error = format!("{what} within {waited:?}");
        let hint = "nothing was taken: send the request again, faster or in smaller parts";
        Answer::complaint(StatusCode::REQUEST_TIMEOUT, &error, hint).closing()
    }

    /// 413 for bytes.
    pub(super) fn body_too_large(limit_bytes: u64, unpacked: bool) -> Answer {
        let what = if unpacked { "the unpacked body" } else { "the body" };
        let error = format!("{what} is longer than {limit_bytes} bytes");
        let hint = "send it in several requests, or raise `max_body` in [source.http]";
        Answer::complaint(StatusCode::PAYLOAD_TOO_LARGE, &error, hint)
    }

    /// 413 for records.
    fn too_many_records(limit: u64) -> Answer {
        let error = format!("the request has more than {limit} records");
        let hint = "send them in several requests, or raise `max_records` in [source.http]";
        Answer::complaint(StatusCode::PAYLOAD_TOO_LARGE, &error, hint)
    }

    /// 415
    pub(super) fn unsupported(error: &str, hint: &str) -> Answer {
        Answer::complaint(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, hint)
    }

    /// 422 for a key that was used for something else.
    pub(super) fn other_request() -> Answer {
        let error = "the Idempotency-Key was used for another request";
        let hint = "a key belongs to one path and one body: take a new one";
        Answer::complaint(StatusCode::UNPROCESSABLE_ENTITY, error, hint)
    }

    /// 503: nothing was taken.
    pub(super) fn unavailable(error: &str) -> Answer {
        let hint = "nothing was taken: send the request again after the time in Retry-After";
        Answer::complaint(StatusCode::SERVICE_UNAVAILABLE, error, hint)
            .with(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))
    }

    /// 503: the pipeline ended under the request.
    pub(super) fn ended_under_way() -> Answer {
        let error = "the pipeline ended before all records were durable";
        let hint = "some of them may be in the table: send the request again; into a Primary Key table that \
                    changes nothing";
        Answer::complaint(StatusCode::SERVICE_UNAVAILABLE, error, hint)
            .with(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))
            .closing()
    }

    /// 504
    pub(super) fn undecided(waited: Duration) -> Answer {
        let error = format!("the records are not durable yet after {waited:?}");
        let hint = "they are still being loaded: a repetition with the same Idempotency-Key waits for them, one \
                    without a key loads them twice";
        Answer::complaint(StatusCode::GATEWAY_TIMEOUT, &error, hint)
    }

    /// 500
    pub(super) fn defect() -> Answer {
        let error = "a defect of tidemill: the request's task has ended";
        Answer::complaint(
            StatusCode::INTERNAL_SERVER_ERROR,
            error,
            "see its log for the panic, and report it",
        )
    }

    /// 400, 413 or 503 for a body that holds no usable records.
    pub(super) fn unfit(unfit: &Unfit) -> Answer {
        match unfit {
            Unfit::Malformed(Malformed { what, line, byte, hint }) => {
                let (hint, line, byte) = (*hint, Some(*line), Some(*byte));
                let complaint = Complaint { error: what, hint, line, byte, ..Complaint::default() };
                Answer::json(StatusCode::BAD_REQUEST, &complaint)
            }
            Unfit::TooMany { limit } => Answer::too_many_records(*limit),
            Unfit::NoRoom => Answer::no_room(),
        }
    }

    /// 400, 413 or 503 for a body that cannot be unpacked.
    pub(super) fn undone(undone: &Undone, limit_bytes: u64) -> Answer {
        match undone {
            Undone::TooLarge => Answer::body_too_large(limit_bytes, true),
            Undone::Broken(why) => {
                let error = format!("the body cannot be unpacked: {why}");
                Answer::bad_request(&error, "check Content-Encoding, and that the whole body was sent")
            }
            Undone::NoRoom => Answer::no_room(),
        }
    }

    /// 503 for a full budget.
    pub(super) fn no_room() -> Answer {
        Answer::unavailable("too many bytes are in flight")
    }

    /// What became of `accepted` records: 200 if each is durable, or kept as a dead letter, or was left out
    /// by a plugin; 422 if some were refused and there is nowhere to keep them.
    pub(super) fn of_outcome(accepted: u64, tally: &Tally) -> Answer {
        if tally.lost {
            return Answer::ended_under_way();
        }
        let Tally { loaded, dead_lettered, dropped, .. } = *tally;
        let counts = Counts { accepted, loaded, dead_lettered, dropped };
        if tally.refused.is_empty() {
            return Answer::json(StatusCode::OK, &counts);
        }
        // Of a record that gives several rows more than one may be refused.
        let refused = tally.refused.iter().map(|one| one.offset).collect::<BTreeSet<_>>().len();
        let named = tally.refused.iter().take(REFUSED_NAMED_MAX).map(RefusedRecord::of).collect();
        let complaint = Complaint {
            error: &format!("{refused} of {accepted} records were refused"),
            hint: Some("the others are loaded: mend the ones named here and send only those again"),
            counts: Some(counts),
            refused: named,
            ..Complaint::default()
        };
        Answer::json(StatusCode::UNPROCESSABLE_ENTITY, &complaint)
    }

    /// As it is sent.
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(self.header);
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("JSON is UTF-8").trim_end()
    }
}

impl<'a> RefusedRecord<'a> {
    fn of(refused: &'a Refused) -> RefusedRecord<'a> {
        RefusedRecord { record: refused.offset, code: &refused.code, message: &refused.message }
    }
}

/// An answer that several requests can be given.
pub(super) type Shared = Arc<Answer>;

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(loaded: u64, dead_lettered: u64, dropped: u64, refused: &[i64]) -> Tally {
        let refused = refused.iter().map(|offset| Refused {
            offset: *offset,
            code: "type".into(),
            message: "not a number".into(),
        });
        Tally { loaded, dead_lettered, dropped, refused: refused.collect(), lost: false }
    }

    #[test]
    fn a_success_says_what_became_of_each_record() {
        let check = |accepted, tally: &Tally, expected: &str| {
            let answer = Answer::of_outcome(accepted, tally);
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, expected));
        };
        check(3, &tally(3, 0, 0, &[]), r#"{"accepted":3,"loaded":3,"dead_lettered":0}"#);
        check(3, &tally(1, 1, 1, &[]), r#"{"accepted":3,"loaded":1,"dead_lettered":1,"dropped":1}"#);
    }

    #[test]
    fn refused_records_are_named() {
        let answer = Answer::of_outcome(3, &tally(2, 0, 0, &[1]));
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        let said: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
        assert_eq!(said["error"], "1 of 3 records were refused");
        let named = serde_json::json!([{ "record": 1, "code": "type", "message": "not a number" }]);
        assert_eq!((&said["refused"], &said["loaded"]), (&named, &serde_json::json!(2)));
        assert_eq!(said.get("dropped"), None);
        // Two rows of one record.
        let answer = Answer::of_outcome(3, &tally(2, 0, 0, &[1, 1]));
        let said: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
        assert_eq!(said["error"], "1 of 3 records were refused");
    }

    #[test]
    fn what_was_lost_is_never_a_success() {
        let answer = Answer::of_outcome(1, &Tally { lost: true, ..tally(1, 0, 0, &[]) });
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let response = answer.response();
        assert_eq!(response.headers()[CONNECTION], "close");
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
}
