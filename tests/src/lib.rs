//! What whole-system tests and benchmarks share: the binary, network namespaces, and a fleet of daemons in them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

pub mod acknowledged;
pub mod booted;
pub mod browser;
pub mod ceph;
pub mod chaos;
pub mod clocks;
pub mod controls;
pub mod distance;
pub mod external;
pub mod filesystem;
pub mod fleet;
pub mod fuzz;
pub mod instants;
pub mod machine;
pub mod namespaces;
pub mod postgres;
pub mod ptp4l;
pub mod python;
pub mod shell;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod sys;
pub mod thin;
pub mod tls;
pub mod tools;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// The release binary, brought up to date by the first call. Where nothing can be built, `COEVAL_PROGRAM` names it.
///
/// # Panics
/// When it cannot be built: nothing that needs it could run.
pub fn coeval() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("COEVAL_PROGRAM") {
            return program.into();
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--release", "--locked", "--package", "coeval"]);
        cargo.current_dir(&workspace);
        forget_this_package(&mut cargo);
        let built = cargo.status();
        assert!(built.is_ok_and(|status| status.success()), "the binary `coeval` cannot be built");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        target.join("release/coeval")
    })
}

/// A command will not hear what the cargo that runs us says of this package. Build scripts watch these variables: with
/// them, half of the dependencies would be built anew, and once more by the next build without them.
pub fn forget_this_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
}

const PAUSE: Duration = Duration::from_millis(20);
/// A minute: everything awaited takes a second or so, but machines are busy.
const POLLS: u32 = 3000;

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none for a minute, with the last refusal.
pub fn eventually<T, E: Display>(mut ask: impl FnMut() -> Result<T, E>) -> T {
    let mut refusal = String::new();
    for _ in 0..POLLS {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => refusal = why.to_string(),
        }
        std::thread::sleep(PAUSE);
    }
    panic!("still so after a minute: {refusal}");
}
