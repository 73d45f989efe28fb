//! The subject template: text and placeholders over columns.
//!
//! | placeholder | gives |
//! | --- | --- |
//! | `{column}` | the column's text as one token, or part of one |
//! | `{column:tokens}` | the column's text, dots let through |
//! | `{column:bucket(16)}` | FNV-1a 32 of the text's bytes mod 16, from 0 |
//!
//! A name that holds `:`, braces or white space is written in quotes, `{"Event Type"}`, a quote in
//! it twice. All that can be wrong with the text is found when the template is read, all that can
//! be wrong with a value when a row comes, so that a subject is valid by construction.

use super::overlap::{self, Piece};
use super::poison::{Poison, Reason, excerpt};
use super::subject;
use crate::error::{Code, Failure};
use crate::postgres::text::Text;
use bytes::Bytes;
use std::fmt;
use std::num::NonZeroU32;

/// A checked template of the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Text(String),
    Column { name: String, form: Form },
}

/// How a column's text becomes part of the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Token,
    Tokens,
    Bucket(NonZeroU32),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// `PR0105` with the position of the fault.
    pub fn parse(text: &str) -> Result<Template, Failure> {
        Parser { text, at: 0 }.template()
    }

    /// `text` with the column as one token behind it. `text` is ours and valid.
    pub(super) fn with_column(text: &str, column: &str) -> Template {
        let column = Segment::Column { name: column.to_owned(), form: Form::Token };
        Template { segments: vec![Segment::Text(text.to_owned()), column] }
    }

    /// The subject that a stream must bind to hold all that the template produces: the literal
    /// tokens that it begins with, like `outbox.>`. None when it begins with a placeholder.
    #[must_use]
    pub fn stream_subject(&self) -> Option<String> {
        let Some(Segment::Text(text)) = self.segments.first() else { return None };
        if self.segments.len() == 1 {
            return Some(text.clone());
        }
        let (tokens, _) = text.rsplit_once('.')?;
        Some(format!("{tokens}.>"))
    }

    /// Whether the template can produce a subject that `filter`, a stream's subject, matches.
    #[must_use]
    pub fn overlaps(&self, filter: &str) -> bool {
        let pieces: Vec<_> = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => Piece::Text(text),
                Segment::Column { form: Form::Token, .. } => Piece::Token,
                Segment::Column { form: Form::Tokens, .. } => Piece::Tokens,
                Segment::Column { form: Form::Bucket(_), .. } => Piece::Digits,
            })
            .collect();
        overlap::overlap(&pieces, &overlap::filter(filter))
    }

    /// A subject that it can produce and that one of `filters` matches, where one is easily found.
    #[must_use]
    pub fn example(&self, filters: &[String]) -> Option<String> {
        let subject: String = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => text.as_str(),
                Segment::Column { form: Form::Bucket(_), .. } => "0",
                Segment::Column { .. } => "doctor",
            })
            .collect();
        filters.iter().any(|filter| super::subject::matches(filter, &subject)).then_some(subject)
    }

    /// The columns that the template reads.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Text(_) => None,
            Segment::Column { name, .. } => Some(name.as_str()),
        })
    }

    /// The template over rows in which `index_of` tells where a column stands; None when one is missing.
    pub(super) fn bind(&self, index_of: impl Fn(&str) -> Option<usize>) -> Option<BoundTemplate> {
        let bind = |segment: &Segment| {
            Some(match segment {
                Segment::Text(text) => Part::Text(text.clone()),
                Segment::Column { name, form } => {
                    Part::Column { index: index_of(name)?, name: name.clone(), form: *form }
                }
            })
        };
        Some(BoundTemplate { parts: self.segments.iter().map(bind).collect::<Option<_>>()? })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Text(text) => f.write_str(text)?,
                Segment::Column { name, form: Form::Token } => write!(f, "{{{name}}}")?,
                Segment::Column { name, form: Form::Tokens } => write!(f, "{{{name}:tokens}}")?,
                Segment::Column { name, form: Form::Bucket(n) } => write!(f, "{{{name}:bucket({n})}}")?,
            }
        }
        Ok(())
    }
}

/// A template whose columns are found.
#[derive(Debug, Clone)]
pub(super) struct BoundTemplate {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Column { index: usize, name: String, form: Form },
}

impl BoundTemplate {
    /// The subject of a row.
    pub(super) fn subject<'r>(&self, cell: impl Fn(usize) -> Option<&'r Bytes>) -> Result<Text, Poison> {
        // Exact but for buckets: text whose buffer has no room left needs no second allocation.
        let capacity = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Column { form: Form::Bucket(_), .. } => 1,
            Part::Column { index, .. } => cell(*index).map_or(0, Bytes::len),
        });
        let mut subject = String::with_capacity(capacity.sum());
        for part in &self.parts {
            match part {
                Part::Text(text) => subject.push_str(text),
                Part::Column { index, name, form } => {
                    let Some(value) = cell(*index) else {
                        return Err(Poison::new(Reason::BadSubject, format!("column `{name}` is null")));
                    };
                    push(&mut subject, name, *form, value)?;
                }
            }
        }
        match subject::whole_fault(&subject) {
            Some(fault) => {
                Err(Poison::new(Reason::BadSubject, format!("the subject {} {fault}", excerpt(&subject))))
            }
            None => Ok(Text::from(subject)),
        }
    }
}

fn push(subject: &mut String, column: &str, form: Form, value: &[u8]) -> Result<(), Poison> {
    let check = match form {
        Form::Bucket(buckets) => {
            push_decimal(subject, fnv1a(value) % buckets);
            return Ok(());
        }
        Form::Token => subject::token_fault,
        Form::Tokens => subject::tokens_fault,
    };
    let Ok(value) = std::str::from_utf8(value) else {
        return Err(Poison::new(Reason::BadSubject, format!("column `{column}` is not UTF-8")));
    };
    if let Some(fault) = check(value) {
        return Err(Poison::new(
            Reason::BadSubject,
            format!("column `{column}` {fault}: {}", excerpt(value)),
        ));
    }
    subject.push_str(value);
    Ok(())
}

fn push_decimal(text: &mut String, number: u32) {
    if number >= 10 {
        push_decimal(text, number / 10);
    }
    text.extend(char::from_digit(number % 10, 10));
}

/// FNV-1a, 32 bits: every language has it in five lines, so a consumer can tell the bucket of a key.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn form(text: &str) -> Result<Form, &'static str> {
    if text == "tokens" {
        return Ok(Form::Tokens);
    }
    let Some(buckets) = text.strip_prefix("bucket(").and_then(|text| text.strip_suffix(')')) else {
        return Err("what follows the colon is neither `tokens` nor `bucket(N)`");
    };
    match buckets.parse() {
        // A sign would parse too.
        Ok(buckets) if text.bytes().all(|byte| byte != b'+') => Ok(Form::Bucket(buckets)),
        _ => Err("the number of buckets is from 1 to 4294967295"),
    }
}

/// `at` is a byte offset that always lies between two characters.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn template(mut self) -> Result<Template, Failure> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut token_is_empty = true;
        if self.text.starts_with('$') {
            return Err(self.fault(0, "subjects that begin with `$` are NATS's own"));
        }
        while let Some(char) = self.rest().chars().next() {
            match char {
                '{' => {
                    if !literal.is_empty() {
                        segments.push(Segment::Text(std::mem::take(&mut literal)));
                    }
                    segments.push(self.placeholder()?);
                    token_is_empty = false;
                    continue;
                }
                '}' => return Err(self.fault(self.at, "this `}` closes nothing")),
                '.' if token_is_empty => return Err(self.fault(self.at, "a token is empty before this dot")),
                '.' => token_is_empty = true,
                char => {
                    if let Some(fault) = subject::char_fault(char) {
                        return Err(self.fault(self.at, &format!("the text {fault}")));
                    }
                    token_is_empty = false;
                }
            }
            literal.push(char);
            self.at += char.len_utf8();
        }
        if token_is_empty {
            return Err(self.fault(self.at, "the last token is empty"));
        }
        if !literal.is_empty() {
            segments.push(Segment::Text(literal));
        }
        let template = Template { segments };
        let literal_bytes: usize = template.segments.iter().map(Segment::literal_bytes).sum();
        if literal_bytes > subject::SUBJECT_BYTES_MAX {
            return Err(self.fault(0, "the text alone is longer than a subject may be, 1024 bytes"));
        }
        Ok(template)
    }

    fn placeholder(&mut self) -> Result<Segment, Failure> {
        let open = self.at;
        self.at += 1;
        let name = if self.rest().starts_with('"') { self.quoted_name()? } else { self.bare_name()? };
        if self.take("}") {
            return Ok(Segment::Column { name, form: Form::Token });
        }
        let form_at = self.at + 1;
        if !self.take(":") {
            return Err(self.fault(open, "this `{` is not closed"));
        }
        let Some((text, _)) = self.rest().split_once('}') else {
            return Err(self.fault(open, "this `{` is not closed"));
        };
        let form = form(text).map_err(|fault| self.fault(form_at, fault))?;
        self.at += text.len() + 1;
        Ok(Segment::Column { name, form })
    }

    fn bare_name(&mut self) -> Result<String, Failure> {
        let rest = self.rest();
        let end = rest.find(['}', ':']).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(self.fault(self.at, "a column name is missing"));
        }
        if name.contains(|char: char| char.is_whitespace() || matches!(char, '"' | '{')) {
            return Err(
                self.fault(self.at, "a column name with white space, quotes or braces must be quoted")
            );
        }
        self.at += end;
        Ok(name)
    }

    fn quoted_name(&mut self) -> Result<String, Failure> {
        let open = self.at;
        self.at += 1;
        let mut name = String::new();
        while let Some(char) = self.rest().chars().next() {
            self.at += char.len_utf8();
            if char != '"' {
                name.push(char);
            } else if self.take("\"") {
                name.push('"');
            } else if name.is_empty() {
                return Err(self.fault(open, "a column name is missing"));
            } else {
                return Ok(name);
            }
        }
        Err(self.fault(open, "this quote is not closed"))
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    fn fault(&self, at: usize, fault: &str) -> Failure {
        let position = self.text.get(..at).unwrap_or_default().chars().count() + 1;
        Failure::new(
            Code::BadTemplate,
            format!("outbox.subject {:?}, character {position}: {fault}", self.text),
            "write tokens with dots between them and columns in braces, like `outbox.{event_type}`, \
             `outbox.{topic:tokens}` or `orders.{key:bucket(16)}`; \
             quote unusual column names, like `{\"Event Type\"}`",
        )
    }
}

impl Segment {
    fn literal_bytes(&self) -> usize {
        match self {
            Segment::Text(text) => text.len(),
            Segment::Column { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The subject of a row whose columns are `columns`.
    fn render(template: &str, columns: &[(&str, Option<&str>)]) -> Result<String, Poison> {
        let template = Template::parse(template).unwrap();
        let cells: Vec<_> =
            columns.iter().map(|(_, value)| value.map(|value| Bytes::from(value.to_owned()))).collect();
        let bound = template.bind(|name| columns.iter().position(|(column, _)| *column == name)).unwrap();
        bound.subject(|index| cells[index].as_ref()).map(|subject| subject.to_string())
    }

    fn render_one(template: &str, value: &str) -> Result<String, Poison> {
        render(template, &[("c", Some(value))])
    }

    #[test]
    fn a_column_is_one_token() {
        assert_eq!(render_one("outbox.{c}", "created").unwrap(), "outbox.created");
    }

    #[test]
    fn several_placeholders_and_text_stand_in_one_token() {
        let columns = [("a", Some("eu")), ("b", Some("9"))];
        assert_eq!(render("orders-{a}{b}.x{b}y.z", &columns).unwrap(), "orders-eu9.x9y.z");
    }

    #[test]
    fn tokens_let_dots_through() {
        assert_eq!(render_one("outbox.{c:tokens}.x", "a.b").unwrap(), "outbox.a.b.x");
        assert_eq!(render_one("outbox.{c:tokens}", "a..b").unwrap_err().reason.as_str(), "bad_subject");
    }

    #[test]
    fn names_may_be_quoted() {
        let columns = [("Event Type", Some("a")), ("x:\"}", Some("b"))];
        assert_eq!(render(r#"{"Event Type"}.{"x:""}":tokens}"#, &columns).unwrap(), "a.b");
    }

    #[test]
    fn fnv1a_agrees_with_its_published_vectors() {
        for (text, hash) in
            [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("b", 0xe70c_2de5), ("foobar", 0xbf9c_f968)]
        {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn the_bucket_of_a_key_never_changes() {
        for (key, bucket) in [("", 5), ("a", 12), ("foobar", 8), ("order 17.*", 5)] {
            assert_eq!(render_one("o.{c:bucket(16)}", key).unwrap(), format!("o.{bucket}"), "{key}");
        }
        assert_eq!(render_one("o.{c:bucket(1)}", "a").unwrap(), "o.0");
        assert_eq!(render_one("o.{c:bucket(4294967295)}", "a").unwrap(), format!("o.{}", 0xe40c_292c_u32));
    }

    #[test]
    fn a_value_that_is_no_token_is_poison_and_named() {
        for value in ["", "a b", "a.b", "*", ">", "a\n"] {
            let poison = render_one("outbox.{c}", value).unwrap_err();
            assert_eq!(poison.reason.as_str(), "bad_subject");
            assert!(poison.message.contains("`c`"), "{}", poison.message);
        }
    }

    #[test]
    fn a_null_is_poison_and_named() {
        for template in ["o.{c}", "o.{c:tokens}", "o.{c:bucket(2)}"] {
            let poison = render(template, &[("c", None)]).unwrap_err();
            assert_eq!(poison.reason.as_str(), "bad_subject");
            assert!(poison.message.contains("`c` is null"), "{}", poison.message);
        }
    }

    #[test]
    fn a_subject_that_is_too_long_or_the_systems_is_poison() {
        assert_eq!(render_one("o.{c}", &"a".repeat(1022)).unwrap().len(), 1024);
        assert_eq!(render_one("o.{c}", &"a".repeat(1023)).unwrap_err().reason.as_str(), "bad_subject");
        assert_eq!(render_one("{c}.x", "$SYS").unwrap_err().reason.as_str(), "bad_subject");
    }

    #[test]
    fn a_wrong_template_is_told_with_its_position() {
        for (template, position, fault) in [
            ("", 1, "the last token is empty"),
            (".a", 1, "a token is empty"),
            ("a..b", 3, "a token is empty"),
            ("a.", 3, "the last token is empty"),
            ("ä b", 2, "white space"),
            ("a.*", 3, "wildcard"),
            ("a.>", 3, "wildcard"),
            ("a\r", 2, "white space"),
            ("a\u{1}", 2, "control character"),
            ("a}", 2, "closes nothing"),
            ("a.{b", 3, "not closed"),
            ("a.{b:tokens", 3, "not closed"),
            ("a.{\"b", 4, "quote is not closed"),
            ("a.{\"b\"x}", 3, "not closed"),
            ("a.{}", 4, "name is missing"),
            ("a.{:tokens}", 4, "name is missing"),
            ("a.{\"\"}", 4, "name is missing"),
            ("a.{b c}", 4, "must be quoted"),
            ("a.{b:token}", 6, "neither"),
            ("a.{b:bucket}", 6, "neither"),
            ("a.{b:bucket(0)}", 6, "from 1 to"),
            ("a.{b:bucket(x)}", 6, "from 1 to"),
            ("a.{b:bucket(+4)}", 6, "from 1 to"),
            ("a.{b:bucket(4294967296)}", 6, "from 1 to"),
            ("$JS.{b}", 1, "NATS's own"),
        ] {
            let failure = Template::parse(template).unwrap_err();
            assert_eq!(failure.code, Code::BadTemplate);
            let expected = format!("character {position}: ");
            assert!(
                failure.message.contains(&expected) && failure.message.contains(fault),
                "{template:?}: {failure}"
            );
            assert!(!failure.remedy.is_empty());
        }
    }

    #[test]
    fn the_streams_subject_is_the_literal_beginning() {
        for (template, subject) in [
            ("outbox.{t}", Some("outbox.>")),
            ("outbox.event.{t}.x", Some("outbox.event.>")),
            ("a.b-{t}.c", Some("a.>")),
            ("a.b", Some("a.b")),
            ("a-{t}", None),
            ("{t}.a", None),
        ] {
            assert_eq!(Template::parse(template).unwrap().stream_subject().as_deref(), subject, "{template}");
        }
    }

    #[test]
    fn a_template_overlaps_with_what_it_can_produce() {
        for (template, filter, expected) in [
            ("outbox.{t}", "outbox.>", true),
            ("outbox.{t}", "outbox.*", true),
            ("outbox.{t}", "outbox.created", true),
            ("outbox.{t}", "outbox.created.v1", false),
            ("outbox.{t:tokens}", "outbox.created.v1", true),
            ("outbox.{t}", "orders.>", false),
            ("outbox.{t}", "outbox", false),
            ("orders-{t}", "orders-eu", true),
            ("orders-{t}", "orders-", false),
            ("orders-{t}", "*", true),
            ("{t}.x", "*.y", false),
            ("o.{k:bucket(4)}.{t}", "o.*.created", true),
            ("o.{k:bucket(4)}", "o.x", false),
            ("a.b", "a.b", true),
        ] {
            assert_eq!(Template::parse(template).unwrap().overlaps(filter), expected, "{template} {filter}");
        }
    }

    fn templates() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z$-]{1,3}",
            Just("{c}".into()),
            Just("{c:tokens}".into()),
            "\\{c:bucket\\([1-9]\\)\\}"
        ];
        let token = prop::collection::vec(piece, 1..3).prop_map(|pieces| pieces.concat());
        prop::collection::vec(token, 1..4).prop_map(|tokens| tokens.join("."))
    }

    proptest! {
        #[test]
        fn what_a_template_produces_is_valid_and_overlaps(template in templates(), value in "[a-c.*> $\u{3000}é]{0,4}") {
            prop_assume!(!template.starts_with('$'));
            if let Ok(produced) = render_one(&template, &value) {
                prop_assert_eq!(subject::tokens_fault(&produced), None);
                prop_assert_eq!(subject::whole_fault(&produced), None);
                let template = Template::parse(&template).unwrap();
                prop_assert!(template.overlaps(&produced));
                prop_assert!(template.overlaps(">"));
                if let Some(bound) = template.stream_subject() {
                    prop_assert!(subject::matches(&bound, &produced));
                    prop_assert!(template.overlaps(&bound));
                }
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*|[{}:\"a.()bucketokns 0-9é]{0,20}") {
            let _ = Template::parse(&text);
        }
    }
}
