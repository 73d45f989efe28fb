//! What counts as processed, as missing and as late, and what is refused because it could not be told.

use super::*;

#[tokio::test]
async fn rows_whose_deletion_does_not_say_their_id_are_refused_where_nothing_else_says_that_they_are_processed()
 {
    let pipeline = Pipeline::on(Servers::default()).await;
    pipeline
        .execute(
            "CREATE TABLE outbox (seq bigserial PRIMARY KEY, id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE, \
             aggregatetype text, aggregateid text, type text, payload jsonb)",
        )
        .await;
    const INSERT: &str =
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', '7', 'placed')";
    let shadow = watching(&pipeline, &[]).await;
    pipeline.execute(INSERT).await;
    let (ended, report) = told(shadow).await;
    refused(&ended, (2, "PR0117", "REPLICA IDENTITY USING INDEX"));
    assert_eq!(report["missing"], 0);
    pipeline.execute("ALTER TABLE outbox REPLICA IDENTITY USING INDEX outbox_id_key").await;
    let shadow = watching(&pipeline, &["--count", "1"]).await;
    pipeline.execute(INSERT).await;
    pipeline.execute("DELETE FROM outbox").await;
    let (ended, report) = told(shadow).await;
    assert_eq!((ended.code, counts(&report)), (Some(0), json!([1, 1, 0, 0, 0])), "{}", ended.stderr);
}
