//! docs/quickstart.md, typed in as it stands: every command behind a `$` in a shell of its own machine's namespaces. What
//! comes back is the document's transcript: `COEVAL_WRITE_DOCS=1` writes it there.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::coeval;
use harness::shell::Shell;

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/quickstart.md")
}

/// The commands of the transcripts, in order.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if inside => commands.extend(line.strip_prefix("$ ").map(str::to_owned)),
            _ => {}
        }
    }
    commands
}

/// Types the commands into one shell, and returns what each said.
fn type_in(commands: &[String], directory: &Path) -> Vec<String> {
    // Its own network, and its own /run: nothing of this is seen outside, and nothing is left.
    // Two of the commands wait for something that may never come: what has been said until then is shown.
    let mut program = Command::new("timeout");
    program.args(["--kill-after=5", "180", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    program
        .args(["bash", "--norc", "-s"])
        .current_dir(directory)
        .env("PATH", format!("{}:{}", coeval().parent().unwrap().display(), std::env::var("PATH").unwrap()))
        .env_remove("RUST_LOG");
    let mut shell = Shell::start(program);
    let logs = || -> String {
        ["server", "db1", "db2"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(directory.join(format!("{name}.log"))).ok())
            .collect()
    };
    let mut type_in = |command: &str| {
        let (status, said) = shell.type_in(command);
        assert_eq!(status, 0, "{command}\n{said}\n{}", logs());
        said
    };
    type_in("mount -t tmpfs tmpfs /run && mount -t proc proc /proc && ip link set lo up");
    commands.iter().map(|command| type_in(command)).collect()
}

/// The document with what was said under each command.
fn with_transcript(text: &str, said: &[String]) -> String {
    let mut said = said.iter();
    let mut written = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if inside && !line.starts_with("$ ") => continue,
            _ => {}
        }
        written += &format!("{line}\n");
        if inside && line.starts_with("$ ") {
            let answer = said.next().unwrap();
            // Job numbers are the shell's.
            written.extend(
                answer
                    .lines()
                    .filter(|line| !line.starts_with('['))
                    .map(|line| format!("{}\n", line.trim_end())),
            );
        }
    }
    written
}

#[test]
fn the_quick_start_works_as_it_stands() {
    let text = std::fs::read_to_string(document()).unwrap();
    let commands = commands(&text);
    assert!(commands.len() > 20, "{commands:?}");
    // Long patience lies in no command: a machine that is busy takes longer, and none of this depends on it.
    let directory = tempfile::tempdir().unwrap();
    let said = type_in(&commands, directory.path());
    let of = |begin: &str| {
        let at = commands.iter().position(|command| command.contains(begin)).unwrap();
        said[at].as_str()
    };
    assert!(of("snapshot create").starts_with("before-upgrade: consistent"), "{}", of("snapshot create"));
    assert!(said.iter().any(|said| said.contains("db2/data: reads as it did")), "{said:?}");
    assert!(of("as it was").contains("as it was"));
    assert!(of("schedule list").contains("good"));
    assert!(of("doctor").contains("would be timed"), "{}", of("doctor"));
    let written = with_transcript(&text, &said);
    if std::env::var_os("COEVAL_WRITE_DOCS").is_some() {
        std::fs::write(document(), written).unwrap();
        return;
    }
    // The figures differ from run to run, the words do not.
    let words = |text: &str| -> Vec<String> {
        // Not what has a digit in it: figures, times, names with a number of their own.
        let letters = |line: &str| -> String {
            let named = line.split(' ').filter(|word| !word.contains(|it: char| it.is_ascii_digit()));
            let spaced: Vec<&str> = named.collect();
            spaced.join(" ").chars().filter(|it| it.is_ascii_alphabetic() || *it == ' ').collect()
        };
        let plain = text.lines().filter(|line| !line.contains(['┼', '━', '░', '├', '│', '─']));
        let mut words: Vec<String> = plain
            .flat_map(|line| letters(line).split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        // Units, and what a table says where there is nothing.
        words.retain(|word| word.len() > 3);
        words.sort();
        words.dedup();
        words
    };
    let (now, before) = (words(&written), words(&text));
    let missing: Vec<_> = before.iter().filter(|word| !now.contains(word)).collect();
    assert_eq!(
        missing, [""; 0],
        "the document says what the program does not: COEVAL_WRITE_DOCS=1 writes it anew"
    );
}
