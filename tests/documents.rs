//! What stands in the documents is what the code does.

use std::collections::BTreeSet;
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
fn the_table_of_metrics_is_the_one_that_is_served() {
    let table = postrider::ops::metrics::markdown();
    assert_eq!(
        between("<!-- metrics: begin -->", "<!-- metrics: end -->"),
        table.trim(),
        "should be:\n{table}"
    );
}

#[test]
fn the_sql_for_a_dba_makes_the_tables_that_init_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/init.sql");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('"', "");
    let script = words(&std::fs::read_to_string(path).unwrap_or_default());
    let checkpoint = postrider::state::checkpoint::create_table("postrider");
    let letters = postrider::state::dead_letter::create_table("postrider");
    for table in [checkpoint, letters, postrider::state::older::create_table("postrider")] {
        let table = words(&table);
        assert!(script.contains(&format!("{table};")), "not in sql/init.sql:\n{table}");
    }
}

/// The codes in a text, in order.
fn codes(text: &str) -> BTreeSet<&str> {
    let parts = text.match_indices("PR0").filter_map(|(at, _)| text.get(at..at + 6));
    parts.filter(|code| code[2..].bytes().all(|byte| byte.is_ascii_digit())).collect()
}

#[test]
fn the_page_of_causes_has_the_codes_of_its_tests_and_they_exist() {
    let read = |path: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default()
    };
    let (page, tests) = (read("docs/nothing-is-published.md"), read("tests/e2e/causes.rs"));
    let (told, caused) = (codes(&page), codes(&tests));
    assert!(caused.len() >= 10, "{caused:?}");
    let unknown: Vec<_> =
        told.iter().filter(|code| code.parse::<postrider::error::Code>().is_err()).collect();
    assert!(unknown.is_empty(), "there are no such codes: {unknown:?}");
    let missing: Vec<_> = caused.difference(&told).collect();
    assert!(missing.is_empty(), "caused, and not on the page: {missing:?}");
}

/// Every test that a document names is there.
#[track_caller]
fn names_tests_that_exist(document: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(document)).unwrap_or_default();
    let mut sources = String::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    // Names of tests are sentences: nothing else in backticks has so many words, but a metric.
    let words = |name: &&str| {
        name.matches('_').count() >= 4
            && !name.starts_with(postrider::ops::metrics::PREFIX)
            && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    };
    let names: Vec<_> = text.split('`').skip(1).step_by(2).filter(words).collect();
    assert!(names.len() > 10, "{document} names {} tests", names.len());
    let missing: Vec<_> = names
        .iter()
        .filter(|name| {
            // Versions' tests are named where a macro makes them.
            !sources.contains(&format!("fn {name}")) && !sources.contains(&format!(" {name}"))
        })
        .collect();
    assert!(missing.is_empty(), "{document} names tests that do not exist: {missing:#?}");
}

#[test]
fn the_map_of_tests_names_tests_that_exist() {
    names_tests_that_exist("tests/README.md");
}

#[test]
fn the_table_of_guarantees_names_tests_that_exist() {
    names_tests_that_exist("README.md");
}
