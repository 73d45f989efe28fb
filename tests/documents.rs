//! What stands in the documents is what the code does.

use std::path::Path;

fn between(begin: &str, end: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(path).unwrap_or_default();
    let table = readme.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    table.map_or_else(String::new, |(table, _)| table.trim().to_owned())
}

#[test]
fn the_table_of_keys_is_the_one_that_drives_the_program() {
    let table = postrider::config::keys::markdown();
    assert_eq!(between("<!-- keys: begin -->", "<!-- keys: end -->"), table.trim(), "should be:\n{table}");
}

#[test]
fn the_table_of_codes_is_the_catalogue() {
    let table = postrider::error::markdown();
    assert_eq!(between("<!-- codes: begin -->", "<!-- codes: end -->"), table.trim(), "should be:\n{table}");
}

#[test]
fn the_sql_for_a_dba_makes_the_tables_that_init_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/init.sql");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('"', "");
    let script = words(&std::fs::read_to_string(path).unwrap_or_default());
    let checkpoint = postrider::state::checkpoint::create_table("postrider");
    for table in [checkpoint, postrider::state::dead_letter::create_table("postrider")] {
        let table = words(&table);
        assert!(script.contains(&format!("{table};")), "not in sql/init.sql:\n{table}");
    }
}
