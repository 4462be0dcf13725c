//! The API as its document describes it, put to the test by schemathesis.

use std::process::Command;

use harness::python;
use harness::tools::{command, run, two_hosts_with_volumes};

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
    run(command(&cluster).args(["snapshot", "create", "last"]));
}
