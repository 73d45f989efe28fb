//! Whether two patterns of subjects have a subject in common.
//!
//! A template (`orders-{type}.{key:tokens}`) and a stream's filter (`orders-eu.*`, `outbox.>`) are
//! both regular, so the question is answered exactly by walking their two automata together.
//! Comparing token by token would not do: `{column:tokens}` may stand inside a token and bring
//! dots of its own.

use std::collections::BTreeSet;

/// A part of a pattern.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'a> {
    /// Exactly this text.
    Text(&'a str),
    /// A text without dots, not empty.
    Token,
    /// Tokens with dots between them, none empty.
    Tokens,
    /// A number; its bound is not modelled, so a bucket beyond the last one counts as possible.
    Digits,
}

/// The pieces of a stream's subject.
pub(super) fn filter(subject: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (place, token) in subject.split('.').enumerate() {
        if place > 0 {
            pieces.push(Piece::Text("."));
        }
        pieces.push(match token {
            "*" => Piece::Token,
            ">" => Piece::Tokens,
            token => Piece::Text(token),
        });
    }
    pieces
}

/// Whether some subject is matched by both.
pub(super) fn overlap(left: &[Piece<'_>], right: &[Piece<'_>]) -> bool {
    let (left, right) = (Automaton::new(left), Automaton::new(right));
    let mut seen = BTreeSet::from([(0, 0)]);
    let mut open = vec![(0, 0)];
    while let Some((l, r)) = open.pop() {
        if l == left.end && r == right.end {
            return true;
        }
        for &(_, takes, to) in left.from(l) {
            for &(_, other, other_to) in right.from(r) {
                if takes.meets(other) && seen.insert((to, other_to)) {
                    open.push((to, other_to));
                }
            }
        }
    }
    false
}

/// The bytes that a step takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    Byte(u8),
    NoDot,
    Digit,
}

impl Takes {
    fn meets(self, other: Takes) -> bool {
        match (self, other) {
            (Takes::Byte(a), Takes::Byte(b)) => a == b,
            (Takes::Byte(byte), Takes::NoDot) | (Takes::NoDot, Takes::Byte(byte)) => byte != b'.',
            (Takes::Byte(byte), Takes::Digit) | (Takes::Digit, Takes::Byte(byte)) => byte.is_ascii_digit(),
            (Takes::NoDot | Takes::Digit, Takes::NoDot | Takes::Digit) => true,
        }
    }
}

/// States are numbered from 0, the start; `end` alone accepts.
struct Automaton {
    /// (from, takes, to), in the order of `from`.
    steps: Vec<(usize, Takes, usize)>,
    end: usize,
}

impl Automaton {
    fn new(pieces: &[Piece<'_>]) -> Automaton {
        let mut steps = Vec::new();
        let mut end = 0;
        let mut next = 0;
        for piece in pieces {
            let mut add = |from, takes, to| steps.push((from, takes, to));
            match piece {
                Piece::Text(text) => {
                    for byte in text.bytes() {
                        next += 1;
                        add(end, Takes::Byte(byte), next);
                        end = next;
                    }
                }
                Piece::Token | Piece::Tokens | Piece::Digits => {
                    let takes = if matches!(piece, Piece::Digits) { Takes::Digit } else { Takes::NoDot };
                    next += 1;
                    add(end, takes, next);
                    end = next;
                    add(end, takes, end);
                    if matches!(piece, Piece::Tokens) {
                        // A state of its own behind the dot: the next byte must begin a token.
                        next += 1;
                        add(end, Takes::Byte(b'.'), next);
                        add(next, takes, end);
                    }
                }
            }
        }
        steps.sort_by_key(|&(from, _, _)| from);
        Automaton { steps, end }
    }

    fn from(&self, state: usize) -> &[(usize, Takes, usize)] {
        let first = self.steps.partition_point(|&(from, _, _)| from < state);
        let last = self.steps.partition_point(|&(from, _, _)| from <= state);
        self.steps.get(first..last).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters_overlap(left: &str, right: &str) -> bool {
        overlap(&filter(left), &filter(right))
    }

    #[test]
    fn filters_overlap_where_some_subject_fits_both() {
        for (left, right, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "*.b", true),
            ("a.*", "b.*", false),
            ("a.>", "a", false),
            ("a.>", "*.b.c", true),
            ("a.*", "a.b.>", false),
            (">", "x", true),
        ] {
            assert_eq!(filters_overlap(left, right), expected, "{left} {right}");
            assert_eq!(filters_overlap(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn tokens_inside_a_token_bring_dots_of_their_own() {
        let pieces = [Piece::Text("a-"), Piece::Tokens, Piece::Text("-z")];
        for (subject, expected) in
            [("a-b.c-z", true), ("a-b-z", true), ("*.*.*", true), ("a-.b-z", false), ("a-z", false)]
        {
            assert_eq!(overlap(&pieces, &filter(subject)), expected, "{subject}");
        }
    }

    #[test]
    fn digits_fit_only_numbers() {
        let pieces = [Piece::Text("a."), Piece::Digits];
        assert!(overlap(&pieces, &filter("a.15")));
        assert!(overlap(&pieces, &filter("*.*")));
        assert!(!overlap(&pieces, &filter("a.b")));
    }
}
