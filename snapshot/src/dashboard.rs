//! The dashboard: a page that shows what the API tells, and lets operators take and verify snapshots.
//!
//! Its files are part of the program and are served as they are: nothing is fetched from elsewhere. Names of hosts and
//! volumes come from elsewhere, so the page may run no script and use no style but these files, may speak to this
//! server only, may not be shown inside another page, and can turn no string into HTML (Trusted Types).

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::http::{Refusal, Segments};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const INDEX: File = File { name: "index.html", kind: HTML, text: include_str!("dashboard/index.html") };

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        &[$(File { name: $name, kind: $kind, text: include_str!(concat!("dashboard/", $name)) }),*]
    };
}

const FILES: &[File] = files![
    "chart.js": SCRIPT,
    "clocks.js": SCRIPT,
    "dom.js": SCRIPT,
    "histogram.js": SCRIPT,
    "host.js": SCRIPT,
    "icon.svg": SVG,
    "main.js": SCRIPT,
    "matrix.js": SCRIPT,
    "server.js": SCRIPT,
    "snapshot.js": SCRIPT,
    "snapshots.js": SCRIPT,
    "strip.js": SCRIPT,
    "style.css": CSS,
    "take.js": SCRIPT,
    "timeline.js": SCRIPT,
    "units.js": SCRIPT,
    "volumes.js": SCRIPT,
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

impl IntoResponse for &File {
    fn into_response(self) -> Response {
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, self.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // The next version of the program has other files.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.text).into_response()
    }
}

/// The page at `/`, and its files.
pub fn router() -> Router {
    Router::new().route("/", get(async || &INDEX)).route("/dashboard/{file}", get(file))
}

async fn file(Segments(name): Segments<String>) -> Result<&'static File, Refusal> {
    let found = FILES.iter().find(|file| file.name == name);
    found.ok_or_else(|| Refusal::new(404, format!("the dashboard has no file {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_another_one_names_is_served() {
        for file in FILES.iter().chain([&INDEX]) {
            for opening in ["from \"./", "=\"/dashboard/"] {
                for rest in file.text.split(opening).skip(1) {
                    let name = rest.split('"').next().unwrap();
                    assert!(FILES.iter().any(|file| file.name == name), "{} names {name}", file.name);
                }
            }
        }
        let modules = FILES.iter().filter(|file| file.kind == SCRIPT && file.name != "main.js");
        for module in modules {
            // Otherwise the browser would learn of it only after the module that needs it has come.
            let preload = format!("rel=\"modulepreload\" href=\"/dashboard/{}\"", module.name);
            assert!(INDEX.text.contains(&preload), "{} is not preloaded", module.name);
        }
    }

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for file in FILES.iter().chain([&INDEX]) {
            for forbidden in ["innerHTML", "<style", "style=\"", "javascript:", "eval(", "https://"] {
                assert!(!file.text.contains(forbidden), "{} contains {forbidden}", file.name);
            }
        }
        assert_eq!(
            INDEX.text.matches("<script").count(),
            INDEX.text.matches("<script type=\"module\" src=").count()
        );
    }
}
