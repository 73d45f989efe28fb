//! The page at `/`: one file, without anything from elsewhere.
//!
//! Its policy names script and style by their hashes: nothing else runs or is fetched, also if a
//! reason or an error that it shows should ever hold markup.

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::{HeaderName, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use std::sync::LazyLock;

const HTML: &str = include_str!("page.html");

/// The page; it knows whether it must ask for a token before anything else.
pub(super) fn html(token: bool) -> Cow<'static, str> {
    match token {
        true => HTML.replacen("<html lang=\"en\"", "<html lang=\"en\" data-token", 1).into(),
        false => HTML.into(),
    }
}

static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>")
    )
});

pub(super) fn headers() -> [(HeaderName, &'static str); 5] {
    [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
}

/// Of what stands between the two.
fn hash(begin: &str, end: &str) -> String {
    let inner = HTML.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(inner, _)| inner);
    format!("sha256-{}", STANDARD.encode(digest(&SHA256, inner.unwrap_or_default().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_from_elsewhere() {
        assert_eq!(HTML.matches("<script").count(), 1);
        assert_eq!(HTML.matches("<style").count(), 1);
        for elsewhere in ["http://", "https://", "src=", "@import", " style=", " onclick"] {
            let found = HTML.replace("http://www.w3.org/2000/svg", "").contains(elsewhere);
            assert!(!found, "{elsewhere}");
        }
        let nothing = STANDARD.encode(digest(&SHA256, b""));
        assert!(!POLICY.contains(&nothing), "{}", POLICY.as_str());
    }
}
