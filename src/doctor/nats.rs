//! The sink.

use super::Report;
use crate::config::{Config, Oversize};
use crate::error::{Code, Failure};
use crate::nats::connect;
use crate::nats::object_store;
use crate::nats::stream::{Look, Probe, Stream};
use crate::outbox::Template;
use bytesize::ByteSize;

/// A stream that is so full is worth a word, in percent of its limit.
const FULL_PERCENT: u64 = 80;

/// What became known.
pub(super) struct Broker {
    pub(super) stream: Stream,
    pub(super) look: Option<Look>,
}

/// Looks at everything in NATS; none when it cannot even be asked.
pub(super) async fn examine(
    config: &Config,
    template: Option<&Template>,
    report: &mut Report,
) -> Option<Broker> {
    let nats = report.told(connect::connect(&config.nats.access).await)?;
    let info = nats.client.server_info();
    report.sound(format!("nats-server {} at {}:{}", info.version, info.host, info.port));
    let stream = report.told(Stream::named(&nats, &config.nats.stream).await)?;
    let look = report.told(stream.look().await);
    if let Some(look) = &look {
        limits(config, look, report);
        if config.nats.msg_id {
            let fixed = nats.client.is_server_compatible(2, 12, 0);
            report.told(look.config.takes_message_ids(fixed, &info.version));
        }
        report.sound(format!("stream {} with {} messages", stream.name(), look.messages));
        if let Some(template) = template {
            match look.config.fits(stream.name(), template) {
                Err(failure) => report.error(failure),
                Ok(()) => publishing(&stream, look, template, report).await,
            }
        }
        // Whether it may be read, also where it is empty.
        report.told(stream.message(look.end.last_seq.max(1)).await);
    }
    Some(Broker { stream, look })
}

/// The object store beside the stream, where it is used.
pub(super) async fn payloads(config: &Config, broker: &Broker, report: &mut Report) {
    let stream = &broker.stream;
    if config.delivery.oversize == Oversize::ObjectStore
        && report.told(object_store::exists(stream).await) == Some(false)
    {
        let what = format!("the object store `{}` does not exist", object_store::bucket(stream.name()));
        report.error(Failure::new(Code::StreamMissing, what, "init makes it").command("postrider init"));
    }
}

/// Limits that refuse events, or lose them.
fn limits(config: &Config, look: &Look, report: &mut Report) {
    let name = &config.nats.stream;
    let stream = &look.config;
    for what in stream.warnings() {
        report.warning(
            Failure::new(
                Code::StreamLoses,
                what,
                "let it refuse new messages instead: the relay waits for room",
            )
            .command(format!("nats stream edit {name} --discard new --force")),
        );
    }
    match stream.retention.as_str() {
        "interest" => {
            let what = format!("stream `{name}` keeps messages only while a consumer is interested");
            let remedy = "make every consumer durable before the relay runs, or use limits retention (a new stream)";
            if look.consumers == 0 {
                let what = format!("{what}, and there is none: events are gone at once");
                report.warning(Failure::new(Code::StreamLoses, what, remedy));
            } else {
                report.advice(Failure::new(Code::StreamLoses, what, remedy));
            }
        }
        "workqueue" => report.advice(Failure::new(
            Code::StreamLoses,
            format!("stream `{name}` is a work queue: each event goes to one consumer and is gone when it is acknowledged"),
            "none is needed where that is meant",
        )),
        _ => {}
    }
    for (what, flag, used, limit) in [
        ("bytes", "bytes", look.bytes, stream.max_bytes),
        ("messages", "msgs", look.messages, stream.max_msgs),
    ] {
        let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else { continue };
        let percent = used.saturating_mul(100) / limit;
        if percent >= FULL_PERCENT {
            let shown = |n: u64| if what == "bytes" { ByteSize(n).to_string() } else { n.to_string() };
            let failure = Failure::new(
                Code::StreamNearlyFull,
                format!("stream `{name}` holds {} of {} {what}: {percent} %", shown(used), shown(limit)),
                "raise the limit, or let max_age make room; a full stream stops the relay, and nothing is lost",
            );
            report.warning(failure.command(format!("nats stream edit {name} --max-{flag}=-1 --force")));
        }
    }
    if stream.max_msgs_per_subject > 0 {
        report.warning(
            Failure::new(
                Code::StreamLoses,
                format!(
                    "stream `{name}` keeps {} messages a subject: more of one type are dropped or refused",
                    stream.max_msgs_per_subject
                ),
                "lift the limit",
            )
            .command(format!("nats stream edit {name} --max-msgs-per-subject=-1 --force")),
        );
    }
    if let Some(cluster) = look.cluster.as_ref().filter(|_| stream.num_replicas == 1) {
        report.advice(
            Failure::new(
                Code::OneCopy,
                format!("stream `{name}` has one copy in cluster `{cluster}`: with its server it is away"),
                "three copies",
            )
            .command(format!("nats stream edit {name} --replicas 3 --force")),
        );
    }
}

/// Whether events may be published: a publish that cannot be stored is answered all the same.
async fn publishing(stream: &Stream, look: &Look, template: &Template, report: &mut Report) {
    let Some(subject) = template.example(&look.config.subjects) else { return };
    match stream.probe(&subject).await {
        Ok(Probe::Allowed) => report.sound(format!("publishing to {subject}")),
        Ok(Probe::Refused(failure)) | Err(failure) => report.error(failure),
    }
}
