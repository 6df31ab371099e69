//! Answers in StarRocks' shapes, and answers that go wrong on purpose.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Port;
use crate::fault::AnswerFault;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes the connection")]
pub(crate) struct HangUp;

pub(super) type Answer = Response<AnswerBody>;
pub(crate) type Handled = Result<Response<AnswerBody>, HangUp>;

/// The content of an answer; it can break off before its declared end.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    pieces: VecDeque<Result<Bytes, HangUp>>,
    declared: u64,
}

impl AnswerBody {
    fn whole(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let declared = content.len() as u64;
        Self { pieces: VecDeque::from([Ok(content)]), declared }
    }

    fn first_half(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let declared = content.len() as u64;
        let half = content.slice(..content.len() / 2);
        Self { pieces: VecDeque::from([Ok(half), Err(HangUp)]), declared }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = HangUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HangUp>>> {
        Poll::Ready(self.pieces.pop_front().map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}

pub(super) fn with_body(status: StatusCode, content_type: &'static str, content: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(AnswerBody::whole(content));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Status 200 with a JSON document, printed over several lines as StarRocks does.
pub(super) fn json(document: &impl Serialize) -> Answer {
    with_body(StatusCode::OK, "application/json", pretty(document))
}

fn pretty(document: &impl Serialize) -> String {
    let mut content = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut content, formatter);
    // Plain structs with string keys cannot fail to serialise; an empty answer would show it if one did.
    if let Err(error) = document.serialize(&mut serializer) {
        tracing::error!(%error, "could not write an answer");
    }
    String::from_utf8_lossy(&content).into_owned()
}

/// The same answer, with the connection closed after it.
pub(super) fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

pub(super) fn not_found(path: &str) -> Answer {
    let content = format!("<h1>404 Not Found</h1><p>no such path: {path}</p>\n");
    with_body(StatusCode::NOT_FOUND, "text/html", content)
}

pub(super) fn health(port: Port) -> Answer {
    match port {
        Port::Frontend => json(&serde_json::json!({ "online_backend_num": 1, "total_backend_num": 1 })),
        Port::Backend => json(&serde_json::json!({ "status": "OK", "msg": "OK" })),
    }
}

/// `307` to another place, never kept alive.
pub(super) fn redirect(location: &str) -> Answer {
    let mut answer = with_body(StatusCode::TEMPORARY_REDIRECT, "text/html", "");
    match HeaderValue::from_str(location) {
        Ok(location) => {
            answer.headers_mut().insert(header::LOCATION, location);
            closing(answer)
        }
        Err(_) => not_found(location),
    }
}

/// The FE's 401.
pub(super) fn unauthorized(message: &str) -> Answer {
    let mut answer = json(&serde_json::json!({ "status": "FAILED", "msg": message }));
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"\""));
    closing(answer)
}

/// The FE's refusal of a load, in the spelling of its newer versions.
pub(super) fn fe_failed(message: &str) -> Answer {
    json(&serde_json::json!({ "Status": "FAILED", "Message": message }))
}

/// The FE's refusal in the spelling of its other actions.
pub(super) fn rest_failed(message: &str) -> Answer {
    json(&serde_json::json!({ "status": "FAILED", "msg": message }))
}

/// Spoils an answer.
pub(super) fn spoil(answer: Answer, how: AnswerFault) -> Handled {
    let page = |status: StatusCode| {
        let reason = status.canonical_reason().unwrap_or("Error");
        let code = status.as_u16();
        let content = format!(
            "<html>\r\n<head><title>{code} {reason}</title></head>\r\n<body>\r\n<center><h1>{code} \
             {reason}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
        closing(with_body(status, "text/html", content))
    };
    match how {
        AnswerFault::Dropped => Err(HangUp),
        AnswerFault::Truncated => {
            let (parts, mut body) = answer.into_parts();
            let content = match body.pieces.pop_front() {
                Some(Ok(content)) => content,
                Some(Err(_)) | None => Bytes::new(),
            };
            Ok(Response::from_parts(parts, AnswerBody::first_half(content)))
        }
        AnswerFault::Empty => Ok(closing(with_body(StatusCode::OK, "application/json", ""))),
        AnswerFault::Http500 => Ok(page(StatusCode::INTERNAL_SERVER_ERROR)),
        AnswerFault::Http502 => Ok(page(StatusCode::BAD_GATEWAY)),
    }
}

/// The BE's answer to a load (protocol reference §2.1): these fields, in this order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LoadAnswer {
    pub(super) txn_id: i64,
    pub(super) label: String,
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) existing_job_status: Option<&'static str>,
    pub(super) message: String,
    pub(super) number_total_rows: u64,
    pub(super) number_loaded_rows: u64,
    pub(super) number_filtered_rows: u64,
    pub(super) number_unselected_rows: u64,
    pub(super) load_bytes: u64,
    pub(super) load_time_ms: u64,
    pub(super) begin_txn_time_ms: u64,
    pub(super) stream_load_plan_time_ms: u64,
    pub(super) read_data_time_ms: u64,
    pub(super) write_data_time_ms: u64,
    pub(super) commit_and_publish_time_ms: u64,
    #[serde(rename = "ErrorURL", skip_serializing_if = "Option::is_none")]
    pub(super) error_url: Option<String>,
}

impl LoadAnswer {
    /// A failure with all counters at zero. The id −1 stands for a transaction that was not begun.
    pub(super) fn failed(label: &str, message: impl Into<String>) -> Self {
        Self {
            txn_id: -1,
            label: label.to_owned(),
            status: "Fail",
            existing_job_status: None,
            message: message.into(),
            number_total_rows: 0,
            number_loaded_rows: 0,
            number_filtered_rows: 0,
            number_unselected_rows: 0,
            load_bytes: 0,
            load_time_ms: 0,
            begin_txn_time_ms: 0,
            stream_load_plan_time_ms: 0,
            read_data_time_ms: 0,
            write_data_time_ms: 0,
            commit_and_publish_time_ms: 0,
            error_url: None,
        }
    }
}
