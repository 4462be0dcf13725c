//! Python programs that tests run, in a virtual environment of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::tools::run;

const REQUIREMENTS: &str = include_str!("../python/requirements.txt");

/// The directory of the environment's programs. The first call makes it from `tests/python/requirements.txt`, if that
/// has not been done.
///
/// # Panics
/// When the packages cannot be installed.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let target = coeval_target();
        let environment = target.join("python");
        let (programs, done) = (environment.join("bin"), environment.join("requirements.txt"));
        if fs::read_to_string(&done).is_ok_and(|installed| installed == REQUIREMENTS) {
            return programs;
        }
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
        let wanted = environment.join("wanted.txt");
        fs::write(&wanted, REQUIREMENTS).unwrap();
        let mut pip = Command::new(programs.join("pip"));
        run(pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]).arg(&wanted));
        fs::rename(wanted, done).unwrap();
        programs
    })
}

fn coeval_target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from)
}
