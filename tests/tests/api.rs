//! The API as its document describes it, put to the test by schemathesis.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use harness::python;
use harness::tools::{command, run, run_eventually, two_hosts_with_volumes};
use serde_json::Value;

/// What must not be wrong with any answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,negative_data_rejection,\
                      missing_required_header,unsupported_method";

#[test]
fn no_request_makes_the_server_fail_and_every_answer_is_as_documented() {
    let cluster = two_hosts_with_volumes(&[]);
    run(command(&cluster).args(["snapshot", "create", "first"]));
    let mut schemathesis = Command::new(python::programs().join("schemathesis"));
    schemathesis
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", cluster.api))
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "15"])
        // A number drawn anew would make a failure another one's.
        .args(["--seed", "20261129", "--max-time", "60", "--request-timeout", "30", "--no-color"])
        // A recording goes on for as long as it was told to.
        .args(["--exclude-path", "/api/v1/skew/recording"])
        .current_dir(std::env::temp_dir());
    let told = run(&mut schemathesis);
    // Its status is 0 where no check failed; warnings about data that means nothing to the server do not count.
    assert!(told.contains(" generated, "), "{told}");
    // And it is none the worse for it, whatever it was told to delete.
    run(command(&cluster).args(["volume", "create", "a/after", "1MiB"]));
    // Some of that may still be under way. What a restore was prepared on is free again after a minute; so many tries
    // take longer.
    run_eventually(command(&cluster).args(["snapshot", "create", "last"]));
}

/// What stands in the page before the table of routes.
const ROUTES: &str = "\n## Routes\n\n| | | |\n| --- | --- | --- |\n";

#[test]
fn the_page_lists_every_route() {
    let cluster = two_hosts_with_volumes(&[]);
    let fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())";
    let address = format!("{}/api/v1/openapi.json", cluster.api);
    let document = run(Command::new("python3").args(["-c", fetch, &address]));
    let document: Value = serde_json::from_str(&document).unwrap();
    let mut table = String::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, route) in methods.as_object().unwrap() {
            let summary = route["summary"].as_str().unwrap().trim_end_matches('.').replace('\n', " ");
            writeln!(table, "| {} | `{path}` | {summary} |", method.to_uppercase()).unwrap();
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let stored = std::fs::read_to_string(&page).unwrap();
    let before = stored.split_once(ROUTES).map_or(stored.as_str(), |(before, _)| before);
    let now = format!("{before}{ROUTES}{table}");
    if std::env::var_os("COEVAL_WRITE_DOCS").is_some() {
        std::fs::write(&page, &now).unwrap();
    } else {
        assert!(stored == now, "docs/api.md is not up to date: COEVAL_WRITE_DOCS=1 writes it anew");
    }
}
