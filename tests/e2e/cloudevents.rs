//! Messages as CloudEvents in NATS's binary mode.

use crate::support::{ARTICLE, Pipeline};

#[tokio::test]
async fn a_message_is_a_cloudevent_where_that_is_asked_for() {
    let mut pipeline = Pipeline::with_table(ARTICLE).await;
    pipeline.set("POSTRIDER_OUTBOX_CLOUDEVENTS", "true");
    let mut relay = pipeline.run().await;
    pipeline.execute("INSERT INTO outbox VALUES (7, 'order_placed', '{}')").await;
    let message = pipeline.exactly(1).await.remove(0);
    let system = pipeline.ask("SELECT system_identifier FROM pg_control_system()").await;
    let source = format!("/postrider/{system}/postrider");
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-type", "order_placed"),
        ("ce-source", &source),
        ("ce-time", message.header("Postrider-Commit-Time").unwrap()),
        ("ce-datacontenttype", "application/json"),
        ("Content-Type", "application/json"),
    ] {
        assert_eq!(message.header(name), Some(value), "{name}");
    }
    assert_eq!(relay.terminate().await, Some(0));
}
