//! What JetStream answers to a publish, and what can be done about it.

use super::ApiError;
use crate::error::{Code, Failure};
use serde::Deserialize;

/// What JetStream says to one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Stored at this sequence.
    Stored(u64),
    /// It says `duplicate`: nothing was stored now.
    Duplicate(u64),
    /// It refuses.
    Refused {
        /// HTTP-like.
        code: u64,
        /// JetStream's own; 0 when it gives none.
        err_code: u64,
        /// In words.
        description: String,
    },
    /// No stream listens: none has a leader, or JetStream is shutting down.
    NoResponders,
}

/// What to do about a JetStream that is silent, or has no leader for the stream.
pub const LEADERLESS: &str = "see nats-server's log; in a cluster, that most of its servers run and the stream has a \
    leader: nats stream info, nats server report jetstream. The relay goes on by itself then";

impl Answer {
    /// Whether it says no more than that an earlier message is not where it must be.
    #[must_use]
    pub fn is_consequence(&self) -> bool {
        match self {
            Answer::Stored(_) | Answer::Duplicate(_) => true,
            // Wrong last sequence, duplicate in process, and the per-subject form on replicas.
            Answer::Refused { err_code, .. } => matches!(err_code, 10_071 | 10_158 | 10_164),
            Answer::NoResponders => false,
        }
    }

    /// What an answer other than stored means, sorted (ADR-22 and nats-server's `errors.json`).
    #[must_use]
    pub fn failure(&self, stream: &str, subject: &str) -> Failure {
        let retry = "none is needed: the relay tries again";
        let (err_code, code, said) = match self {
            Answer::Stored(seq) | Answer::Duplicate(seq) => {
                let message = format!("stream `{stream}` says that it has the event at sequence {seq}");
                return Failure::new(Code::NatsSession, message, retry);
            }
            Answer::NoResponders => {
                let message = format!(
                    "no stream listens on `{subject}`: JetStream has no leader for stream `{stream}`"
                );
                return Failure::new(Code::NatsSession, message, LEADERLESS);
            }
            Answer::Refused { code, err_code, description } => (*err_code, *code, description),
        };
        let (code, remedy) = match (err_code, code) {
            // The stream is full.
            (10_077 | 10_052, _) => (
                Code::PublishRefused,
                "raise the stream's limits (nats stream edit), or let consumers and max_age make room",
            ),
            // The account or the server is full.
            (10_002 | 10_023 | 10_028 | 10_047, _) => (
                Code::PublishRefused,
                "raise the account's or the server's JetStream limits (nats account info)",
            ),
            (10_109, _) => (Code::StreamUnfit, "the stream is sealed: choose another nats.stream"),
            (10_060, _) => {
                (Code::StreamUnbound, "another stream binds the subject: nats stream ls --subject")
            }
            (10_039 | 10_076, _) => (Code::NoJetStream, "enable JetStream for the account"),
            (10_054, _) => (Code::Oversize, "raise the stream's max_msg_size, or make the payload smaller"),
            (10_097, _) => (Code::HeaderTooLarge, "make the headers column's entries smaller"),
            (10_166 | 10_111, _) => (Code::EventRefused, "see the event's headers"),
            // Not the leader, in process, too many requests, starting up.
            (10_009 | 10_158 | 10_163 | 10_167 | 10_071 | 10_164 | 10_008, _) | (_, 429 | 503 | 0) => {
                (Code::NatsSession, retry)
            }
            _ => (Code::PublishRefused, "see nats-server's log and the stream's configuration"),
        };
        Failure::new(
            code,
            format!("stream `{stream}` refuses an event for `{subject}`: {said} (error {err_code})"),
            remedy,
        )
    }
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

/// Reads a PubAck. By far most are `{"stream":"S","seq":17}` or, up to 2.11, `{"stream":"S", "seq":17}`;
/// anything else, such as a domain, is left to serde.
#[must_use]
pub fn parse(payload: &[u8]) -> Answer {
    if let Some(seq) = plain(payload) {
        return Answer::Stored(seq);
    }
    match serde_json::from_slice::<PubAck>(payload) {
        Ok(PubAck { error: Some(ApiError { code, err_code, description }), .. }) => {
            Answer::Refused { code, err_code, description }
        }
        Ok(PubAck { duplicate: true, seq, .. }) => Answer::Duplicate(seq),
        Ok(PubAck { seq, .. }) if seq > 0 => Answer::Stored(seq),
        _ => Answer::Refused {
            code: 0,
            err_code: 0,
            description: format!("an answer that does not parse: {}", payload.escape_ascii()),
        },
    }
}

fn plain(payload: &[u8]) -> Option<u64> {
    let rest = payload.strip_prefix(b"{\"stream\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    let (name, rest) = rest.split_at_checked(end)?;
    let rest = rest.strip_prefix(b"\",")?;
    if !name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'\\') {
        return None;
    }
    let rest = rest.strip_prefix(b" ").unwrap_or(rest).strip_prefix(b"\"seq\":")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest).strip_suffix(b"}")?;
    let digits = rest.first().is_some_and(|first| *first != b'0') && rest.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(rest).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_spellings_of_a_plain_answer_are_read() {
        assert_eq!(parse(br#"{"stream":"OUTBOX","seq":17}"#), Answer::Stored(17));
        assert_eq!(parse(br#"{"stream":"OUTBOX", "seq":18}"#), Answer::Stored(18));
        assert_eq!(parse(br#"{"stream":"OUTBOX","domain":"hub","seq":19}"#), Answer::Stored(19));
    }

    #[test]
    fn by_far_most_answers_take_the_short_way() {
        assert_eq!(plain(br#"{"stream":"OUTBOX","seq":17}"#), Some(17));
        assert_eq!(plain(br#"{"stream":"OUTBOX", "seq":18}"#), Some(18));
        // What JSON escapes is left to serde.
        assert_eq!(plain(br#"{"stream":"OUT\u0042OX","seq":17}"#), None);
    }

    #[test]
    fn a_duplicate_is_not_taken_for_stored() {
        assert_eq!(parse(br#"{"stream":"S","seq":0,"duplicate":true}"#), Answer::Duplicate(0));
        assert_eq!(parse(br#"{"stream":"S","seq":5,"duplicate": true}"#), Answer::Duplicate(5));
    }

    #[test]
    fn an_answer_without_a_sequence_is_not_taken_for_stored() {
        for garbage in [
            &b""[..],
            b"{}",
            br#"{"stream":"S","seq":0}"#,
            br#"{"stream":"S","seq":07}"#,
            br#"{"stream":"S\x","seq":7}"#,
            br#"{"stream":"S","seq":}"#,
            b"+OK",
        ] {
            assert!(matches!(parse(garbage), Answer::Refused { .. }), "{}", garbage.escape_ascii());
        }
    }

    #[test]
    fn a_refusal_keeps_its_codes() {
        let refusal = br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"stream":"S","seq":0}"#;
        let description = "wrong last sequence: 7".to_owned();
        assert_eq!(parse(refusal), Answer::Refused { code: 400, err_code: 10_071, description });
    }

    #[test]
    fn each_refusal_is_sorted_by_what_can_be_done_about_it() {
        let sorted = |code, err_code| {
            let answer = Answer::Refused { code, err_code, description: "said".into() };
            let failure = answer.failure("S", "s.a");
            assert!(failure.message.contains("said") && failure.message.contains("s.a"), "{failure}");
            (failure.code, failure.remedy)
        };
        for (err_codes, code, remedy) in [
            (&[10_077, 10_052][..], Code::PublishRefused, "stream's limits"),
            (&[10_002, 10_023, 10_028, 10_047], Code::PublishRefused, "account's"),
            (&[10_109], Code::StreamUnfit, "sealed"),
            (&[10_060], Code::StreamUnbound, "another stream"),
            (&[10_039, 10_076], Code::NoJetStream, "enable JetStream"),
            (&[10_054], Code::Oversize, "max_msg_size"),
            (&[10_097], Code::HeaderTooLarge, "headers"),
            (&[10_166, 10_111], Code::EventRefused, "headers"),
            (&[10_009, 10_158, 10_163, 10_167, 10_071, 10_164, 10_008], Code::NatsSession, "none is needed"),
            (&[10_999], Code::PublishRefused, "nats-server's log"),
        ] {
            for err_code in err_codes {
                let (found, said) = sorted(400, *err_code);
                assert_eq!(found, code, "{err_code}");
                assert!(said.contains(remedy), "{err_code}: {said}");
            }
        }
        // Without a code of JetStream's own, HTTP's decides.
        for code in [0, 429, 503] {
            assert_eq!(sorted(code, 0).0, Code::NatsSession, "{code}");
        }
        assert_eq!(sorted(400, 0).0, Code::PublishRefused);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&payload);
        }
    }
}
